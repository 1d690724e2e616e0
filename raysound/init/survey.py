"""Reads the clips of a folder, the source of their labels, their sample rates and durations."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile

from raysound.audio.sounds import Sound, open_chosen
from raysound.corpora.folders import layout_of
from raysound.corpora.formats.parts import find_parts
from raysound.corpora.formats.samples import Reject, Samples, open_part
from raysound.corpora.inventory import Inventory, files_of, list_blocks
from raysound.corpora.manifest import is_file, read_corpus
from raysound.corpora.packed import CONTAINERS
from raysound.corpora.table_choice import labelled_rows, tables_of_labels
from raysound.corpora.table_files import read_tables, tables_to_open
from raysound.corpora.vocabulary import listed, quoted
from raysound.errors import UserError
from raysound.wording import counted

# Number of headers to read, in a local folder and in an object store, which sends complete files.
LOCAL_FILES, REMOTE_FILES = 2000, 100
# Number of tar or Parquet files to read, and of clips in each: a row group is read as one.
PACKED_FILES, PACKED_CLIPS = 20, 25


@dataclass(frozen=True)
class Corpus:
    """The properties of a corpus before its extraction.

    Attributes:
        path: absolute, or a URI.
        layout: description of the source of its labels.
        clips: a table of `raysound.corpora.vocabulary.SCHEMA`.
        rates: sample rates in Hz, with the number of files, of the headers that were read.
        durations: of the same files, seconds `(n_read,)`, ascending.
        notes: lines about files that are left out or unclear.
    """

    path: str
    layout: str
    clips: pa.Table
    rates: dict[int, int]
    durations: np.ndarray
    notes: tuple[str, ...]

    @cached_property
    def classes(self) -> dict[str, int]:
        """The number of clips per label, sorted by label; empty for a corpus without labels."""
        return dict(sorted(Counter(self.clips["label"].drop_null().to_pylist()).items()))

    @property
    def rate(self) -> int:
        """The most frequent sample rate in Hz; the highest one if several are equally frequent."""
        return max(self.rates, key=lambda rate: (self.rates[rate], rate))


def survey(path: str) -> Corpus:
    """Lists the clips of a corpus, and reads the headers of some of its files.

    Args:
        path: of a folder, tar or Parquet file; absolute, or a URI.

    Raises:
        UserError: as `read_corpus`, or if no header can be read.
    """
    notes: list[str] = []
    clips = read_corpus(path, notes.append)
    rates, durations, unread = _headers(clips)
    if not rates:
        raise UserError(f"{path}: no file can be read as a sound (tried: {unread})")
    if unread:
        tried = counted(len(durations) + unread, "file")
        notes.append(f"{path}: {unread} of {tried} that were tried can't be read as a sound")
    return Corpus(path, _layout(path, clips), clips, rates, durations, tuple(notes))


def folder_has_sounds(path: str) -> bool:
    """Whether a folder has sound, tar or Parquet files. Raises UserError if it can't be read."""
    found = Inventory.all(map(Inventory.of, list_blocks(path)))
    return bool(found.sounds or found.containers)


def _layout(path: str, clips: pa.Table) -> str:
    """A description of the source of the labels of a corpus."""
    packs = pc.unique(clips.filter(pc.is_valid(clips["offset"]))["path"]).to_pylist()
    for ending, kind in CONTAINERS.items():
        if packs and packs[0].endswith(ending):
            return counted(len(packs), f"{kind} file") + " with the sounds inside"
    if is_file(path):
        return "a manifest"
    listing = pa.concat_tables(list_blocks(path))
    found = Inventory.of(listing)
    opened = read_tables(
        tables_to_open(found.tables, path, _quiet), files_of(listing)["name"], path, _quiet
    )
    if labelled_rows(opened, found.sounds, path, _quiet) is not None:
        tables = tables_of_labels(opened)
        if not tables:
            return "a table without labels"
        return f"column {tables[0].roles['label']} of {listed((one.file for one in tables), 3)}"
    layout = layout_of(found.folders, path, _quiet)
    if layout.is_flat:
        return "files outside class folders"
    if layout.above:
        return f"class folders below {listed(map(quoted, sorted(layout.above)), 3)}"
    if layout.below:
        return f"class folders with {listed(map(quoted, sorted(layout.below)), 3)} in each"
    return "the names of the class folders"


def _quiet(line: str) -> None:
    """Ignores notes, because `read_corpus` has given the same ones."""


def _headers(clips: pa.Table) -> tuple[dict[int, int], np.ndarray, int]:
    """Sample rates, durations and the number of unreadable files of a sample of clips."""
    rates: Counter[int] = Counter()
    durations: list[float] = []
    unread = 0
    for _, sound in open_chosen(sample_clips(clips)):
        header = read_header(sound)
        if header is None:
            unread += 1
            continue
        rates[header[0]] += 1
        durations.append(header[1])
    return dict(rates), np.sort(np.array(durations)), unread


def sample_clips(clips: pa.Table) -> pa.Table:
    """Some clips at regular intervals; for packed corpora, the first clips of some files."""
    if pc.any(pc.is_valid(clips["offset"])).as_py():
        files = pc.unique(clips["path"])
        chosen = files.take(pa.array(_even(len(files), PACKED_FILES)))
        return pa.concat_tables(
            clips.filter(pc.equal(clips["path"], file)).slice(0, PACKED_CLIPS) for file in chosen
        )
    remote = "://" in clips["path"][0].as_py()
    return clips.take(pa.array(_even(len(clips), REMOTE_FILES if remote else LOCAL_FILES)))


def _even(count: int, most: int) -> np.ndarray:
    """At most `most` integers below `count`, at regular intervals."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def read_header(sound: Sound) -> tuple[int, float] | None:
    """Reads sample rate (Hz) and duration (seconds) from a file header; None if it can't be read.

    Args:
        sound: a path, a seekable binary file, or the reason why the sound is missing.
    """
    if isinstance(sound, Reject):
        return None
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open(sound, "rb", 0)) if isinstance(sound, str) else sound
            size = file.seek(0, 2)
            found = find_parts(file, size) if size else []
            opened = [stack.enter_context(open_part(part)) for part in found]
            if not opened:
                return None
            samples = Samples(opened, found, {})
            return samples.rate, samples.frames / samples.rate
    except (Reject, soundfile.LibsndfileError, OSError, ValueError):
        return None
