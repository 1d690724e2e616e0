import os
import resource
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from raysound import storage
from raysound.errors import UserError

# Common file names; `%20` must not become a space, and `#` must not end the name.
NAMES = ["plain", "with blank", "雨 (1)", "a#b", "50%20", "it's & co.", "e\u0301"]


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with each of the names."""
    path = tmp_path / request.param
    path.mkdir()
    return path


@pytest.fixture
def object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that storage treats as an object store: a pyarrow filesystem that is not local."""
    store = tmp_path / "store"
    store.mkdir()
    filesystem = fs.SubTreeFileSystem(str(store), fs.LocalFileSystem())
    monkeypatch.setattr(storage, "locate", lambda uri: (filesystem, uri.removeprefix("store://")))
    return store


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# Atomic files


def break_off(uri: str, error: type[BaseException]) -> None:
    """Writes half a file, then fails."""
    with storage.atomic_file(uri) as file:
        file.write(b"half of the n")
        raise error


def test_written_bytes_are_read(folder):
    """Missing folders are created, and no other files remain."""
    uri = storage.join(str(folder), "new", "deep", folder.name + ".bin")
    storage.write_bytes(uri, b"abc")
    assert storage.read_bytes(uri) == b"abc"
    assert Path(uri).read_bytes() == b"abc"
    assert everything_below(folder) == ["new", "new/deep", f"new/deep/{folder.name}.bin"]


def test_a_relative_path_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("here.bin", b"abc")
    assert storage.read_bytes("here.bin") == b"abc"
    assert everything_below(tmp_path) == ["here.bin"]


def test_a_second_write_replaces_the_first(tmp_path):
    uri = str(tmp_path / "a.bin")
    storage.write_bytes(uri, b"a longer text")
    storage.write_bytes(uri, b"abc")
    assert storage.read_bytes(uri) == b"abc"
    assert everything_below(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_only_the_old_file(tmp_path, error):
    """This includes Ctrl-C."""
    uri = str(tmp_path / "a.bin")
    storage.write_bytes(uri, b"old")
    with pytest.raises(error):
        break_off(uri, error)
    assert storage.read_bytes(uri) == b"old"
    assert everything_below(tmp_path) == ["a.bin"]


def test_an_error_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(EOFError):
        break_off(str(tmp_path / "a"), EOFError)
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "most", "reason"),
    [
        ("a.bin", 1000, "File too large"),
        ("file/a.bin", resource.RLIM_INFINITY, "{tmp_path}/file is not a folder"),
        ("file/below/a.bin", resource.RLIM_INFINITY, "Not a directory"),
        ("folder", resource.RLIM_INFINITY, "Is a directory"),
        ("a" * 300, resource.RLIM_INFINITY, "File name too long"),
    ],
)
def test_a_file_that_can_not_be_written_is_named_with_the_reason(tmp_path, place, most, reason):
    """The system rejects files of more than `most` bytes, as on a full disk."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = everything_below(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(UserError) as raised:
            storage.write_bytes(str(tmp_path / place), b"a" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    reason = reason.format(tmp_path=tmp_path)
    line = f"{tmp_path / place} can't be written: {reason}; the same command continues"
    assert str(raised.value) == line
    assert everything_below(tmp_path) == before


def test_a_read_error_is_not_an_error_of_the_written_file(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotADirectoryError),
        storage.atomic_file(str(tmp_path / "a.bin")),
        open(tmp_path / "file" / "b.bin"),
    ):
        pass


def test_the_file_appears_only_when_the_block_has_ended(tmp_path):
    uri = str(tmp_path / "a.bin")
    with storage.atomic_file(uri) as file:
        file.write(b"abc")
        assert not storage.exists(uri)
    assert storage.exists(uri)


def test_two_writers_of_one_file_do_not_interfere(tmp_path):
    """A retried task may run at the same time as the first; the last one to end wins."""
    uri = str(tmp_path / "a.bin")
    with storage.atomic_file(uri) as first:
        first.write(b"first")
        with storage.atomic_file(uri) as second:
            second.write(b"second")
        assert storage.read_bytes(uri) == b"second"
    assert storage.read_bytes(uri) == b"first"
    assert everything_below(tmp_path) == ["a.bin"]


def test_a_file_in_an_object_store_is_complete(object_store):
    storage.write_bytes("store://a.bin", b"abc")
    assert (object_store / "a.bin").read_bytes() == b"abc"
    assert everything_below(object_store) == ["a.bin"]


def test_an_error_leaves_the_old_file_in_an_object_store_too(object_store):
    """Closing an upload completes it, so it must not be closed after an error."""
    storage.write_bytes("store://a.bin", b"old")
    with pytest.raises(EOFError):
        break_off("store://a.bin", EOFError)
    assert storage.read_bytes("store://a.bin") == b"old"
    assert everything_below(object_store) == ["a.bin"]


def test_tables_round_trip(folder):
    uri = str(folder / "t.parquet")
    table = pa.table({"a": [1, 2], "雨": ["x", None]})
    storage.write_table(uri, table, compression="zstd")
    assert storage.read_table(uri).equals(table)
    assert storage.read_table(uri, ["雨"]).equals(table.select(["雨"]))
    assert everything_below(folder) == ["t.parquet"]


def test_an_open_file_is_seekable(tmp_path):
    """Decoders seek in a file."""
    storage.write_bytes(str(tmp_path / "a"), b"0123456789")
    with storage.open_file(str(tmp_path / "a")) as file:
        assert file.seek(0, 2) == 10
        file.seek(4)
        assert file.read(3) == b"456"


def test_reading_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "absent"))
    with pytest.raises(OSError, match="directory"):
        storage.read_bytes(str(tmp_path))


# Listing


def test_list_files_is_relative_sorted_and_complete(folder):
    """The list includes hidden files and all depths, but no folders."""
    names = ["b.wav", "a/z.wav", f"a/{folder.name}.wav", ".hidden/x", "c/d/e/f"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"abc")
    (folder / "empty folder").mkdir()
    listed = storage.list_files(str(folder))
    assert [name for name, _, _ in listed] == sorted(names)
    assert listed == storage.list_files(f"{folder}/")
    for name, size, modified in listed:
        assert size == 3
        assert modified == (folder / name).stat().st_mtime_ns


def test_a_missing_folder_has_no_files(tmp_path):
    assert storage.list_files(str(tmp_path / "absent")) == []


def test_a_linked_folder_is_listed(tmp_path):
    """Corpora are often links to another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.wav").write_bytes(b"abc")
    (tmp_path / "corpus").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "corpus" / "dog")
    os.symlink(tmp_path / "gone", tmp_path / "corpus" / "broken.wav")
    assert [name for name, _, _ in storage.list_files(str(tmp_path / "corpus"))] == ["dog/a.wav"]


