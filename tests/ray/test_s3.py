"""Corpora and features in an S3-compatible store, behind a real HTTP server."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raysound import storage
from raysound.corpora.manifest_parts import read_manifest
from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.extract import extract, extract_corpus
from raysound.distributed.extraction.listing import (
    digest_locally,
    digest_on_cluster,
    plan_locally,
    plan_on_cluster,
)
from raysound.distributed.training.train import train
from raysound.features import parquet, ranges
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config


@pytest.fixture
def config(tone_config: dict[str, Any], tones: dict[str, Path], object_store: str) -> Config:
    """The tones, one corpus as wavs and the generated ones as tar files; all in the store."""
    for wav in tones["real"].rglob("*.wav"):
        name = wav.relative_to(tones["real"]).as_posix()
        storage.write_bytes(f"{object_store}/real/{name}", wav.read_bytes())
    for corpus in ("good", "bad"):
        packed = tones[corpus].parent / f"{corpus}.tar"
        with tarfile.open(packed, "w") as tar:
            tar.add(tones[corpus], ".")
        storage.write_bytes(f"{object_store}/{corpus}/000.tar", packed.read_bytes())
    tone_config["output"] = f"{object_store}/runs/tones"
    tone_config["corpora"] = {
        "real": {"path": f"{object_store}/real"},
        "generated": {name: f"{object_store}/{name}" for name in ("good", "bad")},
    }
    return from_tree(tone_config, "test")


def parts(folder: str) -> dict[str, bytes]:
    return {uri.rpartition("/")[2]: storage.read_bytes(uri) for uri in parquet.shard_uris(folder)}


@pytest.mark.timeout(240)
def test_the_pipeline_runs_from_store_to_store(
    config: Config, tone_config: dict[str, Any], tones: dict[str, Path], tmp_path: Path
) -> None:
    """The features equal those of files on disk, and a second run does not write them again."""
    extract(config)

    folder = parquet.folder(config.output, "real", config.features)
    here = dict(tone_config, output=str(tmp_path / "here"))
    here["corpora"] = {"real": {"path": str(tones["real"])}}
    local = extract_corpus("real", from_tree(here, "test"))
    for there, on_disk in zip(parquet.shard_uris(folder), parquet.shard_uris(local), strict=True):
        assert storage.read_table(there).equals(pq.read_table(on_disk))
    before = parts(folder)
    summary = json.loads(storage.read_bytes(f"{folder}/summary.json"))
    assert (summary["found"], summary["written"], summary["rejected"]) == (66, 66, 0)
    assert all(not uri.endswith(".tmp") for uri, _, _ in storage.list_files(folder))

    extract(config)
    assert parts(folder) == before

    train(config)
    evaluate(config)
    report = storage.read_bytes(f"{config.output}/evaluation/report.html").decode()
    # Of three corpora and classes the hardest and the most convincing clip.
    assert report.count("<audio") == 3 * 3 * 2
    metrics = json.loads(storage.read_bytes(f"{config.output}/evaluation/metrics.json"))
    accuracies = {name: corpus["accuracy"]["value"] for name, corpus in metrics["corpora"].items()}
    assert accuracies["good"] > accuracies["bad"]


def test_only_the_shard_of_a_replaced_object_is_written_again(
    config: Config, tones: dict[str, Path], object_store: str
) -> None:
    folder = extract_corpus("real", config)
    before = parts(folder)
    louder = next(tones["good"].rglob("*.wav")).read_bytes()
    storage.write_bytes(f"{object_store}/real/high/003.wav", louder)

    extract_corpus("real", config)

    after = parts(folder)
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 1


@pytest.mark.parametrize("name", ["real", "good"])
def test_a_large_corpus_in_a_store_is_listed_by_the_cluster(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, object_store: str, name: str
) -> None:
    """For files and for a tar file, the manifest in the store equals that of a single process."""
    monkeypatch.setattr(ranges, "CLIPS_TOGETHER", 16)
    there = config.model_copy(update={"output": f"{object_store}/runs/listed"})
    here = config.model_copy(update={"output": str(tmp_path / "here")})

    plans = [plan_on_cluster(name, there), plan_locally(name, here)]

    assert plans[0] == plans[1]
    folders = [parquet.folder(one.output, name, one.features) for one in (there, here)]
    assert read_manifest(folders[0]).equals(read_manifest(folders[1]))
    left = {uri.split("/")[0] for uri, _, _ in storage.list_files(folders[0])}
    assert left == {"manifest"}
    assert digest_on_cluster(name, there) == digest_locally(name, here)
