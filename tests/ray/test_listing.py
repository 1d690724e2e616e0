"""A corpus is listed once in a job, and by the process that it fits into."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysound.corpora.manifest import read_corpus
from raysound.corpora.manifest_parts import read_index, read_manifest
from raysound.distributed.extraction import listing
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.listing import (
    cached_listings,
    digest_locally,
    digest_on_cluster,
    finished_features,
    plan_corpus,
    plan_locally,
    plan_on_cluster,
)
from raysound.distributed.training.train import train
from raysound.errors import UserError
from raysound.features import parquet, ranges
from raysound.settings.loading import from_tree
from tests.conftest import write_tones


@pytest.fixture
def config(tone_config: dict[str, Any], tmp_path: Path) -> Any:
    """Tones in two folds."""
    folder = tmp_path / "folds"
    write_tones(folder / "0", 8, 0.01, 0)
    write_tones(folder / "1", 8, 0.01, 1)
    rows = [
        f"{wav.relative_to(folder)},{wav.parent.name},{wav.relative_to(folder).parts[0]}"
        for wav in sorted(folder.glob("*/*/*.wav"))
    ]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,fold", *rows]))
    tree = {
        **tone_config,
        "corpora": {"real": {"path": str(folder)}},
        "training": {"epochs": 1, "batch_size": 8, "folds": "all"},
    }
    return from_tree(tree, "test")


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The corpora that were listed, in this process."""
    paths: list[str] = []
    read_corpus = listing.read_corpus

    def noted(path: str, warn: Any) -> Any:
        paths.append(path)
        return read_corpus(path, warn)

    monkeypatch.setattr(listing, "read_corpus", noted)
    return paths


@pytest.mark.timeout(300)
def test_a_job_of_many_trainings_lists_its_corpus_once(config: Any, listings: list[str]) -> None:
    """With a training per fold, after an extraction and without one."""
    with cached_listings():
        extract(config)
        train(config)
    assert listings == [config.corpora.real.path]

    with cached_listings():
        train(config)
    assert listings == [config.corpora.real.path] * 2


def test_another_job_sees_that_a_corpus_has_changed(config: Any) -> None:
    with cached_listings():
        extract(config)
        (Path(config.corpora.real.path) / "0" / "high" / "000.wav").unlink()
        assert finished_features("real", config)

    with pytest.raises(UserError, match="real has changed"), cached_listings():
        finished_features("real", config)


SOUND = b"no sound that could be read"


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(SOUND)
    return folder


def in_class_folders(folder: Path) -> Path:
    """With files beside them of which something is said."""
    names = [f"{label}/{number}.wav" for label in ("cat", "Dog", "dog") for number in range(20)]
    lay(folder, *names, "notes.odd", "README.txt", "cat/0.txt", "_background_noise_/a.wav")
    (folder / "cat" / "link.wav").symlink_to("nowhere")
    (folder / "cat" / "above").symlink_to(folder)
    return folder


def in_split_folders(folder: Path) -> Path:
    splits = ("train", "dev", "test")
    return lay(folder, *(f"{split}/{n % 2}/{n}.wav" for split in splits for n in range(12)))


def in_two_levels(folder: Path) -> Path:
    """A few folders of many, whose second level may be listed apart."""
    return lay(folder, *(f"audio/{n % 5}/{n}.flac" for n in range(30)))


def in_a_table(folder: Path) -> Path:
    lay(folder, *(f"audio/{n}.wav" for n in range(30)))
    rows = [f"{n}.wav,{n % 3},{n % 2}" for n in range(25)]
    (folder / "labels.csv").write_text("\n".join(["file_name,label,fold", *rows]))
    return folder


def in_tar_files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for split in ("train-0", "train-1", "val-0"):
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for number in range(15):
                for name in (f"{number}.wav", f"{number}.cls", f"{number}.m4a"):
                    member = tarfile.TarInfo(name)
                    member.size = 1
                    tar.addfile(member, io.BytesIO(str(number % 3).encode()))
    return folder


def in_one_tar_file(folder: Path) -> Path:
    return in_tar_files(folder) / "train-1.tar"