def test_stat_files_marks_missing_files(folder):
    (folder / "a").write_bytes(b"abc")
    uris = [str(folder / "a"), str(folder / "absent"), str(folder)]
    there = (3, (folder / "a").stat().st_mtime_ns)
    assert storage.stat_files(uris) == [there, (-1, 0), (-1, 0)]


def test_exists_and_is_folder(folder):
    (folder / "a").write_bytes(b"abc")
    assert storage.exists(str(folder))
    assert storage.exists(str(folder / "a"))
    assert not storage.exists(str(folder / "absent"))
    assert storage.is_folder(str(folder))
    assert not storage.is_folder(str(folder / "a"))
    assert not storage.is_folder(str(folder / "absent"))


# Deleting


def test_delete_removes_only_one_file(folder):
    (folder / "a").write_bytes(b"abc")
    (folder / "b").write_bytes(b"abc")
    storage.delete(str(folder / "a"))
    assert everything_below(folder) == ["b"]


def test_delete_removes_a_folder_with_its_content(folder):
    (folder / "x" / "y").mkdir(parents=True)
    (folder / "x" / "y" / "a").write_bytes(b"abc")
    (folder / "x.b").write_bytes(b"abc")
    storage.delete(str(folder / "x"))
    assert everything_below(folder) == ["x.b"]


def test_deleting_a_missing_file_is_not_an_error(tmp_path):
    storage.delete(str(tmp_path / "absent"))
    storage.delete(str(tmp_path / "absent" / "deeper"))
    assert everything_below(tmp_path) == []


# Paths and URIs


@pytest.mark.parametrize("uri", ["s3://bucket/run", "/runs/x", "runs/x", "gs://bucket"])
def test_join_adds_one_slash(uri):
    assert storage.join(uri, "a", "b.parquet") == f"{uri}/a/b.parquet"
    assert storage.join(f"{uri}/", "a", "b.parquet") == f"{uri}/a/b.parquet"


def test_join_to_the_root():
    assert storage.join("/", "a") == "/a"


def test_a_local_path_is_not_a_uri(folder):
    """It is used unchanged, including `%` and `#`."""
    filesystem, path = storage.locate(str(folder))
    assert isinstance(filesystem, fs.LocalFileSystem)
    assert path == str(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_below_a_uri_is_found_by_its_listed_name(tmp_path, name):
    """The file is found by the name of list_files and by join."""
    (tmp_path / f"{name}.bin").write_bytes(b"abc")
    ((listed, _, _),) = storage.list_files(tmp_path.as_uri())
    assert listed == f"{name}.bin"
    assert storage.read_bytes(storage.join(tmp_path.as_uri(), listed)) == b"abc"


def test_files_are_written_and_deleted_by_uri(tmp_path):
    uri = storage.join(tmp_path.as_uri(), "sub", "a.bin")
    storage.write_bytes(uri, b"abc")
    assert (tmp_path / "sub" / "a.bin").read_bytes() == b"abc"
    storage.delete(uri)
    assert everything_below(tmp_path) == ["sub"]
