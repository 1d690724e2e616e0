import numpy as np
import pytest

from raysound.metrics.anchors import CHECKS, anchors_of_real, halves, sanity
from raysound.metrics.corpus import RealClips, Scored, corpus_report

CLASSES, SIZE = 4, 6
LABELS = ["bell", "dog", "rain", "sea"]


def judged(clips: int, seed: int, spread: float = 1.0) -> Scored:
    """Clips of classes that lie apart, and a judge that is mostly right."""
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
        np.arange(clips),
    )


TEST, TRAIN = judged(80, 1), judged(240, 2)


def rows() -> dict[str, dict]:
    reference = RealClips.of(TRAIN)
    rng = np.random.default_rng(3)
    noise = Scored(
        TEST.truth,
        np.tile(np.float32([0.7, 0.1, 0.1, 0.1]), (80, 1)),
        rng.normal(30, 0.1, (80, SIZE)).astype(np.float32),
        np.arange(80),
    )
    scored = {"real": TEST, "noise": noise, "silence": noise}
    scored |= anchors_of_real(TEST, TRAIN, 80)
    half, other = halves(TRAIN)
    made = {name: corpus_report(some, reference, LABELS, 80) for name, some in scored.items()}
    against = RealClips.of(other)
    return made | {"real_halves": corpus_report(half, against, LABELS, 80)}


def test_every_check_is_made_and_holds_for_a_judge_that_hears() -> None:
    checked = sanity(rows())

    assert [(row["anchor"], row["metric"], row["must"], row["than"]) for row in checked] == list(
        CHECKS
    )
    assert [row for row in checked if not row["holds"]] == []


def test_a_judge_that_takes_noise_for_the_real_thing_is_found_out() -> None:
    made = rows()
    made["noise"] = made["real"]

    broken = {(row["anchor"], row["metric"]) for row in sanity(made) if not row["holds"]}

    assert {("noise", "accuracy"), ("noise", "mmd"), ("noise", "coverage")} <= broken
    assert ("silence", "mmd") not in broken


def test_what_was_not_computed_is_not_checked() -> None:
    made = rows()
    made["noise"] = {**made["noise"], "mmd": {"value": None, "low": None, "high": None}}

    left = {(row["anchor"], row["metric"]) for row in sanity(made)}

    assert ("noise", "mmd") not in left
    assert ("real_halves", "mmd") not in left
    assert ("noise", "accuracy") in left


def test_the_anchors_are_what_they_are_called() -> None:
    made = anchors_of_real(TEST, TRAIN, 50)

    shuffled = made["shuffled_labels"]
    assert np.bincount(shuffled.truth).tolist() == np.bincount(TEST.truth).tolist()
    assert (shuffled.truth != TEST.truth).any()
    np.testing.assert_array_equal(shuffled.embedding, TEST.embedding)
    single = made["one_clip_per_class"]
    assert np.bincount(single.truth).tolist() == np.bincount(TEST.truth).tolist()
    assert len(np.unique(single.embedding, axis=0)) == CLASSES
    for label in range(CLASSES):
        chosen = single.probabilities[single.truth == label][0, label]
        assert chosen == TEST.probabilities[TEST.truth == label, label].max()
    copy = made["training_copy"]
    assert len(copy.truth) == 50
    known = {row.tobytes() for row in TRAIN.embedding}
    assert {row.tobytes() for row in copy.embedding} <= known


def test_halves_share_no_clip_and_lose_none() -> None:
    half, other = halves(TRAIN)

    together = {row.tobytes() for part in (half, other) for row in part.embedding}
    assert (len(half.truth), len(other.truth)) == (120, 120)
    assert len(together) == 240


def test_clips_without_embedding_can_not_be_taken() -> None:
    part = Scored(TEST.truth, TEST.probabilities, TEST.embedding[:9], np.arange(9))

    with pytest.raises(ValueError, match="80 clips with 9 embeddings"):
        part.take(np.arange(3))