def in_parquet_files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(3):
        audio = [{"bytes": SOUND, "path": f"{row}.wav"} for row in range(15)]
        table = pa.table({"audio": audio, "label": ["cat", "dog", "rain"] * 5})
        pq.write_table(table, folder / f"{number}.parquet")
    return folder


def in_a_manifest(folder: Path) -> Path:
    table = read_corpus(str(in_split_folders(folder / "sounds")))
    pq.write_table(table.select(["path", "label", "split"]), folder / "clips.parquet")
    return folder / "clips.parquet"


def without_classes(folder: Path) -> Path:
    return lay(folder, "cat/1.wav", "2.wav", "1.wav")


def without_sounds(folder: Path) -> Path:
    return lay(folder, "cat/1.m4a", "cat/notes.txt")


def without_anything(folder: Path) -> Path:
    return folder / "nowhere"


def with_background_noise_alone(folder: Path) -> Path:
    return lay(folder, "_background_noise_/a.wav")


def twice_in_a_tar_file(folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("dog/1.wav"))
    return folder


KINDS = [
    in_class_folders, in_split_folders, in_two_levels, in_a_table, in_tar_files, in_one_tar_file,
    in_parquet_files, in_a_manifest,
]  # fmt: skip
INVALID = [
    without_classes, without_sounds, without_anything, with_background_noise_alone,
    twice_in_a_tar_file,
]  # fmt: skip


@pytest.mark.parametrize("lay_out", [*KINDS, *INVALID])
def test_a_large_corpus_is_listed_by_the_cluster(
    tone_config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lay_out: Callable[[Path], Path],
) -> None:
    """Manifest, warnings and errors equal those of a single process."""
    corpus = str(lay_out(tmp_path / "corpus"))
    # In every case, several ranges and shards.
    monkeypatch.setattr(ranges, "CLIPS_TOGETHER", 8)
    plans, manifests = [], []
    for name, small in (("here", 1000), ("there", -1)):
        monkeypatch.setattr(listing, "SMALL_CORPUS", small)
        tree = {
            **tone_config,
            "corpora": {"real": {"path": corpus}},
            "output": str(tmp_path / name),
            "compute": {"shard_clips": 3},
        }
        config = from_tree(tree, "test")
        plan = (plan_locally if name == "here" else plan_on_cluster)("real", config)
        plans.append({**plan, "warnings": sorted(plan["warnings"])})
        folder = parquet.folder(config.output, "real", config.features)
        if lay_out in KINDS:
            manifests.append(read_manifest(folder))
            assert not (Path(folder) / "listing").exists()
            again = (digest_locally if name == "here" else digest_on_cluster)("real", config)
            index = read_index(folder)
            assert index is not None
            assert index.digest == again

    assert plans[0] == plans[1]
    assert ("error" in plans[0]) == (lay_out in INVALID)
    if lay_out in KINDS:
        assert manifests[0].equals(manifests[1])
        assert index is not None
        assert len(index.parts) > 1 or lay_out is in_one_tar_file


def test_a_small_corpus_is_listed_in_the_driver(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "plan_on_cluster", lambda *arguments: pytest.fail("cluster"))
    assert plan_corpus("real", config)["clips"] == 48

    monkeypatch.setattr(listing, "SMALL_CORPUS", 10)
    with pytest.raises(pytest.fail.Exception, match="cluster"):
        plan_corpus("real", config)


@pytest.mark.parametrize(
    ("lay_out", "most", "small"),
    [
        (in_two_levels, "SMALL_CORPUS", 30),
        (in_tar_files, "SMALL_CONTAINERS", None),
        (in_one_tar_file, "SMALL_CONTAINERS", None),
    ],
)
def test_a_corpus_is_small_up_to_a_limit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lay_out: Callable[[Path], Path],
    most: str,
    small: int | None,
) -> None:
    corpus = lay_out(tmp_path / "corpus")
    files = [corpus] if corpus.is_file() else [*corpus.glob("*.tar")]
    size = small or sum(file.stat().st_size for file in files)
    monkeypatch.setattr(listing, most, size)
    assert listing.is_small(str(corpus))
    monkeypatch.setattr(listing, most, size - 1)
    assert not listing.is_small(str(corpus))
    assert listing.is_small(str(tmp_path / "nowhere"))
