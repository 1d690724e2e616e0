"""Reads, lists and atomically writes files by path or URI, through pyarrow's filesystems."""

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
CONCURRENT_REQUESTS = 32
# Reasons why a file can't be written, for which a retry does not help.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG,
}  # fmt: skip


class UnwritableError(UserError):
    """A local file can't be written, and a retry does not help."""


# Takes the kind of an irregular name, and the name; see `scan`.
OnIrregular = Callable[[str, str], object]


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
    """The filesystem of a bucket, cached: it requests the bucket's region and keeps connections."""
    return fs.FileSystem.from_uri(bucket)[0]


def join(uri: str, *parts: str) -> str:
    """A path or URI below another; in a URI, the parts are percent-encoded."""
    if "://" in uri:
        parts = tuple(quote(part) for part in parts)
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """True for an existing file or folder."""
    filesystem, path = locate(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def is_folder(uri: str) -> bool:
    """True for an existing folder."""
    filesystem, path = locate(uri)
    return filesystem.get_file_info(path).type == fs.FileType.Directory


def list_files(uri: str) -> list[tuple[str, int, int]]:
    """The files of `scan` as a sorted list."""
    return sorted(scan(uri))


def scan(
    uri: str, on_irregular: OnIrregular | None = None, below: str = "", deep: bool = True
) -> Iterator[tuple[str, int, int]]:
    """Yields every file below a folder: relative path, size in bytes, modification time in ns.

    Files come in any order, folder by folder, and are not collected in memory.

    Args:
        uri: of the folder.
        on_irregular: called with the kind and the name of everything that is not a regular file or
            folder. The kinds are: `broken`, a broken link; `above`, a link to a parent folder;
            `inside`, a link to a folder that is listed itself; `outside`, a link out of the folder;
            `special`, a pipe, socket or device. Only links of the kind `outside` are followed.
        below: subfolder to list, relative to the folder; paths stay relative to the folder.
        deep: False lists only the files directly in that folder.
    """
    filesystem, root = locate(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        parents = _parent_paths(root, below)
        yield from _walk(root, below, parents, on_irregular or (lambda kind, name: None), deep)
        return
    folders = [f"{root}/{below}" if below else root]
    while folders:
        selector = fs.FileSelector(folders.pop(), allow_not_found=True)
        for info in filesystem.get_file_info(selector):
            if info.type == fs.FileType.Directory and deep:
                folders.append(info.path)
            elif info.type == fs.FileType.File:
                yield info.path[len(root) + 1 :], info.size, info.mtime_ns or 0


def subfolders(uri: str, below: str = "", on_irregular: OnIrregular | None = None) -> list[str]:
    """The folders directly in a folder that `scan` enters, as paths relative to `uri`.

    Args:
        uri: of the outer folder.
        below: the folder to list, relative to the outer folder.
        on_irregular: called for links to folders, see `scan`.
    """
    filesystem, root = locate(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        selector = fs.FileSelector(f"{root}/{below}" if below else root, allow_not_found=True)
        found = filesystem.get_file_info(selector)
        return [one.path[len(root) + 1 :] for one in found if one.type == fs.FileType.Directory]
    folders = []
    with suppress(FileNotFoundError), os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            # A link to itself raises an error.
            with suppress(OSError):
                if entry.is_dir():
                    folders.append((os.path.join(below, entry.name), entry.is_symlink()))
    report = on_irregular or (lambda kind, name: None)
    entered = _folders_to_enter(root, folders, _parent_paths(root, below), report)
    return [name for name, _ in entered]


def _parent_paths(root: str, below: str) -> tuple[str, ...]:
    """The real paths of a folder and of every folder on the path to a subfolder."""
    parts = below.split("/") if below else []
    return tuple(
        os.path.realpath(os.path.join(root, *parts[:count])) for count in range(len(parts) + 1)
    )


def _walk(
    root: str, below: str, parents: tuple[str, ...], on_irregular: OnIrregular, deep: bool
) -> Iterator[tuple[str, int, int]]:
    """Lists a local folder as `scan`; pyarrow's listing fails at names that are not UTF-8."""
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
                    if entry.is_symlink() and _link_target(entry.path, parents[0]) == "outside":
                        on_irregular("outside", name)
                    yield name, stat.st_size, stat.st_mtime_ns
                else:
                    is_broken = entry.is_symlink() and not os.path.exists(entry.path)
                    on_irregular("broken" if is_broken else "special", name)
            except OSError:
                # A link to itself, or into a folder without read permission.
                on_irregular("broken", name)
    if deep:
        for name, path in _folders_to_enter(root, folders, parents, on_irregular):
            yield from _walk(root, name, (*parents, path), on_irregular, deep)


def _folders_to_enter(
    root: str,
    folders: Iterable[tuple[str, bool]],
    parents: tuple[str, ...],
    on_irregular: OnIrregular,
) -> Iterator[tuple[str, str]]:
    """Yields name and real path of the folders that a walk enters.

    Args:
        root: path of the listed folder.
        folders: name of each folder, and whether it is a link.
        parents: see `_parent_paths`.
        on_irregular: see `scan`.
    """
    for name, is_link in folders:
        path = os.path.realpath(os.path.join(root, name))
        if is_link:
            # A link to a parent would never end, and a link to a folder inside would list it twice.
            kind = "above" if path in parents else _link_target(path, parents[0])
            if kind:
                on_irregular(kind, name)
            if kind in ("above", "inside"):
                continue
        yield name, path


def _link_target(path: str, root: str) -> str:
    """The target of a link: `outside` a folder, `inside` it, or "" if it is hidden inside."""
    relative = os.path.relpath(os.path.realpath(path), root)
    parts = relative.split(os.sep)
    if parts[0] == os.pardir:
        return "outside"
    return "" if any(part.startswith(".") for part in parts) else "inside"


def stat_files(uris: Sequence[str]) -> list[tuple[int, int]]:
    """Size in bytes and modification time in ns of some files; (-1, 0) for a missing file.

    A URI that pyarrow does not know, and a path with a NUL character, count as missing.
    """
    # Requests to an object store take some hundredths of a second each.
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        return list((pool.map if any("://" in uri for uri in uris) else map)(_stat, uris))


def _stat(uri: str) -> tuple[int, int]:
    try:
        filesystem, path = locate(uri)
        info = filesystem.get_file_info(path)
    except ValueError:
        return -1, 0
    return (info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else (-1, 0)


def open_file(uri: str) -> BinaryIO:
    """Opens a seekable binary file for reading. Raises FileNotFoundError or OSError."""
    filesystem, path = locate(uri)
    return filesystem.open_input_file(path)


def open_stream(uri: str) -> BinaryIO:
    """Opens a binary file for sequential reading. Raises FileNotFoundError or OSError."""
    filesystem, path = locate(uri)
    return filesystem.open_input_stream(path, compression=None)


def read_bytes(uri: str) -> bytes:
    """The content of a file. Raises FileNotFoundError or OSError."""
    with open_file(uri) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file atomically, and creates its folder if needed."""
    with atomic_file(uri) as file:
        file.write(data)


def write_table(uri: str, table: pa.Table, **options: Any) -> None:
    """Writes one Parquet file atomically; `options` are those of pyarrow.parquet.write_table."""
    with atomic_file(uri) as file:
        pq.write_table(table, file, **options)


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Reads one Parquet file. Raises FileNotFoundError or OSError."""
    with open_file(uri) as file:
        return pq.read_table(file, columns=columns)


def delete(uri: str) -> None:
    """Removes a file, or a folder with its content; a missing one is not an error."""
    filesystem, path = locate(uri)
    if is_folder(uri):
        filesystem.delete_dir(path)
    elif exists(uri):
        filesystem.delete_file(path)


@contextmanager
def atomic_file(uri: str) -> Iterator[Any]:
    """Opens a file for writing, which appears only if the block ends without an error.

    Its folder is created if needed. Until the end of the block readers see the old file, if any.

    Raises:
        UnwritableError: the disk is full, the folder is read-only, or the like.
        OSError: another error, for example because an object store does not answer.
    """
    filesystem, path = locate(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        # Closing an upload completes it, even after an error. So the upload starts when all data
        # is there, and runs in a thread that Ctrl-C does not interrupt.
        with tempfile.TemporaryFile() as buffer:
            yield buffer
            buffer.seek(0)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(_upload, buffer, filesystem, path).result()
        return
    temporary = f"{path}.{uuid4().hex}.tmp"
    try:
        with raise_unwritable(path, FULL | FORBIDDEN):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = filesystem.open_output_stream(temporary)
        # FORBIDDEN is not included here, because it may be an error of a file that the block reads.
        with raise_unwritable(path, FULL), file:
            yield file
        with raise_unwritable(path, FULL | FORBIDDEN):
            os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


@contextmanager
def raise_unwritable(path: str, reasons: Collection[int]) -> Iterator[None]:
    """Raises UnwritableError instead of an OSError whose errno is in `reasons`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.errno in reasons:
            reason = os.strerror(error.errno)
            if error.errno == errno.EEXIST:
                # From os.makedirs, which names the existing file.
                reason = f"{error.filename} is not a folder"
            raise UnwritableError(
                f"{path} can't be written: {reason}; the same command continues"
            ) from error
        raise


def _upload(buffer: BinaryIO, filesystem: fs.FileSystem, path: str) -> None:
    with filesystem.open_output_stream(path) as file:
        shutil.copyfileobj(buffer, file)
