"""What classifiers learn from: the windows of a corpus, by split."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
import ray.train.torch

from raysound.distributed.cluster.placement import reading_tasks
from raysound.distributed.training import feature_loading
from raysound.distributed.training.feature_loading import ShardDatasource
from raysound.distributed.training.runs import split_digest
from raysound.features import parquet
from raysound.training.inference import Normalisation


@dataclass(frozen=True)
class TrainingData:
    """What classifiers learn from: the real corpus in some features and split.

    Attributes:
        labels: class names in the order of the logits.
        normalisation: of the training clips.
        splits: clips per split, and the digest of the split.
        clips_a_class: training clips, in the order of the labels.
        rows: references to the Rows of `train` and `validation` in the object store, if they fit.
        sources: of the same as streams, if they don't.
    """

    labels: list[str]
    normalisation: Normalisation
    splits: dict[str, Any]
    clips_a_class: np.ndarray
    rows: dict[str, ray.ObjectRef] | None
    sources: dict[str, ShardDatasource] | None

    @property
    def has_validation(self) -> bool:
        """True where a clip validates."""
        return bool(self.splits["validation"])

    def datasets(self, job: dict[str, Any]) -> dict[str, ray.data.Dataset]:
        """The streams of a training; none where the rows are in the object store."""
        streams = {}
        for split, source in (self.sources or {}).items():
            of_run = copy(source)
            if split == "train":
                of_run.run, of_run.seed = job["run"], job["settings"].seed
            streams[split] = feature_loading.stream(of_run, reading_tasks(job["compute"]))
        return streams


def by_split(clips: pa.Table) -> dict[str, pa.Table]:
    """The clips that train, validate and test."""
    return {
        split: clips.filter(pc.equal(clips["split"], split))
        for split in ("train", "validation", "test")
    }


def load_training_data(folder: str, clips: pa.Table, sharing: int = 1) -> TrainingData:
    """The data of some features.

    Args:
        folder: of the real corpus's features.
        clips: the usable ones, with their `label` and `split`.
        sharing: how many such data sets the object store has to hold; else they are streamed.
    """
    labels = sorted(set(clips["label"].to_pylist()))
    parts = by_split(clips)
    counts = {split: len(part) for split, part in parts.items()}
    taught = {split: parts[split] for split in ("train", "validation") if counts[split]}
    fits = feature_loading.fits_in_store(folder, sharing)
    rows, sources = {}, {}
    for split, part in taught.items():
        if fits:
            rows[split] = feature_loading.kept_in_store(folder, part, labels)
        else:
            chosen = ray.put(part.select(["clip_id", "label"]))
            sources[split] = ShardDatasource(parquet.shard_uris(folder), chosen, labels)
    found = pc.value_counts(parts["train"]["label"]).to_pylist()
    of_class = {row["values"]: row["counts"] for row in found}
    return TrainingData(
        labels=labels,
        normalisation=feature_loading.normalisation(folder, parts["train"]),
        splits={**counts, "split_digest": split_digest(clips)},
        clips_a_class=np.array([of_class[label] for label in labels]),
        rows=rows if fits else None,
        sources=None if fits else sources,
    )
