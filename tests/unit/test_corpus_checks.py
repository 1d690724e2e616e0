"""Checks of a corpus by its manifest, before a clip is decoded."""

import pyarrow as pa
import pytest

from raysound.corpora.checks import check_classes, check_real
from raysound.errors import UserError
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config


def clips(labels: str, **columns: list[str | None]) -> pa.Table:
    count = len(labels)
    names = [str(n) for n in range(count)]
    return pa.table(
        {"label": [*labels], "group": names}
        | {name: pa.nulls(count, pa.string()) for name in ("fold", "split")}
        | columns
    )


def config(split: dict | None = None, **training: object) -> Config:
    corpora = {"real": {"path": "/sounds", "split": split or {}}}
    tree = {"name": "x", "output": "/x", "corpora": corpora, "training": training}
    return from_tree(tree, "test")


FOLDS = ["1", "2"] * 4


@pytest.mark.parametrize(
    ("table", "settings", "words"),
    [
        (clips("aaaa"), config(), "the corpus real has a single class, 'a'"),
        (clips("aabb"), config({"test_folds": ["3"]}), "has no fold 3; its folds are: none"),
        (clips("aabb"), config(folds="all"), "of two or more folds; it has 0"),
        (
            clips("aabb", group=["x", "y", "x", "z"], split=["train", "test", "test", "train"]),
            config(),
            "the clips of group 'x' are not all in test",
        ),
        (
            clips("aaaabbbb", group=[*"xxyyzzvw"], fold=FOLDS),
            config({"test_fraction": 0}, folds="all"),
            "the clips of group 'x' are not all in test",
        ),
        (
            clips("aaaabbbb", fold=FOLDS[:4] + ["1"] * 4),
            config(folds="all"),
            "no training clip is left for the classes b",
        ),
    ],
)
def test_a_corpus_unsuitable_for_training_is_a_user_error(
    table: pa.Table, settings: Config, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check_real(table, settings)


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        ("aabb", config(), "no validation clip among the 4 real clips, and training needs one"),
        (
            "ab",
            config(checkpoint_policy="last"),
            "no test clip among the 2 real clips, and evaluation needs",
        ),
        ("aabb", config({"test_fraction": 0}, checkpoint_policy="last"), None),
        ("aabb" * 5, config(), None),
        ("aabb" * 5, config({"validation_fraction": 0}), "no validation clip among the 20"),
    ],
)
def test_too_few_clips_for_a_split_are_reported(
    labels: str, settings: Config, words: str | None
) -> None:
    line = check_real(clips(labels), settings)

    assert line is None if words is None else line.startswith(words)


@pytest.mark.parametrize(
    ("real", "generated", "hint"),
    [
        (["Dog", "cat"], ["dog", "cat"], "; perhaps 'dog' is 'Dog' there"),
        (["car horn", "x"], ["car_horn ", "y"], "; perhaps 'car_horn ' is 'car horn' there"),
        (["caf\u00e9", "x"], ["cafe\u0301"], "; perhaps 'cafe\\u0301' is 'caf\\xe9' there"),
        (["dog", "cat"], ["cow"], "add real recordings of them"),
    ],
)
def test_an_unknown_class_is_a_user_error_that_suggests_a_similar_class(
    real: list[str], generated: list[str], hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_classes({"real": real, "gan": generated})

    assert str(caught.value).endswith(hint)
