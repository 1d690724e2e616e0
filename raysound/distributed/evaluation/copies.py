"""Copies of training clips: searched by shard, then a task a corpus."""

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
from raysound.distributed.evaluation.score import PARTS_OF_A_TASK, features_digest
from raysound.errors import UserError
from raysound.evaluation.copy_parts import (
    COPIES_VERSION,
    SearchedClips,
    calibrated,
    corpus_copies,
    count_windows,
    draw_training,
    merge_windows,
    prepare_windows,
    real_pairs,
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

# Training clips among those of other groups, in the folder of the copies.
OF_REAL = "training.parquet"
# Training clips that a task of the calibration searches.
CLIPS_OF_A_TASK = 100


def copy_metrics(
    config: Config,
    real: pa.Table | None,
    folders: Mapping[str, str],
    out: str,
    parts_of_a_task: int = PARTS_OF_A_TASK,
) -> dict[str, Any] | None:
    """Finds the most similar training clip of all other clips that the classifier scored.

    Parts that are there for the same clips and training clips are left as they are.

    Args:
        config: the experiment.
        real: the usable real clips with their `split`, `label` and `group`; None where they are not
            at hand, and the config does not ask for copies.
        folders: of the log-mels, by the corpus's name, `real` among them.
        out: folder of the evaluation, with the predictions.
        parts_of_a_task: at most; no result depends on it.

    Returns:
        `copies` of metrics.json; None where the config does not ask for it.

    Raises:
        UserError: no training clip fits `training_windows`, or a process died each time.
    """
    settings = config.evaluation.copies
    if settings is None or real is None:
        return None
    folder = storage.join(out, "copies")
    of_real = storage.join(folder, OF_REAL)
    parts = derived_parts(folders, storage.join(out, "predictions"), folder, [OF_REAL])
    shards = parts.filter(pc.equal(parts["corpus"], "real"))
    train = real.filter(pc.equal(real["split"], "train"))
    chosen = choose_training(train, shards, settings.training_windows, parts_of_a_task)
    searched = json_digest(
        COPIES_VERSION, features_digest(folders["real"]),
        *(chosen[name].to_pylist() for name in ("clip_id", "windows")),
    )  # fmt: skip
    calibration = json_digest(searched, PAIR_CLIPS, chosen["group"].to_pylist())

    arguments = {"training_digest": searched, "settings": config.features}
    found = map_parts(parts, search_step, {**arguments, "training": [None]}, parts_of_a_task)
    with translate_ray_errors("looking for copies"):
        todo = pa.array([row["todo"] for row in found.iter_rows()])
    missing = parts.filter(pc.equal(todo, DERIVE))
    is_calibrated = is_derived(of_real, calibration)
    if len(missing) or not is_calibrated:
        training = collect_training(shards, chosen, config.features, parts_of_a_task)
        if not is_calibrated:
            write_derived(of_real, search_training(training, len(chosen)), calibration)
        if len(missing):
            work = map_parts(
                missing, search_step, {**arguments, "training": [training]}, parts_of_a_task
            )
            with translate_ray_errors("the search for copies"):
                for _ in work.iter_rows():
                    pass
    logger.info(
        "copies: %s searched, %d there already",
        counted(len(missing), "part"), len(parts) - len(missing),
    )  # fmt: skip

    table = storage.read_table(of_real)
    threshold = calibrated(table, settings.rate)
    rows = run_remote_all(corpus_copies, [(folder, name, threshold) for name in folders])
    return {
        "rate": settings.rate,
        "threshold": {
            "value": threshold.value, "clips": threshold.clips, "why": threshold.why
        },
        "training": {
            "clips": len(chosen), "of": len(train), "windows": pc.sum(chosen["windows"]).as_py(),
            "digest": searched,
        },
        "real_pairs": real_pairs(table),
        "corpora": dict(zip(folders, rows, strict=True)),
    }  # fmt: skip


def choose_training(train: pa.Table, shards: pa.Table, most: int, parts_of_a_task: int) -> pa.Table:
    """The training clips that are searched, see `draw_training`.

    Args:
        train: all training clips.
        shards: rows with `shard`, of the real corpus.
        most: windows.
        parts_of_a_task: see `copy_metrics`.

    Raises:
        UserError: the first clip drawn has more windows.
    """
    # A clip has a window or more, so no other can be drawn.
    some = pa.array(smallest(keys(train["clip_id"].to_pylist()), most))
    clips = train.select(["clip_id", "split", "label", "group"]).filter(some).combine_chunks()
    names = ray.put(clips["clip_id"].combine_chunks())
    with translate_ray_errors("counting the windows of training clips"):
        found = map_parts(shards, count_step, {"names": [names]}, parts_of_a_task).take_all()
    schema = pa.schema([("clip_id", pa.string()), ("windows", pa.int64())])
    chosen = draw_training(clips, pa.Table.from_pylist(found, schema), most)
    if not len(chosen):
        raise UserError(
            f"evaluation.copies.training_windows: {most} windows hold no whole training clip: "
            "raise it"
        )
    return chosen


def collect_training(
    shards: pa.Table, chosen: pa.Table, settings: FeatureSettings, parts_of_a_task: int
) -> ray.ObjectRef:
    """SearchedClips in the object store; no window passes through this process."""
    clips, names = ray.put(chosen), ray.put(chosen["clip_id"].combine_chunks())
    arguments = {"names": [names], "settings": settings}
    with translate_ray_errors("reading the training clips"):
        # In the order of the shards, as `ray_session` tells Ray Data to keep it.
        blocks = map_parts(shards, prepare_step, arguments, parts_of_a_task).to_arrow_refs()
    return ray.remote(max_retries=RETRIES)(merge_blocks).remote(blocks, [clips], settings)


def search_training(training: ray.ObjectRef, clips: int) -> pa.Table:
    """COPIES of a sample of the training clips among those of other groups."""
    ends = range(0, min(clips, PAIR_CLIPS), CLIPS_OF_A_TASK)
    calls = [(training, start, start + CLIPS_OF_A_TASK) for start in ends]
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
    known = None if training[0] is None else ray.get(training[0])
    return pa.Table.from_pylist([search_part(row, training_digest, settings, known)])
