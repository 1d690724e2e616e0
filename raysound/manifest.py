"""A corpus on disk → one table of clips, its own folds, groups and split kept."""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.cells import ROWS_AT_ONCE, as_text, each, to_columns
from raysound.config import UserError
from raysound.folders import read_folders
from raysound.layouts import (
    AUDIO_SUFFIXES,
    HIDDEN,
    OTHER_SUFFIXES,
    SCHEMA,
    Tally,
    Tell,
    has_ending,
    is_sound,
    meaning_of_splits,
    plain_name,
    shown,
    tally,
    tell_unread,
    unread_sounds,
)
from raysound.packed import CONTAINERS, holds_sounds, read_containers
from raysound.tables import labelled_rows, read_tables, with_split_lists

logger = logging.getLogger(__name__)

LISTING = pa.schema([("name", pa.string()), ("size", pa.int64()), ("modified", pa.int64())])
# What is said of names that are no plain files.
ODD_NAMES = {
    "broken": "{count} links lead nowhere, {name} for one",
    "above": "{count} links lead to a folder above them and are not followed, {name} for one",
    "inside": "{count} links lead to folders that are listed and are not followed, {name} for one",
    "outside": "{count} links lead out of the corpus and are followed, {name} for one",
    "special": "{count} pipes, sockets or devices are left out, {name} for one",
}

# Name, path or URI, size in bytes, modification time in ns.
Container = tuple[str, str, int, int]


