"""Files by path or URI, through pyarrow's filesystems; what is written appears whole or never."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import quote
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path inside it."""
    if "://" in uri:
        return fs.FileSystem.from_uri(uri)
    return fs.LocalFileSystem(), os.path.abspath(uri)


def join(uri: str, *parts: str) -> str:
    """A path or URI below another; in a URI, what a name must not hold is percent-encoded."""
    if "://" in uri:
        parts = tuple(quote(part) for part in parts)
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """True for a file or a folder that is there."""
    filesystem, path = locate(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def is_folder(uri: str) -> bool:
    """True for a folder that is there."""
    filesystem, path = locate(uri)
    return filesystem.get_file_info(path).type == fs.FileType.Directory


def list_files(uri: str) -> list[tuple[str, int, int]]:
    """Every file below a folder: path relative to it, size in bytes, modification time in ns."""
    filesystem, root = locate(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        return sorted(_walk(root))
    infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return sorted(
        (os.path.relpath(info.path, root), info.size, info.mtime_ns or 0)
        for info in infos
        if info.type == fs.FileType.File
    )


def _walk(root: str) -> Iterator[tuple[str, int, int]]:
    """Lists as `list_files`; pyarrow's own listing fails at a name that is no UTF-8."""
    for folder, folders, names in os.walk(root, followlinks=True):
        here = os.path.realpath(folder) + os.sep
        # A link to a folder above would be walked for ever.
        folders[:] = [
            name
            for name in folders
            if not here.startswith(os.path.realpath(os.path.join(folder, name)) + os.sep)
        ]
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isfile(path):
                stat = os.stat(path)
                yield os.path.relpath(path, root), stat.st_size, stat.st_mtime_ns


def stat_files(uris: list[str]) -> dict[str, tuple[int, int]]:
    """Size in bytes and modification time in ns of those files that are there."""
    stats = {}
    for uri in uris:
        filesystem, path = locate(uri)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.File:
            stats[uri] = (info.size, info.mtime_ns or 0)
    return stats


def open_file(uri: str) -> BinaryIO:
    """A seekable binary file for reading. Raises FileNotFoundError or OSError."""
    filesystem, path = locate(uri)
    return filesystem.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """A whole file. Raises FileNotFoundError or OSError."""
    with open_file(uri) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file, making its folder; a reader sees the old file or the new one."""
    with whole_file(uri) as file:
        file.write(data)


def write_table(uri: str, table: pa.Table, **options: Any) -> None:
    """Writes one Parquet file whole; `options` are pyarrow.parquet.write_table's."""
    with whole_file(uri) as file:
        pq.write_table(table, file, **options)


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Reads one Parquet file. Raises FileNotFoundError or OSError."""
    with open_file(uri) as file:
        return pq.read_table(file, columns=columns)


def delete(uri: str) -> None:
    """Removes a file, or a folder with all that is in it; what is not there is no error."""
    filesystem, path = locate(uri)
    if is_folder(uri):
        filesystem.delete_dir(path)
    elif exists(uri):
        filesystem.delete_file(path)


@contextmanager
def whole_file(uri: str) -> Iterator[Any]:
    """A file for writing that appears, its folder made, only when the block ends without error."""
    filesystem, path = locate(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        # Closing the stream completes it, after an error too: so it is opened when all is there.
        with tempfile.TemporaryFile() as buffer:
            yield buffer
            buffer.seek(0)
            with filesystem.open_output_stream(path) as file:
                shutil.copyfileobj(buffer, file)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid4().hex}.tmp"
    try:
        with filesystem.open_output_stream(temporary) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
