"""Merged sums and selections of parts equal those of all clips."""

import doctest
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysound import storage
from raysound.evaluation import partial_sums
from raysound.evaluation.partial_sums import OTHERS, TRAIN, PartialSums, Plan
from raysound.evaluation.predictions import PREDICTIONS, part_uri, read_prediction_rows, write_part
from raysound.metrics import selection, sums
from raysound.metrics.classification import classification_report
from raysound.metrics.corpus import CorpusSums, RealClips, Scored, corpus_report
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.intervals import mean_estimate
from raysound.metrics.neighbours import BallCounts, per_clip
from raysound.metrics.selection import ENTRY, Limits, keys, sampled, select, smallest
from raysound.metrics.sums import ClassificationSums, merge_sums, sum_in_order
from tests.made_predictions import BANDS, CLASSES, LABELS, SIZE, clips, make_predictions

PLAN = Plan(LABELS, 1.0, SIZE, Limits(per_class=7, examples=2))


def cuts(count: int, parts: int, seed: int) -> list[slice]:
    """Random slices that divide `count` clips."""
    at = np.sort(np.random.default_rng(seed).integers(0, count + 1, parts - 1))
    return [slice(a, b) for a, b in pairwise([0, *at.tolist(), count])]


def test_docstring_examples_run() -> None:
    result = doctest.testmod(selection)

    assert (result.attempted, result.failed) == (1, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99), st.lists(st.integers(1, 8), max_size=8))
def test_merged_sums_do_not_depend_on_the_grouping(
    parts: int, seed: int, groups: list[int]
) -> None:
    """Integers equal those of all clips; floats equal those of adding part by part."""
    truth, probabilities = clips(200, seed)
    found = [
        ClassificationSums.of(truth[part], probabilities[part]) for part in cuts(200, parts, seed)
    ]
    one_by_one = np.zeros((0, 4))
    for one in found:
        one_by_one = sum_in_order(np.concatenate([one_by_one, one.rows]))
    total, left = None, found
    for size in [*groups, parts]:
        some, left = left[:size], left[size:]
        if some:
            merged = merge_sums(some if total is None else [total, merge_sums(some)])
            total = ClassificationSums(
                merged.cells, merged.counts, merged.in_top, sum_in_order(merged.rows)
            )

    whole = ClassificationSums.of(truth, probabilities)
    assert total is not None
    assert total.rows.tobytes() == one_by_one.tobytes()
    np.testing.assert_allclose(total.rows, whole.rows, rtol=1e-12)
    np.testing.assert_array_equal(total.confusion(CLASSES), whole.confusion(CLASSES))
    assert (total.in_top, total.clips) == (whole.in_top, 200)


@pytest.mark.parametrize("cut", [1, 2, 333, 999])
def test_folded_rows_do_not_depend_on_the_grouping(cut: int) -> None:
    """They equal those of adding one by one, unlike numpy's sum."""
    rows = np.random.default_rng(0).normal(0, 1, (1000, 2))
    total = [0.0, 0.0]
    for row in rows.tolist():
        total = [total[0] + row[0], total[1] + row[1]]

    assert sum_in_order(np.concatenate([sum_in_order(rows[:cut]), rows[cut:]])).tolist() == [total]


def test_a_report_from_sums_equals_that_from_clips() -> None:
    """It is bitwise equal for one part, and equal up to rounding for seven."""
    truth, probabilities = clips(300)
    of_clips = classification_report(truth, probabilities, LABELS)

    parts = [ClassificationSums.of(truth[p], probabilities[p]) for p in cuts(300, 7, 0)]
    of_parts = classification_report(truth, probabilities, LABELS, sums=merge_sums(parts))
    of_one = classification_report(
        truth, probabilities, LABELS, sums=ClassificationSums.of(truth, probabilities)
    )

    assert of_one == of_clips
    for name in ("log_loss", "map_3"):
        assert of_parts[name] == pytest.approx(of_clips[name], rel=1e-12)
    assert {**of_parts, "log_loss": 0, "map_3": 0} == {
        **of_clips, "log_loss": 0, "map_3": 0,
    }  # fmt: skip


