"""Storage and corpora in an object store: pyarrow's client with a local HTTP server."""

import io
import os
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysound import storage
from raysound.audio.decode import Reject
from raysound.audio.sounds import FETCHED_AHEAD, open_sounds
from raysound.corpora.manifest import read_corpus
from raysound.errors import UserError
from tests.s3_server import Object, S3Server, serve

# Special characters in file names, none of which may end or change a name.
NAMES = ["plain.wav", "a b/c d.wav", "a#b.wav", "50%20.wav", "100%.wav", "雨/一 二.wav", "q?x.wav",
         "a+b.wav", "it's & <co>.wav", 'so "loud".wav', "e\u0301.wav", "a:b*c.wav"]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with serve() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(server: S3Server) -> Iterator[str]:
    """An empty bucket of a server that allows all requests."""
    yield server.new_bucket()
    server.faults.clear()
    server.on_request = lambda request: None


@pytest.fixture
def objects(server: S3Server, bucket: str) -> dict[str, Object]:
    return server.buckets[bucket]


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            storage.write_bytes(storage.join(uri, name), path.read_bytes())


# Storage


@pytest.mark.parametrize("below", ["", "runs/x", "my%20runs%20%231%20(100%25)"])
def test_a_file_is_found_by_its_listed_name(bucket, objects, below):
    """A file is written, listed, read and deleted with any name and folder."""
    root = f"s3://{bucket}/{below}"
    for name in NAMES:
        storage.write_bytes(storage.join(root, name), name.encode())
    folder = {"": "", "runs/x": "runs/x/"}.get(below, "my runs #1 (100%)/")
    assert sorted(objects) == sorted(folder + name for name in NAMES)
    listed = storage.list_files(root)
    assert [name for name, _, _ in listed] == sorted(NAMES)
    uris = [storage.join(root, name) for name, _, _ in listed]
    assert storage.stat_files(uris) == [(size, modified) for _, size, modified in listed]
    for uri, (name, size, modified) in zip(uris, listed, strict=True):
        assert storage.read_bytes(uri) == name.encode()
        assert size == len(name.encode())
        assert modified == int(objects[folder + name].modified) * 10**9
        storage.delete(uri)
        assert not storage.exists(uri)
    assert storage.list_files(root) == []


def test_a_uri_may_have_spaces(bucket):
    """Users do not encode spaces."""
    storage.write_bytes(f"s3://{bucket}/my runs/a b.txt", b"abc")
    assert storage.read_bytes(f"s3://{bucket}/my%20runs/a%20b.txt") == b"abc"
    assert storage.list_files(f"s3://{bucket}/my runs/")[0][0] == "a b.txt"


def test_a_listing_has_more_than_one_page(server, bucket, objects):
    """This holds for files and for folders."""
    names = {f"{folder:03d}/{file:03d}.wav" for folder in range(120) for file in range(2)}
    names |= {f"flat/{file:04d}.wav" for file in range(230)}
    objects.update({f"corpus/{name}": Object(b"abc") for name in names})
    server.requests.clear()
    assert {name for name, _, _ in storage.scan(f"s3://{bucket}/corpus")} == names
    assert len(server.requests) > 120 + 230 // 50


def test_existing_and_missing_objects(bucket, objects):
    """A folder has files below it, or was created as an empty object."""
    objects.update({"a/b.txt": Object(b"abc"), "empty/": Object(b"")})
    root = f"s3://{bucket}"
    for folder in (root, f"{root}/", f"{root}/a", f"{root}/a/", f"{root}/empty"):
        assert storage.exists(folder)
        assert storage.is_folder(folder)
    assert storage.exists(f"{root}/a/b.txt")
    assert not storage.is_folder(f"{root}/a/b.txt")
    for absent in (f"{root}/b", f"{root}/a/b", f"{root}-absent", f"{root}-absent/x"):
        assert not storage.exists(absent)
        assert not storage.is_folder(absent)
        assert storage.list_files(absent) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{root}/a/b")
    assert [name for name, _, _ in storage.list_files(root)] == ["a/b.txt"]
    places = [f"{root}/a/b.txt", f"{root}/a", f"{root}/c"]
    assert [size for size, _ in storage.stat_files(places)] == [3, -1, -1]


def test_delete_removes_a_folder_with_its_content(bucket, objects):
    """Objects with the same prefix stay."""
    names = ["x/a", "x/y/b", "x.c", "xy/d"]
    objects.update({name: Object(b"abc") for name in names})
    storage.delete(f"s3://{bucket}/x")
    storage.delete(f"s3://{bucket}/absent")
    assert [name for name, _, _ in storage.list_files(f"s3://{bucket}")] == ["x.c", "xy/d"]


def test_an_upload_of_several_parts_is_complete(bucket, objects):
    data = np.random.default_rng(0).bytes(23_000_001)
    storage.write_bytes(f"s3://{bucket}/big", data)
    assert objects["big"].data == data
    assert storage.read_bytes(f"s3://{bucket}/big") == data


