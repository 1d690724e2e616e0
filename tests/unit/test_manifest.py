import csv
import gzip
import io
import logging
import os
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysound import storage
from raysound.corpora.checks import check_unlabelled
from raysound.corpora.manifest import read_corpus
from raysound.corpora.vocabulary import SCHEMA
from raysound.errors import UserError


def lay(folder: Path, *names: str) -> Path:
    """Writes files of three bytes; listing does not read them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"abc")
    return folder


def write_csv(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def rows(path: Path | str) -> dict[str, dict]:
    """The manifest by clip id."""
    return {row["clip_id"]: row for row in read_corpus(str(path)).to_pylist()}


def column(path: Path | str, name: str) -> dict[str, object]:
    return {clip_id: row[name] for clip_id, row in rows(path).items()}


def fault(path: Path | str) -> str:
    """The error message."""
    with pytest.raises(UserError) as caught:
        read_corpus(str(path))
    return str(caught.value)


# One folder per class


def test_one_folder_per_class(tmp_path):
    """The label is the name of the folder, the id is the relative path, each clip is a group."""
    lay(tmp_path, "dog/a.wav", "rain/b.wav")
    table = read_corpus(str(tmp_path))
    assert table.schema == SCHEMA
    found = rows(tmp_path)["dog/a.wav"]
    assert found["modified"] == (tmp_path / "dog" / "a.wav").stat().st_mtime_ns
    assert {key: value for key, value in found.items() if key != "modified"} == {
        "clip_id": "dog/a.wav",
        "path": str(tmp_path / "dog" / "a.wav"),
        "label": "dog",
        "fold": None,
        "split": None,
        "group": "dog/a.wav",
        "size": 3,
        "offset": None,
    }
    assert column(tmp_path, "label") == {"dog/a.wav": "dog", "rain/b.wav": "rain"}


def test_subfolders_of_a_class_belong_to_it(tmp_path):
    lay(tmp_path, "dog/monday/early/a.wav", "dog/b.wav", "cat/b.wav")
    assert set(column(tmp_path, "label").values()) == {"dog", "cat"}
    assert rows(tmp_path)["dog/monday/early/a.wav"]["label"] == "dog"


def test_split_folders_above_the_classes(tmp_path):
    """Train, val (or valid, dev, validation) and test are splits if there are no other folders."""
    lay(
        tmp_path,
        "train/dog/a.wav", "val/dog/b.wav", "valid/cat/c.wav", "dev/cat/d.wav",
        "validation/cat/e.wav", "test/cat/f.wav",
    )  # fmt: skip
    assert column(tmp_path, "split") == {
        "train/dog/a.wav": "train",
        "val/dog/b.wav": "validation",
        "valid/cat/c.wav": "validation",
        "dev/cat/d.wav": "validation",
        "validation/cat/e.wav": "validation",
        "test/cat/f.wav": "test",
    }
    assert set(column(tmp_path, "label").values()) == {"dog", "cat"}


def test_split_folders_may_be_capitalized(tmp_path):
    """`Train/dog` is a clip of the class dog, not of a class Train."""
    lay(tmp_path, "Train/dog/a.wav", "Test/cat/b.wav")
    assert column(tmp_path, "label") == {"Train/dog/a.wav": "dog", "Test/cat/b.wav": "cat"}
    assert column(tmp_path, "split") == {"Train/dog/a.wav": "train", "Test/cat/b.wav": "test"}


def test_a_class_may_be_named_train(tmp_path):
    """ESC-50 has a class train; folders are splits only if all folders are splits."""
    lay(tmp_path, "train/a.wav", "plane/b.wav")
    assert column(tmp_path, "label") == {"train/a.wav": "train", "plane/b.wav": "plane"}
    assert set(column(tmp_path, "split").values()) == {None}


def test_other_files_are_ignored(tmp_path):
    """Hidden files, `._x.wav` of macOS, hidden folders, texts; a suffix may be in upper case."""
    lay(
        tmp_path,
        "dog/A.WAV", "dog/b.Flac", "dog/c.mp3", "dog/d.ogg", "dog/e.aiff", "dog/f.aif",
        "dog/._A.wav", "dog/.hidden.wav", ".cache/dog/g.wav", "dog/.trash/h.wav", ".DS_Store",
        "dog/notes.txt", "dog/wav", "README.md", "dog/a.wav.part", "__MACOSX/dog/._A.wav",
    )  # fmt: skip
    assert sorted(rows(tmp_path)) == [
        "dog/A.WAV", "dog/b.Flac", "dog/c.mp3", "dog/d.ogg", "dog/e.aiff", "dog/f.aif",
    ]  # fmt: skip


def test_names_may_have_any_characters(tmp_path):
    """Blanks, Chinese, `#`, `%`, quotes and commas, in folders and files; also a trailing slash."""
    names = ["a dog/x y.wav", "雨/一 二.wav", "50%/a#1.wav", 'it\'s/"so", he said.wav']
    folder = lay(tmp_path / "my corpus #1 (100%)", *names)
    assert sorted(rows(folder)) == sorted(names)
    assert rows(folder) == rows(f"{folder}/")
    for name in names:
        path = rows(folder)[name]["path"]
        assert path == str(folder / name)
        assert storage.read_bytes(path) == b"abc"


def test_a_corpus_by_uri_can_be_read(tmp_path):
    """The paths of the manifest open its files, for names with any characters."""
    lay(tmp_path, "dog/plain.wav", "dog/x y.wav", "dog/a#1.wav", "dog/50%20.wav", "雨/q?.wav")
    manifest = read_corpus(tmp_path.as_uri())
    assert manifest.num_rows == 5
    for row in manifest.to_pylist():
        assert row["size"] == 3
        assert storage.read_bytes(row["path"]) == b"abc"


def test_a_name_that_is_not_utf8_is_listed(tmp_path):
    """Archives of old systems contain Latin-1 names; the other clips are also listed."""
    lay(tmp_path, "dog/a.wav")
    with open(os.path.join(os.fsencode(tmp_path), b"dog", b"caf\xe9.wav"), "wb") as file:
        file.write(b"abc")
    found = rows(tmp_path)
    assert found["dog/a.wav"]["label"] == "dog"
    assert len(found) == 2
    assert all(row["label"] == "dog" for row in found.values())


# Tables


def test_metadata_csv(tmp_path):
    """Hugging Face's AudioFolder: `file_name` and `label` are enough."""
    lay(tmp_path, "sounds/a.wav", "b.wav")
    write_csv(
        tmp_path / "metadata.csv",
        [{"file_name": "sounds/a.wav", "label": "dog"}, {"file_name": "b.wav", "label": "rain"}],
    )
    assert column(tmp_path, "label") == {"sounds/a.wav": "dog", "b.wav": "rain"}
    assert column(tmp_path, "size") == {"sounds/a.wav": 3, "b.wav": 3}
    assert column(tmp_path, "group") == {"sounds/a.wav": "sounds/a.wav", "b.wav": "b.wav"}
    assert set(column(tmp_path, "fold").values()) == {None}
    assert set(column(tmp_path, "split").values()) == {None}