def test_a_report_of_many_clips_averages_all_and_samples_sets() -> None:
    """5,000 of 12,000 clips are the sample for metrics that depend on the sample size."""
    truth, probabilities = clips(12_000)
    embedding = np.eye(CLASSES, SIZE)[truth] + np.random.default_rng(1).normal(0, 1, (12_000, SIZE))
    scored = Scored(truth, probabilities, embedding.astype(np.float32))
    real = RealClips.of(scored.take(np.arange(300)))
    alone = per_clip(scored.embedding, real.embedding)
    totals = CorpusSums(
        ClassificationSums.of(truth, probabilities), BallCounts.of(alone.balls, alone.authentic)
    )
    sizes = 100, [20] * CLASSES
    whole = corpus_report(scored, real, LABELS, *sizes)

    found = corpus_report(scored.first(6000), real, LABELS, *sizes, totals=totals)

    assert found["clips"] == 12_000
    of_all = ("accuracy", "log_loss", "map_3", "precision", "density")
    for name in (*of_all, "authenticity", "top_3", "balanced_accuracy", "confusion"):
        assert found[name] == whole[name], name
    assert found["compared"] == 100
    sample = corpus_report(scored.first(PAIR_CLIPS), real, LABELS, *sizes)
    for name in (
        "mmd2_x100",
        "recall",
        "coverage",
        "frechet_distance",
        "inception_score",
        "macro_f1",
    ):
        assert found[name] == sample[name], name
    assert found["per_class"]["class 0"]["generated"] == int((truth[:6000] == 0).sum())


@pytest.mark.parametrize("n", [20, 100, 1000])
def test_the_interval_of_a_mean_covers_its_expectation(n: int) -> None:
    """For skewed numbers such as log losses, in 90 % of samples, and in 95 % of large samples."""
    draws = np.random.default_rng(n).exponential(1.0, (600, n))
    found = [mean_estimate(float(x.sum()), float((x * x).sum()), n) for x in draws]

    inside = np.mean([one["low"] <= 1 <= one["high"] for one in found])

    assert 0.88 <= inside <= 0.98
    if n == 1000:
        assert inside >= 0.93
    widths = np.mean([one["high"] - one["low"] for one in found])
    assert widths == pytest.approx(2 * 1.96 / n**0.5, rel=0.1)


def entries_of(count: int, seed: int) -> np.ndarray:
    """Entries of clips in parts of 50; many tie."""
    rng = np.random.default_rng(seed)
    entries = np.zeros(count, ENTRY)
    entries["part"], entries["row"] = np.divmod(np.arange(count), 50)
    entries["key"] = rng.integers(0, count // 2, count)
    entries["truth"], entries["prediction"] = rng.integers(0, CLASSES, (2, count))
    entries["probability"] = rng.integers(0, 30, count) / 30
    entries["target_probability"] = rng.integers(0, 30, count) / 30
    return entries


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 8))
def test_selection_by_parts_equals_selection_of_all_entries(seed: int, parts: int) -> None:
    """This includes ties, for any division into parts and any order of merging."""
    entries = entries_of(400, seed)
    limit = PLAN.limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "PAIR_CLIPS", 25)
        patch.setattr(selection, "CLIPS_PER_CELL", 3)
        patch.setattr(selection, "CLIPS_OF_ALL_CELLS", 30)
        whole = select(entries, limit)
        held = entries[:0]
        for part in cuts(400, parts, seed):
            held = select(np.concatenate([held, select(entries[part], limit)]), limit)

    assert held.tobytes() == whole.tobytes()
    assert len(whole) < 250


def test_selections_hold_the_expected_entries() -> None:
    entries = entries_of(400, 0)
    chosen = smallest(entries["key"], 25)

    assert chosen.sum() == 25
    assert entries["key"][chosen].max() <= entries["key"][~chosen].min()
    drawn = sampled(entries)
    assert (np.diff(drawn["key"].astype(np.int64)) >= 0).all()
    assert sorted(drawn.tolist()) == sorted(entries.tolist())
    cells = entries[selection.cell_mask(entries)]
    for truth, prediction in np.ndindex(CLASSES, CLASSES):
        kept, there = (
            np.sort(of[(of["truth"] == truth) & (of["prediction"] == prediction)]["probability"])
            for of in (cells, entries)
        )
        np.testing.assert_array_equal(kept, there[-20:])