def break_off(uri: str) -> None:
    """Writes the first bytes of a file, then fails."""
    with storage.atomic_file(uri) as file:
        file.write(bytes(12 << 20))
        raise EOFError


def test_an_error_leaves_only_the_old_object(server, bucket, objects):
    storage.write_bytes(f"s3://{bucket}/a", b"old")
    etag = objects["a"].etag
    with pytest.raises(EOFError):
        break_off(f"s3://{bucket}/a")
    assert objects.keys() == {"a"}
    assert objects["a"].etag == etag
    assert not server.uploads


def test_ctrl_c_during_an_upload_leaves_no_partial_object(server, bucket, objects):
    """Closing the stream of an upload would complete it with partial data."""
    data = bytes(60 << 20)

    def interrupt(request: str) -> None:
        if request.startswith("PUT"):
            server.on_request = lambda request: None
            os.kill(os.getpid(), signal.SIGINT)

    server.on_request = interrupt
    # If a shell starts the tests in the background, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes(f"s3://{bucket}/big", data)
    finally:
        signal.signal(signal.SIGINT, before)
    assert {len(item.data) for item in objects.values()} <= {len(data)}


@pytest.mark.parametrize("size", [3, 23 << 20])
def test_a_rejected_upload_is_an_error_and_leaves_nothing(server, bucket, objects, size):
    """This holds for uploads of one part and of several."""
    server.faults[f"PUT {bucket}/a"] = 403
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        storage.write_bytes(f"s3://{bucket}/a", bytes(size))
    assert objects == {}


def test_tables_round_trip(bucket):
    uri = f"s3://{bucket}/t.parquet"
    table = pa.table({"a": [1, 2], "雨": ["x", None]})
    storage.write_table(uri, table, compression="zstd")
    assert storage.read_table(uri).equals(table)
    assert storage.read_table(uri, ["雨"]).equals(table.select(["雨"]))


def test_the_filesystem_of_a_bucket_is_created_once(server, bucket):
    """Creating it requests the region of the bucket, which would be one more request per file."""
    server.requests.clear()
    for number in range(10):
        storage.write_bytes(f"s3://{bucket}/{number}", b"abc")
    assert server.requests.count(f"HEAD {bucket}") <= 1


