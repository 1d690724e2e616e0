import gzip
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from raysound.corpora.containers import is_audio_parquet, parquet_clips, parquet_sounds, tar_clips
from raysound.errors import UserError

# Set before the import of `datasets`, which otherwise connects to its hub.
os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
from datasets.table import embed_table_storage

SUFFIXES = frozenset({".wav", ".flac"})


def tar(members: Mapping[str, bytes], **options: Any) -> bytes:
    """Creates a tar file with these members in this order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def found(data: bytes) -> list[dict[str, Any]]:
    return list(tar_clips(io.BytesIO(data), SUFFIXES))


def labels(members: Mapping[str, bytes]) -> dict[str, str | None]:
    return {row["name"]: row["label"] for row in found(tar(members))}


def fault(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        found(data)
    return str(caught.value)


# Tar


def test_a_sample_has_a_sound_and_a_label():
    """WebDataset: `000001.wav` and `000001.cls`."""
    assert labels({"000001.wav": b"a", "000001.cls": b"dog\n", "000002.cls": b"7"}) == {
        "000001.wav": "dog"
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("1.cls", b"dog"),
        ("1.CLS", b"\xef\xbb\xbfdog\r\n"),
        ("1.txt", b" dog "),
        ("1.json", b'{"label": "dog", "speaker": [1, 2]}'),
    ],
)
def test_a_metadata_file_contains_the_label(name, content):
    """Blanks and a byte order mark are removed."""
    assert labels({"1.wav": b"a", name: content}) == {"1.wav": "dog"}


def test_a_json_contains_fold_split_and_group():
    fields = {"label": 3, "fold": 2, "split": "test", "group": "tape 7", "title": "x"}
    (row,) = found(tar({"1.json": json.dumps(fields).encode(), "1.wav": b"a"}))
    assert {key: row[key] for key in ("label", "fold", "split", "group")} == {
        "label": "3", "fold": "2", "split": "test", "group": "tape 7",
    }  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
def test_a_class_takes_precedence_over_a_caption(order):
    """In any order: `.cls` is the class, `.txt` is often a sentence."""
    members = [
        ("1.cls", b"dog"), ("1.json", b'{"label": "mammal", "fold": 4}'),
        ("1.txt", b"a dog barks far away"), ("1.wav", b"a"),
    ]  # fmt: skip
    (row,) = found(tar(dict(members[::order])))
    assert (row["label"], row["fold"]) == ("dog", "4")


def test_members_of_a_sample_need_not_be_adjacent():
    """`tar cf x.tar *.wav *.cls` writes all sounds first."""
    members = {"a/1.wav": b"a", "a/2.wav": b"b", "a/1.cls": b"dog", "a/2.cls": b"cat"}
    assert labels(members) == {"a/1.wav": "dog", "a/2.wav": "cat"}


def test_several_sounds_of_a_sample_share_its_label():
    """Each may also have its own label."""
    members = {
        "1.left.wav": b"a", "1.right.wav": b"b", "1.flac": b"c", "1.cls": b"dog",
        "1.right.cls": b"cat",
    }  # fmt: skip
    assert labels(members) == {"1.left.wav": "dog", "1.right.wav": "cat", "1.flac": "dog"}


def test_equal_names_in_two_folders_are_two_samples():
    members = {"x/1.cls": b"dog", "x/1.wav": b"a", "y/1.cls": b"cat", "y/1.wav": b"b"}
    assert labels(members) == {"x/1.wav": "dog", "y/1.wav": "cat"}


def test_without_metadata_the_folder_is_the_label():
    """An empty file, a JSON without `label` and invalid JSON contain no label."""
    members = {
        "corpus/dog/1.wav": b"a",
        "./cat/2.WAV": b"b", "./cat/2.cls": b" \n",
        "rain/3.flac": b"c", "rain/3.json": b'{"title": "x", "label": null}',
        "sea/4.wav": b"d", "sea/4.json": b"{",
        "sea/5.wav": b"e", "sea/5.json": b'["a"]',
        "6.wav": b"f",
    }  # fmt: skip
    assert labels(members) == {
        "corpus/dog/1.wav": "dog", "cat/2.WAV": "cat", "rain/3.flac": "rain",
        "sea/4.wav": "sea", "sea/5.wav": "sea", "6.wav": None,
    }  # fmt: skip


def test_a_sound_may_have_dots_in_its_name():
    """The first dot ends the name of the sample; all sounds are found."""
    assert labels({"dog/take.1 (v2.0).wav": b"a", "dog/b.flac.wav": b"b"}) == {
        "dog/take.1 (v2.0).wav": "dog",
        "dog/b.flac.wav": "dog",
    }


def test_other_members_are_left_out():
    """Hidden files and folders, macOS metadata, folders with the name of a sound file, pictures."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("dog", "dog/folder.wav"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        for name in (
            "dog/1.wav", "./dog/2.wav", "dog/._1.wav", ".trash/3.wav", "./.x/dog/4.wav",
            "dog/.wav", "dog/1.png", "dog/1.wav.part", "README", "wav",
        ):  # fmt: skip
            archive.addfile(tarfile.TarInfo(name))
    assert [row["name"] for row in found(file.getvalue())] == ["dog/1.wav", "dog/2.wav"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_are_those_of_the_sounds(format):
    """In every tar format, with names that need extra records in two of them."""
    rng = np.random.default_rng(0)
    long = "x" * 90 if format == tarfile.USTAR_FORMAT else "x" * 300
    names = ["a.wav", f"dog/{long}.wav", "cat/empty.wav", "cat/b.wav", "cat/c.flac"]
    if format != tarfile.USTAR_FORMAT:
        names.append("雨/一 二.wav")
    members = {name: rng.bytes(int(rng.integers(1, 3000))) for name in names}
    members["cat/empty.wav"] = b""
    data = tar(members, format=format)
    places = {row["name"]: (row["offset"], row["size"]) for row in found(data)}
    assert {name: data[start : start + size] for name, (start, size) in places.items()} == members


def test_a_name_that_is_not_utf8_is_escaped():
    data = tar({"dog/caf\udce9.wav": b"a"}, format=tarfile.GNU_FORMAT, errors="surrogateescape")
    assert [row["name"] for row in found(data)] == ["dog/caf\\xe9.wav"]


@pytest.mark.parametrize("blocks", [1, 2, 20, 256])
def test_an_empty_tar_file_has_no_clips(blocks):
    assert found(bytes(blocks * tarfile.BLOCKSIZE)) == []


WHOLE = tar({f"dog/{number}.wav": bytes([number + 1]) * 700 for number in range(4)})


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:2100],
        WHOLE[: 512 * 6],
        WHOLE[: 512 * 6 + 100],
        WHOLE[: 512 * 7],
        WHOLE[: 512 * 12],
        WHOLE[: 512 * 6] + b"\x01" * 512 + WHOLE[512 * 7 :],
        WHOLE[: 512 * 6] + bytes(len(WHOLE) - 512 * 6) + bytes(1 << 20),
        WHOLE[: 512 * 6] + bytes(512) + WHOLE[512 * 7 :],
        WHOLE + WHOLE,
    ],
    ids=[
        "within a sound", "between two", "within a header", "behind a header", "before the end",
        "a header overwritten", "zeros that were never downloaded", "a header lost", "two in one",
    ],
)  # fmt: skip
def test_a_truncated_or_damaged_tar_file_is_a_user_error(data):
    """Python's `tarfile` ends at most of these without an error, and sounds would be missing."""
    assert found(WHOLE) != []
    assert fault(data)


