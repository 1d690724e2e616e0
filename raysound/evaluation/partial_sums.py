"""What the metrics of a corpus need of its predictions: sums, and which clips are selected.

Taken part by part and put together, so that no process holds more than a few parts.
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
    CLIPS_OF_CELLS,
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
# Entries above those that can be selected that are held, at most.
ENTRIES_AHEAD = 1 << 17
# The clips of a corpus that trained the classifier, and the others.
TRAIN, OTHERS = "train", "others"


@dataclass(frozen=True, eq=False)
class PartialSums:
    """Sums over some clips of one corpus, and those of them that are selected.

    Attributes:
        classification: of their probabilities.
        balls: of where they lie among the reference clips.
        sounds: of how they sound.
        entries: of ENTRY, by part and row: at least those that `select` keeps.
    """

    classification: ClassificationSums
    balls: BallCounts
    sounds: SoundSums
    entries: np.ndarray

    @property
    def totals(self) -> CorpusSums:
        """What `corpus_report` takes."""
        return CorpusSums(self.classification, self.balls)


@dataclass(frozen=True)
class Plan:
    """What is the same for all parts of an evaluation.

    Attributes:
        labels: class names in the order of the probabilities.
        clip_length: s, what shorter clips are padded to.
        embedding_size: numbers of an embedding.
        limit: of the selections.
    """

    labels: list[str]
    clip_length: float
    embedding_size: int
    limit: Limits

    @property
    def most_entries(self) -> int:
        """More than are selected of a corpus but for one of each cell."""
        classes = len(self.labels)
        of_class = self.limit.of_class + 2 * self.limit.examples
        return PAIR_CLIPS + CLIPS_OF_CELLS + classes * of_class


def sum_part(uri: str, part: int, plan: Plan) -> dict[str, PartialSums]:
    """Sums over one part, by TRAIN and OTHERS; only what has a clip.

    Args:
        uri: of the part.
        part: its number.
        plan: what is the same for all parts.
    """
    table = storage.read_table(uri, [*COLUMNS])
    is_train = pc.fill_null(pc.equal(table["split"], "train"), False).to_numpy()
    rows = np.arange(len(table))
    found = {}
    for name, own in ((TRAIN, rows[is_train]), (OTHERS, rows[~is_train])):
        if len(own):
            found[name] = _sum(table.take(pa.array(own)).combine_chunks(), part, own, plan)
    return found


def _sum(table: pa.Table, part: int, rows: np.ndarray, plan: Plan) -> PartialSums:
    # Clips without a label are grouped by what they are predicted as.
    labels = pc.coalesce(table["label"], table["prediction"])
    truth = pc.index_in(labels, pa.array(plan.labels)).to_numpy().astype(np.int64)
    probabilities = as_array(table["probabilities"])
    entries = np.zeros(len(table), ENTRY)
    entries["part"], entries["row"] = part, rows
    entries["key"] = keys(table["clip_id"].to_pylist())
    entries["truth"], entries["prediction"] = truth, probabilities.argmax(axis=1)
    entries["probability"] = table["probability"].to_numpy()
    asked = pc.coalesce(table["target_probability"], table["probability"])
    entries["asked"] = asked.to_numpy()
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


def nothing(n_mels: int) -> PartialSums:
    """Sums over no clips."""
    none = np.zeros(0, np.int64)
    return PartialSums(
        ClassificationSums(none, none, 0, np.zeros((0, 4))), BallCounts(),
        SoundSums({}, np.zeros((0, 1 + n_mels))), np.zeros(0, ENTRY),
    )  # fmt: skip


def merge_partial_sums(parts: Sequence[PartialSums], plan: Plan) -> PartialSums:
    """Sums over one part or more, in their order; rows of floats stay apart."""
    balls = BallCounts()
    for one in parts:
        balls = balls.merge(one.balls)
    entries = np.concatenate([one.entries for one in parts])
    # Selecting costs some sorts, so it waits for many clips.
    if len(entries) > plan.most_entries + ENTRIES_AHEAD:
        entries = select(entries, plan.limit)
    return PartialSums(
        sums.merge_sums([one.classification for one in parts]), balls,
        merge_sounds([one.sounds for one in parts]), entries,
    )  # fmt: skip


def add(total: PartialSums | None, other: PartialSums, plan: Plan) -> PartialSums:
    """Adds the parts that follow those of a total, one by one; the total has one row of floats."""
    both = other if total is None else merge_partial_sums([total, other], plan)
    of, sounds = both.classification, both.sounds
    return PartialSums(
        ClassificationSums(of.cells, of.counts, of.in_top, sums.fold(of.rows)), both.balls,
        SoundSums(sounds.rates, sums.fold(sounds.rows)), both.entries,
    )  # fmt: skip


def selected(total: PartialSums, plan: Plan) -> PartialSums:
    """A total whose entries are those that are selected, and no others."""
    return replace(total, entries=select(total.entries, plan.limit))


def of_parts(uris: Mapping[int, str], plan: Plan) -> dict[str, PartialSums]:
    """Sums over some parts of one corpus, by TRAIN and OTHERS.

    Args:
        uris: of the parts, by number, ascending.
        plan: what is the same for all parts.
    """
    found: dict[str, list[PartialSums]] = {}
    for part, uri in uris.items():
        for name, one in sum_part(uri, part, plan).items():
            found.setdefault(name, []).append(one)
    return {name: merge_partial_sums(parts, plan) for name, parts in found.items()}


def sample(entries: np.ndarray, plan: Plan) -> np.ndarray:
    """The selected clips that stand for a corpus, in the order in which they are drawn.

    The first PAIR_CLIPS are a sample of all, those of a class a sample of the class.
    """
    chosen = smallest(entries["key"], PAIR_CLIPS)
    chosen |= smallest(entries["key"], plan.limit.of_class, entries["truth"].astype(np.int64))
    return sampled(entries[chosen])


def read_scored(predictions: str, corpus: str, entries: np.ndarray, plan: Plan) -> Scored:
    """What the metrics need of some clips, in the order given.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        entries: of ENTRY.
        plan: with the number of classes and the size of an embedding.
    """
    columns = ["probabilities", "embedding"]
    table = read_prediction_rows(predictions, corpus, entries["part"], entries["row"], columns)
    return Scored(
        truth=entries["truth"].astype(np.int64),
        probabilities=as_array(table["probabilities"]).reshape(-1, len(plan.labels)),
        embedding=as_array(table["embedding"]).reshape(-1, plan.embedding_size),
    )


def scored_of(table: pa.Table, labels: list[str]) -> Scored:
    """The same of predictions that are in memory."""
    return Scored(
        truth=pc.index_in(table["label"], pa.array(labels)).to_numpy().astype(np.int64),
        probabilities=as_array(table["probabilities"]),
        embedding=as_array(table["embedding"]),
    )
