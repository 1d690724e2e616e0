"""Reads a corpus into a table of clips with its folds, groups and splits."""

from __future__ import annotations

import logging
import posixpath

import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.folders import Layout, folder_rows, layout_of
from raysound.corpora.inventory import Inventory, files_of, list_blocks
from raysound.corpora.manifest_rows import checked, finished_rows, in_order, rows_of_manifest
from raysound.corpora.packed import CONTAINERS, Container, holds_sounds, read_containers
from raysound.corpora.table_choice import labelled_rows, with_split_lists
from raysound.corpora.table_files import read_tables, tables_to_open
from raysound.corpora.vocabulary import (
    AUDIO_SUFFIXES,
    Tally,
    Warn,
    is_sound,
    plain_name,
    quoted,
    unread_sounds,
    warn_unread,
)
from raysound.errors import UserError

logger = logging.getLogger(__name__)


def read_corpus(path: str, warn: Warn = logger.warning) -> pa.Table:
    """Lists the clips of a corpus as a table of SCHEMA, in an order that mixes the classes.

    A corpus is one of

    - a manifest of raysound (`.parquet`)
    - a folder with a table of file names and labels (see `tables`)
    - one folder per class, with or without splits above or below (see `folders`)
    - a folder of tar files (WebDataset), or of Parquet files with embedded sounds (Hugging Face)
    - a flat folder of sound files, without labels

    Either all clips have labels, or the label of all clips is null. `split` is the split of the
    corpus or null. `size` is in bytes: -1 for a missing file; for a row of a Parquet file, its
    share of the file. `modified` is in ns. `offset` is null for a separate file; otherwise it is
    the first byte in the tar file, or the row in the Parquet file. Clips in containers keep their
    order.

    Args:
        path: folder or manifest, local or a URI.
        warn: called with one line about each omission or ambiguity.

    Raises:
        UserError: the folder does not exist or contains no sounds, only some clips have labels,
            folders are not classes, a split is unknown, or a file is listed twice.
    """
    table = (_file if is_file(path) else _folder)(path, warn)
    warn_same_names(pc.unique(table["label"]).to_pylist(), path, warn)
    return in_order(table)


