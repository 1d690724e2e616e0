"""Distances in other embeddings than the classifier's: computed by shard, then a task a corpus."""

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
from raysound.distributed.evaluation.score import PARTS_OF_A_TASK, made_waveform, on_gpus
from raysound.evaluation.derived_parts import DERIVE, DONE
from raysound.evaluation.embedding_parts import (
    EmbeddingSource,
    embed_part,
    find_source,
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
from raysound.metrics.sampling import drawn
from raysound.settings.schema import Config
from raysound.wording import counted

logger = logging.getLogger(__name__)

# Actors that share a GPU: while one decodes, another runs the model.
ACTORS_OF_A_GPU = 4
# Clips of noise and of silence: every evaluation computes them anew, on one core.
MADE_CLIPS = 25


def check_embeddings(config: Config) -> list[EmbeddingSource]:
    """Loads and runs the model of each embedding of a config, in a task each.

    Raises:
        UserError: a model is missing or can't be used, or onnxruntime is not installed.
    """
    calls = [(name, one, config.features) for name, one in config.evaluation.embeddings.items()]
    return run_remote_all(find_source, calls) if calls else []


def embedding_metrics(
    config: Config,
    sources: list[EmbeddingSource],
    folders: Mapping[str, str],
    out: str,
    set_size: int,
    side: RealSide | None = None,
    others: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, RealEmbedding]]:
    """Computes the embeddings of all clips that the classifier scored, and their distances.

    Embeddings that are there for the same clips, model and settings are left as they are.

    Args:
        config: the experiment.
        sources: see `check_embeddings`.
        folders: of the log-mels, by the corpus's name, `real` among them unless `side` is given.
        out: folder of the evaluation, with the predictions.
        set_size: see `fidelity_report`.
        side: has the real side in all of these embeddings; None to compute it.
        others: corpora whose embeddings stay as they are, although they are not computed.

    Returns:
        `embeddings` of metrics.json, by name; the real side in each.

    Raises:
        UserError: a clip can't be read any more, its embedding is not finite, or a process died
            each time.
    """
    found, sides = {}, {}
    for source in sources:
        if source.on_gpu and not on_gpus(config):
            source = source._replace(on_gpu=False)
        folder = storage.join(out, "embeddings", source.name)
        made = embed_corpora(
            source, folders, storage.join(out, "predictions"), folder, others=others
        )
        logger.info(
            "embedding %s: %s computed, %d there already",
            source.name, counted(made[DERIVE], "part"), made[DONE],
        )  # fmt: skip
        known = None if side is None else side.embeddings[source.name]
        rows, sides[source.name] = measure_embedding(source, [*folders], folder, set_size, known)
        found[source.name] = {
            "size": source.size,
            "source": source.words,
            "digest": source.digest,
            **rows,
        }
    return found, sides


def embed_corpora(
    source: EmbeddingSource,
    folders: Mapping[str, str],
    predictions: str,
    folder: str,
    parts_of_a_task: int = PARTS_OF_A_TASK,
    others: Collection[str] = (),
) -> Counter[str]:
    """Writes the embeddings of each part of the predictions as a file of its own.

    A task decodes the clips of a part and runs the model on them, so that no waveform leaves its
    process. With GPUs, actors do so, several a GPU.

    Args:
        source: of the embeddings.
        folders: of the log-mels, by the corpus's name.
        predictions: folder of the predictions.
        folder: to write to: `<corpus>/part-NNNNNNNN.parquet`.
        parts_of_a_task: at most; no embedding depends on it.
        others: corpora whose parts stay as they are, although they are not computed.

    Returns:
        How many parts were computed, or left as they were.
    """
    parts = derived_parts(folders, predictions, folder, others)
    arguments = {"source": source, "run": f"{time.time_ns():x}"}
    gpus = int(cluster_gpus()) if source.on_gpu else 0
    if gpus:
        work = map_parts(
            parts, EmbedParts, arguments, parts_of_a_task,
            num_gpus=1 / ACTORS_OF_A_GPU, num_cpus=0,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpus * ACTORS_OF_A_GPU),
            max_restarts=RETRIES, max_task_retries=RETRIES,
        )  # fmt: skip
    else:
        work = map_parts(parts, embed_step, arguments, parts_of_a_task)
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
        """Takes parts and returns what was to be done."""
        return embed_step(batch, *self.arguments)


