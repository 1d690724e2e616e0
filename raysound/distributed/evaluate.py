"""The judge at work: every corpus scored, then metrics.json and report.html."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import checkpoint, examples, features, storage
from raysound.cas import read_scores
from raysound.checkpoint import Checkpoint
from raysound.config import UserError
from raysound.distributed import gauges
from raysound.distributed.epochs_shown import read_history
from raysound.distributed.exclusive import sole_writer
from raysound.distributed.judge import run_folder, split_clips, split_digest
from raysound.distributed.listing import finished_features
from raysound.distributed.measure import measure
from raysound.distributed.score import score_corpora
from raysound.metrics.projection import principal_plane
from raysound.predictions import of_corpus, read_index, read_lists
from raysound.report.events import write_events
from raysound.report.maps import MapPoint
from raysound.report.measures import unmade, warnings
from raysound.report.page import Example, render
from raysound.settings import Config
from raysound.sounds import open_sounds

logger = logging.getLogger(__name__)

# Training clips that every distance is measured to. More change it little, and cost their square.
REFERENCE_CLIPS = 5000
MAP_POINTS = 500
CLIPS_BEHIND_A_CELL = 20
# Of all cells of a corpus, but one each: names are most of a page of many classes.
NAMES_BEHIND_CELLS = 40_000


def evaluate(config: Config) -> str:
    """Scores every corpus of the config and writes the report. Returns the last line of the job."""
    # Settings that differ from the judge's are told before features that are missing for them.
    run = config.evaluation.checkpoint
    if run is not None:
        check_features(config, checkpoint.read_note(run), run)
    folders = {
        name: finished_features(name, config) for name in ("real", *config.corpora.generated)
    }
    run = run or run_folder(config, folders["real"])
    judge = checkpoint.read_note(run)
    real = split_clips(config, folders["real"])
    check_corpora(folders, real, judge, run)
    out = storage.join(config.output, "evaluation")
    with sole_writer(out):
        write_report(config, run, judge, folders, real, out)
    return f"report: {storage.join(out, 'report.html')}"


def write_report(
    config: Config, run: str, judge: Checkpoint, folders: dict[str, str], real: pa.Table, out: str
) -> None:
    """Scores the corpora, measures them, and writes it all to a folder.

    Args:
        config: the experiment.
        run: the judge's folder.
        judge: its checkpoint.
        folders: of the features, by the corpus's name.
        real: the usable real clips with their split.
        out: the folder to write to.
    """
    predictions = storage.join(out, "predictions.parquet")
    storage.delete(storage.join(out, "metrics.json"))
    score_corpora(folders, judged_and_compared(real), run, config, predictions)
    index = read_index(predictions)
    # A class has a first test clip or none at all: what was not scored can't be judged.
    test = of_corpus(index, "real", "test")
    if not len(test):
        raise UserError("the real corpus has no usable test clip: the judge can't be judged")
    metrics = measure(config, run, judge, folders, predictions, index)
    metrics["cas"] = accuracy_scores(config, metrics["judge"], folders)
    # From here on `real` means what the judge is judged by: its training clips are no example.
    shown = {name: test if name == "real" else of_corpus(index, name) for name in folders}
    page = render(
        metrics,
        read_history(storage.join(run, "history.jsonl")),
        list(chosen_examples(folders, shown, config)),
        {name: confusion_clips(rows, judge.labels) for name, rows in shown.items()},
        list(map_points(predictions, index, shown)),
        list(rejects(folders)),
        config.to_yaml(),
    )
    storage.write_bytes(storage.join(out, "report.html"), page.encode())
    storage.write_bytes(
        storage.join(out, "metrics.json"),
        json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False).encode(),
    )
    if config.evaluation.tensorboard:
        write_events(metrics, storage.join(out, "tensorboard"))
    for line in table(metrics):
        logger.info("%s", line)
    for corpus, numbers in metrics["corpora"].items():
        value = numbers["accuracy"]["value"]
        gauges.show("accuracy", value, experiment=config.name, corpus=corpus)


def corpus_digests(folders: dict[str, str]) -> dict[str, str]:
    """What stands for the clips of each corpus, by its name."""
    return {
        name: json.loads(storage.read_bytes(storage.join(folder, "summary.json")))["digest"]
        for name, folder in folders.items()
    }


def accuracy_scores(
    config: Config, judge: dict[str, Any], folders: dict[str, str]
) -> dict[str, Any] | None:
    """The output's classification accuracy scores; None without those of this classifier."""
    same = {key: judge[key] for key in ("run", "feature_id", "split_digest")}
    try:
        return read_scores(config.output, same, corpus_digests(folders))
    except UserError as error:
        logger.info("note: %s: run jobs/cas.py again to show its scores in the report", error)
        return None


def judged_and_compared(real: pa.Table) -> pa.Table:
    """The real clips that are scored: all of the test split, and REFERENCE_CLIPS that trained."""
    test = real.filter(pc.equal(real["split"], "test"))
    train = real.filter(pc.equal(real["split"], "train"))
    drawn = np.sort(np.random.default_rng(0).permutation(len(train))[:REFERENCE_CLIPS])
    return pa.concat_tables([test, train.take(pa.array(drawn))])


def check_features(config: Config, judge: Checkpoint, run: str) -> None:
    """Raises UserError where the judge learned from other features than the config's."""
    ours, theirs = config.features.model_dump(), judge.features.model_dump()
    differing = [
        f"{key} {theirs[key]} there, {ours[key]} here" for key in ours if ours[key] != theirs[key]
    ]
    if differing:
        raise UserError(
            f"the judge in {run} hears features {judge.features.id}, the config makes "
            f"{config.features.id}: {'; '.join(differing)}"
        )


