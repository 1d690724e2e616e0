"""The report in a real browser, as a reader uses it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.report_sample import (
    LABELS,
    copies_of,
    corpus,
    example,
    metrics,
    metrics_of,
    page,
    pair,
    shown_pair,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM = CHROMIUM or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome"),
]
SCRIPT = "<script>window.hurt = 1; alert(1)</script>"
QUOTES = """it's "quoted" </script><!-- \\ & ünïcode 音 .wav"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end it must have said nothing, failed nowhere and asked for nothing."""
    complaints: list[str] = []
    contexts = []

    def go(html: str, **options: object) -> Page:
        file = tmp_path / "report.html"
        file.write_text(html)
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda message: complaints.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        tab.on(
            "request",
            lambda request: (
                None
                if request.url == file.as_uri() or request.url.startswith("data:")
                else complaints.append(f"request: {request.url}")
            ),
        )
        tab.goto(file.as_uri())
        return tab

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def names(tab: Page) -> list[str]:
    """The corpora in the order of the table."""
    return tab.locator("#corpora table.corpora tbody tr").evaluate_all(
        "rows => rows.map(row => row.dataset.corpus)"
    )


def cell_of(tab: Page, corpus: str, place: str) -> Locator:
    return tab.locator(f'table.matrix[data-name="{corpus}"] td[data-cell="{place}"] button')


def test_a_column_sorts_both_ways_and_what_has_no_value_stays_last(
    opened: Callable[..., Page],
) -> None:
    tab = opened(page())
    assert names(tab) == ["real", "faithful", "poor", "empty"]

    header = tab.locator("#corpora table.corpora th", has_text="MMD")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    falling = names(tab)
    header.get_by_role("button").press("Enter")

    assert header.get_attribute("aria-sort") == "ascending"
    assert falling[0] == "poor"
    assert names(tab) == [*falling[:3][::-1], "empty"]
    tab.locator("#corpora table.corpora th", has_text="Corpus").get_by_role("button").click()
    assert names(tab) == sorted(falling)


def test_a_confusion_opens_the_clips_behind_it(opened: Callable[..., Page]) -> None:
    """By mouse and by keyboard; a clip among the examples brings its picture and player."""
    shown = example(clip_id="faithful/0/1.wav")
    tab = opened(page(examples=[shown]))
    dialog = tab.locator("dialog")

    cell_of(tab, "faithful", "0,0").click()

    expect(dialog).to_be_visible()
    expect(dialog.locator("h2")).to_have_text("faithful: dog predicted as dog")
    lines = dialog.locator("ol li").all_inner_texts()
    count = int(metrics()["corpora"]["faithful"]["confusion"][0][0])
    assert len(lines) == min(count, 20)
    assert lines[1] == "faithful/0/1.wav 89.0%"
    assert dialog.locator("audio").count() == dialog.locator("img").count() == 1
    assert f"of {count}" in dialog.locator("p.note").inner_text()
    tab.keyboard.press("Escape")
    expect(dialog).to_be_hidden()

    other = cell_of(tab, "poor", "1,2")
    other.focus()
    tab.keyboard.press("Enter")

    expect(dialog.locator("h2")).to_have_text("poor: rain predicted as siren")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_a_clip_is_played(opened: Callable[..., Page]) -> None:
    tab = opened(page())
    audio = tab.locator(".card audio").first

    audio.evaluate(
        """async audio => {
            await audio.play();
            await new Promise(predicted => audio.addEventListener("timeupdate", () => {
                if (audio.currentTime > 0.2) predicted();
            }));
        }"""
    )

    assert audio.evaluate("audio => audio.duration") == pytest.approx(1, abs=0.05)
    assert audio.evaluate("audio => audio.error") is None