def test_keys_depend_only_on_names() -> None:
    """They are uniform, so that the smallest are a random sample."""
    names = [f"clip {number}" for number in range(4000)]
    found = keys(names)

    np.testing.assert_array_equal(found[::-1], keys(names[::-1]))
    assert found[0] == 0x0229F82CBF4316AC, "the first 8 bytes of its SHA-256"
    assert len(set(found.tolist())) == 4000
    low = found < np.uint64(1 << 63)
    assert abs(low.mean() - 0.5) < 0.03


def numbers(of: PartialSums) -> list[object]:
    return [
        of.classification.cells.tolist(), of.classification.counts.tolist(),
        of.classification.in_top, of.balls, of.sounds.rates, of.entries.tolist(),
    ]  # fmt: skip


def test_sums_by_part_equal_sums_of_the_table(tmp_path) -> None:
    """Training clips are separate and have no counts of balls."""
    tables = [make_predictions(30, seed, train=10 * (seed % 2)) for seed in range(4)]
    tables.insert(2, PREDICTIONS.empty_table())
    out = str(tmp_path)
    uris = {index: part_uri(out, "real", index) for index in range(5)}
    for index, table in enumerate(tables):
        note = write_part(uris[index], table, "a", "b")
        assert (note.clips, note.train) == (len(table), 10 if index in (1, 4) else 0)

    together = partial_sums.sum_parts(uris, PLAN)
    total: dict[str, PartialSums] = {}
    for index, uri in uris.items():
        for name, one in partial_sums.sum_parts({index: uri}, PLAN).items():
            total[name] = partial_sums.add_sums(total.get(name), one, PLAN)

    assert together.keys() == total.keys() == {TRAIN, OTHERS}
    for name, one in together.items():
        assert numbers(one) == numbers(total[name])
        of_all = partial_sums.add_sums(None, one, PLAN)
        assert of_all.classification.rows.tobytes() == total[name].classification.rows.tobytes()
        assert of_all.sounds.rows.tobytes() == total[name].sounds.rows.tobytes()
    assert (together[TRAIN].classification.clips, together[TRAIN].balls.clips) == (20, 0)
    balls = pa.concat_tables(tables)["balls"].drop_null().to_numpy()
    assert together[OTHERS].balls[:3] == (100, int((balls > 0).sum()), int(balls.sum()))


def test_rows_of_many_parts_are_read_in_the_given_order(tmp_path) -> None:
    out = str(tmp_path)
    for index in range(3):
        storage.write_table(part_uri(out, "real", index), make_predictions(9, index))

    part, row = np.array([2, 0, 2, 1, 0]), np.array([8, 3, 0, 5, 1])
    found = read_prediction_rows(out, "real", part, row, ["clip_id", "embedding"])

    assert found["clip_id"].to_pylist() == ["2/8", "0/3", "2/0", "1/5", "0/1"]
    assert found["embedding"][0].as_py() == make_predictions(9, 2)["embedding"][8].as_py()
    assert len(read_prediction_rows(out, "real", part[:0], row[:0], ["clip_id"])) == 0


def test_empty_sums_give_an_empty_report() -> None:
    real = Scored(*clips(20), np.random.default_rng(0).normal(0, 1, (20, SIZE)).astype(np.float32))
    none = partial_sums.empty_sums(BANDS)

    found = corpus_report(
        real.first(0), RealClips.of(real), LABELS, 10, [2] * CLASSES, totals=none.totals
    )

    assert found["clips"] == 0
    assert found["accuracy"]["value"] is None
    assert found["precision"] == {"value": None, "low": None, "high": None, "why": "no clips"}
    assert sums.sum_in_order(none.classification.rows).shape == (0, 4)
