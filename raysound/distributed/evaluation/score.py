"""Scores corpora with a Ray Data pipeline: one Parquet file per shard of log-mels."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch

from raysound import storage
from raysound.audio.log_mel import LogMel
from raysound.audio.loudness import normalise
from raysound.distributed.cluster.failures import RETRIES, finite_retries, translate_ray_errors
from raysound.distributed.cluster.nodes import await_nodes
from raysound.distributed.cluster.progress import progress_bar
from raysound.distributed.cluster.session import cluster_cpus, cluster_gpus
from raysound.errors import UserError
from raysound.evaluation.part_scoring import (
    COMPARE,
    DONE,
    RESULT,
    SCORE,
    WORK,
    Identity,
    classifier_digest,
    classify,
    json_digest,
    load_classifier,
    make_predictions,
    make_references,
    read_references,
    read_shard,
    write_predictions,
)
from raysound.evaluation.predictions import part_index, part_uri
from raysound.evaluation.reference_file import RealSide
from raysound.features import parquet
from raysound.metrics.neighbours import K
from raysound.settings.features import FeatureSettings
from raysound.settings.schema import Config
from raysound.wording import counted

logger = logging.getLogger(__name__)

# Root mean square of white noise: -20 dB of full scale.
NOISE_RMS = 0.1
# Ray Data polls for finished tasks ten times a second, so a task takes several parts if there are
# enough. The number of tasks is limited, because the driver holds each of them.
PARTS_PER_TASK = 8
MAX_TASKS = 2000
# Queued parts per GPU, so that no GPU waits for a part.
PARTS_AHEAD = 2


def score_corpora(
    folders: Mapping[str, str],
    chosen: pa.Table,
    run: str,
    config: Config,
    predictions: str,
    side: RealSide | None = None,
    keep: Collection[str] = (),
) -> Counter[str]:
    """Scores all shards and writes the predictions of each to a file.

    An existing part of the same shard, classifier, settings and training clips is kept. The real
    corpus is scored first. The second pass scores the other corpora, and compares all clips but
    the real training clips with these.

    Args:
        folders: of the features, by the corpus's name, `real` among them unless `side` is given.
        chosen: the clips of `real` to score, with their `split`; empty without `real`.
        run: the classifier's folder.
        config: the experiment.
        predictions: the folder to write to: `<corpus>/part-NNNNNNNN.parquet`.
        side: holds the real training clips to compare with; None for those of `real`.
        keep: further corpora whose predictions are not deleted.

    Returns:
        The number of parts by SCORE, COMPARE and DONE.

    Raises:
        UserError: a process died each time, or `compute.use_gpu` is true and there is no GPU.
    """
    parts = list_parts(folders, predictions)
    delete_stale_parts(parts, predictions, keep)
    chosen = chosen.select(["clip_id", "split"]).combine_chunks()
    chosen_ref = ray.put(chosen)
    classifier, batch_size = classifier_digest(run), config.evaluation.batch_size
    train = chosen.filter(pc.equal(chosen["split"], "train"))["clip_id"].to_pylist()
    gpus = int(cluster_gpus()) if should_use_gpus(config) else 0
    devices = gpus, "cuda" if gpus else "cpu"
    counts, references, compared = Counter[str](), None, ""
    if side is not None:
        task = ray.remote(max_retries=RETRIES)(make_references)
        references = task.remote(side.clip_ids, side.training.embedding)
        compared = json_digest(classifier, batch_size, side.digest)
    elif len(train) > K:
        identity = Identity(classifier, batch_size, None)
        real = parts.filter(pc.equal(parts["corpus"], "real"))
        rows = list(score_parts(real, run, identity, chosen_ref, None, *devices))
        counts.update(row["todo"] for row in rows)
        task = ray.remote(max_retries=RETRIES)(read_references)
        references = task.remote([row["part"] for row in rows if row["train"]])
        compared = json_digest(classifier, batch_size, features_digest(folders["real"]), train)
    identity = Identity(classifier, batch_size, compared)
    with progress_bar("scoring", len(parts), "parts") as bar:
        for row in score_parts(parts, run, identity, chosen_ref, references, *devices):
            bar.update()
            if not (row["corpus"] == "real" and references):
                counts[row["todo"]] += 1
    logger.info(
        "predictions: %s scored, %d compared with other training clips, %d exist already",
        counted(counts[SCORE], "part"), counts[COMPARE], counts[DONE],
    )  # fmt: skip
    return counts


def list_parts(folders: Mapping[str, str], predictions: str) -> pa.Table:
    """Lists the shards of some corpora: rows of `corpus`, `shard` and `part`, the file to write."""
    rows = [
        (name, uri, part_uri(predictions, name, part_index(uri)))
        for name, folder in folders.items()
        for uri in parquet.shard_uris(folder)
    ]
    columns = [[row[index] for row in rows] for index in range(3)]
    return pa.table(columns, schema=pa.schema([WORK.field(index) for index in range(3)]))


def delete_stale_parts(parts: pa.Table, predictions: str, keep: Collection[str] = ()) -> None:
    """Deletes the files of a folder that are not among `parts`, nor of the corpora `keep`."""
    wanted, corpora = set(parts["part"].to_pylist()), set(parts["corpus"].to_pylist())
    # A list, so that nothing is deleted during the scan.
    for name, _, _ in list(storage.scan(predictions)):
        folder, uri = name.split("/")[0], storage.join(predictions, *name.split("/"))
        if uri in wanted or folder in keep:
            continue
        storage.delete(uri if folder in corpora else storage.join(predictions, folder))


def features_digest(folder: str) -> str:
    """The digest of a corpus's clips and features."""
    return json.loads(storage.read_bytes(storage.join(folder, "summary.json")))["digest"]


