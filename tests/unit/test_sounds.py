import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysound.audio.decode import Reject
from raysound.audio.sounds import open_chosen, open_sounds
from raysound.corpora.manifest import read_corpus
from raysound.corpora.vocabulary import SCHEMA

# Bytes of a sound; their content is irrelevant here.
SIZE = 5000


def sounds_of(count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(SIZE) for _ in range(count)]


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, sounds: list[bytes | None], **options: Any) -> Path:
    audio = [{"bytes": sound, "path": None} for sound in sounds]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"audio": pa.array(audio, kind), "label": ["dog"] * len(sounds)})
    pq.write_table(table, path, **options)
    return path


def manifest(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def content(sound: str | io.BytesIO | Reject) -> bytes | str:
    """The bytes, or the type and reason of the reject."""
    if isinstance(sound, Reject):
        return f"{type(sound).__name__}: {sound}"
    if isinstance(sound, str):
        return Path(sound).read_bytes()
    return sound.read()


def contents(clips: pa.Table) -> list[bytes | str]:
    return [content(sound) for sound in open_sounds(clips)]


def test_a_local_file_yields_its_path(tmp_path):
    """Libsndfile opens it; the decoder rejects a missing file."""
    rows = [{"path": str(tmp_path / name)} for name in ("a b.wav", "gone.wav")]
    assert [*open_sounds(manifest(rows))] == [row["path"] for row in rows]


def test_no_clips_yield_no_sounds():
    assert [*open_sounds(manifest([]))] == []


def test_a_remote_file_is_fetched(tmp_path):
    """In order, with more files than concurrent downloads; a missing file yields a reject."""
    sounds = sounds_of(40)
    rows = []
    for number, sound in enumerate(sounds):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(sound)
        rows.append({"path": path.as_uri()})
    (tmp_path / "7.wav").unlink()
    expected = [*sounds[:7], "Unreadable: no such file", *sounds[8:]]
    assert contents(manifest(rows)) == expected


def test_a_fetched_file_is_seekable(tmp_path):
    """A large file is stored on disk."""
    for size in (10, 33 << 20):
        (tmp_path / "a.wav").write_bytes(bytes(size - 3) + b"end")
        (sound,) = open_sounds(manifest([{"path": (tmp_path / "a.wav").as_uri()}]))
        assert sound.seek(-3, os.SEEK_END) == size - 3
        assert sound.read() == b"end"
        sound.seek(0)
        assert sound.read(1) == b"\0"


def test_an_invalid_path_is_a_reject(tmp_path):
    """Other clips are read; the reject is final, not Unreadable."""
    (tmp_path / "a.wav").write_bytes(b"abc")
    rows = [{"path": "http://example.org/a.wav"}, {"path": (tmp_path / "a.wav").as_uri()}]
    reason, sound = contents(manifest(rows))
    assert reason.startswith("Reject: can't be read: Unrecognized filesystem type")
    assert sound == b"abc"


@pytest.mark.parametrize("by", ["path", "URI"])
def test_listed_clips_yield_their_bytes(tmp_path, by):
    """From tar and Parquet files, in any order of the containers."""
    sounds = sounds_of(30)
    for number in range(3):
        some = sounds[10 * number : 10 * number + 10]
        write_tar(tmp_path / f"{number}.tar", {f"dog/{n}.wav": s for n, s in enumerate(some)})
    tars = read_corpus(tmp_path.as_uri() if by == "URI" else str(tmp_path))
    assert contents(tars) == sounds
    order = np.random.default_rng(0).permutation(30)
    assert contents(tars.take(order)) == [sounds[number] for number in order]

    path = write_parquet(tmp_path / "a.parquet", sounds, row_group_size=7)
    rows = read_corpus(path.as_uri() if by == "URI" else str(path))
    assert contents(rows) == sounds
    assert contents(rows.take([3, 4, 19, 29])) == [sounds[number] for number in (3, 4, 19, 29)]
    both = pa.concat_tables([rows.slice(28), tars.slice(0, 2), rows.slice(5, 1)])
    assert contents(both) == [sounds[number] for number in (28, 29, 0, 1, 5)]


def test_chosen_clips_may_be_in_any_order(tmp_path):
    """Rows of several row groups, members of a tar file and separate files, one repeated."""
    sounds = sounds_of(40)
    write_parquet(tmp_path / "a.parquet", sounds[:30], row_group_size=7)
    write_tar(tmp_path / "b.tar", {f"dog/{n}.wav": sounds[n] for n in range(30, 40)})
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "c.wav").write_bytes(b"sound")
    packed = pa.concat_tables(
        read_corpus(str(tmp_path / name), lambda note: None) for name in ("a.parquet", "b.tar")
    )
    plain = manifest([{"path": str(tmp_path / "dog" / "c.wav"), "size": 5}])
    clips = pa.concat_tables([packed, plain])
    order = [*np.random.default_rng(0).permutation(len(clips)).tolist(), 3]
    expected = {row["clip_id"]: content(next(open_sounds(clips.slice(place, 1))))
                for place, row in enumerate(clips.to_pylist())}  # fmt: skip

    found = {place: content(sound) for place, sound in open_chosen(clips.take(order))}

    assert sorted(found) == list(range(len(order)))
    for place, row in enumerate(order):
        assert found[place] == expected[clips["clip_id"][row].as_py()]
    assert set(found.values()) == {*sounds, b"sound"}


