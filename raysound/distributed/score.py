"""A judge's predictions of whole corpora, a shard a task."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

from raysound import checkpoint, features, storage
from raysound.checkpoint import Checkpoint
from raysound.distributed.session import cluster_gpus, in_tasks
from raysound.models import Classifier
from raysound.scoring import mean_by_clip, score
from raysound.settings import Config

PREDICTIONS = pa.schema(
    [
        ("corpus", pa.string()),
        ("clip_id", pa.string()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("probability", pa.float32()),
        ("windows", pa.int32()),
        ("probabilities", pa.list_(pa.float32())),
        ("embedding", pa.list_(pa.float32())),
    ]
)


def score_corpora(
    folders: dict[str, str], test: pa.Array, run: str, config: Config, predictions: str
) -> None:
    """Scores all shards and writes them, in order, as one Parquet file of PREDICTIONS.

    Args:
        folders: of the features, by the corpus's name; of `real`, the test clips alone are scored.
        test: names of the test clips.
        run: the judge's folder.
        config: the experiment.
        predictions: the file to write.
    """
    use_gpu = config.compute.use_gpu is True or (
        config.compute.use_gpu == "auto" and cluster_gpus() > 0
    )
    chosen = ray.put(test)
    calls = (
        (run, name, uri, chosen if name == "real" else None, config.evaluation.batch_size)
        for name, folder in folders.items()
        for uri in features.part_uris(folder)
    )
    with storage.whole_file(predictions) as file, pq.ParquetWriter(file, PREDICTIONS) as writer:
        for scored in in_tasks(score_shard, calls, num_gpus=1 if use_gpu else 0):
            writer.write_table(scored)


def score_shard(
    run: str, corpus: str, uri: str, clip_ids: pa.Array | None, batch_size: int
) -> pa.Table:
    """Runs in a Ray task: the predictions of one shard, or of some of its clips.

    A shard is scored whole, so that no score depends on how many tasks run at once.
    """
    torch.set_num_threads(1)
    judge, model = load_judge(run)
    with storage.open_file(uri) as file:
        rows = pq.read_table(file, columns=["clip_id", "label", "log_mel"])
    if clip_ids is not None:
        rows = rows.filter(pc.is_in(rows["clip_id"], clip_ids))
    if len(rows) == 0:
        return PREDICTIONS.empty_table()
    probabilities, embeddings = score(
        model,
        judge.normalisation,
        features.log_mel_array(rows["log_mel"]),
        batch_size,
    )
    names = rows["clip_id"].to_numpy()
    starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
    probabilities = mean_by_clip(probabilities, starts)
    heard = probabilities.argmax(axis=1)
    return pa.table(
        {
            "corpus": [corpus] * len(starts),
            "clip_id": names[starts],
            "label": rows["label"].take(starts),
            "prediction": [judge.labels[index] for index in heard],
            "probability": probabilities.max(axis=1),
            "windows": np.diff(np.append(starts, len(names))),
            "probabilities": list(probabilities),
            "embedding": list(mean_by_clip(embeddings, starts)),
        }
    ).cast(PREDICTIONS)


@lru_cache(maxsize=1)
def load_judge(run: str) -> tuple[Checkpoint, Classifier]:
    """The judge on this process's device, loaded once a process."""
    judge = checkpoint.read_note(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return judge, checkpoint.load_model(run, judge).to(device)
