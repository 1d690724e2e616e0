"""Searches the corpora for copies of training clips, shard by shard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from raysound import storage
from raysound.distributed.cluster.failures import RETRIES, translate_ray_errors
from raysound.distributed.cluster.session import run_remote_all
from raysound.distributed.evaluation.derived import derived_parts, map_parts
from raysound.distributed.evaluation.score import PARTS_PER_TASK, features_digest
from raysound.errors import UserError
from raysound.evaluation.copy_parts import (
    COPIES_VERSION,
    SearchedClips,
    calibrate,
    corpus_copies,
    count_windows,
    merge_windows,
    prepare_windows,
    real_pairs,
    sample_training,
    search_part,
    search_sample,
)
from raysound.evaluation.derived_parts import DERIVE, is_derived, write_derived
from raysound.evaluation.part_scoring import json_digest
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.selection import keys, smallest
from raysound.settings.features import FeatureSettings
from raysound.settings.schema import Config
from raysound.wording import counted

logger = logging.getLogger(__name__)

# File of COPIES of training clips among those of other groups.
TRAINING_COPIES = "training.parquet"
# Training clips per task of the calibration.
CLIPS_PER_TASK = 100


def copy_metrics(
    config: Config,
    real: pa.Table | None,
    folders: Mapping[str, str],
    out: str,
    parts_per_task: int = PARTS_PER_TASK,
) -> dict[str, Any] | None:
    """Finds the most similar training clip of every other clip that the classifier scored.

    Existing parts of the same clips and training clips are kept.

    Args:
        config: the experiment.
        real: the usable real clips with their `split`, `label` and `group`; None with
            `evaluation.reference`.
        folders: of the log-mels, by the corpus's name, `real` among them.
        out: folder of the evaluation, with the predictions.
        parts_per_task: maximum; does not affect the results.

    Returns:
        `copies` of metrics.json; None without `evaluation.copies`.

    Raises:
        UserError: no training clip fits `training_windows`, or a process died each time.
    """
    settings = config.evaluation.copies
    if settings is None or real is None:
        return None
    folder = storage.join(out, "copies")
    training_copies = storage.join(folder, TRAINING_COPIES)
    parts = derived_parts(folders, storage.join(out, "predictions"), folder, [TRAINING_COPIES])
    shards = parts.filter(pc.equal(parts["corpus"], "real"))
    train = real.filter(pc.equal(real["split"], "train"))
    chosen = choose_training_clips(train, shards, settings.training_windows, parts_per_task)
    training_digest = json_digest(
        COPIES_VERSION, features_digest(folders["real"]),
        *(chosen[name].to_pylist() for name in ("clip_id", "windows")),
    )  # fmt: skip
    calibration = json_digest(training_digest, PAIR_CLIPS, chosen["group"].to_pylist())

    arguments = {"training_digest": training_digest, "settings": config.features}
    found = map_parts(parts, search_step, {**arguments, "training": [None]}, parts_per_task)
    with translate_ray_errors("the search for copies"):
        todo = pa.array([row["todo"] for row in found.iter_rows()])
    missing = parts.filter(pc.equal(todo, DERIVE))
    is_calibrated = is_derived(training_copies, calibration)
    if len(missing) or not is_calibrated:
        training = collect_training(shards, chosen, config.features, parts_per_task)
        if not is_calibrated:
            write_derived(training_copies, search_training(training, len(chosen)), calibration)
        if len(missing):
            work = map_parts(
                missing, search_step, {**arguments, "training": [training]}, parts_per_task
            )
            with translate_ray_errors("the search for copies"):
                for _ in work.iter_rows():
                    pass
    logger.info(
        "copies: %s searched, %d exist already",
        counted(len(missing), "part"), len(parts) - len(missing),
    )  # fmt: skip

    table = storage.read_table(training_copies)
    threshold = calibrate(table, settings.rate)
    rows = run_remote_all(corpus_copies, [(folder, name, threshold) for name in folders])
    return {
        "rate": settings.rate,
        "threshold": {
            "value": threshold.value, "clips": threshold.clips, "why": threshold.why
        },
        "training": {
            "clips": len(chosen), "of": len(train), "windows": pc.sum(chosen["windows"]).as_py(),
            "digest": training_digest,
        },
        "real_pairs": real_pairs(table),
        "corpora": dict(zip(folders, rows, strict=True)),
    }  # fmt: skip


def choose_training_clips(
    train: pa.Table, shards: pa.Table, max_windows: int, parts_per_task: int
) -> pa.Table:
    """The training clips to search, see `sample_training`.

    Args:
        train: all training clips.
        shards: rows with `shard`, of the real corpus.
        max_windows: number of windows to search.
        parts_per_task: see `copy_metrics`.

    Raises:
        UserError: the first sampled clip has more windows.
    """
    # Each clip has at least one window, so further clips can't be sampled.
    candidates = pa.array(smallest(keys(train["clip_id"].to_pylist()), max_windows))
    clips = train.filter(candidates).select(["clip_id", "split", "label", "group"]).combine_chunks()
    names = ray.put(clips["clip_id"].combine_chunks())
    with translate_ray_errors("counting the windows of training clips"):
        found = map_parts(shards, count_step, {"names": [names]}, parts_per_task).take_all()
    schema = pa.schema([("clip_id", pa.string()), ("windows", pa.int64())])
    chosen = sample_training(clips, pa.Table.from_pylist(found, schema), max_windows)
    if not len(chosen):
        raise UserError(
            f"evaluation.copies.training_windows: {max_windows} windows hold no whole training "
            "clip: raise it"
        )
    return chosen


def collect_training(
    shards: pa.Table, chosen: pa.Table, settings: FeatureSettings, parts_per_task: int
) -> ray.ObjectRef:
    """Loads SearchedClips to the object store, without passing through the driver."""
    clips, names = ray.put(chosen), ray.put(chosen["clip_id"].combine_chunks())
    arguments = {"names": [names], "settings": settings}
    with translate_ray_errors("reading the training clips"):
        # In the order of the shards, because `ray_session` sets `preserve_order`.
        blocks = map_parts(shards, prepare_step, arguments, parts_per_task).to_arrow_refs()
    return ray.remote(max_retries=RETRIES)(merge_blocks).remote(blocks, [clips], settings)


def search_training(training: ray.ObjectRef, clips: int) -> pa.Table:
    """COPIES of a sample of the training clips among those of other groups."""
    starts = range(0, min(clips, PAIR_CLIPS), CLIPS_PER_TASK)
    calls = [(training, start, start + CLIPS_PER_TASK) for start in starts]
    return pa.concat_tables(run_remote_all(search_sample, calls))


def count_step(batch: pa.Table, names: list[ray.ObjectRef]) -> pa.Table:
    """Runs in a Ray Data task: see `count_windows`."""
    return count_windows(batch["shard"][0].as_py(), ray.get(names[0]))


def prepare_step(
    batch: pa.Table, names: list[ray.ObjectRef], settings: FeatureSettings
) -> pa.Table:
    """Runs in a Ray Data task: see `prepare_windows`."""
    return prepare_windows(batch["shard"][0].as_py(), ray.get(names[0]), settings)


def merge_blocks(
    blocks: list[ray.ObjectRef], clips: list[ray.ObjectRef], settings: FeatureSettings
) -> SearchedClips:
    """Runs in a Ray task: see `merge_windows`."""
    return merge_windows(ray.get(blocks), ray.get(clips[0]), settings)


def search_step(
    batch: pa.Table,
    training_digest: str,
    settings: FeatureSettings,
    training: list[ray.ObjectRef | None],
) -> pa.Table:
    """Runs in a Ray Data task: see `search_part`."""
    (row,) = batch.to_pylist()
    clips = None if training[0] is None else ray.get(training[0])
    return pa.Table.from_pylist([search_part(row, training_digest, settings, clips)])
