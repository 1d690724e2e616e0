"""The clips of classification accuracy scores, and reading cas.json."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysound.errors import UserError
from raysound.evaluation import cas
from raysound.evaluation.cas import clips_by_class, match_class_counts, read_scores


def corpus(name: str, **clips: tuple[int, int, int]) -> pa.Table:
    """Clips of some classes, by the numbers of training, validation and test clips."""
    rows = [
        {"clip_id": f"{label}/{name}-{part}-{number}.wav", "label": label, "split": part}
        for label, counts in clips.items()
        for part, count in zip(("train", "validation", "test"), counts, strict=True)
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows)


REAL = corpus("real", dog=(65, 15, 20), rain=(9, 3, 4), siren=(8, 2, 2))
GENERATED = corpus("gan", dog=(34, 6, 0), rain=(12, 2, 7))


def counts(clips: pa.Table) -> Counter[tuple[str, str]]:
    return Counter((row["label"], row["split"]) for row in clips.to_pylist())


def test_both_corpora_have_equal_counts_by_class_and_split() -> None:
    """The smaller corpus limits each count; classes missing in one, and test clips, are dropped."""
    real, generated = match_class_counts(REAL, GENERATED)

    expected = {
        ("dog", "train"): 34, ("dog", "validation"): 6,
        ("rain", "train"): 9, ("rain", "validation"): 2,
    }  # fmt: skip
    assert counts(real) == counts(generated) == expected
    assert set(real["clip_id"].to_pylist()) < set(REAL["clip_id"].to_pylist())
    assert set(generated["clip_id"].to_pylist()) < set(GENERATED["clip_id"].to_pylist())
    assert clips_by_class(real) == {
        "dog": {"train": 34, "validation": 6},
        "rain": {"train": 9, "validation": 2},
    }


def test_the_choice_does_not_depend_on_the_order_of_the_rows() -> None:
    def shuffled(table: pa.Table, seed: int) -> pa.Table:
        return table.take(pa.array(np.random.default_rng(seed).permutation(len(table))))

    chosen = [set(side["clip_id"].to_pylist()) for side in match_class_counts(REAL, GENERATED)]
    for seed in range(3):
        again = match_class_counts(shuffled(REAL, seed), shuffled(GENERATED, seed + 9))
        assert [set(side["clip_id"].to_pylist()) for side in again] == chosen


def test_generators_of_equal_size_are_compared_with_the_same_real_clips() -> None:
    """So all of them share one training on real clips."""
    other = corpus("diffusion", dog=(34, 6, 0), rain=(12, 2, 7))

    assert match_class_counts(REAL, GENERATED)[0].equals(match_class_counts(REAL, other)[0])


def test_a_smaller_choice_is_a_subset_of_a_larger_one() -> None:
    fewer = match_class_counts(REAL, corpus("gan", dog=(10, 2, 0)))[0]
    more = match_class_counts(REAL, corpus("gan", dog=(30, 4, 0)))[0]

    assert set(fewer["clip_id"].to_pylist()) < set(more["clip_id"].to_pylist())


# cas.json

CLASSIFIER = {"run": "cnn-1a2b3c4d", "feature_id": "ab12cd34", "split_digest": "0011aabb"}
CORPORA = {"real": "aaaa", "gan": "bbbb"}
MEASURE = {"value": 0.8, "low": 0.7, "high": 0.9}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with the scores of one generator."""
    tested = {"accuracy": MEASURE, "per_class": {"dog": MEASURE}}
    row = {"train_clips": 43, "lost": MEASURE} | dict.fromkeys(
        ["real_to_real", "generated_to_real", "real_to_generated"], tested
    )
    scores = {
        "schema": cas.CAS_SCHEMA,
        "classifier": CLASSIFIER,
        "corpora": CORPORA,
        "test_clips": 26,
        "generated": {"gan": row},
    }
    (tmp_path / "cas").mkdir()
    (tmp_path / "cas/cas.json").write_text(json.dumps(scores))
    return tmp_path


def test_scores_of_the_same_classifier_and_clips_are_read(output: Path) -> None:
    accuracy = {"accuracy": MEASURE}

    assert read_scores(str(output), CLASSIFIER, CORPORA) == {
        "test_clips": 26,
        "generated": {
            "gan": {
                "train_clips": 43,
                "lost": MEASURE,
                "real_to_real": accuracy,
                "generated_to_real": accuracy,
            }
        },
    }
    # A generator that this evaluation leaves out.
    assert read_scores(str(output), CLASSIFIER, {"real": "aaaa"})["generated"] == {}
    assert read_scores(str(output / "other"), CLASSIFIER, CORPORA) is None


@pytest.mark.parametrize(
    ("classifier", "corpora", "words"),
    [
        ({"run": "cnn-other"}, {}, "another classifier: its run differs"),
        ({"feature_id": "x"}, {}, "another classifier: its feature_id differs"),
        ({"split_digest": "x"}, {}, "another classifier: its split_digest differs"),
        ({}, {"real": "x"}, "other clips of real"),
        ({}, {"gan": "x"}, "other clips of gan"),
        ({}, {"diffusion": "cccc"}, "other clips of diffusion"),
    ],
)
def test_scores_of_another_classifier_or_other_clips_are_refused(
    output: Path, classifier: dict[str, str], corpora: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read_scores(str(output), CLASSIFIER | classifier, CORPORA | corpora)


@pytest.mark.parametrize(
    ("content", "words"),
    [({"schema": 1}, "schema 1, not 4"), ([], "not a cas.json"), ({}, "not a cas.json")],
)
def test_a_file_of_another_version_is_named(output: Path, content: Any, words: str) -> None:
    (output / "cas/cas.json").write_text(json.dumps(content))

    with pytest.raises(UserError, match=words):
        read_scores(str(output), CLASSIFIER, CORPORA)
