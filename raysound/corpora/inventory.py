"""The files of a corpus, listed in blocks, and what has to be known of all of them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.cells import to_columns
from raysound.corpora.file_names import stem
from raysound.corpora.folders import Folders
from raysound.corpora.layouts import (
    HIDDEN,
    OTHER_SUFFIXES,
    Names,
    Tally,
    Warn,
    has_ending,
    is_sound,
    merge_tallies,
    quoted,
    tally,
    utf8,
)
from raysound.corpora.packed import CONTAINERS, Container
from raysound.corpora.table_files import is_candidate
from raysound.errors import UserError

# A row whose `odd` is not null is no file: it says what is odd about the name, see `storage.scan`.
LISTING = pa.schema(
    [("name", pa.string()), ("size", pa.int64()), ("modified", pa.int64()), ("odd", pa.string())]
)
# Rows of a block, unless one folder holds more files of one name but for the ending.
BLOCK_ROWS = 1 << 16
# What is said of names that are no plain files.
ODD_NAMES = {
    "broken": "{count} links lead nowhere, {name} for one",
    "above": "{count} links lead to a folder above them and are not followed, {name} for one",
    "inside": "{count} links lead to folders that are listed and are not followed, {name} for one",
    "outside": "{count} links lead out of the corpus and are followed, {name} for one",
    "special": "{count} pipes, sockets or devices are left out, {name} for one",
}


def list_blocks(path: str, below: str = "", deep: bool = True) -> Iterator[pa.Table]:
    """Lists the files of a corpus as tables of LISTING.

    Files of one folder whose names differ only in the ending are in one table. A broken link has
    the size -1.

    Args:
        path: of the corpus.
        below: the folder in it from which on files are listed.
        deep: False for the files of that folder alone.

    Raises:
        UserError: it can't be listed.
    """
    odd: list[tuple[str, int | None, int | None, str | None]] = []

    def note(kind: str, name: str) -> None:
        odd.append((utf8(name), None, None, kind))
        if kind == "broken":
            odd.append((utf8(name), -1, 0, None))

    batches: list[pa.Table] = []
    rows: list[tuple[str, int, int, None]] = []
    total, folder = 0, None
    try:
        for name, size, modified in storage.scan(path, note, below, deep):
            here = posixpath.dirname(name)
            if here != folder and total >= BLOCK_ROWS:
                yield from _cut([*batches, to_columns(rows, LISTING)])
                batches, rows, total = [], [], 0
            if len(rows) == BLOCK_ROWS:
                batches.append(to_columns(rows, LISTING))
                rows = []
            folder = here
            rows.append((utf8(name), size, modified, None))
            total += 1
    except OSError as error:
        raise UserError(f"{path} can't be listed: {error}") from error
    yield from _cut([*batches, to_columns(rows, LISTING), to_columns(odd, LISTING)])


def _cut(batches: list[pa.Table]) -> Iterator[pa.Table]:
    """Rows in the order of their names, in tables of about BLOCK_ROWS."""
    table = pa.concat_tables(batches)
    if len(table) <= BLOCK_ROWS:
        yield table
        return
    stems = stem(table["name"]).combine_chunks()
    order = pc.sort_indices(
        pa.table([stems, table["name"]], ["stem", "name"]),
        sort_keys=[("stem", "ascending"), ("name", "ascending")],
    )
    table, stems = table.take(order), stems.take(order)
    start = 0
    while start < len(table):
        stop = min(start + BLOCK_ROWS, len(table))
        while stop < len(table) and stems[stop] == stems[stop - 1]:
            stop += 1
        yield table.slice(start, stop - start)
        start = stop


@dataclass(frozen=True)
class Inventory:
    """What the files of a corpus are; merges in any order.

    Attributes:
        sounds: sound files that can be read.
        folders: what their names say.
        endings: of files that are no sounds, as far as they are not common.
        containers: names, sizes and times of tar and Parquet files.
        tables: names and sizes of files that may be tables of labels.
        odd: names that are no plain files, by what they are.
    """

    sounds: int
    folders: Folders
    endings: Tally
    containers: tuple[tuple[str, int, int], ...]
    tables: tuple[tuple[str, int], ...]
    odd: dict[str, Names]

    @classmethod
    def of(cls, block: pa.Table) -> Inventory:
        """Of some files, see `list_blocks`."""
        odd = block.filter(pc.is_valid(block["odd"]))
        files = files_of(block)
        audible = is_sound(files["name"])
        sounds, others = files.filter(audible), files.filter(pc.invert(audible))
        others = others.filter(pc.invert(pc.match_substring_regex(others["name"], HIDDEN)))
        containers = others.filter(has_ending(others["name"], CONTAINERS))
        tables = files.filter(is_candidate(files["name"]))
        return cls(
            sounds=len(sounds),
            folders=Folders.of(sounds["name"]),
            endings=_other_endings(others["name"]),
            containers=_tuples(containers.select(["name", "size", "modified"])),
            tables=_tuples(tables.select(["name", "size"])),
            odd={
                kind: Names.of(odd.filter(pc.equal(odd["odd"], kind))["name"])
                for kind in pc.unique(odd["odd"]).to_pylist()
            },
        )

    def merge(self, other: Inventory) -> Inventory:
        """Of both."""
        nothing = Names(0, "")
        return Inventory(
            sounds=self.sounds + other.sounds,
            folders=self.folders.merge(other.folders),
            endings=merge_tallies([self.endings, other.endings]),
            containers=(*self.containers, *other.containers),
            tables=(*self.tables, *other.tables),
            odd={
                kind: self.odd.get(kind, nothing).merge(other.odd.get(kind, nothing))
                for kind in ODD_NAMES
                if kind in self.odd or kind in other.odd
            },
        )

    @classmethod
    def all(cls, inventories: Iterable[Inventory]) -> Inventory:
        """Of all."""
        return reduce(cls.merge, inventories)

    def containers_of(self, path: str) -> list[Container]:
        """The tar and Parquet files of the corpus, by name."""
        return [
            (name, storage.join(path, name), size, modified)
            for name, size, modified in sorted(self.containers)
        ]

    def warn_odd_names(self, path: str, warn: Warn) -> None:
        """Says which names are no plain files."""
        for kind, (count, least) in self.odd.items():
            warn(f"{path}: {ODD_NAMES[kind].format(count=count, name=quoted(least))}")


def files_of(block: pa.Table) -> pa.Table:
    """The rows of a listing that are files."""
    return block.filter(pc.is_null(block["odd"]))


def _other_endings(names: pa.ChunkedArray) -> Tally:
    """The endings of files that are no sounds, without the common ones of other files."""
    names = names.filter(pc.invert(has_ending(names, {*OTHER_SUFFIXES, *CONTAINERS})))
    # Such as LICENSE; below a class, a file without ending may well be a sound.
    at_top = pc.match_substring_regex(names, "^[^./]*$")
    return tally(names.filter(pc.invert(at_top)).to_pylist())


def _tuples(table: pa.Table) -> tuple[tuple, ...]:
    return tuple(zip(*table.to_pydict().values(), strict=True))