def score_parts(
    parts: pa.Table,
    run: str,
    identity: Identity,
    chosen: ray.ObjectRef,
    references: ray.ObjectRef | None,
    gpus: int,
    device: str,
) -> Iterator[dict[str, Any]]:
    """Scores some parts, and yields the row of RESULT of each.

    On CPUs Ray Data fuses the three steps into one task. With GPUs, actors hold the classifier,
    and other tasks read, compare and write, so that no GPU waits for them.

    Args:
        parts: see `list_parts`.
        run: the classifier's folder.
        identity: of the predictions.
        chosen: the real clips to score.
        references: the training clips to compare with; None for none.
        gpus: of the cluster; 0 to score on CPUs.
        device: of the classifier, a torch device.
    """
    steps = {"run": run, "identity": identity, "device": device}
    with finite_retries() as retries:
        on_cpu: dict[str, Any] = {
            "batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True, "num_cpus": 1,
            **retries,
        }  # fmt: skip
        work = ray.data.from_arrow(split_parts(parts, PARTS_PER_TASK)).map_batches(
            read_step, fn_kwargs={"identity": identity, "chosen": [chosen]}, **on_cpu
        )
        if gpus:
            work = work.map_batches(
                Classify,
                fn_constructor_kwargs=steps,
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_gpus=1,
                num_cpus=0,
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=gpus, max_tasks_in_flight_per_actor=PARTS_AHEAD
                ),
                max_restarts=RETRIES,
                max_task_retries=RETRIES,
            )
        else:
            work = work.map_batches(classify_step, fn_kwargs=steps, **on_cpu)
        work = work.map_batches(
            write_step, fn_kwargs={"identity": identity, "references": [references]}, **on_cpu
        )
    rows: Iterator[dict[str, Any]] = iter(work.iter_rows())
    # Rows come in the order of the parts, so an error is that of the next part or a later one. The
    # loop is by index, so that the parts of a large corpus are not all Python objects at once.
    for index in range(len(parts)):
        corpus, part = parts["corpus"][index].as_py(), part_index(parts["part"][index].as_py())
        with translate_ray_errors(f"scoring {corpus}, part {part} or a later one,"):
            row = next(rows)
        yield row
    # Ends the pipeline.
    next(rows, None)


