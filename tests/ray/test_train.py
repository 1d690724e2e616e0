import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray.data
import torch
import yaml

from raysound.distributed.cluster.nodes import count_slots
from raysound.distributed.cluster.placement import plan_workers, reading_tasks
from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.feature_loading import (
    ShardDatasource,
    SplitStreams,
    normalisation,
    read_all,
    stream,
    write_epoch,
)
from raysound.distributed.training.runs import split_clips
from raysound.distributed.training.trainer import train_classifier
from raysound.errors import UserError
from raysound.features import parquet
from raysound.features.records import MelStatistics
from raysound.settings.compute import ComputeSettings
from raysound.settings.loading import from_tree
from raysound.settings.training import TrainingSettings
from raysound.storage import read_table
from raysound.training import checkpoint
from raysound.training.batches import DeviceTransfer, epoch_order, prefetch, row_batches
from raysound.training.epochs import Metrics, best_epoch
from raysound.training.hardware import explain_out_of_memory, hardware_for
from raysound.training.history import read_history
from raysound.training.step import Hardware
from tests.processes import run_script

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = pytest.mark.timeout(300)


def clips_of(config: Any, split: str) -> pa.Table:
    """The real clips of one split."""
    clips = split_clips(config, finished_features("real", config))
    return clips.filter(pc.equal(clips["split"], split))


def source_of(folder: str, clips: pa.Table, labels: list[str], **order: Any) -> ShardDatasource:
    """What streams read some clips from."""
    return ShardDatasource(parquet.shard_uris(folder), ray.put(clips), labels, **order)


def without_seconds(history: list[Metrics]) -> list[Metrics]:
    """A history without its times."""
    return [{key: row[key] for key in row if key != "seconds"} for row in history]


def test_training_writes_history_weights_and_metadata(trained: dict[str, Any]) -> None:
    history = read_history(f"{trained['run']}/history.jsonl")
    metadata = checkpoint.load_metadata(trained["run"])

    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert [row["lr"] for row in history] == pytest.approx([1e-3] * 4 + [1e-4] * 2)
    best = max(row["validation_accuracy"] for row in history)
    assert best > 0.9
    assert metadata.metrics["validation_accuracy"] == best
    assert metadata.labels == ["high", "low", "mid"]
    assert metadata.features == trained["config"].features
    assert metadata.training["scheduler"]["step_size"] == 4
    assert {path.name for path in Path(trained["run"]).iterdir()} == {
        "history.jsonl",
        "model.safetensors",
        "checkpoint.json",
    }


def test_every_validation_clip_is_counted_once_over_both_workers(trained: dict[str, Any]) -> None:
    """An equal split over two workers would drop one of an odd number of clips."""
    clips = checkpoint.load_metadata(trained["run"]).data["validation"]

    assert clips % 2 == 1
    counted = [row["validation_clips"] for row in read_history(f"{trained['run']}/history.jsonl")]
    assert counted == [clips] * 6


def test_a_trained_classifier_is_not_trained_again(trained: dict[str, Any]) -> None:
    before = Path(trained["run"], "model.safetensors").stat().st_mtime_ns

    assert train_classifier(trained["config"]) == trained["run"]

    assert Path(trained["run"], "model.safetensors").stat().st_mtime_ns == before


