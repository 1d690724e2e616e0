"""Distances in further embeddings: computes embeddings by shard, then distances by corpus."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch

from raysound import storage
from raysound.audio.log_mel import LogMel
from raysound.distributed.cluster.failures import RETRIES, translate_ray_errors
from raysound.distributed.cluster.session import cluster_gpus, run_remote, run_remote_all
from raysound.distributed.evaluation.derived import derived_parts, map_parts
from raysound.distributed.evaluation.score import PARTS_PER_TASK, anchor_waveform, should_use_gpus
from raysound.evaluation.derived_parts import DERIVE, DONE
from raysound.evaluation.embedding_parts import (
    EmbeddingSource,
    embed_part,
    load_source,
    sample_of_parts,
)
from raysound.evaluation.log_mel_statistics import log_mel_statistics
from raysound.evaluation.onnx_model import load_onnx_model
from raysound.evaluation.predictions import as_array, prediction_parts, read_prediction_rows
from raysound.evaluation.reference_file import RealEmbedding, RealSide
from raysound.metrics.anchors import split_in_halves
from raysound.metrics.corpus import Scored
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.fidelity import Reference, fidelity_report, prepare
from raysound.metrics.sampling import sample_rows
from raysound.settings.schema import Config
from raysound.wording import counted

logger = logging.getLogger(__name__)

# Actors that share a GPU, so that one decodes while another runs the model.
ACTORS_PER_GPU = 4
# Clips of noise and of silence; every evaluation computes their embeddings on one core.
MAX_ANCHOR_CLIPS = 25


def check_embeddings(config: Config) -> list[EmbeddingSource]:
    """Loads and runs the model of each embedding of a config, each in a Ray task.

    Raises:
        UserError: a model is missing or can't be used, or onnxruntime is not installed.
    """
    embeddings = config.evaluation.embeddings.items()
    calls = [(name, embedding, config.features) for name, embedding in embeddings]
    return run_remote_all(load_source, calls) if calls else []


def embedding_metrics(
    config: Config,
    sources: list[EmbeddingSource],
    folders: Mapping[str, str],
    out: str,
    set_size: int,
    side: RealSide | None = None,
    keep: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, RealEmbedding]]:
    """Computes the embeddings of all clips that the classifier scored, and their distances.

    Existing embeddings of the same clips, model and settings are kept.

    Args:
        config: the experiment.
        sources: see `check_embeddings`.
        folders: of the log-mels, by the corpus's name, `real` among them unless `side` is given.
        out: folder of the evaluation, with the predictions.
        set_size: see `fidelity_report`.
        side: holds the real side in all of these embeddings; None to compute it.
        keep: further corpora whose embeddings are not deleted.

    Returns:
        `embeddings` of metrics.json, by name; the real side in each.

    Raises:
        UserError: a clip can't be read any more, its embedding is not finite, or a process died
            each time.
    """
    metrics, sides = {}, {}
    for source in sources:
        if source.on_gpu and not should_use_gpus(config):
            source = source._replace(on_gpu=False)
        folder = storage.join(out, "embeddings", source.name)
        counts = embed_corpora(source, folders, storage.join(out, "predictions"), folder, keep=keep)
        logger.info(
            "embedding %s: %s computed, %d exist already",
            source.name, counted(counts[DERIVE], "part"), counts[DONE],
        )  # fmt: skip
        real = None if side is None else side.embeddings[source.name]
        rows, sides[source.name] = measure_embedding(source, [*folders], folder, set_size, real)
        metrics[source.name] = {
            "size": source.size,
            "source": source.description,
            "digest": source.digest,
            **rows,
        }
    return metrics, sides


def embed_corpora(
    source: EmbeddingSource,
    folders: Mapping[str, str],
    predictions: str,
    folder: str,
    parts_per_task: int = PARTS_PER_TASK,
    keep: Collection[str] = (),
) -> Counter[str]:
    """Writes the embeddings of each part of the predictions to a file.

    A task decodes the clips of a part and runs the model on them, so that no waveform leaves its
    process. On GPUs, several actors per GPU do so.

    Args:
        source: of the embeddings.
        folders: of the log-mels, by the corpus's name.
        predictions: folder of the predictions.
        folder: to write to: `<corpus>/part-NNNNNNNN.parquet`.
        parts_per_task: maximum; does not affect the embeddings.
        keep: further corpora whose parts are not deleted.

    Returns:
        The number of parts by DERIVE, those computed, and DONE, those that existed.
    """
    parts = derived_parts(folders, predictions, folder, keep)
    arguments = {"source": source, "run": f"{time.time_ns():x}"}
    gpus = int(cluster_gpus()) if source.on_gpu else 0
    if gpus:
        work = map_parts(
            parts, EmbedParts, arguments, parts_per_task,
            num_gpus=1 / ACTORS_PER_GPU, num_cpus=0,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpus * ACTORS_PER_GPU),
            max_restarts=RETRIES, max_task_retries=RETRIES,
        )  # fmt: skip
    else:
        work = map_parts(parts, embed_step, arguments, parts_per_task)
    with translate_ray_errors(f"computing the embedding {source.name}"):
        return Counter(row["todo"] for row in work.iter_rows())


def embed_step(batch: pa.Table, source: EmbeddingSource, run: str) -> pa.Table:
    """Runs in a Ray Data task: see `embed_part`."""
    torch.set_num_threads(1)
    return pa.Table.from_pylist([embed_part(row, source, run) for row in batch.to_pylist()])


class EmbedParts:
    """An actor that holds the model: see `embed_part`."""

    def __init__(self, source: EmbeddingSource, run: str) -> None:
        self.arguments = source, run

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embeds parts; see `embed_part`."""
        return embed_step(batch, *self.arguments)


