"""Layouts of known data sets: their clips, and layouts that are user errors."""

import json
import os
import re
import socket
import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysound.corpora.manifest import read_corpus
from raysound.corpora.vocabulary import meaning_of_splits, split_word
from raysound.errors import UserError

Files = dict[str, str | bytes]


def lay(folder: Path, files: Files | list[str]) -> Path:
    """Writes files; without content, a file has three bytes."""
    contents = files if isinstance(files, dict) else dict.fromkeys(files, b"abc")
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def listed(folder: Path) -> tuple[dict[str, tuple], list[str]]:
    """Label, split and fold by clip id, and the warnings."""
    notes: list[str] = []
    rows = read_corpus(str(folder), notes.append).to_pylist()
    found = {row["clip_id"]: (row["label"], row["split"], row["fold"]) for row in rows}
    assert {row["size"] for row in rows} == {3}
    return found, [note.replace(str(folder), "ROOT") for note in notes]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_corpus(str(folder), lambda note: None)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value).replace(str(folder), "ROOT")


SOUND = b"abc"
LAYOUTS: dict[str, tuple[Files, dict[str, tuple]]] = {
    "ESC-50 with its table in the root": (
        {
            "esc50.csv": "filename,fold,target,category,esc10,src_file,take\n"
            "1-7-A-0.wav,1,0,dog,True,7,A\n2-8-A-1.wav,2,1,rain,True,8,A\n",
            "audio/1-7-A-0.wav": SOUND, "audio/2-8-A-1.wav": SOUND,
        },
        {"audio/1-7-A-0.wav": ("dog", None, "1"), "audio/2-8-A-1.wav": ("rain", None, "2")},
    ),
    "ESC-50 one folder too high": (
        {
            "ESC-50-master/meta/esc50.csv": "filename,fold,category\n1-7-A-0.wav,1,dog\n",
            "ESC-50-master/audio/1-7-A-0.wav": SOUND,
        },
        {"ESC-50-master/audio/1-7-A-0.wav": ("dog", None, "1")},
    ),
    "UrbanSound8K with its table in the root": (
        {
            "UrbanSound8K.csv": "slice_file_name,fsID,fold,classID,class\n"
            "7-3-0-0.wav,7,1,3,dog_bark\n8-1-0-0.wav,8,2,1,car_horn\n",
            "fold1/7-3-0-0.wav": SOUND, "fold2/8-1-0-0.wav": SOUND,
        },
        {
            "fold1/7-3-0-0.wav": ("dog_bark", None, "1"),
            "fold2/8-1-0-0.wav": ("car_horn", None, "2"),
        },
    ),
    "Kaggle: ids without ending, a table for each half": (
        {
            "train.csv": "ID,Class\n0,siren\n1,drilling\n", "test.csv": "ID,Class\n2,siren\n",
            "Train/0.wav": SOUND, "Train/1.wav": SOUND, "Test/2.wav": SOUND,
        },
        {
            "Train/0.wav": ("siren", "train", None), "Train/1.wav": ("drilling", "train", None),
            "Test/2.wav": ("siren", "test", None),
        },
    ),
    "GTZAN": (
        {
            "Data/features_30_sec.csv": "filename,length,tempo,label\n"
            "blues.00000.wav,661794,123.0,blues\njazz.00000.wav,661794,99.0,jazz\n",
            "Data/features_3_sec.csv": "filename,length,label\nblues.00000.0.wav,66149,blues\n",
            "Data/images_original/blues/blues00000.png": b"x",
            "Data/genres_original/blues/blues.00000.wav": SOUND,
            "Data/genres_original/jazz/jazz.00000.wav": SOUND,
        },
        {
            "Data/genres_original/blues/blues.00000.wav": ("blues", None, None),
            "Data/genres_original/jazz/jazz.00000.wav": ("jazz", None, None),
        },
    ),
    "Speech Commands": (
        {
            "validation_list.txt": "yes/b.wav\n", "testing_list.txt": "yes/c.wav\nno/c.wav\n",
            "README.md": "x", "LICENSE": "x", "_background_noise_/white_noise.wav": SOUND,
            **dict.fromkeys(("yes/a.wav", "yes/b.wav", "yes/c.wav", "no/a.wav", "no/c.wav"), SOUND),
        },
        {
            "yes/a.wav": ("yes", None, None), "yes/b.wav": ("yes", "validation", None),
            "yes/c.wav": ("yes", "test", None), "no/a.wav": ("no", None, None),
            "no/c.wav": ("no", "test", None),
        },
    ),
    "DCASE with tabs and folds": (
        {
            "meta.csv": "filename\tscene_label\tidentifier\n"
            "audio/a-1.wav\tairport\tlondon-1\naudio/b-2.wav\tbus\tparis-2\n",
            "evaluation_setup/fold1_train.csv": "filename\tscene_label\naudio/a-1.wav\tairport\n",
            "evaluation_setup/fold1_test.csv": "filename\naudio/b-2.wav\n",
            "audio/a-1.wav": SOUND, "audio/b-2.wav": SOUND,
        },
        {"audio/a-1.wav": ("airport", None, None), "audio/b-2.wav": ("bus", "test", None)},
    ),
    "TUT, without a header": (
        {
            "meta.txt": "audio/b020_90.wav\tbeach\tb020\naudio/a001_0.wav\tbus\ta001\n",
            "audio/b020_90.wav": SOUND, "audio/a001_0.wav": SOUND,
        },
        {"audio/b020_90.wav": ("beach", None, None), "audio/a001_0.wav": ("bus", None, None)},
    ),
    "BirdCLEF": (
        {
            "train_metadata.csv": "primary_label,secondary_labels,filename\n"
            "abe1,\"['x', 'y']\",abe1/XC1.ogg\nabh2,[],abh2/XC2.ogg\n",
            "train_audio/abe1/XC1.ogg": SOUND, "train_audio/abh2/XC2.ogg": SOUND,
        },
        {
            "train_audio/abe1/XC1.ogg": ("abe1", None, None),
            "train_audio/abh2/XC2.ogg": ("abh2", None, None),
        },
    ),
    "NSynth": (
        {
            f"nsynth-{split}/{name}": content
            for split, note in (("train", "bass_1-1"), ("valid", "flute_2-2"), ("test", "reed_3-3"))
            for name, content in (
                ("examples.json", json.dumps({note: {
                    "note_str": note, "instrument": 7, "pitch": 60, "qualities": [0, 1],
                    "instrument_family": 0, "instrument_family_str": note.partition("_")[0],
                }})),
                (f"audio/{note}.wav", SOUND),
            )
        },
        {
            "nsynth-train/audio/bass_1-1.wav": ("bass", "train", None),
            "nsynth-valid/audio/flute_2-2.wav": ("flute", "validation", None),
            "nsynth-test/audio/reed_3-3.wav": ("reed", "test", None),
        },
    ),
    "AudioFolder with a table for each split": (
        {
            "train/metadata.csv": "file_name,label\n1.wav,dog\n",
            "test/metadata.jsonl": '{"file_name": "1.wav", "label": "cat"}\n',
            "train/1.wav": SOUND, "test/1.wav": SOUND,
        },
        {"train/1.wav": ("dog", "train", None), "test/1.wav": ("cat", "test", None)},
    ),
    "paths of another machine, Excel's dialect": (
        {
            "labels.csv": b"\xff\xfe" + (
                "sep=;\r\n File Name ;Class;Remark;;\r\n"
                '"C:\\data\\set\\a.wav";dog;"two\r\nlines";;\r\n'
                "C:\\data\\set\\B.WAV;Caf\u00e9;;;\r\n;;;;\r\n\r\n"
            ).encode("utf-16-le"),
            "sounds/a.wav": SOUND, "sounds/b.wav": SOUND,
        },
        {"sounds/a.wav": ("dog", None, None), "sounds/b.wav": ("Caf\u00e9", None, None)},
    ),
    "a table that numbers the classes of the folders": (
        {
            "index.csv": "filename,target\n1.wav,0\n2.wav,1\n3.wav,1\n",
            "x/dog/1.wav": SOUND, "x/cat/2.wav": SOUND, "x/cat/3.wav": SOUND,
        },
        {
            "x/dog/1.wav": ("dog", None, None), "x/cat/2.wav": ("cat", None, None),
            "x/cat/3.wav": ("cat", None, None),
        },
    ),
    "labels by file name in JSON": (
        {"labels.json": '{"a.wav": "dog", "b.wav": 7}', "x/a.wav": SOUND, "x/b.wav": SOUND},
        {"x/a.wav": ("dog", None, None), "x/b.wav": ("7", None, None)},
    ),
    "a Parquet table": (
        {"metadata.parquet": b"", "x/a.wav": SOUND, "x/b.wav": SOUND},
        {"x/a.wav": ("007", None, "1"), "x/b.wav": ("NO", None, "2")},
    ),
    "folds of whole numbers that pandas wrote": (
        {
            "metadata.csv": "file_name,label,fold\na.wav,1.0,1.0\nb.wav,NA,\n",
            "a.wav": SOUND, "b.wav": SOUND,
        },
        {"a.wav": ("1.0", None, "1"), "b.wav": ("NA", None, None)},
    ),
    "folds above classes": (
        {f"fold_{fold}/{label}/1.wav": SOUND for fold in (1, 2) for label in ("a", "b")},
        {
            f"fold_{fold}/{label}/1.wav": (label, None, str(fold))
            for fold in (1, 2)
            for label in ("a", "b")
        },
    ),
    "an index of numbered categories with their names": (
        {
            "index.csv": "file,category,category_name,recording_id\n"
            "1.wav,0,dog,r1\n2.wav,0,dog,r1\n3.wav,1,rain,r2\n",
            "audio/1.wav": SOUND, "audio/2.wav": SOUND, "audio/3.wav": SOUND,
        },
        {
            "audio/1.wav": ("dog", None, None), "audio/2.wav": ("dog", None, None),
            "audio/3.wav": ("rain", None, None),
        },
    ),
    "splits below classes": (
        {"fan/train/1.wav": SOUND, "fan/test/2.wav": SOUND, "pump/train/x/1.wav": SOUND},
        {
            "fan/train/1.wav": ("fan", "train", None), "fan/test/2.wav": ("fan", "test", None),
            "pump/train/x/1.wav": ("pump", "train", None),
        },
    ),
    "speakers below classes, as in MUSAN": (
        {"music/fma/1.wav": SOUND, "noise/free-sound/1.wav": SOUND},
        {"music/fma/1.wav": ("music", None, None), "noise/free-sound/1.wav": ("noise", None, None)},
    ),
    "newlines in names": (
        {"bell/take\n2.wav": SOUND, "b\nz/1.wav": SOUND},
        {"bell/take\n2.wav": ("bell", None, None), "b\nz/1.wav": ("b\nz", None, None)},
    ),
}  # fmt: skip