def check_corpora(folders: dict[str, str], real: pa.Table, judge: Checkpoint, run: str) -> None:
    """Raises UserError for a real split that is not the judge's, or a class it never learned."""
    if split_digest(real) != judge.data["split_digest"]:
        raise UserError(
            f"the real corpus is split otherwise than when the judge in {run} was trained: it may "
            "have learned clips that would now test it; train it again with jobs/train.py"
        )
    for name, folder in folders.items():
        unknown = set(features.usable_clips(folder)["label"].to_pylist()) - set(judge.labels)
        if unknown:
            raise UserError(
                f"{name} has classes that the judge never learned: {', '.join(sorted(unknown))}; "
                f"it knows {', '.join(judge.labels)}"
            )


def chosen_examples(
    folders: dict[str, str], shown: dict[str, pa.Table], config: Config
) -> Iterator[Example]:
    """The clips that the report shows, as far as they fit in it."""
    # A FLAC is at the most as large as its samples, and a third larger as text in the page.
    largest = config.features.clip_samples * 2 * 4 / 3
    most = int(config.evaluation.examples_megabytes * 1e6 / largest / len(folders))
    for name, folder in folders.items():
        chosen = examples.choose(shown[name], config.evaluation.examples)[:most]
        rows = shown[name].take(pa.array([row for row, _ in chosen], pa.int64()))
        manifest = storage.read_table(
            storage.join(folder, "manifest.parquet"), ["clip_id", "path", "offset", "size"]
        )
        clips = manifest.take(pc.index_in(rows["clip_id"], manifest["clip_id"].combine_chunks()))
        kinds = [kind for _, kind in chosen]
        for row, kind, sound in zip(rows.to_pylist(), kinds, open_sounds(clips), strict=True):
            example = examples.load(name, row, kind, sound, config.features)
            if example is not None:
                yield example


def confusion_clips(
    rows: pa.Table, labels: list[str]
) -> dict[tuple[int, int], tuple[int, list[tuple[str, float]]]]:
    """Behind each cell of the confusion matrix: how many clips, and the surest of them."""
    cell = np.searchsorted(labels, rows["label"].to_pylist()) * len(labels)
    cell += np.searchsorted(labels, rows["prediction"].to_pylist())
    probability = rows["probability"].to_numpy()
    order = np.lexsort((-probability, cell))
    found, starts, counts = np.unique(cell[order], return_index=True, return_counts=True)
    most = max(1, min(CLIPS_BEHIND_A_CELL, NAMES_BEHIND_CELLS // max(1, len(found))))
    behind = {}
    for key, start, count in zip(found.tolist(), starts, counts.tolist(), strict=True):
        first = order[start : start + min(count, most)]
        names = rows["clip_id"].take(pa.array(first)).to_pylist()
        sure = [round(value, 4) for value in probability[first].tolist()]
        behind[divmod(key, len(labels))] = (count, list(zip(names, sure, strict=True)))
    return behind


def map_points(predictions: str, index: pa.Table, shown: dict[str, pa.Table]) -> Iterator[MapPoint]:
    """Some clips of each corpus in the plane along which the training clips differ most."""
    train = of_corpus(index, "real", "train")["row"].to_numpy()
    plane = principal_plane(read_lists(predictions, "embedding", train))
    for name, rows in shown.items():
        drawn = np.sort(np.random.default_rng(0).permutation(len(rows))[:MAP_POINTS])
        some = rows.take(pa.array(drawn))
        if not len(some):
            continue
        places = plane(read_lists(predictions, "embedding", some["row"].to_numpy()))
        names = zip(some["label"].to_pylist(), some["clip_id"].to_pylist(), strict=True)
        for (label, clip_id), (x, y) in zip(names, places.tolist(), strict=True):
            yield MapPoint(name, label, x, y, clip_id)


def rejects(folders: dict[str, str]) -> Iterator[dict[str, str]]:
    """Every rejected clip of every corpus."""
    for name, folder in folders.items():
        for row in storage.read_table(storage.join(folder, "rejects.parquet")).to_pylist():
            yield {"corpus": name, **row}


def table(metrics: dict[str, Any]) -> Iterator[str]:
    """The corpora, the anchors and their scores as lines of text, warnings last."""
    rows = {
        f"{name} (test)" if row["role"] == "real" else name: row
        for name, row in (metrics["corpora"] | metrics["anchors"]).items()
    }
    width = max(map(len, rows))
    yield (
        f"{'corpus':<{width}}  clips  accuracy  95 % interval       MMD     recall  coverage  "
        "authenticity"
    )
    for name, row in rows.items():
        accuracy = row["accuracy"]
        if accuracy["value"] is None:
            yield f"{name:<{width}}  {0:5d}"
            continue
        shares = "  ".join(
            f"{'–' if row[key]['value'] is None else format(row[key]['value'], '.1%'):>{wide}}"
            for key, wide in (("recall", 9), ("coverage", 8), ("authenticity", 12))
        )
        mmd = row["mmd"]["value"]
        yield (
            f"{name:<{width}}  {row['clips']:5d}  {accuracy['value']:7.1%}   "
            f"{accuracy['low']:6.1%} – {accuracy['high']:6.1%}  "
            f"{'–' if mmd is None else format(mmd, '.2f'):>8}  {shares}"
        )
    for row in metrics["mismatch"]:
        yield f"note: {row['text']}"
    for row in unmade(metrics):
        yield f"note: not checked: {row}"
    for warning in warnings(metrics):
        yield f"WARNING: {warning}"
