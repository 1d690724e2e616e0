"""Reads corpora of tar and Parquet files into tables of clips."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.corpora.containers import is_audio_parquet, parquet_clips, tar_clips
from raysound.corpora.folders import refuse_pieces
from raysound.corpora.vocabulary import (
    AUDIO_SUFFIXES,
    FOUND,
    SCHEMA,
    Tally,
    Warn,
    merge_tallies,
    split_of_file,
    tally,
    unread_sounds,
)
from raysound.errors import UserError

# Suffix → name of the format.
CONTAINERS = {".tar": "tar", ".parquet": "Parquet"}
# Container files that are listed at a time.
LISTED_AT_ONCE = 8
# Bytes per request when the sounds of a tar file in an object store are listed.
TAR_BUFFER = 4 << 20

# Name, path or URI, size in bytes, modification time in ns.
Container = tuple[str, str, int, int]


def holds_sounds(uri: str) -> bool:
    """True for a tar file, and for a Parquet file with sounds.

    Raises:
        UserError: the file can't be read as Parquet.
    """
    if uri.endswith(".tar"):
        return True
    try:
        with storage.open_file(uri) as file:
            return is_audio_parquet(pq.read_schema(file))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{uri} is not a Parquet file: {error}") from error


def read_containers(path: str, containers: list[Container], warn: Warn) -> pa.Table:
    """Lists the clips of a corpus of tar or Parquet files as a table of SCHEMA.

    Args:
        path: of the corpus.
        containers: tar or Parquet files of the corpus.
        warn: called with one line about each omission.

    Raises:
        UserError: a file can't be read, no file contains a sound, or folders are not classes.
    """
    with ThreadPoolExecutor(LISTED_AT_ONCE) as pool:
        tables, others = zip(*pool.map(read_container, containers), strict=True)
    rows = pa.concat_tables(tables)
    labels = pc.unique(rows["label"].drop_null()).to_pylist()
    check_containers(containers, len(rows), labels, merge_tallies(others), path, warn)
    return rows


def check_containers(
    containers: list[Container], clips: int, labels: list[str], left: Tally, path: str, warn: Warn
) -> None:
    """Checks the combined contents of all containers of a corpus.

    Args:
        containers: tar or Parquet files of the corpus.
        clips: number of sounds in them.
        labels: labels of the sounds.
        left: suffixes of the other members.
        path: of the corpus.
        warn: called with one line about each omission.

    Raises:
        UserError: no container has a sound, or folders are not classes.
    """
    unread = unread_sounds(left)
    if not clips:
        files = f"{path} holds no sounds in its {len(containers)} tar or Parquet files"
        raise UserError(f"{files}; {unread}" if unread else files)
    if unread:
        warn(f"{path}: {unread}")
    if containers[0][0].endswith(".tar"):
        refuse_pieces(sorted(labels), path, warn)


def read_container(container: Container) -> tuple[pa.Table, Tally]:
    """Lists the clips of one container as a table of SCHEMA, and tallies its other members.

    Raises:
        UserError: the container can't be read.
    """
    name, uri, size, modified = container
    others: list[str] = []
    try:
        with storage.open_file(uri) as file:
            if name.endswith(".tar"):
                # Without a buffer, every header of the tar file would be a request.
                tar = io.BufferedReader(cast(Any, file), TAR_BUFFER) if "://" in uri else file
                found = pa.Table.from_pylist(
                    list(tar_clips(tar, AUDIO_SUFFIXES, others.append)),
                    schema=pa.schema([*FOUND, ("offset", pa.int64()), ("size", pa.int64())]),
                )
            else:
                found = parquet_clips(file)
                share = size // max(len(found), 1)
                found = found.append_column("size", pa.array([share] * len(found), pa.int64()))
    except (UserError, OSError, pa.ArrowException) as error:
        raise UserError(f"{uri}: {error}") from error
    names = found["name"]
    if not name.endswith(".tar"):
        # The row number makes the id unique: names may be missing or repeated.
        rows = found["offset"].cast(pa.string())
        names = pc.binary_join_element_wise(
            rows, names, "-", null_handling="skip", null_replacement=""
        )
    word = split_of_file(name)
    count = len(found)
    clip_id = pc.binary_join_element_wise(pa.scalar(name), names, "/")
    columns = {
        "clip_id": clip_id,
        "path": pa.array([uri] * count, pa.string()),
        "label": pc.if_else(pc.equal(found["label"], ""), None, found["label"]),
        "fold": found["fold"],
        "split": pc.fill_null(found["split"], word) if word else found["split"],
        "group": pc.coalesce(found["group"], clip_id),
        "size": found["size"],
        "modified": pa.array([modified] * count, pa.int64()),
        "offset": found["offset"],
    }
    return pa.table(columns, schema=SCHEMA), tally(others)