def test_clips_of_one_recording_are_a_group(tmp_path: Path) -> None:
    lay(tmp_path, LAYOUTS["an index of numbered categories with their names"][0])

    rows = read_corpus(str(tmp_path), lambda note: None).to_pylist()

    assert {row["clip_id"]: row["group"] for row in rows} == {
        "audio/1.wav": "r1", "audio/2.wav": "r1", "audio/3.wav": "r2",
    }  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_known_data_sets_are_read(tmp_path: Path, layout: str) -> None:
    files, expected = LAYOUTS[layout]
    lay(tmp_path, files)
    if layout == "a Parquet table":
        table = {"file_name": ["a.wav", "b.wav"], "label": ["007", "NO"], "fold": [1, 2]}
        pq.write_table(pa.table(table), tmp_path / "metadata.parquet")

    found, _ = listed(tmp_path)

    assert found == expected


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *((word, "train") for word in ("train", "TRAIN", "training", "Train_Set", "audio_train")),
        *((word, "validation") for word in ("val", "Valid", "validation set", "validation-data")),
        *((word, "test") for word in ("test", "Testing", "testset", "held_out", "eval")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["folder", "column", "Parquet", "tar"])
def test_split_words_are_found_in_folders_columns_and_file_names(
    tmp_path: Path, word: str, split: str, place: str
) -> None:
    """With the same words for all three, in any spelling."""
    if place == "folder":
        lay(tmp_path, [f"{word}/dog/1.wav"])
    elif place == "column":
        lay(
            tmp_path, {"metadata.csv": f"file_name,label,split\n1.wav,dog,{word}\n", "1.wav": SOUND}
        )
    elif place == "Parquet":
        row = pa.table({"audio": [{"bytes": b"abc", "path": None}], "label": ["dog"]})
        pq.write_table(row, tmp_path / f"{word.replace('-', '_')}-00000-of-00001.parquet")
    else:
        with tarfile.open(tmp_path / f"{word.replace('-', '_')}.000.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("dog/1.wav"))

    (row,) = read_corpus(str(tmp_path)).to_pylist()

    assert (row["label"], row["split"]) == ("dog", split)


@pytest.mark.parametrize("word", ["training wheels", "latest", "trains", "tested", "learn", "0"])
def test_other_words_are_not_splits(word: str) -> None:
    assert split_word(word) is None


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (["train", "dev"], {"train": "train", "dev": "validation"}),
        (["train", "dev", "eval"], {"train": "train", "dev": "validation", "eval": "test"}),
        (["train", "eval"], {"train": "train", "eval": "test"}),
        (["dev", "eval"], "'dev' means validation clips in some data sets and training clips in"),
        (["Development", "test"], "'Development' means validation"),
        (["train", "test", "eval"], "'eval' is ambiguous, because another is named test"),
        (["train", "learn"], "'learn' is not a split: use train, validation, test"),
    ],
)
def test_an_ambiguous_split_word_is_a_user_error(
    words: list[str], meaning: dict[str, str] | str
) -> None:
    if isinstance(meaning, dict):
        assert meaning_of_splits(words) == meaning
    else:
        with pytest.raises(UserError, match=meaning):
            meaning_of_splits(words)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ["fold1/a.wav", "fold2/b.wav"],
            "the folders fold1, fold2 are parts of the corpus",
        ),
        (["Part 1/dog/a.wav", "Part 2/dog/b.wav"], "the folders Part 1, Part 2 are parts of"),
        (
            ["train/dog/a.wav", "test/dog/b.wav", "extra/dog/c.wav"],
            "the folders 'extra' are not splits, but test, train are",
        ),
        (["train-clean/1/a.flac", "dev-other/2/b.flac"], "dev-other, train-clean look like splits"),
        (["dev/dog/a.wav", "eval/dog/b.wav"], "the split 'dev' means"),
        (
            {
                "ground_truth/dev.csv": 'fname,labels,split\n7,"Guitar,Music",train\n',
                "dev_audio/7.wav": SOUND,
            },
            "1 sound files are in no class folder, for example 'dev_audio/7.wav'",
        ),
        (["a.m4a", "b.AAC", "x/c.m4a"], "3 files (2 .m4a, 1 .aac; for example 'a.m4a') have an"),
    ],
)
def test_folders_that_are_not_classes_are_a_user_error(
    tmp_path: Path, files: Files | list[str], words: str
) -> None:
    assert words in refusal(lay(tmp_path, files))


