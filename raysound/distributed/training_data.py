"""Log-mel shards → what Ray Train's workers are fed: rows of one split, and the normalisation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.expressions import col

from raysound import features, storage
from raysound.config import UserError
from raysound.features import MelStatistics
from raysound.scoring import Normalisation

# What of the object store the training data may take. Kept there, an epoch of a small corpus costs
# a hundredth of what it costs to read it anew: benchmarks/epoch_feeding.py.
STORE_SHARE = 0.4


def dataset(folder: str, split: str, labels: list[str], keep: bool) -> ray.data.Dataset:
    """The rows of one split as `log_mel` and `target`, read anew each epoch or kept in the store.

    Args:
        folder: of the features.
        split: train, validation or test.
        labels: class names in the order of their indices.
        keep: in Ray's object store, see `fits_in_store`.
    """
    rows = (
        ray.data.read_parquet(features.part_uris(folder))
        .filter(expr=col("split") == split)
        .select_columns(["log_mel", "label"])
        .map_batches(to_batch, fn_kwargs={"labels": labels})
    )
    return rows.materialize() if keep else rows


def fits_in_store(folder: str) -> bool:
    """True where a corpus's log-mels take at most STORE_SHARE of the cluster's object store."""
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    store = float(ray.cluster_resources().get("object_store_memory", 0))
    return bool(summary["bytes"] <= STORE_SHARE * store)


def to_batch(batch: dict[str, np.ndarray], labels: list[str]) -> dict[str, np.ndarray]:
    """Class names become indices: tensors are all that a worker takes."""
    return {"log_mel": batch["log_mel"], "target": np.searchsorted(labels, batch["label"])}


def normalisation(folder: str) -> Normalisation:
    """Mean and spread of every mel band over the training rows, the same on any cluster."""
    uris = features.part_uris(folder)
    shards = ray.data.from_items([{"uri": uri} for uri in uris], override_num_blocks=len(uris))
    total: MelStatistics | None = None
    for row in shards.map(shard_statistics).iter_rows():
        if row["count"]:
            part = MelStatistics(int(row["count"]), row["mean"], row["squares"])
            total = part if total is None else total.merge(part)
    if total is None:
        raise UserError(f"{folder} holds no training rows")
    return Normalisation(tuple(total.mean.tolist()), tuple(total.std.tolist()))


def shard_statistics(row: dict[str, Any]) -> dict[str, Any]:
    """Runs in a Ray task: one shard's training rows → their statistics."""
    with storage.open_file(row["uri"]) as file:
        table = pq.read_table(file, columns=["log_mel"], filters=[("split", "=", "train")])
    if len(table) == 0:
        return {"count": 0, "mean": np.zeros(1), "squares": np.zeros(1)}
    statistics = MelStatistics.of(features.log_mel_array(table["log_mel"]))
    return dict(statistics.__dict__)