def test_a_clip_stands_beside_the_training_clip_that_it_resembles(
    opened: Callable[..., Page],
) -> None:
    """Two players a pair, which play; below each other on a phone."""
    given = metrics()
    copies = copies_of(given["corpora"])
    copies["corpora"]["faithful"]["pairs"][0] = pair(f"{QUOTES}{SCRIPT}", QUOTES, 0.99)
    html = page(
        metrics=given | {"copies": copies},
        pairs=[shown_pair("faithful", 0), shown_pair("faithful", 1), shown_pair(None, 0)],
    )
    tab = opened(html)
    section = tab.locator("#copies")
    pairs = section.locator(".pair")
    assert pairs.count() == 3
    assert [pairs.nth(place).locator("audio").count() for place in range(3)] == [2, 2, 2]
    first = pairs.first
    assert first.locator("p.clip").all_inner_texts() == [f"{QUOTES}{SCRIPT}", QUOTES]
    left, right = (picture.bounding_box() for picture in first.locator("img").all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    for audio in first.locator("audio").all():
        audio.evaluate("audio => audio.play()")
        assert audio.evaluate("audio => audio.error") is None
    expect(pairs.nth(2)).to_be_hidden()
    section.locator("summary", has_text="Training clips of different groups").click()
    expect(pairs.nth(2)).to_be_visible()
    assert tab.evaluate("window.hurt") is None

    phone = opened(html, viewport={"width": 360, "height": 740})
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    above, below = (box.bounding_box() for box in phone.locator("#copies .pair img").all()[:2])
    assert above["y"] + above["height"] < below["y"]


def test_a_corpus_goes_from_the_map_and_comes_back(opened: Callable[..., Page]) -> None:
    tab = opened(page())
    poor = tab.get_by_label("poor", exact=True)
    marks = tab.locator(".map g[data-corpus='2'] path")
    assert marks.count() == 12
    expect(marks.first).to_be_visible()

    poor.uncheck()

    expect(marks.first).to_be_hidden()
    expect(tab.locator(".map g[data-corpus='1'] path").first).to_be_visible()
    poor.check()
    expect(marks.first).to_be_visible()


def test_hostile_names_do_nothing(opened: Callable[..., Page]) -> None:
    """A label that is a script, a corpus and a file name full of quotes: shown as they are."""
    labels = [SCRIPT, *LABELS[1:]]
    corpora = {
        "real": corpus("real", 57, 60, labels),
        QUOTES: corpus("generated", 80, 100, labels),
    }
    hostile = example(corpus=QUOTES, clip_id=f"{QUOTES}/0/0.wav", label=SCRIPT, prediction=SCRIPT)
    tab = opened(page(metrics=metrics_of(corpora, labels), examples=[hostile]))

    tab.locator("table.matrix").nth(1).locator("td[data-cell='0,0'] button").click()

    dialog = tab.locator("dialog")
    expect(dialog.locator("h2")).to_have_text(f"{QUOTES}: {SCRIPT} predicted as {SCRIPT}")
    assert dialog.locator("ol li").first.inner_text().startswith(f"{QUOTES}/0/0.wav")
    assert dialog.locator("audio").count() == 1
    assert tab.evaluate("window.hurt") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(
    opened: Callable[..., Page], scheme: str
) -> None:
    tab = opened(page(), viewport={"width": 360, "height": 740}, color_scheme=scheme)

    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    cell_of(tab, "poor", "1,2").click()
    box = tab.locator("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_on_paper_everything_is_unfolded(opened: Callable[..., Page]) -> None:
    tab = opened(page())

    tab.emulate_media(media="print")

    expect(tab.locator("nav")).to_be_hidden()
    expect(tab.locator("pre")).to_be_visible()
    expect(tab.locator("table.every")).to_be_visible()
    assert len(tab.pdf()) > 50_000


def test_without_scripts_all_is_there_but_what_needs_them(opened: Callable[..., Page]) -> None:
    tab = opened(page(), java_script_enabled=False)

    assert tab.locator("#corpora table.corpora tbody tr").count() == 4
    assert tab.locator("td[data-cell]").first.inner_text().isdigit()
    expect(tab.locator(".map")).to_be_visible()
    expect(tab.locator("audio").first).to_be_visible()
    expect(tab.locator(".with-script").first).to_be_hidden()