NOTES: dict[str, tuple[Files | list[str], str]] = {
    "sounds in a format that can't be read": (
        ["a/1.wav", "a/2.m4a", "b/3.M4A", "b/4.webm"],
        "ROOT: 3 files (2 .m4a, 1 .webm; for example 'a/2.m4a') have an unsupported format: "
        "convert them, for example with `ffmpeg -i x.m4a x.wav`",
    ),
    "files without a known ending": (
        ["a/1.wav", "a/2", "a/3.wav.part", "sounds.zip"],
        "ROOT: 3 files (1 without suffix, 1 .part, 1 .zip; for example 'a/2') are left out: they "
        "have no suffix of a sound file",
    ),
    "a table without labels": (
        {"clips.csv": "file,seconds\n1.wav,2\n", "a/1.wav": SOUND},
        "ROOT: clips.csv names 1 files of the corpus, but has no known label column "
        "(file, seconds): not used; if a column has them, name it label",
    ),
    "a table of several labels a clip": (
        {"truth/dev.csv": 'fname,labels\n1,"Guitar,Music"\n', "a/1.wav": SOUND},
        "ROOT/truth/dev.csv gives a clip several labels, for example 'Guitar,Music': give one in a "
        "metadata.csv with the columns file_name and label: not used",
    ),
    "AudioSet's table, whose header is a comment": (
        {
            "eval.csv": "# Segments\n# num_ytids=1\n# YTID, start_seconds, positive_labels\n"
            '--PJ, 30.000, "/m/09x0r,/t/dd00088"\n',
            "a/--PJ.wav": SOUND,
        },
        "ROOT/eval.csv gives a clip several labels, for example '/m/09x0r,/t/dd00088': give one "
        "in a metadata.csv with the columns file_name and label: not used",
    ),
    "a table without splits, though the folders are some": (
        {
            "metadata.csv": "file_name,label\ntest/1.wav,x\ntrain/2.wav,y\n",
            "test/1.wav": SOUND, "train/2.wav": SOUND,
        },
        "ROOT: metadata.csv has no column split, and the folders test, train are not used as "
        "splits",
    ),
    "a table of other files": (
        {"old.csv": "file,label\nx/9.wav,dog\n", "a/1.wav": SOUND},
        "ROOT/old.csv names 1 files, for example 'x/9.wav', and none exists: not used",
    ),
    "a table of few files": (
        {"some.csv": "file,label\n1.wav,x\n", "a/1.wav": SOUND, "a/2.wav": SOUND, "b/3.wav": SOUND},
        "ROOT: some.csv labels only 1 of 3 sound files: not used; to use it alone, save it as "
        "metadata.csv",
    ),
    "a table of events": (
        {"events.csv": "file,onset,label\n1.wav,0,x\n1.wav,1,y\n", "a/1.wav": SOUND},
        "ROOT/events.csv names a clip in several rows: not used",
    ),
    "a table of another name": (
        {"train.csv": "file,label\n1.wav,x\n", "a/1.wav": SOUND},
        "ROOT: the labels are those of train.csv, column label",
    ),
    "speakers": (
        ["Actor_01/a.wav", "Actor_02/b.wav"],
        "ROOT: the 2 classes are named Actor_01, Actor_02; if they are not classes, list the "
        "clips in a metadata.csv with the columns file_name, label, split and fold",
    ),
    "a folder too high": (
        ["audio/dog/1.wav", "audio/cat/2.wav"],
        "ROOT: all sound files are below 'audio', which is used as their class; if the classes "
        "are cat, dog, give ROOT/audio as the path",
    ),
    "lists of several folds": (
        {
            "setup/fold1_test.txt": "a/1.wav\n", "setup/fold2_test.txt": "b/2.wav\n",
            "a/1.wav": SOUND, "b/2.wav": SOUND,
        },
        "ROOT: the lists setup/fold1_test.txt, setup/fold2_test.txt are of several folds, or "
        "disagree: not used; give the folds in a metadata.csv with a column fold",
    ),
    "lists that disagree": (
        {"train.txt": "a/1.wav\n", "test.txt": "a/1.wav\n", "a/1.wav": SOUND, "b/2.wav": SOUND},
        "ROOT: the lists test.txt, train.txt are of several folds, or disagree: not used; give the "
        "folds in a metadata.csv with a column fold",
    ),
    "classes that differ in capitals": (
        ["Dog/1.wav", "dog/2.wav"],
        "ROOT: the classes 'Dog' and 'dog' differ only in case, blanks or Unicode form: are "
        "they the same class?",
    ),
    "background noise of Speech Commands": (
        ["_background_noise_/1.wav", "yes/2.wav", "no/3.wav"],
        "ROOT: 1 sound files in '_background_noise_' are left out: not a class",
    ),
    "a table in cp1252": (
        {"metadata.csv": b"file_name,label\ncaf\xe9.wav,x\n", "caf\u00e9.wav": SOUND},
        "ROOT/metadata.csv is not UTF-8 text: read as cp1252, as Windows writes it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOTES)
def test_omissions_and_ambiguities_are_reported(tmp_path: Path, what: str) -> None:
    files, note = NOTES[what]

    _, notes = listed(lay(tmp_path, files))

    assert notes == [note]


@pytest.mark.parametrize(
    "names", [["wav/test.wav", "wav/train.wav"], ["audio/test/1.wav", "clips/train.wav"]]
)
def test_a_sound_with_the_name_of_a_split_has_no_split(tmp_path: Path, names: list[str]) -> None:
    rows = read_corpus(str(lay(tmp_path, names)), lambda note: None).to_pylist()
    assert [row["split"] for row in rows] == [None, None]


def test_a_corpus_of_background_noise_only_lists_no_clips(tmp_path: Path) -> None:
    folder = lay(tmp_path, ["_background_noise_/hiss.wav"])
    assert refusal(folder) == "ROOT lists no clips"


def test_every_readable_suffix_is_listed(tmp_path: Path) -> None:
    """The common suffixes of the formats of libsndfile."""
    names = [f"a/{number}{ending}" for number, ending in enumerate((
        ".wav", ".WAVE", ".w64", ".rf64", ".flac", ".ogg", ".Oga", ".opus", ".mp3", ".mp2", ".aif",
        ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph",
    ))]  # fmt: skip

    found, notes = listed(lay(tmp_path, names))

    assert sorted(found) == sorted(names)
    assert notes == []


def test_links_and_special_files_are_reported(tmp_path: Path) -> None:
    """A broken link is listed and rejected later; no file is listed twice, and listing ends."""
    root = lay(tmp_path / "corpus", ["dog/1.wav", "cat/2.wav", ".store/3.wav"])
    lay(tmp_path / "disk", ["far/4.wav", "5.wav"])
    for link, target in {
        "dog/gone.wav": "nowhere.wav", "dog/self.wav": "self.wav", "dog/up": "..", "hund": "dog",
        "cow": str(tmp_path / "disk" / "far"), "cat/5.wav": str(tmp_path / "disk" / "5.wav"),
        "cat/3.wav": "../.store/3.wav", "cat/sibling": "../dog",
    }.items():  # fmt: skip
        os.symlink(target, root / link)
    os.symlink(root, tmp_path / "disk" / "far" / "back")
    os.mkfifo(root / "dog" / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "cat" / "socket.wav"))
        notes: list[str] = []
        rows = {row["clip_id"]: row for row in read_corpus(str(root), notes.append).to_pylist()}

    assert sorted(rows) == [
        "cat/2.wav", "cat/3.wav", "cat/5.wav", "cow/4.wav", "dog/1.wav", "dog/gone.wav",
        "dog/self.wav",
    ]  # fmt: skip
    assert rows["dog/gone.wav"]["size"] == rows["dog/self.wav"]["size"] == -1
    texts = sorted(note.partition(": ")[2].rpartition(", ")[0] for note in notes)
    assert texts == [
        "2 broken links",
        "2 links that point outside the corpus are followed",
        "2 links to a parent folder are not followed",
        "2 links to other folders of the corpus are not followed",
        "2 pipes, sockets or devices are left out",
    ]


def tar_of(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, BytesIO(b"abc"))
    return path


def test_unreadable_sounds_of_a_tar_file_are_reported(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", ["dog/1.wav", "dog/2.opus", "dog/3.m4a", "dog/3.json", "x.png"])
    tar_of(tmp_path / "b.tar", ["dog/1.wav", "dog/3.m4a"])

    found, notes = listed(tmp_path)

    assert sorted(found) == ["a.tar/dog/1.wav", "a.tar/dog/2.opus", "b.tar/dog/1.wav"]
    assert notes == [
        "ROOT: 2 files (2 .m4a; for example 'dog/3.m4a') have an unsupported format: "
        "convert them, for example with `ffmpeg -i x.m4a x.wav`"
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/dog/1.wav", "val/dog/2.wav"], [("dog", "train"), ("dog", "validation")]),
        (["dog/train/1.wav", "dog/test/2.wav"], [("dog", "train"), ("dog", "test")]),
        (["train/1.wav", "plane/2.wav"], [("train", None), ("plane", None)]),
    ],
)
def test_folders_in_a_tar_file_may_be_splits(
    tmp_path: Path, names: list[str], expected: list[tuple]
) -> None:
    rows = read_corpus(str(tar_of(tmp_path / "a.tar", names))).to_pylist()

    assert [(row["label"], row["split"]) for row in rows] == expected


def test_folders_in_a_tar_file_that_are_not_classes_are_a_user_error(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", ["fold1/1.wav", "fold2/2.wav"])

    assert "the folders fold1, fold2 are parts of the corpus" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.struct({"a": pa.int32()})])