def test_normalisation_uses_only_training_rows(trained: dict[str, Any]) -> None:
    folder = finished_features("real", trained["config"])
    clips = clips_of(trained["config"], "train")
    names = set(clips["clip_id"].to_pylist())
    rows = [
        log_mel
        for table in map(read_table, parquet.shard_uris(folder))
        for name, log_mel in zip(
            table["clip_id"].to_pylist(), parquet.tensor_array(table["log_mel"]), strict=True
        )
        if name in names
    ]
    assert len(rows) == checkpoint.load_metadata(trained["run"]).data["train"] < 66
    expected = MelStatistics.of(np.stack(rows))

    actual = normalisation(folder, clips)

    np.testing.assert_allclose(actual.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(actual.std, expected.std, rtol=1e-6)
    assert checkpoint.load_metadata(trained["run"]).normalisation == actual


@pytest.mark.parametrize("streamed", [True, False])
def test_batches_cover_a_split_with_the_right_targets_and_log_mels(
    trained: dict[str, Any], streamed: bool
) -> None:
    """Both from the object store and as a stream."""
    folder = finished_features("real", trained["config"])
    labels = ["high", "low", "mid"]
    clips = clips_of(trained["config"], "test")
    expected = {
        name: labels.index(label)
        for name, label in zip(
            clips["clip_id"].to_pylist(), clips["label"].to_pylist(), strict=True
        )
    }
    assert 0 < len(expected) < 66
    log_mels = {
        name: log_mel
        for table in map(read_table, parquet.shard_uris(folder))
        for name, log_mel in zip(
            table["clip_id"].to_pylist(), parquet.tensor_array(table["log_mel"]), strict=True
        )
    }

    if streamed:
        taken = stream(source_of(folder, clips, labels), 2).take_all()
        fed = [(row["clip_id"], row["target"], row["log_mel"]) for row in taken]
    else:
        rows = read_all(folder, clips, labels)
        fed = list(zip(rows.clip_id, rows.target, rows.log_mel, strict=True))

    assert len(fed) == len(expected)
    assert {name: target for name, target, _ in fed} == expected
    assert all((log_mel == log_mels[name]).all() for name, _, log_mel in fed)


def test_streamed_validation_scores_each_clip_once_over_all_workers(
    trained: dict[str, Any],
) -> None:
    """Also in a second epoch, and for any order of the blocks."""
    folder = finished_features("real", trained["config"])
    clips = {split: clips_of(trained["config"], split) for split in ("train", "validation")}
    expected = {split: sorted(rows["clip_id"].to_pylist()) for split, rows in clips.items()}
    shards = SplitStreams().configure(
        {
            split: stream(source_of(folder, rows, ["high", "low", "mid"]), 2)
            for split, rows in clips.items()
        },
        2,
        worker_handles=None,
        worker_node_ids=None,
    )

    def clip_ids(rank: int, split: str) -> list[str]:
        batches = shards[rank][split].iter_batches(batch_size=4)
        return [name for batch in batches for name in batch["clip_id"]]

    with ThreadPoolExecutor(2) as workers:
        for _ in range(2):
            train = list(workers.map(clip_ids, (0, 1), ("train", "train")))
            validation = list(workers.map(clip_ids, (0, 1), ("validation", "validation")))

            assert sorted(chain(*validation)) == expected["validation"]
            # Training may leave a clip out, so that both workers take as many steps.
            assert len(train[0]) == len(train[1]) == len(expected["train"]) // 2
            assert len({*chain(*train)} & {*expected["train"]}) == len(train[0]) + len(train[1])


def test_each_epoch_of_a_stream_reads_the_shards_in_another_order(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    """The order of an epoch does not depend on earlier reads."""
    folder = finished_features("real", trained["config"])
    clips = clips_of(trained["config"], "train")
    labels = ["high", "low", "mid"]

    def orders(seed: int, epochs: list[int]) -> list[list[str]]:
        rows = stream(source_of(folder, clips, labels, run=str(tmp_path), seed=seed), 2)
        found = []
        for epoch in epochs:
            write_epoch(str(tmp_path), epoch)
            found.append([row["clip_id"] for row in rows.iterator().iter_rows()])
        return found

    first, second, third = orders(0, [1, 2, 3])

    assert len({*map(tuple, (first, second, third))}) > 1
    assert sorted(first) == sorted(second) == sorted(third) == sorted(clips["clip_id"].to_pylist())
    assert orders(0, [3, 2]) == [third, second]


@pytest.mark.parametrize("made_ahead", [0, 2])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_each_clip_of_an_epoch_once(
    trained: dict[str, Any], workers: int, made_ahead: int
) -> None:
    """The batches equal those of one worker, without remainders that can't be divided evenly."""
    here = DeviceTransfer(torch.device("cpu"))
    clips = clips_of(trained["config"], "train")
    rows = read_all(finished_features("real", trained["config"]), clips, ["high", "low", "mid"])
    order = epoch_order(rows, seed=3, epoch=2, balanced=False)

    shares = [
        list(prefetch(row_batches(rows, 12, order, rank, workers, here, None), made_ahead))
        for rank in range(workers)
    ]

    assert len({len(share) for share in shares}) == 1
    together = [
        [name for batch in batches for name in batch.clip_ids]
        for batches in zip(*shares, strict=True)
    ]
    left_out = len(clips) % 12 % workers
    assert sum(map(len, together)) == len(clips) - left_out
    for index, names in enumerate(together):
        whole = rows.clip_id[order[12 * index : 12 * index + 12]].tolist()
        assert sorted(names) == sorted(whole[: len(names)])
    target = dict(zip(rows.clip_id, rows.target, strict=True))
    for batch in (batch for share in shares for batch in share):
        assert batch.target.tolist() == [target[name] for name in batch.clip_ids]


def test_too_few_resources_raise_before_ray_waits(trained: dict[str, Any]) -> None:
    def asking(**compute: Any) -> Any:
        return from_tree({**trained["tree"], "compute": {"shard_clips": 16, **compute}}, "test")

    with pytest.raises(UserError, match=r"need a GPU each; the cluster has 0"):
        plan_workers(asking(workers=2, use_gpu=True))
    with pytest.raises(UserError, match=r"are more than the 2 CPUs of the cluster: lower one"):
        plan_workers(asking(workers=2, cpus_per_worker=1.5))
    with pytest.raises(UserError, match=r"the 2 CPUs of the cluster less 1 that reads the feat"):
        plan_workers(asking(workers=2, cpus_per_worker=1), is_streamed=True)
    with pytest.raises(UserError, match=r"each with 1 CPU, do not fit: .* the nodes hold 1;"):
        plan_workers(asking(workers=2, placement="STRICT_SPREAD"))
    for is_streamed, cpus in ((False, 1.0), (True, 0.5)):
        scaling, threads = plan_workers(asking(workers=2), is_streamed=is_streamed)
        assert scaling.resources_per_worker == {"CPU": cpus}
        assert threads == 1
    # On the CPU that the workers leave free.
    assert reading_tasks(asking(workers=2).compute) == 1


@pytest.mark.parametrize(
    ("needs", "strategy", "slots"),
    [
        ({"CPU": 8}, "PACK", 0),
        ({"CPU": 4}, "SPREAD", 2),
        ({"CPU": 1}, "STRICT_PACK", 4),
        ({"CPU": 1}, "STRICT_SPREAD", 3),
        ({"CPU": 1 / 3}, "PACK", 12 + 12 + 3),
        ({"CPU": 1, "GPU": 1}, "PACK", 2),
    ],
)
def test_worker_slots_are_counted_per_node(
    needs: dict[str, float], strategy: str, slots: int
) -> None:
    """A worker with eight CPUs does not fit on two nodes with four each."""
    nodes = [{"memory": 1.0}, {"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}, {"CPU": 1.0}]

    assert count_slots(nodes, needs, strategy) == slots


def test_gpu_out_of_memory_is_a_user_error_with_advice() -> None:
    settings = TrainingSettings(batch_size=256, gradient_accumulation_steps=2)

    with pytest.raises(UserError) as caught, explain_out_of_memory(settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nException raised from malloc\n#0")

    assert str(caught.value) == (
        "a GPU has too little memory for training.batch_size 256 in 2 steps: raise "
        "training.gradient_accumulation_steps, or add workers (CUDA out of memory. Tried)"
    )


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_cpu_trains_in_bfloat16_if_it_has_the_instructions(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities = {"avx512_bf16": has_bfloat16, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    low = Hardware(torch.bfloat16, channels_last=True)
    cpu = torch.device("cpu")

    assert hardware_for(cpu, ComputeSettings()) == (low if has_bfloat16 else Hardware())
    assert hardware_for(cpu, ComputeSettings(precision="float32")) == Hardware()
    assert hardware_for(cpu, ComputeSettings(precision="bfloat16")) == low
    plain = ComputeSettings(precision="bfloat16", channels_last=False)
    assert hardware_for(cpu, plain) == Hardware(torch.bfloat16)


def test_clips_added_after_the_extraction_are_detected(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path: Path
) -> None:
    """Results must not come from an outdated cache."""
    corpus = tmp_path / "corpus"
    for label in ("high", "low"):
        (corpus / label).mkdir(parents=True)
        for wav in sorted((tones["good"] / label).iterdir())[:3]:
            (corpus / label / wav.name).write_bytes(wav.read_bytes())
    tree = {**trained["tree"], "output": str(tmp_path / "out")}
    tree["evaluation"] = {"checkpoint": trained["run"]}
    tree["corpora"] = {**tree["corpora"], "generated": {"growing": str(corpus)}}
    config = from_tree(tree, "test")
    extract(config)
    evaluate(config)
    (corpus / "low" / "new.wav").write_bytes((corpus / "low" / "000.wav").read_bytes())

    with pytest.raises(UserError, match="growing has changed since its features were extracted"):
        evaluate(config)
    extract(config)
    evaluate(config)

    metrics = json.loads((Path(config.output) / "evaluation/metrics.json").read_text())
    assert metrics["corpora"]["growing"]["clips"] == 7


def test_jobs_report_which_job_must_run_first(tone_config: dict[str, Any]) -> None:
    config = from_tree(tone_config, "test")

    with pytest.raises(UserError, match=r"run jobs/extract\.py first"):
        train_classifier(config)
    with pytest.raises(UserError, match=r"run jobs/extract\.py first"):
        evaluate(config)
    extract(config)
    with pytest.raises(UserError, match=r"run jobs/train\.py first"):
        evaluate(config)
    assert ray.data.DataContext.get_current().execution_options.preserve_order


def test_the_same_seed_gives_the_same_classifier_bit_by_bit(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    """The second run has another output folder, so it can't use files of the first."""
    config = from_tree({**trained["tree"], "output": str(tmp_path)}, "test")
    extract(config)

    run = train_classifier(config)

    first, second = (read_history(f"{folder}/history.jsonl") for folder in (trained["run"], run))
    assert run != trained["run"]
    assert without_seconds(second) == without_seconds(first)
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in (trained["run"], run)]
    assert weights[0] == weights[1]
    all_metadata = [
        json.loads(Path(folder, "checkpoint.json").read_text()) for folder in (trained["run"], run)
    ]
    for metadata in all_metadata:
        metadata["metrics"].pop("seconds")
    assert all_metadata[0] == all_metadata[1]


def test_a_range_of_workers_trains_to_the_end(trained: dict[str, Any], tmp_path: Path) -> None:
    tree = {**trained["tree"], "compute": {**trained["tree"]["compute"], "workers": [1, 2]}}
    tree |= {"output": str(tmp_path), "training": {"epochs": 3, "batch_size": 8}}
    config = from_tree(tree, "test")
    extract(config)

    run = train_classifier(config)

    history = read_history(f"{run}/history.jsonl")
    data = checkpoint.load_metadata(run).data
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert {row["validation_clips"] for row in history} == {data["validation"]}
    # Two workers can't divide an odd last batch.
    assert {row["train_clips"] for row in history} <= {data["train"], data["train"] - 1}
    assert checkpoint.is_complete(run)


# An object store that is smaller than the features; the least that Ray allows is 75 MiB.
SMALL_STORE = """
import json, sys
import ray
from raysound.settings.loading import load
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.trainer import train_classifier
from raysound.distributed.training.feature_loading import fits_in_store
ray.init(
    address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False,
    log_to_driver=False,
)
one = load(sys.argv[1])
extract(one)
fits = fits_in_store(finished_features("real", one))
with open(sys.argv[1] + ".summary", "w") as file:
    json.dump({"fits": fits, "run": train_classifier(one)}, file)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_features_that_the_object_store_cannot_hold_are_streamed(
    root: Path, tones: dict[str, Path], tmp_path: Path
) -> None:
    """Each training and validation clip once an epoch, by a range of workers.

    Those that hold every CPU don't wait for their data for ever. Clips are cropped, for it is not
    the arithmetic that is tried here.
    """
    for wav in tones["real"].rglob("*.wav"):
        for index in range(11):
            link = tmp_path / "clips" / wav.parent.name / f"{wav.stem}-{index}.wav"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(wav, link)
    tree = {
        "name": "large",
        "output": str(tmp_path / "out"),
        "corpora": {
            "real": {
                "path": str(tmp_path / "clips"),
                "split": {"validation_fraction": 0.05, "test_fraction": 0.05},
            },
        },
        "features": {
            "clip_length": 0.5, "sample_rate": 8000, "hop_length": 2, "n_fft": 512,
            "n_mels": 32, "f_min": 0, "f_max": 4000,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": 1, "batch_size": 8, "crop_length": 0.004, "shuffle_buffer": 64},
        "compute": {"workers": [1, 2], "shard_clips": 32, "use_gpu": False},
    }  # fmt: skip
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(tree))

    run_script(root, SMALL_STORE, tmp_path / "large.yaml", 380)

    summary = json.loads((tmp_path / "large.yaml.summary").read_text())
    (features,) = (tmp_path / "out/features").glob("*/summary.json")
    assert json.loads(features.read_text())["bytes"] > 150e6
    assert summary["fits"] is False
    data = checkpoint.load_metadata(summary["run"]).data
    (row,) = read_history(f"{summary['run']}/history.jsonl")
    assert data["train"] + data["validation"] + data["test"] == 11 * 66
    # Two workers get as many clips each: an odd one waits.
    assert data["train"] - 1 <= row["train_clips"] <= data["train"]
    assert row["validation_clips"] == data["validation"] > 20
    assert data["train"] > 600


# A training in a cluster with a dashboard: what Ray Train returns, and what the dashboard lists.
DASHBOARD_TRAINING = """
import json, sys
import ray
from ray.job_submission import JobSubmissionClient
from raysound.settings.loading import load
from raysound.distributed.extraction.extract import extract
from raysound.distributed.training.trainer import (
    classifier_metadata, load_training_data, make_loop_config, run_workers,
)
from raysound.distributed.training.runs import split_clips
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.cluster.placement import plan_workers
from raysound.distributed.cluster.session import open_session
config = load(sys.argv[1])
open_session(config.compute, dashboard=True)
extract(config)
folder = finished_features("real", config)
training_data = load_training_data(folder, split_clips(config, folder))
scaling, threads = plan_workers(config)
run = f"{config.output}/training/shown"
metadata = classifier_metadata(config, training_data)
job = make_loop_config(config, training_data, metadata, run, threads)
result = run_workers(job, scaling, training_data)
best = result.get_best_checkpoint("quality", "max")
client = JobSubmissionClient(ray.get_runtime_context().gcs_address)
runs = client._do_request("GET", "/api/train/v2/runs/v1").json()["train_runs"]
summary = {"metrics": result.metrics, "best": best.path, "latest": result.checkpoint.path,
        "path": result.path, "runs": [(run["name"], run["status"]) for run in runs]}
with open(sys.argv[1] + ".summary", "w") as file:
    json.dump(summary, file)
"""


@pytest.mark.slow
def test_ray_train_returns_and_its_dashboard_lists_a_training(
    root: Path, tone_config: dict[str, Any], tmp_path: Path
) -> None:
    tone_config["training"] = {"epochs": 3, "batch_size": 8}
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(tone_config))

    run_script(root, DASHBOARD_TRAINING, tmp_path / "shown.yaml", 200)

    summary = json.loads((tmp_path / "shown.yaml.summary").read_text())
    history = read_history(f"{summary['path']}/history.jsonl")
    assert {key: summary["metrics"][key] for key in history[-1]} == history[-1]
    assert summary["runs"] == [["shown", "FINISHED"]]
    # Of three checkpoints the best and the latest are left.
    kept = {str(path.parent) for path in Path(summary["path"]).glob(f"*/{checkpoint.PROGRESS}")}
    assert kept == {summary["best"], summary["latest"]}
    _, progress = checkpoint.load_progress(summary["best"]) or (None, None)
    assert progress is not None
    assert len(progress.history) == best_epoch(history)
