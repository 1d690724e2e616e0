"""Opens the clips of a corpus: separate files, members of tar files, rows of Parquet files."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.audio.decode import Reject, Unreadable
from raysound.corpora.containers import parquet_sounds
from raysound.errors import UserError

Sound = str | BinaryIO | Reject

# Concurrent downloads from an object store, while other files are decoded.
FETCHED_AHEAD = 16
# Bytes; larger files are stored on disk.
LARGEST_IN_MEMORY = 32 << 20


def open_sounds(clips: pa.Table) -> Iterator[Sound]:
    """Opens the clips of manifest rows, in their order.

    Yields:
        A local path, a seekable binary file, or the reject if the clip can't be opened.
    """
    rows = clips.select(["path", "offset", "size"]).to_pylist()
    for (path, is_file), run in itertools.groupby(rows, key=_container):
        if is_file:
            yield from _files(run)
        elif path.endswith(".tar"):
            yield from _tar_members(path, run)
        else:
            yield from _parquet_rows(path, run)


def open_chosen(clips: pa.Table) -> Iterator[tuple[int, Sound]]:
    """Yields row number and sound of manifest rows, in the order of their position in files."""
    order = pc.sort_indices(clips, [("path", "ascending"), ("offset", "ascending")])
    yield from zip(order.to_pylist(), open_sounds(clips.take(order)), strict=True)


def _container(row: dict[str, Any]) -> tuple[str, bool]:
    is_file = row["offset"] is None
    return ("" if is_file else row["path"], is_file)


def _files(rows: Iterator[dict[str, Any]]) -> Iterator[Sound]:
    for is_remote, run in itertools.groupby(rows, key=lambda row: "://" in row["path"]):
        if is_remote:
            yield from _ahead(_fetch, run)
        else:
            yield from map(_local, run)


def _local(row: dict[str, Any]) -> Sound:
    """The path; or a reject, because opening a pipe or reading a device may never end."""
    path: str = row["path"]
    if (row["size"] or 0) < 0 and os.path.exists(path) and not os.path.isfile(path):
        return Reject("not a sound file, but a folder, pipe, socket or device")
    return path


def _ahead(
    function: Callable[[dict[str, Any]], Sound], rows: Iterator[dict[str, Any]]
) -> Iterator[Sound]:
    """Yields the function's results in order; computes FETCHED_AHEAD of them in advance."""
    with ThreadPoolExecutor(FETCHED_AHEAD) as pool:
        waiting = deque(pool.submit(function, row) for row in itertools.islice(rows, FETCHED_AHEAD))
        while waiting:
            sound = waiting.popleft().result()
            waiting.extend(pool.submit(function, row) for row in itertools.islice(rows, 1))
            yield sound


def _fetch(row: dict[str, Any]) -> Sound:
    """Downloads a complete file, because each small read of the decoder would be a request."""
    copy = tempfile.SpooledTemporaryFile(LARGEST_IN_MEMORY)  # noqa: SIM115 - the decoder uses it
    try:
        with storage.open_stream(row["path"]) as file:
            shutil.copyfileobj(file, copy, 1 << 20)
        copy.seek(0)
    except FileNotFoundError:
        return Unreadable("no such file")
    except OSError as error:
        return Unreadable(f"can't be read: {error}")
    except ValueError as error:
        return Reject(f"can't be read: {error}")
    return cast(BinaryIO, copy)


def _tar_members(path: str, rows: Iterator[dict[str, Any]]) -> Iterator[Sound]:
    try:
        file: Any = storage.open_file(path)
    except OSError as error:
        yield from (Unreadable(f"{path} can't be read: {error}") for _ in rows)
        return

    def member(row: dict[str, Any]) -> Sound:
        try:
            sound = file.read_at(row["size"], row["offset"])
        except OSError as error:
            return Unreadable(f"can't be read: {error}")
        if len(sound) < row["size"]:
            return Unreadable(f"{path} ends before this clip does")
        return io.BytesIO(sound)

    with file:
        yield from _ahead(member, rows) if "://" in path else map(member, rows)


def _parquet_rows(path: str, rows: Iterator[dict[str, Any]]) -> Iterator[Sound]:
    wanted = deque(row["offset"] for row in rows)
    reason = f"{path} ends before this clip"
    try:
        with storage.open_file(path) as file:
            for audio in parquet_sounds(file, [*wanted]):
                wanted.popleft()
                yield io.BytesIO(audio) if audio is not None else Reject("its row holds no bytes")
    except (OSError, UserError, pa.ArrowException) as error:
        reason = f"{path} can't be read: {error}"
    # One result per row; otherwise the next file's clips would be assigned to these rows.
    yield from (Unreadable(reason) for _ in wanted)