def read_corpus(path: str, tell: Tell = logger.warning) -> pa.Table:
    """Lists the clips of a corpus as a table of SCHEMA, in an order that mixes the classes.

    A corpus is a manifest of ours (`.parquet`), a folder with a table of file names and labels
    (see `tables`), a folder a class with splits above or below them or without (see `layouts`), or
    a folder of tar files (WebDataset) or of Parquet files with the sounds inside (Hugging Face).
    `split` is the corpus's own or null. `size` is in bytes, -1 where the file is missing (of a
    row in Parquet: its share of the file); `modified` in ns. `offset` is null for a file of its
    own, else where the clip begins: a byte of a tar file, a row of a Parquet file. Clips in such
    containers stay in the containers' order.

    Args:
        path: folder or manifest, local or a URI.
        tell: takes a line about what was left out, or is doubtful.

    Raises:
        UserError: no such folder, no sound in it, no label, folders that are no classes, an unknown
            split, or a file listed twice.
    """
    kind = {".parquet": "manifest", ".tar": "tar file"}.get(posixpath.splitext(path)[1], "folder")
    try:
        is_file = storage.stat_files([path])[0][0] >= 0
        is_folder = not is_file and storage.is_folder(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be reached: {error}") from error
    if is_file and kind == "folder":
        raise UserError(f"{path} is a file, and no such folder: give the folder that it stands in")
    if not is_file and not is_folder:
        raise UserError(f"{path}: no such {kind}")
    table = (_file if is_file else _folder)(path, tell)
    _tell_same_names(pc.unique(table["label"]).to_pylist(), path, tell)
    return table


def _file(path: str, tell: Tell) -> pa.Table:
    """A tar file, one Parquet file with sounds, or a manifest of ours."""
    if path.endswith(".parquet") and not holds_sounds(path):
        return _own_manifest(storage.read_table(path), path)
    name = storage.locate(path)[1].rpartition("/")[2]
    return _checked(
        read_containers(path, [(name, path, *storage.stat_files([path])[0])], tell), path
    )


def _folder(path: str, tell: Tell) -> pa.Table:
    listing = _listing(path, tell)
    audible = is_sound(listing["name"])
    sounds, others = listing.filter(audible), listing.filter(pc.invert(audible))
    others = others.filter(pc.invert(pc.match_substring_regex(others["name"], HIDDEN)))
    packs = others.filter(has_ending(others["name"], CONTAINERS))
    packs = [
        (name, storage.join(path, name), size, modified)
        for name, size, modified in sorted(zip(*packs.to_pydict().values(), strict=True))
    ]
    counted = _other_endings(others["name"])
    tell_unread(counted, path, tell)
    if packs and not len(sounds):
        used = _containers(packs, path, counted, tell)
        return _checked(read_containers(path, used, tell), path)
    tables = read_tables(listing, path, tell)
    rows = labelled_rows(tables, len(sounds), path, tell)
    if rows is None and not len(sounds):
        raise UserError(_no_sounds(path, counted))
    if rows is None:
        rows = read_folders(sounds["name"], path, tell)
    else:
        _tell_unlisted(sounds["name"], rows["name"], path, tell)
    for kind in CONTAINERS:
        beside = [name for name, uri, *_ in packs if name.endswith(kind) and holds_sounds(uri)]
        if beside:
            tell(
                f"{path}: {len(beside)} {CONTAINERS[kind]} files stand beside the sound files and "
                f"are left out, {shown(beside[0])} among them"
            )
    return _finish(with_split_lists(rows, tables, path, tell), listing, path)


def _tell_unlisted(sounds: pa.ChunkedArray, names: pa.ChunkedArray, path: str, tell: Tell) -> None:
    left = sounds.filter(pc.invert(pc.is_in(sounds, names.combine_chunks())))
    if len(left):
        tell(
            f"{path}: {len(left)} sound files are in no table row and are left out, "
            f"{shown(pc.min(left).as_py())} among them"
        )


def _other_endings(names: pa.ChunkedArray) -> Tally:
    """The endings of files that are no sounds, without the common ones of other files."""
    names = names.filter(pc.invert(has_ending(names, {*OTHER_SUFFIXES, *CONTAINERS})))
    # Such as LICENSE; below a class, a file without ending may well be a sound.
    at_top = pc.match_substring_regex(names, "^[^./]*$")
    return tally(names.filter(pc.invert(at_top)).to_pylist())


def _containers(packs: list[Container], path: str, counted: Tally, tell: Tell) -> list[Container]:
    """The tar files, else the Parquet files with sounds inside."""
    tars = [pack for pack in packs if pack[0].endswith(".tar")]
    parquets = [pack for pack in packs if pack[0].endswith(".parquet")]
    audible = any(holds_sounds(uri) for _, uri, *_ in parquets)
    if tars and audible:
        tell(
            f"{path}: {len(parquets)} Parquet files stand beside the tar files and are left out, "
            f"{shown(parquets[0][0])} among them"
        )
    if not tars and not audible:
        raise UserError(_no_sounds(path, counted))
    return tars or parquets


def _listing(path: str, tell: Tell) -> pa.Table:
    """Every file below a folder; a broken link that is called like a sound has the size -1."""
    odd: dict[str, list[str]] = {}
    broken: list[str] = []

    def note(kind: str, name: str) -> None:
        counted = odd.setdefault(kind, [])
        counted.append("" if counted else _utf8(name))
        if kind == "broken":
            broken.append(_utf8(name))

    try:
        files = storage.scan(path, note)
        rows = ((_utf8(name), size, modified) for name, size, modified in files)
        listing = to_columns(rows, LISTING)
    except OSError as error:
        raise UserError(f"{path} can't be listed: {error}") from error
    for kind, names in odd.items():
        tell(f"{path}: {ODD_NAMES[kind].format(count=len(names), name=shown(names[0]))}")
    return pa.concat_tables([listing, to_columns(((name, -1, 0) for name in broken), LISTING)])


def _no_sounds(path: str, counted: Tally) -> str:
    unread = unread_sounds(counted)
    return (
        f"{path} holds no sound files ({', '.join(sorted(AUDIO_SUFFIXES))}), no tar files with "
        f"sounds and no Parquet files with sounds{'; ' if unread else ''}{unread}"
    )


def _tell_same_names(labels: list[str], path: str, tell: Tell) -> None:
    """Says which classes are called alike but for capitals, blanks or the form of Unicode."""
    forms: dict[str, str] = {}
    for label in sorted(filter(None, labels)):
        other = forms.setdefault(plain_name(label), label)
        if other != label:
            tell(
                f"{path}: the classes {shown(other)} and {shown(label)} differ only in capitals, "
                "blanks or the form of Unicode: are they one?"
            )


def _own_manifest(table: pa.Table, path: str) -> pa.Table:
    missing = {"path", "label"} - set(table.column_names)
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    if not len(table):
        raise UserError(f"{path} lists no clips")
    nothing = pa.chunked_array([pa.nulls(len(table), pa.string())])
    text = {
        name: as_text(table[name], name, path) if name in table.column_names else nothing
        for name in ("clip_id", "path", "label", "fold", "split", "group")
    }
    empty = pc.fill_null(pc.equal(text["path"], ""), True)
    if pc.any(empty).as_py():
        row = table.filter(empty).slice(0, 1).to_pylist()[0]
        raise UserError(f"{path}: a row has no 'path': {row}")
    folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else os.getcwd())

    def absolute(name: str) -> str:
        return name if "://" in name or name.startswith("/") else storage.join(folder, name)

    clip_id = pc.coalesce(
        pc.if_else(pc.equal(text["clip_id"], ""), None, text["clip_id"]), text["path"]
    )
    paths = each(text["path"], absolute, pa.string())
    files = pc.unique(paths)
    stats = to_columns(
        (
            (uri, *stat)
            for start in range(0, len(files), ROWS_AT_ONCE)
            for some in [files.slice(start, ROWS_AT_ONCE).to_pylist()]
            for uri, stat in zip(some, storage.stat_files(some), strict=True)
        ),
        LISTING,
    )
    place = pc.index_in(paths, stats["name"].combine_chunks())
    size, offset = stats["size"].take(place), nothing.cast(pa.int64())
    if {"offset", "size"} <= set(table.column_names):
        try:
            offset, sizes = (table[name].cast(pa.int64()) for name in ("offset", "size"))
        except pa.ArrowException as error:
            raise UserError(f"{path}: offset and size must be whole numbers: {error}") from error
        size = pc.if_else(pc.is_valid(offset), sizes, size)
    columns = {
        **text,
        "clip_id": clip_id,
        "path": paths,
        "group": pc.coalesce(text["group"], clip_id),
        "size": size,
        "modified": stats["modified"].take(place),
        "offset": offset,
    }
    return _checked(pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA), path)