@pytest.mark.parametrize("data", [b"", b"no tar file" * 500, gzip.compress(WHOLE), b"x"])
def test_a_file_of_another_format_is_a_user_error(data):
    """Also a renamed `.tar.gz`, in which sounds have no offsets."""
    assert "compressed tar files are not supported" in fault(data)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_sound_that_is_not_contiguous_is_a_user_error(kind):
    """A link, or a file with holes: the bytes at its offset are not the sound."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("dog/1.wav"))
        other = tarfile.TarInfo("dog/2.wav")
        other.type, other.linkname = kind, "dog/1.wav"
        archive.addfile(other)
    assert "'dog/2.wav' is a link or has holes" in fault(file.getvalue())


@pytest.mark.parametrize(("target", "label"), [("1.cls", "dog"), ("gone.cls", None)])
def test_a_label_may_be_a_link(target, label):
    """A link to a shared label file is followed; a broken link is a user error."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        note = tarfile.TarInfo("1.cls")
        note.size = 3
        archive.addfile(note, io.BytesIO(b"dog"))
        archive.addfile(tarfile.TarInfo("2.wav"))
        link = tarfile.TarInfo("2.cls")
        link.type, link.linkname = tarfile.LNKTYPE, target
        archive.addfile(link)
    if label is None:
        assert target in fault(file.getvalue())
    else:
        assert [row["label"] for row in found(file.getvalue())] == [label]


