"""Files by path or URI, through pyarrow's filesystems; what is written appears whole or never."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO
from urllib.parse import quote, unquote
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raysound.config import UserError

OBJECT_STORES = {"s3", "gs", "gcs"}
ASKED_AT_ONCE = 32
# Why a file can't be written, where another try would fail in the same way.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG,
}  # fmt: skip


class UnwritableError(UserError):
    """A local file can't be written, and another try would fail in the same way."""


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path inside it."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    if scheme in OBJECT_STORES:
        bucket, _, key = rest.partition("/")
        return _object_store(f"{scheme}://{bucket}"), f"{bucket}/{unquote(key)}".rstrip("/")
    return fs.FileSystem.from_uri(uri)


@lru_cache(maxsize=16)
def _object_store(bucket: str) -> fs.FileSystem:
    """Made once a bucket and process: it asks where the bucket lies, and keeps connections."""
    return fs.FileSystem.from_uri(bucket)[0]


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
    """As `scan`, but sorted, and all at once."""
    return sorted(scan(uri))


def scan(uri: str) -> Iterator[tuple[str, int, int]]:
    """Every file below a folder: path relative to it, size in bytes, modification time in ns.

    In any order, and folder by folder: what is held of a folder of a million files is a name.
    """
    filesystem, root = locate(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield from _walk(root, "", (os.path.realpath(root),))
        return
    folders = [root]
    while folders:
        selector = fs.FileSelector(folders.pop(), allow_not_found=True)
        for info in filesystem.get_file_info(selector):
            if info.type == fs.FileType.Directory:
                folders.append(info.path)
            elif info.type == fs.FileType.File:
                yield info.path[len(root) + 1 :], info.size, info.mtime_ns or 0


def _walk(root: str, below: str, above: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """Lists as `scan`; pyarrow's own listing fails at a name that is no UTF-8."""
    try:
        entries = os.scandir(os.path.join(root, below))
    except FileNotFoundError:
        return
    folders = []
    with entries:
        for entry in entries:
            name = os.path.join(below, entry.name)
            if entry.is_dir():
                folders.append((name, entry.is_symlink()))
            elif entry.is_file():
                stat = entry.stat()
                yield name, stat.st_size, stat.st_mtime_ns
    for name, is_link in folders:
        path = os.path.realpath(os.path.join(root, name))
        # A link to a folder above would be walked for ever.
        if not (is_link and path in above):
            yield from _walk(root, name, (*above, path))


def stat_files(uris: Sequence[str]) -> list[tuple[int, int]]:
    """Size in bytes and modification time in ns of some files; (-1, 0) where there is none.

    None is also where no file can be: a URI that pyarrow doesn't know, a path with a NUL in it.
    """
    # An object store answers each question in some hundredths of a second.
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list((pool.map if any("://" in uri for uri in uris) else map)(_stat, uris))


def _stat(uri: str) -> tuple[int, int]:
    try:
        filesystem, path = locate(uri)
        info = filesystem.get_file_info(path)
    except ValueError:
        return -1, 0
    return (info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else (-1, 0)


def open_file(uri: str) -> BinaryIO:
    """A seekable binary file for reading. Raises FileNotFoundError or OSError."""
    filesystem, path = locate(uri)
    return filesystem.open_input_file(path)


def open_stream(uri: str) -> BinaryIO:
    """A binary file to be read once, from its beginning. Raises FileNotFoundError or OSError."""
    filesystem, path = locate(uri)
    return filesystem.open_input_stream(path, compression=None)


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
    """A file for writing that appears, its folder made, only when the block ends without error.

    Raises:
        UnwritableError: the disk is full, the folder is read-only, or the like.
        OSError: another reason why it can't be written, as an object store that does not answer.
    """
    filesystem, path = locate(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        # Closing an upload completes it with what has arrived, after an error too: so it begins
        # when all is there, and in a thread, for Ctrl-C ends the main one anywhere.
        with tempfile.TemporaryFile() as buffer:
            yield buffer
            buffer.seek(0)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(_upload, buffer, filesystem, path).result()
        return
    temporary = f"{path}.{uuid4().hex}.tmp"
    try:
        with explained(path, FULL | FORBIDDEN):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = filesystem.open_output_stream(temporary)
        # What the block reads may be forbidden, too.
        with explained(path, FULL), file:
            yield file
        with explained(path, FULL | FORBIDDEN):
            os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


@contextmanager
def explained(path: str, reasons: Collection[int]) -> Iterator[None]:
    """Raises UnwritableError for an OSError that has one of some reasons, given as errno."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.errno in reasons:
            reason = os.strerror(error.errno)
            if error.errno == errno.EEXIST:
                # Of os.makedirs, which names what is there.
                reason = f"{error.filename} is no folder"
            raise UnwritableError(
                f"{path} can't be written: {reason}; the same command continues"
            ) from error
        raise


def _upload(buffer: BinaryIO, filesystem: fs.FileSystem, path: str) -> None:
    with filesystem.open_output_stream(path) as file:
        shutil.copyfileobj(buffer, file)
