"""Checks that features, corpora and clips fit the classifier."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.manifest_parts import manifest_rows
from raysound.distributed.cluster.session import run_remote_all
from raysound.distributed.training.runs import split_digest
from raysound.errors import UserError
from raysound.metrics.selection import keys, smallest
from raysound.settings.schema import Config
from raysound.training.checkpoint import ClassifierMetadata

# Training clips in the reference set. More change distances little, at quadratic cost.
REFERENCE_CLIPS = 5000


def clips_to_score(real: pa.Table | None) -> pa.Table:
    """The real clips to score: all test clips, and up to REFERENCE_CLIPS training clips.

    Raises:
        UserError: there is no test clip.
    """
    if real is None:
        return pa.table({"clip_id": pa.array([], pa.string()), "split": pa.array([], pa.string())})
    if not pc.any(pc.equal(real["split"], "test")).as_py():
        raise UserError(
            "the real corpus has no usable test clip to test the classifier on: change "
            "corpora.real.split"
        )
    is_train = pc.equal(real["split"], "train")
    train = real.filter(is_train)
    is_reference = smallest(keys(train["clip_id"].to_pylist()), REFERENCE_CLIPS)
    test = real.filter(pc.equal(real["split"], "test"))
    return pa.concat_tables([test, train.filter(pa.array(is_reference))])


def check_features(config: Config, classifier: ClassifierMetadata, run: str) -> None:
    """Raises UserError if the classifier was trained on other features than the config's."""
    # `model_dump` omits `loudness` if it is not set.
    ours, theirs = (
        {"loudness": "none", **features.model_dump()}
        for features in (config.features, classifier.features)
    )
    differing = [
        f"{key} {theirs[key]} there, {ours[key]} here" for key in ours if ours[key] != theirs[key]
    ]
    if differing:
        raise UserError(
            f"the classifier in {run} has features {classifier.features.id}, the config has "
            f"{config.features.id}: {'; '.join(differing)}"
        )


def check_corpora(
    folders: dict[str, str], real: pa.Table | None, classifier: ClassifierMetadata, run: str
) -> set[str]:
    """Checks split and classes; returns the corpora whose clips have labels.

    Raises:
        UserError: the real split is not the classifier's, or a class is unknown to it.
    """
    if real is not None and split_digest(real) != classifier.data["split_digest"]:
        raise UserError(
            f"the classifier in {run} was trained with another split of the real corpus, so test "
            "clips may be among its training clips: train it again with jobs/train.py"
        )
    labels = run_remote_all(usable_labels, [(folder,) for folder in folders.values()])
    for name, found in zip(folders, labels, strict=True):
        unknown = sorted({*found} - {*classifier.labels})
        if unknown:
            raise UserError(
                f"{name} has classes that the classifier was not trained on: "
                f"{', '.join(unknown)}; it knows {', '.join(classifier.labels)}"
            )
    return {name for name, found in zip(folders, labels, strict=True) if found}


def usable_labels(folder: str) -> list[str]:
    """Runs in a Ray task: the sorted labels of a corpus's usable clips; empty without labels."""
    rejects = storage.read_table(storage.join(folder, "rejects.parquet"), ["clip_id"])
    rejected = rejects["clip_id"].combine_chunks()
    found: set[str] = set()
    for rows in manifest_rows(folder, ["clip_id", "label"]):
        usable = rows.filter(pc.invert(pc.is_in(rows["clip_id"], rejected)))
        found |= set(pc.unique(usable["label"].drop_null()).to_pylist())
    return sorted(found)