@pytest.mark.parametrize("seed", range(20))
def test_damaged_headers_yield_rows_or_a_user_error(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        data = bytearray(WHOLE)
        for _ in range(rng.integers(1, 6)):
            data[512 * 3 * rng.integers(0, 4) + rng.integers(0, 512)] = rng.integers(0, 256)
        try:
            rows = found(bytes(data))
        except UserError:
            continue
        assert len(rows) <= 4


# Parquet


def parquet(columns: Mapping[str, Any], note: Any = None, **options: Any) -> io.BytesIO:
    """Creates a Parquet file with these columns, and the metadata of Hugging Face."""
    table = pa.table(dict(columns))
    if note is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    file.seek(0)
    return file


def audio(*sounds: bytes | None, path: str | None = "x.wav") -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": sound, "path": path} for sound in sounds], kind)


def classes(*names: str) -> dict[str, Any]:
    """The metadata of Hugging Face for a ClassLabel."""
    return {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}


def test_rows_of_a_parquet_file():
    """They have labels, names and offsets, but not the sounds."""
    table = parquet_clips(parquet({"audio": audio(b"a", b"b"), "label": ["dog", "cat"]}))
    assert table.to_pylist() == [
        {
            "name": "x.wav", "label": label, "fold": None, "split": None, "group": None,
            "offset": row,
        }
        for row, label in enumerate(["dog", "cat"])
    ]  # fmt: skip


def test_fold_split_and_group_are_text():
    """Also if they are numbers or categories."""
    columns = {
        "audio": audio(b"a", b"b"),
        "label": pa.array(["dog", "cat"]).dictionary_encode(),
        "fold": [1, None],
        "split": ["train", "test"],
        "group": pa.array([70, 71], pa.int8()),
    }
    table = parquet_clips(parquet(columns))
    assert table["label"].to_pylist() == ["dog", "cat"]
    assert table["fold"].to_pylist() == ["1", None]
    assert table["split"].to_pylist() == ["train", "test"]
    assert table["group"].to_pylist() == ["70", "71"]


def test_class_numbers_have_names():
    """A number without a name, such as -1 of Hugging Face, and a null become null."""
    columns = {"audio": audio(*[b"a"] * 5), "label": [1, 0, -1, 2, None]}
    table = parquet_clips(parquet(columns, classes("dog", "cat")))
    assert table["label"].to_pylist() == ["cat", "dog", None, None, None]


@pytest.mark.parametrize(
    "note",
    [None, {}, {"info": None}, {"info": {"features": {"label": [{"names": ["a"]}]}}}, [], "x"],
)
def test_class_numbers_without_names_become_text(note):
    """For any other metadata."""
    table = parquet_clips(parquet({"audio": audio(b"a", b"b"), "label": [3, 4]}, note))
    assert table["label"].to_pylist() == ["3", "4"]


def test_class_names_in_the_metadata_do_not_change_text_labels():
    columns = {"audio": audio(b"a"), "label": ["dog"]}
    assert parquet_clips(parquet(columns, classes("x")))["label"].to_pylist() == ["dog"]


@pytest.mark.parametrize("label", ["label", "labels", "category", "class_name", "scene"])
@pytest.mark.parametrize("name", ["audio", "wav", "flac", "mp3", "ogg", "bytes"])
def test_sounds_and_labels_in_columns_of_other_names(name, label):
    """A column of bytes is enough; then a sound has no name."""
    file = parquet({name: [b"a", b"b"], label: ["dog", "cat"]})
    assert is_audio_parquet(pq.read_schema(file))
    table = parquet_clips(file)
    assert table["name"].to_pylist() == [None, None]
    assert table["label"].to_pylist() == ["dog", "cat"]
    assert [*parquet_sounds(file, [0, 1])] == [b"a", b"b"]


def test_a_column_of_lists_is_no_label_column():
    columns = {"audio": audio(b"a", b"b"), "labels": [["dog", "pet"], ["cat"]]}
    assert parquet_clips(parquet(columns))["label"].to_pylist() == [None, None]
    columns["word"] = ["dog", "cat"]
    assert parquet_clips(parquet(columns))["label"].to_pylist() == ["dog", "cat"]


def test_a_column_of_class_names_is_used_before_one_of_numbers():
    columns = {"audio": audio(b"a", b"b"), "label": [3, 4], "label_name": ["dog", "cat"]}
    assert parquet_clips(parquet(columns))["label"].to_pylist() == ["dog", "cat"]


@pytest.mark.parametrize("read", [parquet_clips, lambda file: [*parquet_sounds(file, [0])]])
@pytest.mark.parametrize(
    "sound", ["a.wav", [0.1, 0.2], {"path": "a.wav"}, {"path": "a.wav", "bytes": "UklGRg=="}]
)
def test_a_parquet_file_without_sound_bytes_is_a_user_error(sound, read):
    """Paths, samples and texts are not sounds."""
    file = parquet({"audio": [sound], "label": ["dog"]})
    assert not is_audio_parquet(pq.read_schema(file))
    with pytest.raises(UserError, match="no column with the bytes of sounds"):
        read(file)


def test_rows_of_a_parquet_file_without_labels_have_label_null():
    clips = parquet_clips(parquet({"audio": audio(b"a", b"b")}))
    assert clips["label"].to_pylist() == [None, None]
    assert clips["offset"].to_pylist() == [0, 1]


def test_an_empty_parquet_file_has_no_clips():
    columns = {"audio": audio(), "label": pa.array([], pa.int64())}
    assert len(parquet_clips(parquet(columns, classes("dog")))) == 0
    assert [*parquet_sounds(parquet(columns), [])] == []


def test_rows_are_found_in_any_row_group():
    """By their number in the file, also repeated; numbers past the end yield nothing."""
    sounds = [b"%d" % number for number in range(100)]
    file = parquet({"audio": audio(*sounds), "label": ["x"] * 100}, row_group_size=23)
    assert [*parquet_sounds(file, range(100))] == sounds
    assert [*parquet_sounds(file, [0, 22, 23, 45, 46, 46, 99])] == [
        b"0", b"22", b"23", b"45", b"46", b"46", b"99",
    ]  # fmt: skip
    assert [*parquet_sounds(file, [99, 100, 101])] == [b"99"]


def test_a_row_without_bytes_yields_none():
    """A null in the struct, and a null struct."""
    kind = audio(b"a").type
    sounds = pa.array([{"bytes": b"a"}, {"bytes": None, "path": "x"}, None, {"bytes": b""}], kind)
    file = parquet({"audio": sounds, "label": ["x"] * 4})
    assert [*parquet_sounds(file, range(4))] == [b"a", None, None, b""]
    assert parquet_clips(file)["name"].to_pylist() == [None, "x", None, None]


# Parquet files of other writers


def test_parquet_files_of_polars_are_read():
    """Polars uses other types for text and bytes."""
    file = io.BytesIO()
    polars.DataFrame(
        {
            "audio": [{"bytes": b"a", "path": "a.wav"}, {"bytes": b"b", "path": "b.wav"}],
            "label": polars.Series(["dog", "cat"], dtype=polars.Categorical),
            "fold": [1, 2],
        }
    ).write_parquet(file)
    file.seek(0)
    assert is_audio_parquet(pq.read_schema(file))
    table = parquet_clips(file)
    assert table["name"].to_pylist() == ["a.wav", "b.wav"]
    assert table["label"].to_pylist() == ["dog", "cat"]
    assert table["fold"].to_pylist() == ["1", "2"]
    assert [*parquet_sounds(file, [0, 1])] == [b"a", b"b"]


def test_parquet_files_of_hugging_face_are_read(tmp_path: Path):
    """As written by `push_to_hub`: embedded bytes, and classes as numbers."""
    paths = [str(tmp_path / f"{number}.wav") for number in range(3)]
    for number, path in enumerate(paths):
        soundfile.write(path, np.full(80, 0.1 * number), 8000)
    features = datasets.Features(
        {
            "audio": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["dog", "cat"]),
            "fold": datasets.Value("int64"),
        }
    )
    columns = {"audio": paths, "label": ["cat", "dog", None], "fold": [1, 2, 3]}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset = dataset.cast_column("audio", datasets.Audio()).with_format("arrow")
    dataset.map(embed_table_storage, batched=True).to_parquet(tmp_path / "train.parquet")

    with open(tmp_path / "train.parquet", "rb") as file:
        assert is_audio_parquet(pq.read_schema(file))
        table = parquet_clips(file)
        sounds = [*parquet_sounds(file, range(3))]

    assert table["label"].to_pylist() == ["cat", "dog", None]
    assert table["name"].to_pylist() == ["0.wav", "1.wav", "2.wav"]
    assert table["fold"].to_pylist() == ["1", "2", "3"]
    assert sounds == [Path(path).read_bytes() for path in paths]
