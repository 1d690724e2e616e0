"""Every number of metrics.json: sums over the parts of all corpora, then a task a corpus."""

from __future__ import annotations

import json
import pickle
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data

from raysound import storage
from raysound.distributed.cluster.failures import RETRIES, finite_retries, reported
from raysound.distributed.cluster.session import run_remote_all
from raysound.distributed.evaluation.score import on_gpus, score_made, tables_of_parts
from raysound.evaluation.part_scoring import file_sha256, json_digest
from raysound.evaluation.partial_sums import (
    OTHERS,
    TRAIN,
    PartialSums,
    Plan,
    add,
    nothing,
    of_parts,
    read_scored,
    sample,
    scored_of,
    selected,
)
from raysound.evaluation.predictions import (
    embedding_size,
    part_index,
    prediction_parts,
    read_prediction_rows,
)
from raysound.evaluation.reference_file import RealSide
from raysound.evaluation.selected import Selected, selected_clips
from raysound.features import parquet
from raysound.metrics.anchors import anchors_of_real, sanity_checks, split_in_halves
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.declarations import METRICS_SCHEMA, PAIR_CLIPS, SET_CLIPS
from raysound.metrics.fidelity import mmd_kernels
from raysound.metrics.kernel import decreases
from raysound.metrics.mismatch import CorpusSound, merge_sounds, mismatches
from raysound.metrics.ranking import ranking
from raysound.metrics.selection import limits
from raysound.settings.schema import Config
from raysound.training.checkpoint import WEIGHTS, ClassifierMetadata

# Clips of noise and of silence: one is much like the other, and a large classifier takes its time.
MADE_CLIPS = 100
# Clips without which MMD decreases most that metrics.json and the report list.
WORST_CLIPS = 10
# Parts that a task sums up; how many does not change a bit of the sums.
PARTS_OF_A_TASK = 32


class Against(NamedTuple):
    """What corpora are compared with.

    Attributes:
        reference: the real training clips, `RealClips`.
        set_size: see `corpus_report`.
        class_sizes: the same of each class.
    """

    reference: ray.ObjectRef
    set_size: int
    class_sizes: list[int]


class DrawnReal(NamedTuple):
    """Samples of the real clips.

    Attributes:
        train: at most PAIR_CLIPS training clips.
        test: at most PAIR_CLIPS test clips.
        entries: of the training clips.
        of_train: sums over all training clips.
        against: the training clips as a reference.
    """

    train: Scored
    test: Scored
    entries: np.ndarray
    of_train: PartialSums
    against: Against


class Measured(NamedTuple):
    """What a task says of one corpus.

    Attributes:
        report: see `corpus_report`.
        sound: how its clips sound.
        selected: clips to show in the report.
        decreases: `clip_id` of a sample of its clips, and `mmd_decrease`, see `decreases`.
    """

    report: dict[str, Any]
    sound: CorpusSound
    selected: Selected
    entries: np.ndarray
    decreases: np.ndarray


