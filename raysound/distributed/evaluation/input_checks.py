"""What an evaluation checks before it scores: features, corpora and clips fit the classifier."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.manifest_parts import manifest_rows
from raysound.distributed.cluster.session import run_remote_all
from raysound.distributed.training.runs import (
    split_digest,
)
from raysound.errors import UserError
from raysound.metrics.selection import keys, smallest
from raysound.settings.schema import Config
from raysound.training.checkpoint import ClassifierMetadata

# Training clips that every distance is measured to. More change it little, and cost their square.
REFERENCE_CLIPS = 5000


def clips_to_score(real: pa.Table | None) -> pa.Table:
    """The real clips that are scored: all of the test split, and REFERENCE_CLIPS that trained.

    Raises:
        UserError: there is no test clip.
    """
    if real is None:
        return pa.table({"clip_id": pa.array([], pa.string()), "split": pa.array([], pa.string())})
    # A class has a first test clip or none at all: what was not scored can't be tested.
    if not pc.any(pc.equal(real["split"], "test")).as_py():
        raise UserError("the real corpus has no usable test clip: the classifier can't be tested")
    is_train = pc.equal(real["split"], "train")
    train = real.filter(is_train)
    drawn = smallest(keys(train["clip_id"].to_pylist()), REFERENCE_CLIPS)
    test = real.filter(pc.equal(real["split"], "test"))
    return pa.concat_tables([test, train.filter(pa.array(drawn))])


def check_features(config: Config, classifier: ClassifierMetadata, run: str) -> None:
    """Raises UserError where the classifier learned from other features than the config's."""
    # A dump leaves out no loudness.
    ours, theirs = (
        {"loudness": "none", **features.model_dump()}
        for features in (config.features, classifier.features)
    )
    differing = [
        f"{key} {theirs[key]} there, {ours[key]} here" for key in ours if ours[key] != theirs[key]
    ]
    if differing:
        raise UserError(
            f"the classifier in {run} has features {classifier.features.id}, the config makes "
            f"{config.features.id}: {'; '.join(differing)}"
        )


def check_corpora(
    folders: dict[str, str], real: pa.Table | None, classifier: ClassifierMetadata, run: str
) -> set[str]:
    """The corpora whose clips have labels.

    Raises:
        UserError: a real split that is not the classifier's, or a class it never learned.
    """
    if real is not None and split_digest(real) != classifier.data["split_digest"]:
        raise UserError(
            f"the real corpus is split otherwise than for the training of the classifier in {run}, "
            "which may have learned clips that would now test it: train it again with jobs/train.py"
        )
    labels = run_remote_all(usable_labels, [(folder,) for folder in folders.values()])
    for name, found in zip(folders, labels, strict=True):
        unknown = sorted({*found} - {*classifier.labels})
        if unknown:
            raise UserError(
                f"{name} has classes that the classifier never learned: {', '.join(unknown)}; "
                f"it knows {', '.join(classifier.labels)}"
            )
    return {name for name, found in zip(folders, labels, strict=True) if found}


def usable_labels(folder: str) -> list[str]:
    """Runs in a Ray task: the labels of a corpus's usable clips, sorted; none without labels."""
    rejects = storage.read_table(storage.join(folder, "rejects.parquet"), ["clip_id"])
    rejected = rejects["clip_id"].combine_chunks()
    found: set[str] = set()
    for rows in manifest_rows(folder, ["clip_id", "label"]):
        usable = rows.filter(pc.invert(pc.is_in(rows["clip_id"], rejected)))
        found |= set(pc.unique(usable["label"].drop_null()).to_pylist())
    return sorted(found)
