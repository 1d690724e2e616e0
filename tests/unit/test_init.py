import csv
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from raysound.corpora.checks import check_real
from raysound.corpora.manifest import read_corpus
from raysound.errors import UserError
from raysound.init.command import write_config
from raysound.init.survey import sample_clips
from raysound.settings.loading import from_tree, load
from raysound.settings.schema import Config
from raysound.settings.yaml12 import read_yaml


def wav(path: Path, seconds: float = 0.5, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(rate * seconds)), rate)
    return path


def classes(
    folder: Path, labels: Iterable[str] = ("bell", "dog"), count: int = 10, **sound: float
) -> Path:
    for label in labels:
        for number in range(count):
            wav(folder / label / f"{number}.wav", **sound)
    return folder


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Path]:
    """The current folder, without a GPU. Nothing is logged."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    yield folder
    assert caplog.records == []


def written(folder: Path) -> tuple[Config, str, list[str]]:
    """The config of a folder, its text, and the printed lines."""
    lines = write_config(str(folder)).splitlines()
    name = f"{folder.name}.yaml"
    assert lines[-1] == f"raysound pipeline {name}"
    config = load(name)
    clips = read_corpus(config.corpora.real.path, lambda note: None)
    assert check_real(clips, config) is None
    assert config.training.unreached_step is None
    text = Path(name).read_text(encoding="utf-8")
    assert max(len(line) for line in text.splitlines() if line.lstrip().startswith("#")) <= 120
    return config, text, lines


def unwrapped(text: str) -> str:
    return " ".join(line.lstrip(" #") for line in text.splitlines())


def refusal(folder: Path, *words: str) -> str:
    before = sorted(Path().iterdir())
    with pytest.raises(UserError) as caught:
        write_config(str(folder), *words)
    assert sorted(Path().iterdir()) == before, "nothing is written"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders(tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, text, lines = written(classes(tmp_path / "sounds"))

    assert (config.name, config.output) == ("sounds", str(here / "runs/sounds"))
    assert config.corpora.real.path == str(tmp_path / "sounds")
    assert config.corpora.generated == {}
    assert config.features.sample_rate == 8000
    assert config.features.f_max == 4000
    assert config.features.clip_length == 0.5
    assert config.model.name == "cnn6"
    assert (config.training.epochs, config.training.batch_size) == (60, 16)
    assert config.training.class_balance == "none"
    assert config.corpora.real.split.test_fraction == 0.15
    assert "# 20 clips of 2 classes; labels: the names of the class folders." in text
    assert "#   bell (10), dog (10)" in text
    assert lines[:-1] == [
        "real: 20 clips of 2 classes; labels: the names of the class folders",
        f"written: {here / 'sounds.yaml'}; next:",
    ]
    monkeypatch.chdir("/")
    assert load(here / "sounds.yaml") == config, "no path depends on the current folder"


def test_the_example_of_a_generated_corpus_is_valid(tmp_path: Path) -> None:
    _, text, _ = written(classes(tmp_path / "sounds"))

    with_example = re.sub(r"^  # (?=generated:|  my_generator:)", "  ", text, flags=re.MULTILINE)

    config = from_tree(read_yaml(with_example.encode()), "example")
    assert config.corpora.generated == {"my_generator": "/path/to/generated/clips"}


def test_a_table_with_folds_as_in_esc50(tmp_path: Path) -> None:
    root = tmp_path / "ESC-50-master"
    rows = []
    for number in range(20):
        name = f"{number % 5 + 1}-{number}-A-{number % 2}.wav"
        rows.append([name, number % 5 + 1, number % 2, ("dog", "rain")[number % 2], number, "A"])
        wav(root / "audio" / name, seconds=5, rate=4000)
    (root / "meta").mkdir()
    with open(root / "meta/esc50.csv", "w", newline="") as file:
        header = ["filename", "fold", "target", "category", "src_file", "take"]
        csv.writer(file).writerows([header, *rows])

    config, text, _ = written(root)

    split = config.corpora.real.split
    assert (split.test_folds, split.validation_folds) == (("5",), ("4",))
    assert config.features.clip_length == 5
    assert "labels: column category of meta/esc50.csv." in text
    assert "12 clips train the classifier, 4 select its best epoch, 4 test it" in unwrapped(text)


def test_the_split_of_a_corpus_is_kept(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("test", 3)):
        classes(tmp_path / "sounds" / split, count=count)

    config, text, _ = written(tmp_path / "sounds")

    assert "defines the splits test, train." in text
    assert "    split:\n      validation_fraction: 0.15\n" in text
    assert "test_fraction" not in text
    assert config.corpora.real.split.validation_fraction == 0.15


def test_a_split_of_three_needs_no_setting(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        classes(tmp_path / "sounds" / split, count=3)

    _, text, _ = written(tmp_path / "sounds")

    assert "split:" not in text


def test_small_classes_get_larger_shares(tmp_path: Path) -> None:
    config, text, _ = written(classes(tmp_path / "sounds", count=3))

    assert config.corpora.real.split.test_fraction == 0.25
    assert "2 clips train the classifier, 2 select its best epoch, 2 test it" in unwrapped(text)


def test_a_class_that_is_too_small_for_three_splits_is_named(tmp_path: Path) -> None:
    classes(tmp_path / "sounds", count=12)
    wav(tmp_path / "sounds" / "rare" / "x.wav")

    config, text, _ = written(tmp_path / "sounds")

    assert "# Classes with too few clips for all three splits: 'rare'." in text
    assert "class_balance: weights  # classes have 1 to 12 clips" in text
    assert config.training.class_balance == "weights"


def test_real_and_generated_folders(tmp_path: Path) -> None:
    root = tmp_path / "study"
    classes(root / "real", rate=16000)
    classes(root / "generated a", count=4)
    for number in range(4):
        wav(root / "generated-flat" / f"{number}.wav", rate=16000)
    classes(root / "generated-other", ["cat"], count=2)
    (root / "docs").mkdir()

    config, text, lines = written(root)

    assert config.corpora.real.path == str(root / "real")
    assert config.corpora.generated == {
        "generated-a": str(root / "generated a"),
        "generated-flat": str(root / "generated-flat"),
    }
    assert "# 8 clips of 2 classes, 8000 Hz: they have no content above 4000 Hz" in text
    assert "# 4 clips without labels, 16000 Hz" in text
    assert f"Left out: '{root / 'generated-other'}': " in unwrapped(text)
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert "has classes that the real corpus lacks: cat" in note
    assert "docs" not in "\n".join(lines)


def test_generators_in_a_subfolder_are_separate_corpora(tmp_path: Path) -> None:
    classes(tmp_path / "study/real")
    classes(tmp_path / "study/generated/gan", count=2)
    wav(tmp_path / "study/generated/diffusion/0.wav")

    config, _, _ = written(tmp_path / "study")

    assert [*config.corpora.generated] == ["diffusion", "gan"]


def test_two_flat_folders_real_and_fake_are_classes(tmp_path: Path) -> None:
    config, text, _ = written(classes(tmp_path / "spoof", ["real", "fake"]))

    assert config.corpora.real.path == str(tmp_path / "spoof")
    assert "fake (10), real (10)" in text


def test_real_and_generated_tar_files_are_two_corpora(tmp_path: Path) -> None:
    source = classes(tmp_path / "source")
    for name in ("real", "gan"):
        (tmp_path / "study" / name).mkdir(parents=True)
        with tarfile.open(tmp_path / "study" / name / "0.tar", "w") as tar:
            tar.add(source, "")

    config, _, _ = written(tmp_path / "study")

    assert config.corpora.real.path == str(tmp_path / "study/real")
    assert config.corpora.generated == {"gan": str(tmp_path / "study/gan")}


def test_the_most_frequent_of_mixed_sample_rates_is_used(tmp_path: Path) -> None:
    root = classes(tmp_path / "sounds", rate=22050)
    for number in range(3):
        wav(root / "dog" / f"other{number}.wav", rate=8000)

    config, text, _ = written(root)

    assert (config.features.sample_rate, config.features.f_max) == (22050, 11025)
    expected = (
        "Hz, as in 20 of 23 files that were read. The others are resampled to it: 8000 Hz in 3."
    )
    assert expected in unwrapped(text)


@pytest.mark.parametrize(
    ("seconds", "clip_length"), [(0.1, 0.5), (1.02, 1), (1.3, 1.5), (3.5, 4), (30, 10)]
)
def test_clip_length_holds_most_clips(tmp_path: Path, seconds: float, clip_length: float) -> None:
    config, text, _ = written(classes(tmp_path / "sounds", seconds=seconds))

    assert config.features.clip_length == clip_length
    assert f"the longest {seconds:.2f} s" in unwrapped(text)


def test_a_gpu_gets_a_larger_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    config, _, _ = written(classes(tmp_path / "sounds"))

    assert config.model.name == "resnetish18"
    assert config.features.hop_length == 80


@pytest.mark.parametrize("rate", [500, 192000])
def test_every_sample_rate_gives_a_config_that_loads(tmp_path: Path, rate: int) -> None:
    config, _, _ = written(classes(tmp_path / "sounds", rate=rate))

    assert config.features.sample_rate == rate


def test_sounds_in_tar_files_are_read(tmp_path: Path) -> None:
    source = classes(tmp_path / "source")
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "0.tar", "w") as tar:
        tar.add(source, "")

    config, text, _ = written(tmp_path / "packed")

    assert "labels: 1 tar file with the sounds inside." in text
    assert config.features.sample_rate == 8000


def test_names_with_special_yaml_characters(tmp_path: Path) -> None:
    root = classes(tmp_path / "1e5: #ü'\"\n", ["a\nb", "dog"])

    lines = write_config(str(root), "no.yaml").splitlines()

    config = load("no.yaml")
    assert config.corpora.real.path == str(root)
    assert config.name == "no"
    assert lines[-1] == "raysound pipeline no.yaml"


def test_only_some_headers_of_a_large_corpus_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysound.init.survey.LOCAL_FILES", 5)
    root = classes(tmp_path / "sounds")

    _, text, _ = written(root)

    assert "# Hz, as in all 5 files that were read." in text
    clips = read_corpus(str(root))
    assert sample_clips(clips)["clip_id"].to_pylist() == [
        clips["clip_id"][place].as_py() for place in (0, 5, 10, 14, 19)
    ]


def test_unreadable_files_are_counted(tmp_path: Path) -> None:
    root = classes(tmp_path / "sounds")
    (root / "dog" / "broken.wav").write_bytes(b"RIFF")
    (root / "dog" / "empty.wav").write_bytes(b"")

    _, _, lines = written(root)

    assert f"note: {root}: 2 of 22 files that were tried can't be read as a sound" in lines


def test_folders_without_a_corpus_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken/a").mkdir(parents=True)
    (tmp_path / "broken/a/x.wav").write_bytes(b"no sound")

    assert refusal(tmp_path / "missing") == f"{tmp_path}/missing: no such folder"
    assert "holds no sound files" in refusal(tmp_path / "empty")
    assert "no file can be read as a sound (tried: 1)" in refusal(tmp_path / "broken")
    assert "a single class, 'dog'" in refusal(classes(tmp_path / "one", ["dog"]))
    assert refusal(classes(tmp_path / "few", count=1)) == (
        f"{tmp_path}/few: 2 clips of 2 classes are too few to train, validate and test: add clips"
    )


def test_clips_without_labels_are_rejected_with_the_remedies(tmp_path: Path) -> None:
    wav(tmp_path / "flat" / "x.wav")

    message = refusal(tmp_path / "flat")

    assert "the real clips have no labels: put each into a folder named after its class" in message
    assert message.endswith(
        "name the folder below corpora.generated in the config of the real recordings"
    )


def test_flat_real_recordings_next_to_generated_ones_are_rejected(tmp_path: Path) -> None:
    wav(tmp_path / "study/real/x.wav")
    wav(tmp_path / "study/generated/x.wav")

    assert refusal(tmp_path / "study").startswith(
        f"{tmp_path}/study/real: the real clips have no labels"
    )


def test_a_file_is_never_overwritten(tmp_path: Path, here: Path) -> None:
    root = classes(tmp_path / "sounds")
    (here / "sounds.yaml").write_text("mine")
    os.symlink("nowhere", here / "link.yaml")

    assert refusal(root) == "sounds.yaml already exists: give another name as the second argument"
    assert refusal(root, "link.yaml").startswith("link.yaml already exists")
    assert refusal(root, "no/x.yaml") == "no/x.yaml can't be written: No such file or directory"
    assert (here / "sounds.yaml").read_text() == "mine"


def test_the_command_takes_one_or_two_arguments(tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raysound.cli", "init", *words],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    missing = call(str(tmp_path / "missing"))
    three = call("a", "b.yaml", "c")

    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"error: {tmp_path}/missing: no such folder\n"
    assert three.returncode == 2
    assert three.stdout.startswith("usage: raysound init DIR [OUT.yaml]\n")