def is_file(path: str) -> bool:
    """True for a file, False for a folder. Raises UserError if the path does not exist."""
    kind = {".parquet": "manifest", ".tar": "tar file"}.get(posixpath.splitext(path)[1], "folder")
    try:
        found = storage.stat_files([path])[0][0] >= 0
        is_folder = not found and storage.is_folder(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be reached: {error}") from error
    if found and kind == "folder":
        raise UserError(f"{path} is a file, not a folder: give the folder that contains it")
    if not found and not is_folder:
        raise UserError(f"{path}: no such {kind}")
    return found


def _file(path: str, warn: Warn) -> pa.Table:
    """Reads a tar file, a Parquet file with sounds, or a manifest of raysound."""
    if path.endswith(".parquet") and not holds_sounds(path):
        return rows_of_manifest(storage.read_table(path), path)
    name = storage.locate(path)[1].rpartition("/")[2]
    return checked(
        read_containers(path, [(name, path, *storage.stat_files([path])[0])], warn), path
    )


def _folder(path: str, warn: Warn) -> pa.Table:
    listing = pa.concat_tables(list_blocks(path))
    found = Inventory.of(listing)
    packed = look_over(found, path, warn)
    if packed:
        return checked(read_containers(path, packed, warn), path)
    tables = tables_to_open(found.tables, path, warn)
    return loose_clips(listing, found, tables, path, warn)


def look_over(found: Inventory, path: str, warn: Warn) -> list[Container]:
    """Determines whether the clips of a corpus are separate files or in containers.

    Args:
        found: inventory of the corpus.
        path: of the corpus.
        warn: called with one line about each omission.

    Returns:
        The tar or Parquet files that contain the clips; empty for separate files.

    Raises:
        UserError: no file contains a sound.
    """
    found.warn_irregular_names(path, warn)
    warn_unread(found.endings, path, warn)
    packs = found.containers_of(path)
    if not found.sounds:
        # Without containers, a table may list clips with other suffixes.
        return _containers(packs, path, found.endings, warn) if packs else []
    for kind in CONTAINERS:
        beside = [name for name, uri, *_ in packs if name.endswith(kind) and holds_sounds(uri)]
        if beside:
            warn(
                f"{path}: {len(beside)} {CONTAINERS[kind]} files are left out, because the corpus "
                f"has sound files; for example {quoted(beside[0])}"
            )
    return []


def loose_clips(
    listing: pa.Table, found: Inventory, tables: list[str], path: str, warn: Warn
) -> pa.Table:
    """Lists the clips of a corpus of separate files, labelled by a table or by folders.

    Args:
        listing: all files of the corpus, see `list_blocks`.
        found: inventory of these files.
        tables: see `tables_to_open`.
        path: of the corpus.
        warn: called with one line about each omission or ambiguity.

    Returns:
        A table of SCHEMA, in any order.

    Raises:
        UserError: see `read_corpus`.
    """
    files = files_of(listing)
    opened = read_tables(tables, files["name"], path, warn)
    rows = labelled_rows(opened, found.sounds, path, warn)
    if rows is None and not found.sounds:
        raise UserError(no_sounds(path, found.endings))
    sounds = files["name"].filter(is_sound(files["name"]))
    if rows is None:
        rows = folder_rows(sounds, layout_of(found.folders, path, warn))
    else:
        _warn_unlisted(sounds, rows["name"], path, warn)
    if not len(rows):
        raise UserError(f"{path} lists no clips")
    return finished_rows(with_split_lists(rows, opened, path, warn), files, path)


def clips_in_folders(block: pa.Table, layout: Layout, path: str) -> pa.Table:
    """Lists the clips among some files of a corpus with one folder per class.

    Args:
        block: see `list_blocks`.
        layout: of the corpus.
        path: of the corpus.

    Returns:
        A table of SCHEMA, in any order.
    """
    files = files_of(block)
    sounds = files["name"].filter(is_sound(files["name"]))
    return finished_rows(folder_rows(sounds, layout), files, path)


def _warn_unlisted(sounds: pa.ChunkedArray, names: pa.ChunkedArray, path: str, warn: Warn) -> None:
    left = sounds.filter(pc.invert(pc.is_in(sounds, names.combine_chunks())))
    if len(left):
        warn(
            f"{path}: {len(left)} sound files are in no table row and are left out, for "
            f"example {quoted(pc.min(left).as_py())}"
        )


def _containers(packs: list[Container], path: str, counted: Tally, warn: Warn) -> list[Container]:
    """The tar files, or, without any, the Parquet files with sounds."""
    tars = [pack for pack in packs if pack[0].endswith(".tar")]
    parquets = [pack for pack in packs if pack[0].endswith(".parquet")]
    audible = any(holds_sounds(uri) for _, uri, *_ in parquets)
    if tars and audible:
        warn(
            f"{path}: {len(parquets)} Parquet files are left out, because the corpus has tar "
            f"files; for example {quoted(parquets[0][0])}"
        )
    if not tars and not audible:
        raise UserError(no_sounds(path, counted))
    return tars or parquets


def no_sounds(path: str, counted: Tally) -> str:
    """The message for a folder without sounds, given the suffixes of its files."""
    unread = unread_sounds(counted)
    return (
        f"{path} holds no sound files ({', '.join(sorted(AUDIO_SUFFIXES))}), no tar files with "
        f"sounds and no Parquet files with sounds{'; ' if unread else ''}{unread}"
    )


def warn_same_names(labels: list[str], path: str, warn: Warn) -> None:
    """Warns about class names that differ only in case, blanks or Unicode form."""
    forms: dict[str, str] = {}
    for label in sorted(filter(None, labels)):
        other = forms.setdefault(plain_name(label), label)
        if other != label:
            warn(
                f"{path}: the classes {quoted(other)} and {quoted(label)} differ only in case, "
                "blanks or Unicode form: are they the same class?"
            )