def test_metadata_csv_with_fold_split_and_group(tmp_path):
    """Non-empty values are kept; other columns are ignored."""
    lay(tmp_path, "a.wav", "b.wav", "c.wav")
    empty = {"label": "dog", "fold": "", "split": "", "group": "", "remark": "x"}
    write_csv(
        tmp_path / "metadata.csv",
        [
            empty | {"file_name": "a.wav", "fold": "1", "group": "tape 7"},
            empty | {"file_name": "b.wav", "split": "val", "group": "tape 7"},
            empty | {"file_name": "c.wav"},
        ],
    )
    kept = {
        clip_id: (row["fold"], row["split"], row["group"])
        for clip_id, row in rows(tmp_path).items()
    }
    assert kept == {
        "a.wav": ("1", None, "tape 7"),
        "b.wav": (None, "validation", "tape 7"),
        "c.wav": (None, None, "c.wav"),
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_metadata_csv_with_special_characters(tmp_path, encoding):
    """The byte order mark of Excel, blanks, Chinese, quotes and commas."""
    names = ["a b.wav", "雨.wav", 'so "loud".wav', "one, two.wav"]
    lay(tmp_path, *names)
    write_csv(
        tmp_path / "metadata.csv",
        [{"file_name": name, "label": f"class, {name}"} for name in names],
        encoding,
    )
    assert column(tmp_path, "label") == {name: f"class, {name}" for name in names}
    assert set(column(tmp_path, "size").values()) == {3}


def test_blank_lines_and_extra_cells_of_a_csv_are_ignored(tmp_path):
    lay(tmp_path, "a.wav", "b.wav")
    (tmp_path / "metadata.csv").write_text("file_name,label\n\na.wav,dog,surplus\n\nb.wav,cat\n\n")
    assert column(tmp_path, "label") == {"a.wav": "dog", "b.wav": "cat"}


def test_a_name_with_a_leading_dot_slash_is_that_file(tmp_path):
    """`find . -name '*.wav'` writes such names."""
    lay(tmp_path, "a.wav")
    write_csv(tmp_path / "metadata.csv", [{"file_name": "./a.wav", "label": "dog"}])
    assert column(tmp_path, "size") == {"a.wav": 3}


def test_a_table_takes_precedence_over_folders(tmp_path):
    """With a table, folders have no meaning."""
    lay(tmp_path, "part1/a.wav", "part2/b.wav")
    write_csv(
        tmp_path / "metadata.csv",
        [{"file_name": "part1/a.wav", "label": "x"}, {"file_name": "part2/b.wav", "label": "y"}],
    )
    assert set(column(tmp_path, "label").values()) == {"x", "y"}


def test_esc50_csv(tmp_path):
    """The original ESC-50: folds are kept, clips of one recording (`src_file`) are one group."""
    lay(tmp_path, "audio/1-100032-A-0.wav", "audio/1-100032-B-0.wav", "audio/5-9032-A-0.wav")
    common = {"target": "0", "category": "dog", "esc10": "True", "take": "A"}
    write_csv(
        tmp_path / "meta" / "esc50.csv",
        [
            {"filename": "1-100032-A-0.wav", "fold": "1", "src_file": "100032", **common},
            {"filename": "1-100032-B-0.wav", "fold": "1", "src_file": "100032", **common},
            {"filename": "5-9032-A-0.wav", "fold": "5", "src_file": "9032", **common},
        ],
    )
    assert column(tmp_path, "fold") == {
        "audio/1-100032-A-0.wav": "1",
        "audio/1-100032-B-0.wav": "1",
        "audio/5-9032-A-0.wav": "5",
    }
    assert set(column(tmp_path, "group").values()) == {"100032", "9032"}
    assert set(column(tmp_path, "label").values()) == {"dog"}
    assert set(column(tmp_path, "size").values()) == {3}


def test_urbansound8k_csv(tmp_path):
    """The original UrbanSound8K: one folder per fold, slices of one recording are one group."""
    lay(tmp_path, "audio/fold5/100032-3-0-0.wav", "audio/fold10/100263-2-0-117.wav")
    common = {"start": "0", "end": "4", "salience": "1", "classID": "3"}
    write_csv(
        tmp_path / "metadata" / "UrbanSound8K.csv",
        [
            {"slice_file_name": "100032-3-0-0.wav", "fsID": "100032", "fold": "5"}
            | common | {"class": "dog_bark"},
            {"slice_file_name": "100263-2-0-117.wav", "fsID": "100263", "fold": "10"}
            | common | {"class": "children_playing"},
        ],
    )  # fmt: skip
    found = rows(tmp_path)["audio/fold10/100263-2-0-117.wav"]
    assert (found["label"], found["fold"], found["group"], found["size"]) == (
        "children_playing", "10", "100263", 3,
    )  # fmt: skip
    assert rows(tmp_path)["audio/fold5/100032-3-0-0.wav"]["label"] == "dog_bark"


def test_files_in_no_row_are_counted_in_a_warning(tmp_path, caplog):
    lay(tmp_path, "a.wav", "b.wav", "sub/c.wav", "notes.txt", "._a.wav")
    write_csv(tmp_path / "metadata.csv", [{"file_name": "a.wav", "label": "dog"}])
    with caplog.at_level(logging.WARNING):
        assert list(rows(tmp_path)) == ["a.wav"]
    (message,) = {record.getMessage() for record in caplog.records}
    assert "2 sound files" in message
    assert "'b.wav'" in message
    assert str(tmp_path) in message


def test_a_valid_corpus_yields_no_warnings(tmp_path, caplog):
    lay(tmp_path, "dog/a.wav", "dog/notes.txt")
    with caplog.at_level(logging.WARNING):
        read_corpus(str(tmp_path))
    assert caplog.records == []


def test_a_row_without_a_file_has_size_minus_one(tmp_path):
    """It becomes a reject that is counted."""
    lay(tmp_path, "a.wav")
    write_csv(
        tmp_path / "metadata.csv",
        [{"file_name": "a.wav", "label": "dog"}, {"file_name": "gone.wav", "label": "dog"}],
    )
    assert column(tmp_path, "size") == {"a.wav": 3, "gone.wav": -1}


# A manifest of raysound


def own(folder: Path, table: pa.Table) -> Path:
    pq.write_table(table, folder / "clips.parquet")
    return folder / "clips.parquet"


def test_a_manifest_of_raysound_is_read_unchanged(tmp_path):
    lay(tmp_path, "dog/a.wav", "rain/b.wav", "rain/c.wav")
    table = read_corpus(str(tmp_path))
    storage.write_table(str(tmp_path / "clips.parquet"), table)
    assert read_corpus(str(tmp_path / "clips.parquet")).equals(table)


def test_a_manifest_needs_only_path_and_label(tmp_path):
    """Paths are relative to it, absolute, or URIs; a missing file has size -1."""
    lay(tmp_path, "sounds/a.wav", "elsewhere/b.wav")
    path = own(
        tmp_path,
        pa.table(
            {
                "path": ["sounds/a.wav", str(tmp_path / "elsewhere" / "b.wav"), "gone.wav"],
                "label": ["dog", "cat", "cat"],
            }
        ),
    )
    assert column(path, "size") == {
        "sounds/a.wav": 3,
        str(tmp_path / "elsewhere" / "b.wav"): 3,
        "gone.wav": -1,
    }
    assert rows(path)["sounds/a.wav"]["path"] == str(tmp_path / "sounds" / "a.wav")
    assert rows(path)["sounds/a.wav"]["group"] == "sounds/a.wav"


def test_the_path_of_a_manifest_may_have_no_folder(tmp_path, monkeypatch):
    lay(tmp_path, "a.wav")
    own(tmp_path, pa.table({"path": ["a.wav"], "label": ["dog"]}))
    monkeypatch.chdir(tmp_path)
    assert column("clips.parquet", "size") == {"a.wav": 3}


def test_numbers_in_a_manifest_become_text(tmp_path):
    """Folds and groups of pandas are integers; `1` and `"1"` are the same fold."""
    lay(tmp_path, "a.wav")
    path = own(tmp_path, pa.table({"path": ["a.wav"], "label": [3], "fold": [1], "group": [70]}))
    (row,) = rows(path).values()
    assert (row["label"], row["fold"], row["group"]) == ("3", "1", "70")


def test_splits_of_a_manifest_are_kept(tmp_path):
    path = own(
        tmp_path,
        pa.table({"path": ["a.wav", "b.wav"], "label": ["x", "x"], "split": ["val", "train"]}),
    )
    assert column(path, "split") == {"a.wav": "validation", "b.wav": "train"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"file": ["a.wav"]}, ["lacks", "path"]),
        ({"path": ["a.wav", "b.wav"], "label": ["x", None]}, ["b.wav", "no label"]),
        ({"path": ["a.wav", None], "label": ["x", "x"]}, ["path"]),
        ({"path": ["a.wav", "a.wav"], "label": ["x", "y"]}, ["a.wav", "twice"]),
        ({"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}, ["no clips"]),
    ],
)
def test_a_bad_manifest_is_a_user_error(tmp_path, table, words):
    text = fault(own(tmp_path, pa.table(table)))
    assert [word for word in words if word not in text] == []