def measure_embedding(
    source: EmbeddingSource,
    corpora: list[str],
    folder: str,
    set_size: int,
    side: RealEmbedding | None,
) -> tuple[dict[str, Any], RealEmbedding]:
    """Distances of each corpus, and of the anchors, to the real training clips.

    Args:
        source: of the embeddings.
        corpora: names, `real` among them unless `side` is given.
        folder: of the embeddings.
        set_size: see `fidelity_report`.
        side: the real side; None to compute it.

    Returns:
        `corpora` and `anchors`, by name `clips` and the result of `fidelity_report`; the real side.
    """
    prepared = ray.remote(max_retries=RETRIES)(prepare)
    if side is None:
        clips = run_remote(read_training, folder, source.size)
        training = prepared.remote(clips.embedding)
        side = real_embedding(source, folder, set_size, clips, training)
    else:
        training = prepared.remote(side.training)
    generated = [name for name in corpora if name != "real"]
    reports = run_remote_all(
        measure_embedded, [(folder, name, source.size, training, set_size) for name in generated]
    )
    rows = {"real": side.row, **dict(zip(generated, reports, strict=True))}
    return {"corpora": rows, "anchors": side.anchors}, side


def real_embedding(
    source: EmbeddingSource, folder: str, set_size: int, clips: Scored, training: ray.ObjectRef
) -> RealEmbedding:
    """Computes the real side in one embedding.

    Args:
        source: of the embedding.
        folder: of the embeddings.
        set_size: see `fidelity_report`.
        clips: the real training clips.
        training: `prepare` of their embeddings.
    """
    # The anchors and the test clips are measured in parallel.
    task = ray.remote(max_retries=RETRIES)(measure_real_anchors)
    reference = task.remote(clips, training, set_size)
    row = run_remote(measure_embedded, folder, "real", source.size, training, set_size)
    with translate_ray_errors("the task measure_real_anchors"):
        anchors: dict[str, Any] = ray.get(reference)
    count = min(row["clips"], MAX_ANCHOR_CLIPS)
    kinds = ("noise", "silence") if count else ()
    calls = [(source, kind, count, training, set_size) for kind in kinds]
    reports = run_remote_all(measure_anchor_embedding, calls, num_gpus=int(source.on_gpu))
    anchors |= {
        kind: report for kind, report in zip(kinds, reports, strict=True) if report is not None
    }
    return RealEmbedding(source.digest, clips.embedding, row, anchors)