@pytest.mark.parametrize("column", ["label", "fold"])
def test_a_manifest_with_nested_columns_is_a_user_error(
    tmp_path: Path, column: str, kind: pa.DataType
) -> None:
    table = {"path": ["a.wav"], "label": ["x"]} | {column: pa.nulls(1, kind)}
    pq.write_table(pa.table(table), tmp_path / "clips.parquet")

    message = refusal(tmp_path / "clips.parquet")
    assert re.search(
        rf"the column '{column}' holds (list|struct)<.+>, not one name per clip", message
    )


def test_a_table_of_composed_names_finds_files_of_decomposed_ones(tmp_path: Path) -> None:
    """MacOS decomposes names; a missing file is not matched with another."""
    lay(tmp_path, ["x/caf\u0065\u0301.wav", "x/1.wav", "y/2.wav"])
    (tmp_path / "metadata.csv").write_text(
        "file_name,label\nx/caf\u00e9.wav,a\nx/1.wav,a\n2.wav,b\nx/2.wav,b\n", encoding="utf-8"
    )

    sizes = {row["clip_id"]: row["size"] for row in read_corpus(str(tmp_path)).to_pylist()}

    assert sizes == {"x/caf\u0065\u0301.wav": 3, "x/1.wav": 3, "2.wav": -1, "x/2.wav": -1}