def test_a_missing_or_invalid_manifest_is_a_user_error(tmp_path):
    assert "no such manifest" in fault(tmp_path / "absent.parquet")
    assert "no such tar file" in fault(tmp_path / "absent.tar")
    (tmp_path / "text.parquet").write_text("file_name,label\na.wav,dog\n")
    assert "text.parquet" in fault(tmp_path / "text.parquet")


# Tar and Parquet files with sounds


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, count: int = 2, **columns: list[object]) -> None:
    """Writes rows with the sounds 0.wav, 1.wav …; their label is dog unless given in `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = [{"bytes": b"abc", "path": f"{number}.wav"} for number in range(count)]
    pq.write_table(pa.table({"audio": audio, "label": ["dog"] * count} | columns), path)


def test_tar_files(tmp_path):
    """The id is the tar file and the member; the time is that of the tar file."""
    write_tar(tmp_path / "b.tar", {"1.wav": b"abcd", "1.cls": b"dog"})
    write_tar(tmp_path / "sub" / "a.tar", {"cat/1.wav": b"ab", "cat/2.wav": b"a"})
    table = read_corpus(str(tmp_path))
    assert table.schema == SCHEMA
    assert column(tmp_path, "label") == {
        "b.tar/1.wav": "dog", "sub/a.tar/cat/1.wav": "cat", "sub/a.tar/cat/2.wav": "cat",
    }  # fmt: skip
    assert rows(tmp_path)["b.tar/1.wav"] == {
        "clip_id": "b.tar/1.wav",
        "path": str(tmp_path / "b.tar"),
        "label": "dog",
        "fold": None,
        "split": None,
        "group": "b.tar/1.wav",
        "size": 4,
        "modified": (tmp_path / "b.tar").stat().st_mtime_ns,
        "offset": 512,
    }


def test_fold_split_and_group_in_a_tar_file(tmp_path):
    note = b'{"label": "dog", "fold": 1, "split": "val", "group": "tape 7"}'
    write_tar(tmp_path / "a.tar", {"1.wav": b"a", "1.json": note})
    (row,) = rows(tmp_path).values()
    assert (row["fold"], row["split"], row["group"]) == ("1", "validation", "tape 7")


def test_parquet_files(tmp_path):
    """The id has row and name; the size is a share of the size of the file."""
    write_parquet(tmp_path / "data" / "sounds.parquet", label=["dog", "cat"])
    path = tmp_path / "data" / "sounds.parquet"
    assert column(tmp_path, "label") == {
        "data/sounds.parquet/0-0.wav": "dog",
        "data/sounds.parquet/1-1.wav": "cat",
    }
    assert rows(tmp_path)["data/sounds.parquet/1-1.wav"] == {
        "clip_id": "data/sounds.parquet/1-1.wav",
        "path": str(path),
        "label": "cat",
        "fold": None,
        "split": None,
        "group": "data/sounds.parquet/1-1.wav",
        "size": path.stat().st_size // 2,
        "modified": path.stat().st_mtime_ns,
        "offset": 1,
    }


def test_names_in_a_parquet_file_may_be_missing_or_repeated(tmp_path):
    audio = [{"bytes": b"abc", "path": path} for path in ("x.wav", "x.wav", None)]
    write_parquet(tmp_path / "a.parquet", 3, audio=audio)
    assert list(rows(tmp_path)) == ["a.parquet/0-x.wav", "a.parquet/1-x.wav", "a.parquet/2"]


def test_fold_split_and_group_in_a_parquet_file(tmp_path):
    """The split of a row takes precedence over that of the file name."""
    write_parquet(
        tmp_path / "train-0.parquet", fold=[1, None], split=["val", None], group=["tape 7", None]
    )
    kept = [(row["fold"], row["split"], row["group"]) for row in rows(tmp_path).values()]
    assert kept == [
        ("1", "validation", "tape 7"),
        (None, "train", "train-0.parquet/1-1.wav"),
    ]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("validation-00000-of-00001-0a1b2c.parquet", "validation"),
        ("plain/test.parquet", "test"),
        ("valid-0.parquet", "validation"),
        ("default/train/0000.parquet", "train"),
        ("training.parquet", "train"),
        ("Train_Set-0.parquet", "train"),
        ("train_horn-0.parquet", None),
        ("latest-0.parquet", None),
        ("sounds.parquet", None),
    ],
)
def test_the_name_of_a_parquet_file_may_contain_its_split(tmp_path, name, split):
    """With the file and folder names of Hugging Face."""
    write_parquet(tmp_path / name)
    assert set(column(tmp_path, "split").values()) == {split}


def test_clips_in_containers_keep_their_order(tmp_path):
    """Reads are then sequential."""
    for name in ("b", "a"):
        write_parquet(tmp_path / f"{name}.parquet", 20)
    found = read_corpus(str(tmp_path)).to_pylist()
    assert [(row["path"], row["offset"]) for row in found] == [
        (str(tmp_path / f"{name}.parquet"), row) for name in ("a", "b") for row in range(20)
    ]


@pytest.mark.parametrize("name", ["a.tar", "a b #1 (100%20).tar", "a.parquet", "雨 50%.parquet"])
@pytest.mark.parametrize("by", ["path", "URI", "folder", "relative"])
def test_a_single_file_may_be_a_corpus(tmp_path, monkeypatch, name, by):
    """By path or URI, and with any name: the ids are equal, and the paths open it."""
    if name.endswith(".tar"):
        write_tar(tmp_path / name, {"dog/1.wav": b"abcd"})
    else:
        write_parquet(tmp_path / name, 1)
    monkeypatch.chdir(tmp_path)
    path = {
        "path": str(tmp_path / name),
        "URI": storage.join(tmp_path.as_uri(), name),
        "folder": str(tmp_path),
        "relative": name,
    }[by]
    (row,) = read_corpus(path).to_pylist()
    assert row["clip_id"].startswith(f"{name}/")
    assert storage.read_bytes(row["path"]) == (tmp_path / name).read_bytes()


def test_a_folder_may_have_the_name_of_a_file(tmp_path):
    """Spark writes a folder `x.parquet` with parts."""
    write_parquet(tmp_path / "x.parquet" / "part-0.parquet")
    assert list(rows(tmp_path / "x.parquet")) == [
        "part-0.parquet/0-0.wav",
        "part-0.parquet/1-1.wav",
    ]
    lay(tmp_path / "y.tar", "dog/a.wav")
    assert list(rows(tmp_path / "y.tar")) == ["dog/a.wav"]


def test_hidden_containers_are_ignored(tmp_path):
    """Such as the `._x.tar` that macOS writes for `x.tar`."""
    write_tar(tmp_path / "a.tar", {"dog/1.wav": b"a"})
    lay(tmp_path, "._a.tar", ".cache/b.tar", "._a.parquet")
    assert list(rows(tmp_path)) == ["a.tar/dog/1.wav"]


def test_omitted_containers_are_reported(tmp_path):
    """Sound files take precedence over tar files, and tar files over Parquet files."""
    write_parquet(tmp_path / "c.parquet")
    notes: list[str] = []
    read_corpus(str(tmp_path), notes.append)
    assert notes == []
    write_tar(tmp_path / "b.tar", {"cat/1.wav": b"a"})
    assert read_corpus(str(tmp_path), notes.append)["label"].to_pylist() == ["cat"]
    lay(tmp_path, "rain/a.wav")
    assert read_corpus(str(tmp_path), notes.append)["label"].to_pylist() == ["rain"]
    assert notes == [
        f"{tmp_path}: 1 Parquet files are left out, because the corpus has tar files; "
        "for example 'c.parquet'",
        f"{tmp_path}: 1 tar files are left out, because the corpus has sound files; "
        "for example 'b.tar'",
        f"{tmp_path}: 1 Parquet files are left out, because the corpus has sound files; "
        "for example 'c.parquet'",
    ]


def test_a_table_beside_tar_files_is_ignored(tmp_path):
    """Parquet without sounds may have any columns."""
    write_tar(tmp_path / "a.tar", {"dog/1.wav": b"a"})
    pq.write_table(pa.table({"path": ["x"]}), tmp_path / "index.parquet")
    notes: list[str] = []
    read_corpus(str(tmp_path), notes.append)
    assert notes == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bad.tar", gzip.compress(bytes(10240), mtime=0), ["compressed"]),
        ("bad.tar", b"", ["empty file"]),
        ("bad.tar", b"x" * 700, ["not a readable tar file"]),
        ("bad.tar", bytes(10240), ["no sounds in its 1"]),
        ("bad.parquet", b"", ["not a Parquet file"]),
        ("bad.parquet", b"PAR1" + bytes(100) + b"PAR1", ["not a Parquet file"]),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_file_that_can_not_be_listed_is_a_user_error(tmp_path, name, content, words, alone):
    """The error names the file, because a corpus may have hundreds."""
    (tmp_path / name).write_bytes(content)
    text = fault(tmp_path / name if alone else tmp_path)
    assert [word for word in [*words, str(tmp_path)] if word not in text] == []
    if "no sounds" not in text:
        assert str(tmp_path / name) in text


def test_one_bad_file_of_many_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"dog/1.wav": b"a"})
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:600])
    assert str(tmp_path / "b.tar") in fault(tmp_path)
    (tmp_path / "b.tar").unlink()
    (tmp_path / "a.tar").unlink()
    write_parquet(tmp_path / "a.parquet")
    pq.write_table(pa.table({"path": ["x"]}), tmp_path / "b.parquet")
    assert "b.parquet: no column with the bytes of sounds" in fault(tmp_path)
    write_parquet(tmp_path / "b.parquet", label=[["dog"], ["cat"]])
    assert "'b.parquet/0-0.wav' has no label, and other clips have one" in fault(tmp_path)


def test_clips_in_containers_need_unique_names_and_all_or_no_labels(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.wav": b"a", "dog/2.wav": b"a"})
    assert "'a.tar/1.wav' has no label, and other clips have one" in fault(tmp_path)
    (tmp_path / "a.tar").unlink()
    write_parquet(tmp_path / "a.parquet", label=["dog", None])
    assert "'a.parquet/1-1.wav' has no label" in fault(tmp_path)
    (tmp_path / "a.parquet").unlink()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("dog/1.wav"))
    assert "'a.tar/dog/1.wav' is listed twice" in fault(tmp_path)


def test_a_manifest_of_raysound_may_list_clips_in_containers(tmp_path):
    """A listing can be stored, or a part of it."""
    write_tar(tmp_path / "a.tar", {"dog/1.wav": b"abcd", "dog/2.wav": b"ab"})
    table = read_corpus(str(tmp_path / "a.tar"))
    storage.write_table(str(tmp_path / "clips.parquet"), table.slice(1))
    assert read_corpus(str(tmp_path / "clips.parquet")).equals(table.slice(1).combine_chunks())


# User errors


@pytest.mark.parametrize("path", ["http://example.org/corpus", "no\0path", "nothing://x"])
def test_an_invalid_path_is_a_user_error(path):
    assert "can't be reached" in fault(path)


def test_a_clip_with_an_invalid_path_has_size_minus_one(tmp_path):
    """It becomes a reject, without an effect on other clips."""
    lay(tmp_path, "a.wav")
    names = ["a.wav", "http://example.org/b.wav", "no\0path.wav"]
    path = own(tmp_path, pa.table({"path": names, "label": ["dog"] * 3}))
    assert column(path, "size") == {"a.wav": 3, names[1]: -1, names[2]: -1}


def test_a_missing_folder_is_a_user_error(tmp_path):
    assert fault(tmp_path / "absent") == f"{tmp_path / 'absent'}: no such folder"


def test_a_sound_file_is_not_a_corpus(tmp_path):
    lay(tmp_path, "a.wav")
    assert "is a file, not a folder" in fault(tmp_path / "a.wav")


@pytest.mark.parametrize("names", [[], ["notes.txt", "dog/notes.txt"], ["dog/._a.wav"]])
def test_no_sound_files_are_a_user_error(tmp_path, names):
    """The message lists the suffixes of sound files."""
    text = fault(lay(tmp_path, *names))
    assert str(tmp_path) in text
    assert "no sound files" in text
    assert ".wav" in text


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["dog/a.wav", "b.wav"], 1),
        (["train/a.wav", "test/b.wav", "test/dog/c.wav"], 2),
        (["train/dog/a.wav", "b.wav"], 1),
    ],
)
def test_sounds_in_no_class_folder_are_a_user_error(tmp_path, names, count):
    """The message has their number, an example and two remedies."""
    text = fault(lay(tmp_path, *names))
    assert f"{count} sound files" in text
    assert ".wav" in text
    assert "folder named after its class" in text
    assert "metadata.csv" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file_name,label\na.wav,dog\na.wav,dog\n", ["'a.wav' is listed twice"]),
        ("file_name,label\na.wav,dog\nb.wav,\n", ["label", "b.wav"]),
        ("file_name,label\na.wav\n", ["label", "a.wav"]),
        ("where,label\na.wav,dog\n", ["file_name"]),
        ("file_name,label\n,dog\n", ["a row", "file_name"]),
        ('file_name,label\n"a.wav,dog\n', ["metadata.csv", "line 2"]),
        (
            "file_name,label\nb.wav,dog\nc.wav,dog\n",
            ["names 2 files, for example 'b.wav'", "none exists"],
        ),
        ("file_name,label,split\na.wav,dog,learn\n", ["learn", "train, validation, test"]),
        ("file_name,label\n", ["no clips"]),
        ("", ["no clips"]),
    ],
)
def test_a_bad_metadata_csv_is_a_user_error(tmp_path, text, words):
    """The message names the corpus, because a config may have several."""
    lay(tmp_path, "a.wav")
    (tmp_path / "metadata.csv").write_text(text)
    message = fault(tmp_path)
    assert [word for word in [*words, str(tmp_path)] if word not in message] == []


# Without labels


def flat_folder(folder):
    return lay(folder, "a.wav", "b.wav")


def flat_table(folder):
    lay(folder, "a.wav", "b.wav", "c.wav")
    (folder / "metadata.csv").write_text("file_name,prompt\na.wav,a dog\nb.wav,rain\n")
    return folder


def unlabelled_tar(folder):
    folder.mkdir()
    write_tar(folder / "a.tar", {"a.wav": b"a", "b.wav": b"b"})
    return folder


def unlabelled_parquet(folder):
    folder.mkdir()
    table = pa.table({"audio": [{"bytes": b"a", "path": f"{name}.wav"} for name in "ab"]})
    pq.write_table(table, folder / "a.parquet")
    return folder


def manifest_without_labels(folder):
    return own(lay(folder, "a.wav", "b.wav"), pa.table({"path": ["a.wav", "b.wav"]}))


def manifest_of_empty_labels(folder):
    columns = {"path": ["a.wav", "b.wav"], "label": ["", ""]}
    return own(lay(folder, "a.wav", "b.wav"), pa.table(columns))


@pytest.mark.parametrize(
    "lay_out",
    [flat_folder, flat_table, unlabelled_tar, unlabelled_parquet, manifest_without_labels,
     manifest_of_empty_labels],
)  # fmt: skip
def test_a_corpus_may_have_no_labels(tmp_path, lay_out):
    table = read_corpus(str(lay_out(tmp_path / "corpus")))
    assert table["label"].to_pylist() == [None, None]
    assert sorted(name[-5:] for name in table["clip_id"].to_pylist()) == ["a.wav", "b.wav"]


def test_the_real_corpus_needs_labels(caplog):
    caplog.set_level("INFO")
    check_unlabelled("generated", "/sounds")
    assert "the clips have no labels, so no metric that needs them is given" in caplog.text
    with pytest.raises(UserError, match=r"/sounds: the real clips have no labels: .*metadata\.csv"):
        check_unlabelled("real", "/sounds")


# Order


def many(folder: Path) -> Path:
    return lay(folder, *(f"{label}/{n:03d}.wav" for label in "abcd" for n in range(50)))


def test_the_order_does_not_depend_on_the_listing(tmp_path, monkeypatch):
    """File systems list in any order; a shard has the same clips on each."""
    many(tmp_path)
    table = read_corpus(str(tmp_path))
    listing = list(storage.scan(str(tmp_path)))
    monkeypatch.setattr(storage, "scan", lambda *arguments: listing[::-1])
    assert read_corpus(str(tmp_path)).equals(table)


def test_the_order_does_not_depend_on_the_order_of_a_csv(tmp_path):
    names = [f"{n}.wav" for n in range(20)]
    lay(tmp_path, *names)
    tables = []
    for order in (names, names[::-1]):
        write_csv(
            tmp_path / "metadata.csv", [{"file_name": name, "label": name[0]} for name in order]
        )
        tables.append(read_corpus(str(tmp_path)))
    assert tables[0].equals(tables[1])


def test_the_order_does_not_depend_on_the_path_of_the_corpus(tmp_path):
    """A moved corpus has the same shards."""
    orders = [
        read_corpus(str(many(tmp_path / place)))["clip_id"].to_pylist() for place in ("x", "y")
    ]
    assert orders[0] == orders[1]


def test_the_order_mixes_the_classes(tmp_path):
    """Any 50 rows of four equal classes have at least five rows of each."""
    labels = read_corpus(str(many(tmp_path)))["label"].to_pylist()
    for start in range(0, 200, 50):
        shard = labels[start : start + 50]
        assert min(shard.count(label) for label in "abcd") >= 5


def test_a_new_file_does_not_change_other_rows(tmp_path):
    """Nor their order, so that most shards stay valid."""
    before = read_corpus(str(many(tmp_path))).to_pylist()
    lay(tmp_path, "c/new.wav")
    after = read_corpus(str(tmp_path)).to_pylist()
    assert len(after) == len(before) + 1
    assert [row for row in after if row["clip_id"] != "c/new.wav"] == before


def test_a_changed_file_changes_only_its_row(tmp_path):
    before = rows(many(tmp_path))
    (tmp_path / "a" / "007.wav").write_bytes(b"other bytes")
    after = rows(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["a/007.wav"]


# Size


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_large_corpus_takes_little_memory(tmp_path):
    """Some hundred bytes per clip."""
    count = 200_000
    folder = tmp_path / "dog"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    for number in range(count):
        os.mknod(f"{number:08d}.wav", dir_fd=descriptor)
    os.close(descriptor)
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        table = read_corpus(str(tmp_path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == count
    assert peak / count < 400
    assert (pa.total_allocated_bytes() - arrow) / count < 400
