"""Sums over predictions and selections of clips, for the metrics of a corpus.

They are computed part by part and merged, so that no process holds more than a few parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.evaluation.predictions import as_array, read_prediction_rows
from raysound.metrics import sums
from raysound.metrics.corpus import CorpusSums, Scored
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.mismatch import SoundSums, merge_sounds
from raysound.metrics.neighbours import BallCounts
from raysound.metrics.selection import (
    CLIPS_OF_ALL_CELLS,
    ENTRY,
    Limits,
    keys,
    sampled,
    select,
    smallest,
)
from raysound.metrics.sums import ClassificationSums

COLUMNS = (
    "clip_id", "split", "label", "prediction", "probability", "target_probability", "sample_rate",
    "duration", "nonsilent_fraction", "balls", "authentic", "probabilities", "spectrum",
)  # fmt: skip
# Entries held in addition to `Plan.max_entries`, before the next selection.
ENTRIES_AHEAD = 1 << 17
# The training clips of the classifier, and the other clips of a corpus.
TRAIN, OTHERS = "train", "others"


@dataclass(frozen=True, eq=False)
class PartialSums:
    """Sums over some clips of one corpus, and entries of selected clips.

    Attributes:
        classification: sums of the probabilities.
        balls: counts of the nearest-neighbour balls that contain the clips.
        sounds: sums of levels, durations, sample rates and spectra.
        entries: of ENTRY, by part and row; at least those that `select` keeps.
    """

    classification: ClassificationSums
    balls: BallCounts
    sounds: SoundSums
    entries: np.ndarray

    @property
    def totals(self) -> CorpusSums:
        """The sums that `corpus_report` takes."""
        return CorpusSums(self.classification, self.balls)


@dataclass(frozen=True)
class Plan:
    """Parameters of the sums, the same for all parts of an evaluation.

    Attributes:
        labels: class names in the order of the probabilities.
        clip_length: (s) length that shorter clips are padded to.
        embedding_size: dimension of the embedding.
        limit: of the selections.
    """

    labels: list[str]
    clip_length: float
    embedding_size: int
    limit: Limits

    @property
    def max_entries(self) -> int:
        """Upper bound of selected entries per corpus, without one per cell."""
        classes = len(self.labels)
        of_class = self.limit.per_class + 2 * self.limit.examples
        return PAIR_CLIPS + CLIPS_OF_ALL_CELLS + classes * of_class


def sum_part(uri: str, part: int, plan: Plan) -> dict[str, PartialSums]:
    """Sums over one part, by TRAIN and OTHERS, without those that have no clip.

    Args:
        uri: of the part.
        part: its number.
        plan: parameters of the sums.
    """
    table = storage.read_table(uri, [*COLUMNS])
    is_train = pc.fill_null(pc.equal(table["split"], "train"), False).to_numpy()
    rows = np.arange(len(table))
    totals = {}
    for name, chosen in ((TRAIN, rows[is_train]), (OTHERS, rows[~is_train])):
        if len(chosen):
            clips = table.take(pa.array(chosen)).combine_chunks()
            totals[name] = _sum_clips(clips, part, chosen, plan)
    return totals


def _sum_clips(table: pa.Table, part: int, rows: np.ndarray, plan: Plan) -> PartialSums:
    # Clips without a label are grouped by their predicted class.
    labels = pc.coalesce(table["label"], table["prediction"])
    truth = pc.index_in(labels, pa.array(plan.labels)).to_numpy().astype(np.int64)
    probabilities = as_array(table["probabilities"])
    entries = np.zeros(len(table), ENTRY)
    entries["part"], entries["row"] = part, rows
    entries["key"] = keys(table["clip_id"].to_pylist())
    entries["truth"], entries["prediction"] = truth, probabilities.argmax(axis=1)
    entries["probability"] = table["probability"].to_numpy()
    target = pc.coalesce(table["target_probability"], table["probability"])
    entries["target_probability"] = target.to_numpy()
    balls = BallCounts()
    if not table["balls"].null_count:
        balls = BallCounts.of(
            table["balls"].to_numpy().astype(np.int64), table["authentic"].to_numpy()
        )
    sounds = SoundSums.of(
        table["sample_rate"].to_numpy(), table["duration"].to_numpy(),
        table["nonsilent_fraction"].to_numpy(), as_array(table["spectrum"]), plan.clip_length,
    )  # fmt: skip
    return PartialSums(ClassificationSums.of(truth, probabilities), balls, sounds, entries)


def empty_sums(n_mels: int) -> PartialSums:
    """Sums over no clips."""
    return PartialSums(
        ClassificationSums.empty(), BallCounts(),
        SoundSums({}, np.zeros((0, 1 + n_mels))), np.zeros(0, ENTRY),
    )  # fmt: skip


def merge_partial_sums(parts: Sequence[PartialSums], plan: Plan) -> PartialSums:
    """Merges the sums over one part or more, in order; rows of floats are not added yet."""
    balls = BallCounts()
    for part in parts:
        balls = balls.merge(part.balls)
    entries = np.concatenate([part.entries for part in parts])
    # Selection needs some sorts, so it is done only for many entries.
    if len(entries) > plan.max_entries + ENTRIES_AHEAD:
        entries = select(entries, plan.limit)
    return PartialSums(
        sums.merge_sums([part.classification for part in parts]), balls,
        merge_sounds([part.sounds for part in parts]), entries,
    )  # fmt: skip


def add_sums(total: PartialSums | None, other: PartialSums, plan: Plan) -> PartialSums:
    """Adds the next parts to a total, in order; the total has one row of floats."""
    both = other if total is None else merge_partial_sums([total, other], plan)
    classes, sounds = both.classification, both.sounds
    return PartialSums(
        ClassificationSums(
            classes.cells, classes.counts, classes.in_top, sums.sum_in_order(classes.rows)
        ),
        both.balls,
        SoundSums(sounds.rates, sums.sum_in_order(sounds.rows)),
        both.entries,
    )


def select_entries(total: PartialSums, plan: Plan) -> PartialSums:
    """Drops the entries of a total that are not selected."""
    return replace(total, entries=select(total.entries, plan.limit))


def sum_parts(uris: Mapping[int, str], plan: Plan) -> dict[str, PartialSums]:
    """Sums over some parts of one corpus, by TRAIN and OTHERS.

    Args:
        uris: of the parts, by number, ascending.
        plan: parameters of the sums.
    """
    by_name: dict[str, list[PartialSums]] = {}
    for part, uri in uris.items():
        for name, total in sum_part(uri, part, plan).items():
            by_name.setdefault(name, []).append(total)
    return {name: merge_partial_sums(totals, plan) for name, totals in by_name.items()}


def sample(entries: np.ndarray, plan: Plan) -> np.ndarray:
    """The sample of a corpus, in the order of sampling.

    The first PAIR_CLIPS are a sample of all clips; those of a class are a sample of the class.
    """
    chosen = smallest(entries["key"], PAIR_CLIPS)
    chosen |= smallest(entries["key"], plan.limit.per_class, entries["truth"].astype(np.int64))
    return sampled(entries[chosen])


def read_scored(predictions: str, corpus: str, entries: np.ndarray, plan: Plan) -> Scored:
    """Reads the predictions of some clips, in the order given.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        entries: of ENTRY.
        plan: parameters of the sums.
    """
    columns = ["probabilities", "embedding"]
    table = read_prediction_rows(predictions, corpus, entries["part"], entries["row"], columns)
    return Scored(
        truth=entries["truth"].astype(np.int64),
        probabilities=as_array(table["probabilities"]).reshape(-1, len(plan.labels)),
        embedding=as_array(table["embedding"]).reshape(-1, plan.embedding_size),
    )


def to_scored(table: pa.Table, labels: list[str]) -> Scored:
    """Scored clips from a table of predictions."""
    return Scored(
        truth=pc.index_in(table["label"], pa.array(labels)).to_numpy().astype(np.int64),
        probabilities=as_array(table["probabilities"]),
        embedding=as_array(table["embedding"]),
    )