# Corpora


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def lay_folders(folder: Path) -> None:
    for name in ("a dog/1 #1.wav", "a dog/50%20.wav", "雨/q?.flac"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def lay_table(folder: Path) -> None:
    lay_folders(folder)
    rows = "a dog/1 #1.wav,dog,1\na dog/50%20.wav,dog,2\n雨/q?.flac,rain,1\ngone.wav,rain,2\n"
    (folder / "metadata.csv").write_text("file_name,label,fold\n" + rows, encoding="utf-8")


def lay_tars(folder: Path) -> None:
    for shard in ("train 0", "sub #1/train%201"):
        members = {f"{n:06d}.wav": b"%d" % n * 900 for n in range(9)}
        members |= {f"{n:06d}.cls": b"dog" for n in range(9)}
        write_tar(folder / f"{shard}.tar", members)


def lay_parquets(folder: Path) -> None:
    (folder / "my data").mkdir(parents=True)
    for split in ("train", "test"):
        audio = [{"bytes": b"%d" % n * 900, "path": f"{n}.wav"} for n in range(20)]
        table = pa.table({"audio": audio, "label": ["dog", "cat"] * 10})
        path = folder / "my data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(table, path, row_group_size=6)


CORPORA = [lay_folders, lay_table, lay_tars, lay_parquets]


def content(sound: str | io.BytesIO | Reject) -> bytes | str:
    """The bytes, or the reason why they are missing."""
    if isinstance(sound, Reject):
        return f"{type(sound).__name__}: {sound}"
    if isinstance(sound, str):
        return Path(sound).read_bytes() if Path(sound).exists() else "Unreadable: no such file"
    return sound.read()


def contents(clips: pa.Table) -> list[bytes | str]:
    return [content(sound) for sound in open_sounds(clips)]


@pytest.mark.parametrize("lay", CORPORA)
def test_a_corpus_is_the_same_as_on_disk(tmp_path, bucket, lay: Callable[[Path], None]):
    """This holds for all columns except path and time, and for the bytes of the files."""
    lay(tmp_path)
    upload(tmp_path, f"s3://{bucket}/my%20corpus")
    here, there = read_corpus(str(tmp_path)), read_corpus(f"s3://{bucket}/my%20corpus/")
    assert there.drop_columns(["path", "modified"]).equals(here.drop_columns(["path", "modified"]))
    assert contents(there) == contents(here)


@pytest.mark.parametrize("lay", [lay_tars, lay_parquets])
def test_one_file_is_a_corpus(tmp_path, bucket, lay):
    """It is found by the URI of a listing, with any name."""
    lay(tmp_path)
    upload(tmp_path, f"s3://{bucket}")
    for name, _, _ in storage.list_files(str(tmp_path)):
        there = read_corpus(storage.join(f"s3://{bucket}", name))
        here = read_corpus(str(tmp_path / name))
        assert there["clip_id"].equals(here["clip_id"])
        assert contents(there) == contents(here)


def test_a_manifest_may_refer_to_objects(tmp_path, bucket):
    """Paths are relative to the manifest, or URIs. A missing object has the size -1."""
    lay_folders(tmp_path)
    upload(tmp_path, f"s3://{bucket}/x")
    paths = ["a dog/50%20.wav", f"s3://{bucket}/x/a%20dog/1%20%231.wav", "gone.wav"]
    table = pa.table({"path": paths, "label": ["dog"] * 3})
    storage.write_table(f"s3://{bucket}/x/clips.parquet", table)
    clips = read_corpus(f"s3://{bucket}/x/clips.parquet")
    found = dict(zip(clips["clip_id"].to_pylist(), contents(clips), strict=True))
    assert [*map(found.get, paths)] == [
        b"a dog/50%20.wav", b"a dog/1 #1.wav", "Unreadable: no such file",
    ]  # fmt: skip
    sizes = dict(zip(clips["clip_id"].to_pylist(), clips["size"].to_pylist(), strict=True))
    assert [*map(sizes.get, paths)] == [15, 14, -1]


def test_a_tar_file_is_listed_with_few_requests(server, bucket, tmp_path):
    """A request takes some hundredths of a second, and a tar file may have ten thousand headers."""
    write_tar(tmp_path / "a.tar", {f"dog/{n}.wav": b"abc" for n in range(2000)})
    upload(tmp_path, f"s3://{bucket}")
    server.requests.clear()
    assert len(read_corpus(f"s3://{bucket}")) == 2000
    assert len(server.requests) < 10


@pytest.mark.parametrize("place", ["absent", "bucket"])
def test_a_missing_corpus_is_a_user_error(bucket, place):
    uri = f"s3://{bucket}/absent" if place == "absent" else f"s3://{bucket}-absent/x"
    with pytest.raises(UserError, match=f"{uri}: no such folder"):
        read_corpus(uri)


def test_a_corpus_without_permission_is_a_user_error(server, bucket):
    """Usually the keys are wrong. The error is one line with the message of the store."""
    server.faults[f"HEAD {bucket}/x"] = 403
    with pytest.raises(UserError, match=r"/x can't be reached: .*ACCESS_DENIED"):
        read_corpus(f"s3://{bucket}/x")


# Sounds


def test_objects_are_read_in_parallel_and_in_order(server, bucket, objects):
    """The server answers only when FETCHED_AHEAD requests have arrived."""
    count = 2 * FETCHED_AHEAD
    objects.update({f"dog/{n:02d}.wav": Object(b"%d" % n) for n in range(count)})
    clips = read_corpus(f"s3://{bucket}").sort_by("clip_id")
    together = threading.Barrier(FETCHED_AHEAD)

    def wait(request: str) -> None:
        if request.startswith("GET") and request.endswith(".wav"):
            together.wait(30)

    server.on_request = wait
    assert contents(clips) == [b"%d" % n for n in range(count)]


@pytest.mark.parametrize("status", [403, 404, 503])
@pytest.mark.parametrize("lay", CORPORA)
def test_a_rejected_object_is_unreadable_and_is_read_later(server, bucket, tmp_path, lay, status):
    """The other clips are read."""
    lay(tmp_path)
    upload(tmp_path, f"s3://{bucket}")
    clips = read_corpus(f"s3://{bucket}")
    whole = contents(clips)
    assert any(isinstance(sound, bytes) for sound in whole)
    paths = clips["path"].to_pylist()
    refused = next(
        path for path, sound in zip(paths, whole, strict=True) if isinstance(sound, bytes)
    )
    server.faults[f"GET {storage.locate(refused)[1]}"] = status
    for path, sound, before in zip(paths, contents(clips), whole, strict=True):
        if path == refused:
            assert isinstance(sound, str)
            assert sound.startswith("Unreadable: ")
        else:
            assert sound == before
    server.faults.clear()
    assert contents(clips) == whole


@pytest.mark.parametrize("lay", CORPORA)
def test_an_object_deleted_after_the_listing_is_unreadable(bucket, tmp_path, lay):
    lay(tmp_path)
    upload(tmp_path, f"s3://{bucket}")
    clips = read_corpus(f"s3://{bucket}")
    whole = contents(clips)
    paths: list[Any] = clips["path"].to_pylist()
    storage.delete(paths[0])
    for path, sound, before in zip(paths, contents(clips), whole, strict=True):
        if path == paths[0]:
            assert isinstance(sound, str)
            assert sound.startswith("Unreadable: ")
        else:
            assert sound == before