def test_a_row_without_bytes_is_a_reject(tmp_path):
    """The reject is final, not Unreadable."""
    path = write_parquet(tmp_path / "a.parquet", [b"a", None, b"c"])
    assert contents(read_corpus(str(path))) == [b"a", "Reject: its row holds no bytes", b"c"]


def test_a_missing_container_yields_a_reject_per_clip(tmp_path):
    """Clips of other containers have their sounds."""
    sounds = sounds_of(9)
    write_tar(tmp_path / "a.tar", {f"dog/{n}.wav": s for n, s in enumerate(sounds[:3])})
    write_parquet(tmp_path / "b.parquet", sounds[3:6])
    write_tar(tmp_path / "c.tar", {f"dog/{n}.wav": s for n, s in enumerate(sounds[6:])})
    clips = pa.concat_tables(
        [read_corpus(str(tmp_path / name)) for name in ("a.tar", "b.parquet", "c.tar")]
    )
    assert contents(clips) == sounds
    (tmp_path / "a.tar").unlink()
    (tmp_path / "b.parquet").unlink()
    found = contents(clips)
    assert found[6:] == sounds[6:]
    for name, reasons in (("a.tar", found[:3]), ("b.parquet", found[3:6])):
        assert all(reason.startswith(f"Unreadable: {tmp_path / name} can't") for reason in reasons)


def test_a_tar_file_that_became_shorter_yields_its_remaining_clips(tmp_path):
    """A partial clip is a reject; a truncated mp3 could be decoded without an error."""
    sounds = sounds_of(6)
    path = write_tar(tmp_path / "a.tar", {f"dog/{n}.wav": s for n, s in enumerate(sounds)})
    clips = read_corpus(str(path))
    os.truncate(path, clips["offset"][3].as_py() + SIZE - 1)
    reason = f"Unreadable: {path} ends before this clip does"
    assert contents(clips) == [*sounds[:3], *[reason] * 3]


def test_a_parquet_file_that_became_shorter_does_not_shift_clips(tmp_path):
    """If a row were skipped, later clips would have wrong labels."""
    sounds = sounds_of(8)
    paths = [write_parquet(tmp_path / f"{n}.parquet", sounds[4 * n : 4 * n + 4]) for n in (0, 1)]
    clips = read_corpus(str(tmp_path))
    write_parquet(paths[0], sounds[:2])
    reason = f"Unreadable: {paths[0]} ends before this clip"
    assert contents(clips) == [*sounds[:2], reason, reason, *sounds[4:]]
    pq.write_table(pa.table({"label": ["dog"]}), paths[0])
    found = contents(clips)
    assert all(reason.startswith(f"Unreadable: {paths[0]} can't be read") for reason in found[:4])
    assert found[4:] == sounds[4:]


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_rows_after_a_damaged_page_are_unreadable(tmp_path, compression):
    """Rows before the overwritten row group are read; the others are rejects."""
    sounds = sounds_of(40)
    path = write_parquet(
        tmp_path / "a.parquet", sounds, row_group_size=10, compression=compression,
        use_dictionary=False,
    )  # fmt: skip
    clips = read_corpus(str(path))
    place = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 2000)
    found = contents(clips)
    assert found[:20] == sounds[:20]
    assert len(found) == 40
    assert all(reason.startswith(f"Unreadable: {path} can't be read") for reason in found[20:])


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_parquet_file_yields_one_result_per_row(tmp_path, seed):
    """Bytes are overwritten anywhere: each row yields a sound or a reject, without an error."""
    rng = np.random.default_rng(seed)
    path = write_parquet(tmp_path / "a.parquet", sounds_of(12), row_group_size=5)
    clips, whole = read_corpus(str(path)), path.read_bytes()
    for _ in range(20):
        data = bytearray(whole)
        # Also damages the footer and page headers, which are few of the bytes.
        for place in rng.choice([*range(200), *range(len(data) - 1500, len(data))], 5):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        assert len(contents(clips)) == len(clips)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_special_files_are_rejects_and_are_not_opened(tmp_path, kind):
    """Opening a pipe or reading a device may never end."""
    path = tmp_path / "a.wav"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.wav,dog\nb.wav,dog\n")
    (tmp_path / "b.wav").write_bytes(b"abc")

    clips = read_corpus(str(tmp_path), lambda note: None).sort_by("clip_id")

    assert contents(clips) == [
        "Reject: not a sound file, but a folder, pipe, socket or device",
        b"abc",
    ]
