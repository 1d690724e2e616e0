"""Files by path or URI, through pyarrow's filesystems; what is written appears whole or never."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, BinaryIO
from urllib.parse import quote, unquote
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raysound.errors import UserError

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


# Takes what is odd about a name, and the name.
Odd = Callable[[str, str], object]


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


def scan(
    uri: str, odd: Odd | None = None, below: str = "", deep: bool = True
) -> Iterator[tuple[str, int, int]]:
    """Every file below a folder: path relative to it, size in bytes, modification time in ns.

    In any order, and folder by folder: what is held of a folder of a million files is a name.

    Args:
        uri: of the folder.
        odd: takes each name that is no plain file or folder, and what it is: a `broken` link, a
            link to a folder `above` or to one `inside` that is listed itself (none of these is
            yielded), a link that leads `outside` (which is followed), or a `special` file: a pipe,
            socket or device.
        below: the folder inside it from which on files are listed, relative to it.
        deep: False for the files of that folder alone, without those of folders in it.
    """
    filesystem, root = locate(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield from _walk(root, below, _above(root, below), odd or (lambda kind, name: None), deep)
        return
    folders = [f"{root}/{below}" if below else root]
    while folders:
        selector = fs.FileSelector(folders.pop(), allow_not_found=True)
        for info in filesystem.get_file_info(selector):
            if info.type == fs.FileType.Directory and deep:
                folders.append(info.path)
            elif info.type == fs.FileType.File:
                yield info.path[len(root) + 1 :], info.size, info.mtime_ns or 0


def subfolders(uri: str, below: str = "", odd: Odd | None = None) -> list[str]:
    """The folders in a folder inside another one, relative to that; those which `scan` enters.

    Args:
        uri: of the outer folder.
        below: the folder inside it, relative to it.
        odd: takes the links to folders, see `scan`.
    """
    filesystem, root = locate(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        selector = fs.FileSelector(f"{root}/{below}" if below else root, allow_not_found=True)
        found = filesystem.get_file_info(selector)
        return [one.path[len(root) + 1 :] for one in found if one.type == fs.FileType.Directory]
    folders = []
    with suppress(FileNotFoundError), os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            # A link to itself is no folder.
            with suppress(OSError):
                if entry.is_dir():
                    folders.append((os.path.join(below, entry.name), entry.is_symlink()))
    entered = _entered(root, folders, _above(root, below), odd or (lambda kind, name: None))
    return [name for name, _ in entered]


def _above(root: str, below: str) -> tuple[str, ...]:
    """The real paths of a folder, and of all on the way to one inside it."""
    parts = below.split("/") if below else []
    return tuple(
        os.path.realpath(os.path.join(root, *parts[:count])) for count in range(len(parts) + 1)
    )


def _walk(
    root: str, below: str, above: tuple[str, ...], odd: Odd, deep: bool
) -> Iterator[tuple[str, int, int]]:
    """Lists as `scan`; pyarrow's own listing fails at a name that is no UTF-8."""
    try:
        entries = os.scandir(os.path.join(root, below))
    except FileNotFoundError:
        return
    folders = []
    with entries:
        for entry in entries:
            name = os.path.join(below, entry.name)
            try:
                if entry.is_dir():
                    folders.append((name, entry.is_symlink()))
                elif entry.is_file():
                    stat = entry.stat()
                    if entry.is_symlink() and _place(entry.path, above[0]) == "outside":
                        odd("outside", name)
                    yield name, stat.st_size, stat.st_mtime_ns
                else:
                    is_broken = entry.is_symlink() and not os.path.exists(entry.path)
                    odd("broken" if is_broken else "special", name)
            except OSError:
                # A link to itself, or into a folder that may not be read.
                odd("broken", name)
    if deep:
        for name, path in _entered(root, folders, above, odd):
            yield from _walk(root, name, (*above, path), odd, deep)


def _entered(
    root: str, folders: Iterable[tuple[str, bool]], above: tuple[str, ...], odd: Odd
) -> Iterator[tuple[str, str]]:
    """Those folders, given with whether they are links, that a walk enters: name and real path."""
    for name, is_link in folders:
        path = os.path.realpath(os.path.join(root, name))
        if is_link:
            # A link to a folder above would be walked for ever, one to a folder inside lists twice.
            kind = "above" if path in above else _place(path, above[0])
            if kind:
                odd(kind, name)
            if kind in ("above", "inside"):
                continue
        yield name, path


def _place(path: str, root: str) -> str:
    """Where a link leads: `outside` a folder, `inside` it, or "" where it is hidden inside."""
    relative = os.path.relpath(os.path.realpath(path), root)
    parts = relative.split(os.sep)
    if parts[0] == os.pardir:
        return "outside"
    return "" if any(part.startswith(".") for part in parts) else "inside"


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