def compute_metrics(
    config: Config,
    run: str,
    classifier: ClassifierMetadata,
    folders: dict[str, str],
    labelled: set[str],
    predictions: str,
    side: RealSide | None = None,
) -> tuple[dict[str, Any], RealSide, dict[str, Selected], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Computes all metrics.

    Args:
        config: the experiment.
        run: the classifier's folder.
        classifier: its checkpoint.
        folders: of the features, by the corpus's name; `real` is among them unless `side` is given.
        labelled: the corpora whose clips have labels.
        predictions: the folder of all corpora.
        side: the real side, if at hand.

    Returns:
        The content of metrics.json; the real side, its embeddings left out; by corpus the clips to
        show in the report; by corpus `entries` and `decreases` of `Measured`.
    """
    labels = classifier.labels
    size = embedding_size(predictions, "real") if side is None else side.training.embedding.shape[1]
    plan = Plan(
        labels, classifier.features.clip_length, size,
        limits(len(labels), size, config.evaluation.examples),
    )  # fmt: skip
    sums = sum_corpora([*folders], predictions, plan)
    empty = nothing(classifier.features.n_mels)
    drawn = draw_real(sums["real"], empty, plan, predictions) if side is None else None
    if drawn is not None:
        against = drawn.against
    else:
        assert side is not None
        against = Against(prepare_clips(side.training), side.set_size, side.class_sizes)
    calls = [
        (predictions, name, sums[name], empty, plan, *against, name in labelled) for name in folders
    ]
    measured = dict(zip(folders, run_remote_all(measure_corpus, calls), strict=True))
    if drawn is not None:
        side = measure_real(
            config, run, classifier, folders["real"], predictions, plan, drawn, measured["real"]
        )
    assert side is not None
    generated = [name for name in folders if name != "real"]
    rows = {name: corpus_row("generated", folders[name], measured[name]) for name in generated}
    metrics = {
        "schema": METRICS_SCHEMA,
        "name": config.name,
        "classifier": side.classifier,
        "reference": dict(side.reference),
        "corpora": {"real": side.row, **rows},
        "anchors": side.anchors,
        "sanity": sanity_checks({"real": side.row, **side.anchors}),
        "ranking": ranking(rows),
        "mismatch": all_mismatches(
            classifier, {name: measured[name].sound for name in generated}, side.sound
        ),
    }
    shown = {name: one.selected for name, one in measured.items()}
    falls = {name: (one.entries, one.decreases) for name, one in measured.items()}
    return metrics, side, shown, falls


def draw_real(sums: ray.ObjectRef, empty: PartialSums, plan: Plan, predictions: str) -> DrawnReal:
    """The real clips that samples are drawn from.

    Args:
        sums: over the real clips.
        empty: sums over no clips.
        plan: of the sums.
        predictions: the folder of all corpora.
    """
    with reported("summing up the predictions"):
        of_real = ray.get(sums)
    of_train, of_test = (of_real.get(name, empty) for name in (TRAIN, OTHERS))
    drawn, of_tests = (sample(one.entries, plan)[:PAIR_CLIPS] for one in (of_train, of_test))
    train, test = (read_scored(predictions, "real", one, plan) for one in (drawn, of_tests))
    set_size = min(of_test.classification.clips, SET_CLIPS)
    of_class = of_test.classification.confusion(len(plan.labels)).sum(axis=1)
    class_sizes = np.minimum(of_class, plan.limit.of_class).tolist()
    against = Against(prepare_clips(train), set_size, class_sizes)
    return DrawnReal(train, test, drawn, of_train, against)


def measure_real(
    config: Config,
    run: str,
    classifier: ClassifierMetadata,
    folder: str,
    predictions: str,
    plan: Plan,
    drawn: DrawnReal,
    measured: Measured,
) -> RealSide:
    """The real side, its embeddings left out.

    Args:
        config: the experiment.
        run: the classifier's folder.
        classifier: its checkpoint.
        folder: of the real features.
        predictions: the folder of all corpora.
        plan: of the sums.
        drawn: from the real clips.
        measured: all numbers about the real test clips.
    """
    labels, train, of_train = classifier.labels, drawn.train, drawn.of_train
    real, set_size, class_sizes = drawn.against
    anchors = made_anchors(run, drawn.test, labels, config)
    anchors |= anchors_of_real(drawn.test, train, set_size)
    references = dict.fromkeys(anchors, real)
    half, other = split_in_halves(train)
    if len(other.truth) > 1:
        anchors["real_halves"] = half
        references["real_halves"] = prepare_clips(other)
    calls = [
        (ray.put(anchors[name]), labels, references[name], set_size, class_sizes)
        for name in anchors
    ]
    reports = run_remote_all(measure_anchor, calls)
    entries = drawn.entries
    names = read_prediction_rows(predictions, "real", entries["part"], entries["row"], ["clip_id"])[
        "clip_id"
    ]
    return RealSide(
        classifier={
            "run": run.rpartition("/")[2],
            "model": classifier.model,
            "labels": labels,
            "epoch": classifier.metrics["epoch"],
            "validation_accuracy": classifier.metrics["validation_accuracy"],
            "feature_id": classifier.features.id,
            "split_digest": classifier.data["split_digest"],
            "train_clips": classifier.data["train"],
            "validation_clips": classifier.data["validation"],
            "embedding_size": plan.embedding_size,
        },
        reference={
            "split": "train",
            "clips": classifier.data["train"],
            "used": len(train.truth),
            "set_size": set_size,
        },
        clip_ids=names.to_pylist(),
        training=train,
        class_sizes=class_sizes,
        row=corpus_row("real", folder, measured),
        anchors={
            name: {"role": "anchor", **report}
            for name, report in zip(anchors, reports, strict=True)
        },
        sound=merge_sound(sound_of_corpus(predictions, "real", of_train, plan), measured.sound),
        embeddings={},
        identity=classifier_identity(run, classifier),
    )


def corpus_row(role: str, folder: str, measured: Measured) -> dict[str, Any]:
    """The row of a corpus in metrics.json.

    Args:
        role: `real` or `generated`.
        folder: of its features.
        measured: all numbers about its clips.
    """
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    return {
        "role": role,
        "found": summary["found"],
        "rejected": summary["rejected"],
        **measured.report,
    }


def classifier_identity(run: str, classifier: ClassifierMetadata) -> dict[str, str]:
    """`RealSide.classifier` of the classifier in a folder."""
    return {
        "weights_sha256": file_sha256(storage.join(run, WEIGHTS)),
        "normalisation": json_digest(classifier.normalisation.__dict__),
    }


def sum_corpora(
    corpora: list[str], predictions: str, plan: Plan, parts_of_a_task: int = PARTS_OF_A_TASK
) -> dict[str, ray.ObjectRef]:
    """Sums over all parts of each corpus, by TRAIN or OTHERS; the driver holds references to them.

    They are added in the order of the parts: bit by bit the same, however many parts a task takes,
    and however many tasks run at once.
    """
    tables = {
        name: tables_of_parts(
            pa.table([[name] * len(uris), uris], names=["corpus", "part"]), parts_of_a_task
        )
        for name in corpora
        if (uris := prediction_parts(predictions, name))
    }
    found = {name: ray.put({}) for name in corpora}
    if not tables:
        return found
    with finite_retries() as retries:
        work = ray.data.from_arrow([one for some in tables.values() for one in some]).map_batches(
            sum_step, batch_size=None, batch_format="pyarrow", fn_kwargs={"plan": plan},
            num_cpus=1, **retries,
        )  # fmt: skip
    with reported("summing up the predictions"):
        # In the order of the tables, as `ray_session` tells Ray Data to keep it.
        sums = work.to_arrow_refs()
    task = ray.remote(max_retries=RETRIES)(merge_sums)
    for name, some in tables.items():
        found[name] = task.remote(sums[: len(some)], plan)
        sums = sums[len(some) :]
    return found


def merge_sums(blocks: list[ray.ObjectRef], plan: Plan) -> dict[str, PartialSums]:
    """Runs in a Ray task: adds what `sum_step` returned for a corpus, in the order of the parts."""
    totals: dict[str, PartialSums] = {}
    for block in blocks:
        for row in ray.get(block).to_pylist():
            clips = row["clips"]
            totals[clips] = add(totals.get(clips), pickle.loads(row["sums"]), plan)
    return {clips: selected(one, plan) for clips, one in totals.items()}


def sum_step(batch: pa.Table, plan: Plan) -> pa.Table:
    """Runs in a Ray Data task: sums over some parts of a corpus, a row a kind of clips."""
    uris = {part_index(uri): uri for uri in batch["part"].to_pylist()}
    rows = [
        {"clips": clips, "sums": pickle.dumps(one)} for clips, one in of_parts(uris, plan).items()
    ]
    columns = {"clips": pa.string(), "sums": pa.large_binary()}
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))


def prepare_clips(clips: Scored) -> ray.ObjectRef:
    """Some clips as `RealClips`, computed in a task."""
    return ray.remote(max_retries=RETRIES)(real_clips).remote(clips)


def real_clips(clips: Scored) -> RealClips:
    """Runs in a Ray task: some clips as a reference."""
    return RealClips.of(clips)


def measure_corpus(
    predictions: str,
    corpus: str,
    sums: dict[str, PartialSums],
    empty: PartialSums,
    plan: Plan,
    real: RealClips,
    set_size: int,
    class_sizes: list[int],
    is_labelled: bool,
) -> Measured:
    """Runs in a Ray task, which gives numpy one thread: all numbers about one corpus.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        sums: over its clips, by TRAIN and OTHERS; those of OTHERS count.
        empty: sums over no clips.
        plan: that they were made by.
        real: the real clips that they are compared with.
        set_size: see `corpus_report`.
        class_sizes: the same of each class.
        is_labelled: whether its clips have labels.
    """
    own = sums.get(OTHERS, empty)
    drawn = sample(own.entries, plan)
    scored = read_scored(predictions, corpus, drawn, plan)
    kernels = mmd_kernels(scored.first(PAIR_CLIPS).embedding, real.prepared)
    report = corpus_report(
        scored, real, plan.labels, set_size, class_sizes, totals=own.totals,
        is_labelled=is_labelled, kernels=kernels,
    )  # fmt: skip
    falls = decreases(kernels) if kernels is not None and len(kernels.cross) > 2 else np.zeros(0)
    drawn_with = drawn[: len(falls)]
    report["worst_clips"] = worst_clips(predictions, corpus, drawn_with, falls)
    shown = selected_clips(predictions, corpus, own, plan, drawn, scored, real)
    return Measured(
        report, sound_of_corpus(predictions, corpus, own, plan), shown, drawn_with, falls
    )


def worst_clips(
    predictions: str, corpus: str, entries: np.ndarray, falls: np.ndarray
) -> list[dict[str, Any]]:
    """The clips without which the MMD of a corpus decreases most, the largest decrease first.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        entries: of some clips, `(n,)`.
        falls: see `decreases`, `(n,)`.
    """
    order = np.argsort(-falls, kind="stable")[:WORST_CLIPS]
    worst = order[falls[order] > 0]
    columns = ["clip_id", "label", "prediction", "nearest_train_clip_id"]
    some = entries[worst]
    rows = read_prediction_rows(predictions, corpus, some["part"], some["row"], columns).to_pylist()
    return [
        row | {"mmd_decrease": value}
        for row, value in zip(rows, falls[worst].tolist(), strict=True)
    ]


def measure_anchor(
    clips: Scored, labels: list[str], real: RealClips, set_size: int, class_sizes: list[int]
) -> dict[str, Any]:
    """Runs in a Ray task: all numbers about one anchor."""
    return corpus_report(clips, real, labels, set_size, class_sizes)


def sound_of_corpus(predictions: str, corpus: str, sums: PartialSums, plan: Plan) -> CorpusSound:
    """How the clips of some sums sound; medians are those of a sample."""
    drawn = sample(sums.entries, plan)[:PAIR_CLIPS]
    columns = ["level_db", "duration"]
    table = read_prediction_rows(predictions, corpus, drawn["part"], drawn["row"], columns)
    return CorpusSound(sums.sounds, table["level_db"].to_numpy(), table["duration"].to_numpy())


def made_anchors(run: str, test: Scored, labels: list[str], config: Config) -> dict[str, Scored]:
    """Noise and silence, each clip asked to be what a real test clip is."""
    kinds = ("noise", "silence")
    asked = [labels[truth] for truth in test.truth[:MADE_CLIPS].tolist()]
    calls = [(run, kind, asked, config.evaluation.batch_size) for kind in kinds]
    made = run_remote_all(score_made, calls, num_gpus=1 if on_gpus(config) else 0)
    return {kind: scored_of(table, labels) for kind, table in zip(kinds, made, strict=True)}


def merge_sound(train: CorpusSound, test: CorpusSound) -> CorpusSound:
    """How the real clips sound, those that trained and the others."""
    return CorpusSound(
        merge_sounds([train.sums, test.sums]),
        np.concatenate([train.level_db, test.level_db]),
        np.concatenate([train.duration, test.duration]),
    )


def all_mismatches(
    classifier: ClassifierMetadata, sounds: dict[str, CorpusSound], real: CorpusSound
) -> list[dict[str, Any]]:
    """What sets each generated corpus apart from the real one, training clips included."""
    edges = parquet.band_edges(classifier.features)
    normalised = classifier.features.loudness is not None
    return [
        row
        for name, sound in sounds.items()
        for row in mismatches(name, sound, real, classifier.features.sample_rate, edges, normalised)
    ]
