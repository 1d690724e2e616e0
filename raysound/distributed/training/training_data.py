"""Training data of classifiers: the windows of a corpus, by split."""

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
    """Training data: the real corpus with some features and split.

    Attributes:
        labels: class names in the order of the logits.
        normalisation: of the training clips.
        splits: number of clips per split, and the digest of the split.
        clips_per_class: number of training clips, in the order of the labels.
        rows: references to the Rows of `train` and `validation` in the object store, if they fit.
        sources: datasources of `train` and `validation`, if they don't.
    """

    labels: list[str]
    normalisation: Normalisation
    splits: dict[str, Any]
    clips_per_class: np.ndarray
    rows: dict[str, ray.ObjectRef] | None
    sources: dict[str, ShardDatasource] | None

    @property
    def has_validation(self) -> bool:
        """True if there are validation clips."""
        return bool(self.splits["validation"])

    def datasets(self, loop_config: dict[str, Any]) -> dict[str, ray.data.Dataset]:
        """The streams of a training; none if the rows are in the object store."""
        streams = {}
        for split, source in (self.sources or {}).items():
            source = copy(source)
            if split == "train":
                source.run, source.seed = loop_config["run"], loop_config["settings"].seed
            streams[split] = feature_loading.stream(source, reading_tasks(loop_config["compute"]))
        return streams


def by_split(clips: pa.Table) -> dict[str, pa.Table]:
    """The clips of each split."""
    return {
        split: clips.filter(pc.equal(clips["split"], split))
        for split in ("train", "validation", "test")
    }


def load_training_data(folder: str, clips: pa.Table, corpora: int = 1) -> TrainingData:
    """Loads the training data of a feature folder.

    Args:
        folder: of the real corpus's features.
        clips: the usable ones, with their `label` and `split`.
        corpora: number of such corpora that must fit in the object store; else they are streamed.
    """
    labels = sorted(set(clips["label"].to_pylist()))
    parts = by_split(clips)
    counts = {split: len(part) for split, part in parts.items()}
    fits = feature_loading.fits_in_store(folder, corpora)
    rows, sources = {}, {}
    for split in ("train", "validation"):
        part = parts[split]
        if not counts[split]:
            continue
        if fits:
            rows[split] = feature_loading.load_to_store(folder, part, labels)
        else:
            chosen = ray.put(part.select(["clip_id", "label"]))
            sources[split] = ShardDatasource(parquet.shard_uris(folder), chosen, labels)
    label_counts = {
        row["values"]: row["counts"] for row in pc.value_counts(parts["train"]["label"]).to_pylist()
    }
    return TrainingData(
        labels=labels,
        normalisation=feature_loading.normalisation(folder, parts["train"]),
        splits={**counts, "split_digest": split_digest(clips)},
        clips_per_class=np.array([label_counts[label] for label in labels]),
        rows=rows if fits else None,
        sources=None if fits else sources,
    )
