"""A corpus on disk → one table of clips, its own folds, groups and split kept."""

from __future__ import annotations

import logging
import posixpath

import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.folders import Layout, folder_rows, layout_of
from raysound.corpora.inventory import Inventory, files_of, list_blocks
from raysound.corpora.layouts import (
    AUDIO_SUFFIXES,
    Tally,
    Warn,
    is_sound,
    plain_name,
    quoted,
    unread_sounds,
    warn_unread,
)
from raysound.corpora.manifest_rows import checked, finished_rows, in_order, rows_of_manifest
from raysound.corpora.packed import CONTAINERS, Container, holds_sounds, read_containers
from raysound.corpora.table_files import read_tables, tables_to_open
from raysound.corpora.tables import labelled_rows, with_split_lists
from raysound.errors import UserError

logger = logging.getLogger(__name__)


def read_corpus(path: str, warn: Warn = logger.warning) -> pa.Table:
    """Lists the clips of a corpus as a table of SCHEMA, in an order that mixes the classes.

    A corpus is a manifest of ours (`.parquet`), a folder with a table of file names and labels
    (see `tables`), a folder a class with splits above or below them or without (see `layouts`), or
    a folder of tar files (WebDataset) or of Parquet files with the sounds inside (Hugging Face).
    The files of a flat folder, and clips that neither folder nor table labels, have the label null:
    then all clips have. `split` is the corpus's own or null. `size` is in bytes, -1 where the file
    is missing (of a row in Parquet: its share of the file); `modified` in ns. `offset` is null for
    a file of its own, else where the clip begins: a byte of a tar file, a row of a Parquet file.
    Clips in such containers stay in the containers' order.

    Args:
        path: folder or manifest, local or a URI.
        warn: called with a line about what was left out, or is doubtful.

    Raises:
        UserError: no such folder, no sound in it, labels of some clips only, folders that are no
            classes, an unknown split, or a file listed twice.
    """
    table = (_file if is_file(path) else _folder)(path, warn)
    warn_same_names(pc.unique(table["label"]).to_pylist(), path, warn)
    return in_order(table)


def is_file(path: str) -> bool:
    """True for a corpus that is a file, False for a folder. Raises UserError for neither."""
    kind = {".parquet": "manifest", ".tar": "tar file"}.get(posixpath.splitext(path)[1], "folder")
    try:
        found = storage.stat_files([path])[0][0] >= 0
        is_folder = not found and storage.is_folder(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be reached: {error}") from error
    if found and kind == "folder":
        raise UserError(f"{path} is a file, and no such folder: give the folder that it stands in")
    if not found and not is_folder:
        raise UserError(f"{path}: no such {kind}")
    return found


def _file(path: str, warn: Warn) -> pa.Table:
    """A tar file, one Parquet file with sounds, or a manifest of ours."""
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
    """Decides what the clips of a corpus are.

    Args:
        found: what its files are.
        path: of the corpus.
        warn: called with a line about what is left out.

    Returns:
        The tar or Parquet files that hold them; empty where they are files of their own.

    Raises:
        UserError: no sound in any file.
    """
    found.warn_odd_names(path, warn)
    warn_unread(found.endings, path, warn)
    packs = found.containers_of(path)
    if not found.sounds:
        # Without containers a table may name clips of other endings.
        return _containers(packs, path, found.endings, warn) if packs else []
    for kind in CONTAINERS:
        beside = [name for name, uri, *_ in packs if name.endswith(kind) and holds_sounds(uri)]
        if beside:
            warn(
                f"{path}: {len(beside)} {CONTAINERS[kind]} files stand beside the sound files and "
                f"are left out, {quoted(beside[0])} among them"
            )
    return []


def loose_clips(
    listing: pa.Table, found: Inventory, tables: list[str], path: str, warn: Warn
) -> pa.Table:
    """The clips of a corpus of files, labelled by a table or by their folders.

    Args:
        listing: all files of the corpus.
        found: what they are.
        tables: see `tables_to_open`.
        path: of the corpus.
        warn: called with a line about what is left out, or is doubtful.

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
    """The clips among some files of a corpus that has a folder a class.

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
            f"{path}: {len(left)} sound files are in no table row and are left out, "
            f"{quoted(pc.min(left).as_py())} among them"
        )


def _containers(packs: list[Container], path: str, counted: Tally, warn: Warn) -> list[Container]:
    """The tar files, else the Parquet files with sounds inside."""
    tars = [pack for pack in packs if pack[0].endswith(".tar")]
    parquets = [pack for pack in packs if pack[0].endswith(".parquet")]
    audible = any(holds_sounds(uri) for _, uri, *_ in parquets)
    if tars and audible:
        warn(
            f"{path}: {len(parquets)} Parquet files stand beside the tar files and are left out, "
            f"{quoted(parquets[0][0])} among them"
        )
    if not tars and not audible:
        raise UserError(no_sounds(path, counted))
    return tars or parquets


def no_sounds(path: str, counted: Tally) -> str:
    """Says that a folder holds no sounds, given the endings of its files."""
    unread = unread_sounds(counted)
    return (
        f"{path} holds no sound files ({', '.join(sorted(AUDIO_SUFFIXES))}), no tar files with "
        f"sounds and no Parquet files with sounds{'; ' if unread else ''}{unread}"
    )


def warn_same_names(labels: list[str], path: str, warn: Warn) -> None:
    """Says which classes are called alike but for capitals, blanks or the form of Unicode."""
    forms: dict[str, str] = {}
    for label in sorted(filter(None, labels)):
        other = forms.setdefault(plain_name(label), label)
        if other != label:
            warn(
                f"{path}: the classes {quoted(other)} and {quoted(label)} differ only in capitals, "
                "blanks or the form of Unicode: are they one?"
            )