def split_parts(parts: pa.Table, most: int) -> list[pa.Table]:
    """Splits parts into the blocks of a dataset, one per task.

    Args:
        parts: one or more.
        most: maximum of parts per block, exceeded only if there would be more than MAX_TASKS.
    """
    cpus = max(1, int(cluster_cpus()))
    size = max(1, min(most, len(parts) // (4 * cpus)), -(-len(parts) // MAX_TASKS))
    return [parts.slice(start, size) for start in range(0, len(parts), size)]


def read_step(batch: pa.Table, identity: Identity, chosen: list[ray.ObjectRef]) -> pa.Table:
    """Runs in a Ray Data task: see `read_shard`."""
    (row,) = batch.to_pylist()
    clips = ray.get(chosen[0]) if row["corpus"] == "real" else None
    return as_batch(read_shard(row, identity, clips), WORK)


def classify_step(batch: pa.Table, run: str, identity: Identity, device: str) -> pa.Table:
    """Runs in a Ray Data task: see `classify`."""
    return as_batch(classify(only_row(batch), run, identity, device), WORK)


class Classify:
    """An actor that holds the classifier: see `classify`."""

    def __init__(self, run: str, identity: Identity, device: str) -> None:
        self.steps = run, identity, device

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Classifies a part; see `classify`."""
        return classify_step(batch, *self.steps)


def write_step(
    batch: pa.Table, identity: Identity, references: list[ray.ObjectRef | None]
) -> pa.Table:
    """Runs in a Ray Data task: see `write_predictions`."""
    real = None if references[0] is None else ray.get(references[0])
    return as_batch(write_predictions(only_row(batch), identity, real), RESULT)


def only_row(batch: pa.Table) -> dict[str, Any]:
    """The only row of a batch of WORK; its table is not copied."""
    names = [name for name in batch.column_names if name != "table"]
    (row,) = batch.select(names).to_pylist()
    return row | {"table": batch["table"][0].as_buffer()}


def as_batch(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """A batch of one row; its table, a buffer, is not copied."""
    columns = {
        name: pa.array([row[name]], schema.field(name).type)
        for name in schema.names
        if name != "table"
    }
    if "table" in schema.names:
        ends = pa.py_buffer(np.array([0, len(row["table"])], np.int64))
        data = [None, ends, pa.py_buffer(row["table"])]
        columns["table"] = pa.Array.from_buffers(pa.large_binary(), 1, data)
    return pa.table(columns)


def should_use_gpus(config: Config) -> bool:
    """Whether to score on GPUs.

    Raises:
        UserError: `compute.use_gpu` is true, and the cluster has no GPU.
    """
    use_gpu = config.compute.use_gpu
    if use_gpu is not True:
        return use_gpu == "auto" and cluster_gpus() > 0
    await_nodes({"CPU": 1, "GPU": 1}, 1, config.compute)
    if not cluster_gpus():
        raise UserError("compute.use_gpu is true, and the cluster has no GPU")
    return True


def score_anchor(run: str, kind: str, labels: list[str], batch_size: int) -> pa.Table:
    """Runs in a Ray task: predictions of noise or silence.

    Args:
        run: the classifier's folder.
        kind: `noise` (white, rms 0.1) or `silence`.
        labels: a target label for each clip.
        batch_size: log-mels per forward pass.
    """
    # A task without a GPU may still see one, which belongs to another task.
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    classifier, model = load_classifier(run, device, classifier_digest(run))
    log_mel = LogMel(classifier.features)
    log_mels = [
        log_mel(torch.from_numpy(anchor_waveform(kind, number, classifier.features))).numpy()
        for number in range(len(labels))
    ]
    rows = pa.table(
        {
            "clip_id": [f"{kind}-{number}" for number in range(len(labels))],
            "label": labels,
            "duration": [classifier.features.clip_length] * len(labels),
            "sample_rate": pa.array([classifier.features.sample_rate] * len(labels), pa.int32()),
        }
    )
    return make_predictions(kind, rows, None, np.stack(log_mels), classifier, model, batch_size)


def anchor_waveform(kind: str, number: int, settings: FeatureSettings) -> np.ndarray:
    """The `number`th clip of `noise` or `silence`, float32, normalised to `features.loudness`."""
    noise = np.random.default_rng(number).normal(0, NOISE_RMS, settings.clip_samples)
    return normalise((noise * (kind == "noise")).astype(np.float32), settings)
