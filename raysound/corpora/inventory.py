"""Lists the files of a corpus in blocks, and summarizes them."""

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
from raysound.corpora.packed import CONTAINERS, Container
from raysound.corpora.table_files import is_candidate
from raysound.corpora.vocabulary import (
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
from raysound.errors import UserError

# `irregular` is null for files; for other names it is their kind, see `storage.scan`.
LISTING = pa.schema(
    [
        ("name", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("irregular", pa.string()),
    ]
)
# Rows of a block; more if one folder has more files whose names differ only in the suffix.
BLOCK_ROWS = 1 << 16
# Warnings for names that are not plain files.
IRREGULAR_NAMES = {
    "broken": "{count} broken links, for example {name}",
    "above": "{count} links to a parent folder are not followed, for example {name}",
    "inside": "{count} links to other folders of the corpus are not followed, for example {name}",
    "outside": "{count} links that point outside the corpus are followed, for example {name}",
    "special": "{count} pipes, sockets or devices are left out, for example {name}",
}


def list_blocks(path: str, below: str = "", deep: bool = True) -> Iterator[pa.Table]:
    """Lists the files of a corpus as tables of LISTING.

    Files of one folder whose names differ only in the suffix are in the same table. A broken link
    has the size -1.

    Args:
        path: of the corpus.
        below: folder in the corpus to start from.
        deep: False to skip subfolders.

    Raises:
        UserError: the corpus can't be listed.
    """
    irregular: list[tuple[str, int | None, int | None, str | None]] = []

    def note(kind: str, name: str) -> None:
        irregular.append((utf8(name), None, None, kind))
        if kind == "broken":
            irregular.append((utf8(name), -1, 0, None))

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
    yield from _cut([*batches, to_columns(rows, LISTING), to_columns(irregular, LISTING)])


def _cut(batches: list[pa.Table]) -> Iterator[pa.Table]:
    """Yields the rows, sorted by name, in tables of about BLOCK_ROWS."""
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
    """A summary of the files of a corpus; can be merged in any order.

    Attributes:
        sounds: number of readable sound files.
        folders: folders in the names of the sound files.
        endings: uncommon suffixes of other files.
        containers: name, size (bytes) and modification time (ns) of tar and Parquet files.
        tables: name and size (bytes) of files that may be tables of labels.
        irregular: names that are not plain files, by kind.
    """

    sounds: int
    folders: Folders
    endings: Tally
    containers: tuple[tuple[str, int, int], ...]
    tables: tuple[tuple[str, int], ...]
    irregular: dict[str, Names]

    @classmethod
    def of(cls, block: pa.Table) -> Inventory:
        """The inventory of some files, see `list_blocks`."""
        irregular = block.filter(pc.is_valid(block["irregular"]))
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
            irregular={
                kind: Names.of(irregular.filter(pc.equal(irregular["irregular"], kind))["name"])
                for kind in pc.unique(irregular["irregular"]).to_pylist()
            },
        )

    def merge(self, other: Inventory) -> Inventory:
        """The inventory of both."""
        nothing = Names(0, "")
        return Inventory(
            sounds=self.sounds + other.sounds,
            folders=self.folders.merge(other.folders),
            endings=merge_tallies([self.endings, other.endings]),
            containers=(*self.containers, *other.containers),
            tables=(*self.tables, *other.tables),
            irregular={
                kind: self.irregular.get(kind, nothing).merge(other.irregular.get(kind, nothing))
                for kind in IRREGULAR_NAMES
                if kind in self.irregular or kind in other.irregular
            },
        )

    @classmethod
    def all(cls, inventories: Iterable[Inventory]) -> Inventory:
        """The inventory of all."""
        return reduce(cls.merge, inventories)

    def containers_of(self, path: str) -> list[Container]:
        """The tar and Parquet files of the corpus, sorted by name."""
        return [
            (name, storage.join(path, name), size, modified)
            for name, size, modified in sorted(self.containers)
        ]

    def warn_irregular_names(self, path: str, warn: Warn) -> None:
        """Warns about names that are not plain files."""
        for kind, (count, least) in self.irregular.items():
            warn(f"{path}: {IRREGULAR_NAMES[kind].format(count=count, name=quoted(least))}")


def files_of(block: pa.Table) -> pa.Table:
    """The rows of a listing that are files."""
    return block.filter(pc.is_null(block["irregular"]))


def _other_endings(names: pa.ChunkedArray) -> Tally:
    """Uncommon suffixes of files that are not sounds."""
    names = names.filter(pc.invert(has_ending(names, {*OTHER_SUFFIXES, *CONTAINERS})))
    # Such as LICENSE; in a class folder, a file without a suffix may be a sound.
    at_top = pc.match_substring_regex(names, "^[^./]*$")
    return tally(names.filter(pc.invert(at_top)).to_pylist())


def _tuples(table: pa.Table) -> tuple[tuple, ...]:
    return tuple(zip(*table.to_pydict().values(), strict=True))
