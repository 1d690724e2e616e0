import numpy as np
import pytest

from raysound.metrics.anchors import CHECKS, anchors_of_real, passes, sanity_checks, split_in_halves
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.intervals import proportion_estimate

CLASSES, SIZE = 4, 6
LABELS = ["bell", "dog", "rain", "sea"]


def scores(clips: int, seed: int, spread: float = 1.0) -> Scored:
    """Clips of separated classes, and a classifier that is mostly right."""
    rng = np.random.default_rng(seed)
    truth = np.arange(clips) % CLASSES
    centres = 6 * np.eye(CLASSES, SIZE)
    embedding = centres[truth] + rng.normal(0, spread, (clips, SIZE))
    logits = -((embedding[:, np.newaxis] - centres) ** 2).sum(axis=2) / 8
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Scored(
        truth,
        (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32),
        embedding.astype(np.float32),
    )


TEST, TRAIN = scores(80, 1), scores(240, 2)


def rows() -> dict[str, dict]:
    reference = RealClips.of(TRAIN)
    rng = np.random.default_rng(3)
    noise = Scored(
        TEST.truth,
        np.tile(np.float32([0.7, 0.1, 0.1, 0.1]), (80, 1)),
        rng.normal(30, 0.1, (80, SIZE)).astype(np.float32),
    )
    scored = {"real": TEST, "noise": noise, "silence": noise}
    scored |= anchors_of_real(TEST, TRAIN, 80)
    half, other = split_in_halves(TRAIN)
    sizes = 80, [20] * CLASSES
    reports = {
        name: corpus_report(clips, reference, LABELS, *sizes) for name, clips in scored.items()
    }
    other_half = RealClips.of(other)
    return reports | {"real_halves": corpus_report(half, other_half, LABELS, *sizes)}


def test_a_good_classifier_passes_all_checks() -> None:
    checked = sanity_checks(rows())

    assert [
        (row["anchor"], row["metric"], row["expected"], row["than"]) for row in checked
    ] == list(CHECKS)
    assert [row for row in checked if not row["passed"]] == []


def test_a_classifier_that_does_not_distinguish_noise_from_real_clips_fails() -> None:
    measures = rows()
    measures["noise"] = measures["real"]

    failed = {
        (row["anchor"], row["metric"]) for row in sanity_checks(measures) if not row["passed"]
    }

    assert {("noise", "accuracy"), ("noise", "mmd2_x100"), ("noise", "coverage")} <= failed
    assert ("silence", "mmd2_x100") not in failed


def test_a_skipped_check_has_a_reason() -> None:
    measures = rows()
    unknown = {"value": None, "low": None, "high": None, "why": "too few"}
    measures["noise"] = {**measures["noise"], "mmd2_x100": unknown}
    del measures["one_clip_per_class"]

    checks = {(row["anchor"], row["metric"]): row for row in sanity_checks(measures)}

    assert len(checks) == len(CHECKS)
    for check in (("noise", "mmd2_x100"), ("real_halves", "mmd2_x100")):
        assert (checks[check]["passed"], checks[check]["why"]) == (None, "too few")
    missing = checks["one_clip_per_class", "recall"]
    assert missing["passed"] is None
    assert missing["why"] == "needs more than 5 real test clips per class"
    assert checks["noise", "accuracy"]["passed"] is True


def test_a_classifier_that_guesses_fails() -> None:
    """Its accuracy with the true labels is higher than with shuffled labels only by chance."""
    measures = rows()
    for name, right in (("real", 24), ("shuffled_labels", 18)):
        measures[name] = {**measures[name], "accuracy": proportion_estimate(right, 80)}

    failed = {
        (row["anchor"], row["metric"]) for row in sanity_checks(measures) if row["passed"] is False
    }

    assert ("shuffled_labels", "accuracy") in failed


@pytest.mark.parametrize(
    ("expected", "value", "passed"),
    [
        ("at least", 0.0, None), ("at least", 0.95, True), ("at most", 1.0, None),
        ("at most", 0.5, True), ("well below", 0.1, None), ("below", 0.1, True),
    ],
)  # fmt: skip
def test_a_check_that_depends_on_chance_is_undecided_without_an_interval(
    expected: str, value: float, passed: bool | None
) -> None:
    bare = {"value": value, "low": None, "high": None, "why": "9 clips"}
    real = {"value": 0.9, "low": 0.8, "high": 1.0}

    assert passes(bare, expected, real) is passed


@pytest.mark.parametrize(("right", "of", "expected"), [(7, 9, None), (2, 9, True), (60, 80, False)])
def test_few_test_clips_do_not_decide_the_check_of_shuffled_labels(
    right: int, of: int, expected: bool | None
) -> None:
    """Seven of nine clips can keep their label by chance."""
    real = proportion_estimate(round(0.8 * of), of)

    assert passes(proportion_estimate(right, of), "well below", real) is expected


@pytest.mark.parametrize("per_class", [1, 3, 5, 6])
def test_few_test_clips_give_no_false_alarm(per_class: int) -> None:
    """Too few copies to be each other's neighbours would look as varied as real clips."""
    test = scores(per_class * CLASSES, 4)
    reference = RealClips.of(TRAIN)
    scored = {"real": test, **anchors_of_real(test, TRAIN, len(test.truth))}
    sizes = len(test.truth), [per_class] * CLASSES
    measures = {
        name: corpus_report(clips, reference, LABELS, *sizes) for name, clips in scored.items()
    }

    failed = {row["anchor"] for row in sanity_checks(measures) if row["passed"] is False}

    assert "one_clip_per_class" not in failed
    assert ("one_clip_per_class" in scored) == (per_class > 5)


def test_rare_classes_have_as_many_copies_as_others() -> None:
    keep = np.r_[np.arange(0, 80)[np.arange(80) % CLASSES != 3], [3]]
    single = anchors_of_real(TEST.take(keep), TRAIN, len(keep))["one_clip_per_class"]

    assert np.bincount(single.truth).tolist() == [15] * CLASSES


def test_shuffled_labels_are_missing_if_no_label_changes() -> None:
    only = TEST.take(np.flatnonzero(TEST.truth == 2))

    assert "shuffled_labels" not in anchors_of_real(only, TRAIN, 20)


def test_the_anchors_have_the_documented_clips() -> None:
    anchors = anchors_of_real(TEST, TRAIN, 80)

    shuffled = anchors["shuffled_labels"]
    assert np.bincount(shuffled.truth).tolist() == np.bincount(TEST.truth).tolist()
    assert (shuffled.truth != TEST.truth).any()
    np.testing.assert_array_equal(shuffled.embedding, TEST.embedding)
    single = anchors["one_clip_per_class"]
    assert np.bincount(single.truth).tolist() == np.bincount(TEST.truth).tolist()
    assert len(np.unique(single.embedding, axis=0)) == CLASSES
    for label in range(CLASSES):
        chosen = single.probabilities[single.truth == label][0, label]
        assert chosen == TEST.probabilities[TEST.truth == label, label].max()
    copy = anchors["training_copy"]
    assert len(copy.truth) == 80
    known = {row.tobytes() for row in TRAIN.embedding}
    assert {row.tobytes() for row in copy.embedding} <= known


def test_halves_are_disjoint_and_complete() -> None:
    half, other = split_in_halves(TRAIN)

    together = {row.tobytes() for part in (half, other) for row in part.embedding}
    assert (len(half.truth), len(other.truth)) == (120, 120)
    assert len(together) == 240