def _finish(rows: pa.Table, listing: pa.Table, root: str) -> pa.Table:
    """What a reader found, with paths, sizes and times, checked and in order."""
    if not len(rows):
        raise UserError(f"{root} lists no clips")
    place = pc.index_in(rows["name"], listing["name"].combine_chunks())
    found = {
        **dict(zip(rows.column_names, rows.columns, strict=True)),
        "clip_id": rows["name"],
        "path": each(rows["name"], lambda name: storage.join(root, name), pa.string()),
        "group": pc.coalesce(rows["group"], rows["name"]),
        "size": pc.fill_null(listing["size"].take(place), -1),
        "modified": pc.fill_null(listing["modified"].take(place), 0),
        "offset": pa.nulls(len(rows), pa.int64()),
    }
    return _checked(pa.table([found[name] for name in SCHEMA.names], schema=SCHEMA), root)


def _checked(table: pa.Table, source: str) -> pa.Table:
    """Refuses what can't be judged, and brings the clips into their order."""
    if pc.count_distinct(table["clip_id"]).as_py() < len(table):
        counts = pc.value_counts(table["clip_id"])
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise UserError(f"{source}: {shown(twice[0].as_py())} is listed twice")
    unlabelled = table.filter(pc.fill_null(pc.equal(table["label"], ""), True))
    if len(unlabelled):
        raise UserError(f"{source}: {shown(unlabelled['clip_id'][0].as_py())} has no label")
    if table["split"].null_count < len(table):
        words = pc.unique(table["split"].drop_null()).to_pylist()
        try:
            meaning = meaning_of_splits(words)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        split = pa.array([meaning[word] for word in words], pa.string()).take(
            pc.index_in(table["split"], pa.array(words, pa.string()))
        )
        place = table.schema.get_field_index("split")
        table = table.set_column(place, SCHEMA.field("split"), split)
    packed = table.filter(pc.is_valid(table["offset"]))
    loose = table.filter(pc.is_null(table["offset"]))
    # By a hash of the name: every shard is then a fair sample of all classes. What is packed is
    # read in the order in which it lies.
    order = np.argsort(each(loose["clip_id"], _hash, pa.uint64()).to_numpy(), kind="stable")
    packed = packed.sort_by([("path", "ascending"), ("offset", "ascending")])
    return pa.concat_tables([loose.take(order), packed]).combine_chunks()


def _hash(clip_id: str) -> int:
    return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big")


def _utf8(text: str) -> str:
    """Spells out the bytes of a file name that are no UTF-8; such a file ends as a reject."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
