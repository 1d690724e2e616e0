"use strict";
// What the page does beyond showing itself: sort tables, open the clips behind a cell, hide corpora.
const data = JSON.parse(document.getElementById("data").textContent);

function make(tag, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Sorting: a number where the cell has one, else its text. What has no value stays last.
function key(cell) {
  const value = cell.dataset.value;
  if (value === "") return null;
  return value === undefined ? cell.textContent.trim().toLowerCase() : Number(value);
}

function sort(table, column, header) {
  const was = header.getAttribute("aria-sort");
  const rows = [...table.tBodies[0].rows];
  const words = rows.some((row) => typeof key(row.cells[column]) === "string");
  const ascending = was ? was === "descending" : words;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const keyed = rows.map((row) => [key(row.cells[column]), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = a < b ? -1 : a > b ? 1 : 0;
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    if (header.classList.contains("unsorted")) return;
    const button = make("button", undefined, { type: "button", className: "sort" });
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, column, header));
    header.append(button);
  });
}

// The clips behind a cell of a confusion matrix.
const dialog = document.getElementById("clips");
const cards = new Map();
for (const card of document.querySelectorAll(".card")) {
  cards.set(card.dataset.corpus + " " + card.dataset.clip, card);
}

function open(corpus, name, cell) {
  const [count, ...clips] = data.cells[corpus][cell];
  const [label, predicted] = cell.split(",").map((place) => data.labels[place]);
  const title = make("h2", `${name}: ${label} predicted as ${predicted}`, { id: "clips-title" });
  const shown = clips.length < count ? `The ${clips.length} that the classifier was surest of, of ${count}.` : "";
  const list = make("ol");
  const players = make("ul", undefined, { className: "cards" });
  for (const [clip, probability] of clips) {
    const item = make("li", clip + " ");
    item.append(make("small", (100 * probability).toFixed(1) + "%"));
    list.append(item);
    const card = cards.get(name + " " + clip);
    if (card) players.append(card.cloneNode(true));
  }
  const close = make("button", "Close", { type: "button", className: "close" });
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(title, make("p", shown, { className: "note" }), list, players, close);
  dialog.showModal();
}

for (const table of document.querySelectorAll("table.matrix")) {
  const corpus = Number(table.dataset.corpus);
  for (const cell of table.querySelectorAll("td[data-cell]")) {
    if (!(cell.dataset.cell in (data.cells[corpus] || {}))) continue;
    const button = make("button", cell.textContent, { type: "button", title: cell.title });
    button.setAttribute("aria-label", cell.title + ": show the clips");
    button.addEventListener("click", () => open(corpus, table.dataset.name, cell.dataset.cell));
    cell.replaceChildren(button);
  }
}
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => dialog.replaceChildren());

// Corpora on the map.
for (const box of document.querySelectorAll("input[data-map]")) {
  box.addEventListener("change", () => {
    document.querySelector(`.map g[data-corpus="${box.dataset.map}"]`).style.display = box.checked ? "" : "none";
  });
}
document.documentElement.classList.add("scripted");