def measure_embedding(
    source: EmbeddingSource,
    corpora: list[str],
    folder: str,
    set_size: int,
    side: RealEmbedding | None,
) -> tuple[dict[str, Any], RealEmbedding]:
    """Distances of each corpus, and of corpora of known quality, to the real training clips.

    Args:
        source: of the embeddings.
        corpora: names, `real` among them unless `side` is given.
        folder: of the embeddings.
        set_size: see `fidelity_report`.
        side: the real side, if at hand.

    Returns:
        `corpora` and `anchors`: by name `clips` and what `fidelity_report` returns. The real side.
    """
    prepared = ray.remote(max_retries=RETRIES)(prepare)
    if side is None:
        clips = run_remote(read_training, folder, source.size)
        training = prepared.remote(clips.embedding)
        side = real_embedding(source, folder, set_size, clips, training)
    else:
        training = prepared.remote(side.training)
    generated = [name for name in corpora if name != "real"]
    of_generated = run_remote_all(
        measure_embedded, [(folder, name, source.size, training, set_size) for name in generated]
    )
    rows = {"real": side.row, **dict(zip(generated, of_generated, strict=True))}
    return {"corpora": rows, "anchors": side.anchors}, side


def real_embedding(
    source: EmbeddingSource, folder: str, set_size: int, clips: Scored, training: ray.ObjectRef
) -> RealEmbedding:
    """The real side in one embedding.

    Args:
        source: of the embedding.
        folder: of the embeddings.
        set_size: see `fidelity_report`.
        clips: the real training clips.
        training: `prepare` of their embeddings.
    """
    # While the test clips are measured, so are the anchors.
    task = ray.remote(max_retries=RETRIES)(measure_real_anchors)
    waiting = task.remote(clips, training, set_size)
    row = run_remote(measure_embedded, folder, "real", source.size, training, set_size)
    with translate_ray_errors("the task measure_real_anchors"):
        anchors: dict[str, Any] = ray.get(waiting)
    made = min(row["clips"], MADE_CLIPS)
    kinds = ("noise", "silence") if made else ()
    calls = [(source, kind, made, training, set_size) for kind in kinds]
    found = run_remote_all(measure_made, calls, num_gpus=int(source.on_gpu))
    made_rows = dict(zip(kinds, found, strict=True))
    anchors |= {kind: row for kind, row in made_rows.items() if row is not None}
    return RealEmbedding(source.digest, clips.embedding, row, anchors)


def read_sample(
    folder: str, corpus: str, size: int, is_train: bool, columns: tuple[str, ...] = ()
) -> tuple[pa.Table, np.ndarray, int]:
    """Up to PAIR_CLIPS clips of a corpus: columns, embeddings `(n, size)`, and clips in all."""
    entries, clips = sample_of_parts(prediction_parts(folder, corpus), is_train, PAIR_CLIPS)
    table = read_prediction_rows(
        folder, corpus, entries["part"], entries["row"], [*columns, "embedding"]
    )
    return table, as_array(table["embedding"]).reshape(-1, size), clips


def read_training(folder: str, size: int) -> Scored:
    """Runs in a Ray task: real training clips, up to PAIR_CLIPS, with their labels as numbers."""
    table, embedding, _ = read_sample(folder, "real", size, True, ("label",))
    labels = table["label"].combine_chunks()
    names = pc.array_sort_indices(labels.unique())
    truth = pc.index_in(labels, labels.unique().take(names)).to_numpy().astype(np.int64)
    return Scored(truth, np.zeros((len(truth), 0), np.float32), embedding)


def measure_embedded(
    folder: str, corpus: str, size: int, real: Reference, set_size: int
) -> dict[str, Any]:
    """Runs in a Ray task, which gives numpy one thread: the distances of one corpus."""
    _, embedding, clips = read_sample(folder, corpus, size, False)
    return {
        "clips": clips,
        **fidelity_report(embedding, real, seed=0, set_size=set_size),
    }


def measure_real_anchors(clips: Scored, real: Reference, set_size: int) -> dict[str, Any]:
    """Runs in a Ray task: distances of training clips, copied, and half against half."""
    calls = {"training_copy": (drawn(clips.embedding, set_size, 0), real)}
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


def measure_made(
    source: EmbeddingSource, kind: str, clips: int, real: Reference, set_size: int
) -> dict[str, Any] | None:
    """Runs in a Ray task: distances of `noise`, white and of an rms of 0.1, or `silence`.

    Returns:
        None where an embedding is not finite.
    """
    on_gpu = source.on_gpu and bool(ray.get_gpu_ids())
    # Silence is always the same.
    found = [
        embed_made(made_waveform(kind, number, source.windows), source, on_gpu)
        for number in range(clips if kind == "noise" else 1)
    ]
    embedding = np.concatenate(found * (clips // len(found)))
    if not np.isfinite(embedding).all():
        return None
    return {
        "clips": clips,
        **fidelity_report(embedding, real, seed=0, set_size=set_size),
    }


def embed_made(waveform: np.ndarray, source: EmbeddingSource, on_gpu: bool) -> np.ndarray:
    """The embedding of one window, `(1, size)`."""
    if source.path:
        model = load_onnx_model(source.name, source.path, source.sha256, len(waveform), on_gpu)
        return model.embed(waveform[np.newaxis])
    log_mel = LogMel(source.windows)(torch.from_numpy(waveform)[None])
    return log_mel_statistics(log_mel.numpy())