def read_sample(
    folder: str, corpus: str, size: int, is_train: bool, columns: tuple[str, ...] = ()
) -> tuple[pa.Table, np.ndarray, int]:
    """A sample of up to PAIR_CLIPS clips of a corpus.

    Returns:
        The columns, the embeddings `(n, size)`, and the number of all clips.
    """
    entries, clips = sample_of_parts(prediction_parts(folder, corpus), is_train, PAIR_CLIPS)
    table = read_prediction_rows(
        folder, corpus, entries["part"], entries["row"], [*columns, "embedding"]
    )
    return table, as_array(table["embedding"]).reshape(-1, size), clips


def read_training(folder: str, size: int) -> Scored:
    """Runs in a Ray task: up to PAIR_CLIPS real training clips, with labels as integers."""
    table, embedding, _ = read_sample(folder, "real", size, True, ("label",))
    labels = table["label"].combine_chunks()
    names = pc.array_sort_indices(labels.unique())
    truth = pc.index_in(labels, labels.unique().take(names)).to_numpy().astype(np.int64)
    return Scored(truth, np.zeros((len(truth), 0), np.float32), embedding)


def measure_embedded(
    folder: str, corpus: str, size: int, real: Reference, set_size: int
) -> dict[str, Any]:
    """Runs in a Ray task, where numpy has one thread: the distances of one corpus."""
    _, embedding, clips = read_sample(folder, corpus, size, False)
    return {
        "clips": clips,
        **fidelity_report(embedding, real, seed=0, set_size=set_size),
    }


def measure_real_anchors(clips: Scored, real: Reference, set_size: int) -> dict[str, Any]:
    """Runs in a Ray task: distances of copied training clips, and between halves of them."""
    calls = {"training_copy": (sample_rows(clips.embedding, set_size, 0), real)}
    half, other = split_in_halves(clips)
    if len(other.truth) > 1:
        calls["real_halves"] = (half.embedding, prepare(other.embedding))
    return {
        name: {
            "clips": len(embedding),
            **fidelity_report(embedding, reference, seed=0, set_size=set_size),
        }
        for name, (embedding, reference) in calls.items()
    }


def measure_anchor_embedding(
    source: EmbeddingSource, kind: str, clips: int, real: Reference, set_size: int
) -> dict[str, Any] | None:
    """Runs in a Ray task: distances of `noise` (white, rms 0.1) or `silence`.

    Returns:
        None if an embedding is not finite.
    """
    on_gpu = source.on_gpu and bool(ray.get_gpu_ids())
    # All clips of silence are equal.
    embeddings = [
        embed_window(anchor_waveform(kind, number, source.windows), source, on_gpu)
        for number in range(clips if kind == "noise" else 1)
    ]
    embedding = np.concatenate(embeddings * (clips // len(embeddings)))
    if not np.isfinite(embedding).all():
        return None
    return {
        "clips": clips,
        **fidelity_report(embedding, real, seed=0, set_size=set_size),
    }


def embed_window(waveform: np.ndarray, source: EmbeddingSource, on_gpu: bool) -> np.ndarray:
    """The embedding of one window, `(1, size)`."""
    if source.path:
        model = load_onnx_model(source.name, source.path, source.sha256, len(waveform), on_gpu)
        return model.embed(waveform[np.newaxis])
    log_mel = LogMel(source.windows)(torch.from_numpy(waveform)[None])
    return log_mel_statistics(log_mel.numpy())
