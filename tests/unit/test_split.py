import hashlib
from collections import Counter
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysound.corpora.split import assign_split, stratified_split
from raysound.corpora.vocabulary import SCHEMA
from raysound.errors import UserError
from raysound.settings.corpora import SplitSettings

THIRDS = {"test": 0.2, "validation": 0.3}


def manifest(labels, folds=None, splits=None, groups=None) -> pa.Table:
    """A manifest of clips named 0, 1, 2, …; by default, each clip is a group."""
    count = len(labels)
    names = [str(n) for n in range(count)]
    columns = {
        "clip_id": names,
        "path": [f"/sounds/{name}" for name in names],
        "label": list(labels),
        "fold": folds or [None] * count,
        "split": splits or [None] * count,
        "group": groups or names,
        "size": [3] * count,
        "modified": [0] * count,
        "offset": [None] * count,
    }
    return pa.table(columns, schema=SCHEMA)


def assigned(table: pa.Table, **options) -> list[str]:
    return assign_split(table, SplitSettings(**options))["split"].to_pylist()


# The split of the corpus


def test_folds_determine_the_split():
    """Each split has exactly the clips of its folds; train gets the rest."""
    folds = ["1", "2", "3", "4", "5"] * 4
    split = assigned(
        manifest(["dog", "cat"] * 10, folds=folds), test_folds=["5"], validation_folds=["3", "4"]
    )
    wanted = {"1": "train", "2": "train", "3": "validation", "4": "validation", "5": "test"}
    assert split == [wanted[fold] for fold in folds]


def test_a_fold_may_be_written_as_a_number():
    split = assigned(manifest("xxx", folds=["1", "2", "3"]), test_folds=[3], validation_folds=[2])
    assert split == ["train", "validation", "test"]


def test_validation_is_sampled_from_the_other_folds():
    """A fifth of the other four folds, equally for each class."""
    labels = ["dog", "cat"] * 50
    folds = [str(n // 2 % 5) for n in range(100)]
    split = assigned(manifest(labels, folds=folds), test_folds=["4"], validation_fraction=0.2)
    assert all((one == "test") == (fold == "4") for one, fold in zip(split, folds, strict=True))
    counts = Counter(zip(labels, split, strict=True))
    assert counts["dog", "validation"] == counts["cat", "validation"] == 8
    assert counts["dog", "train"] == counts["cat", "train"] == 32


def test_test_is_sampled_from_the_other_folds():
    folds = ["a", "b"] * 20
    split = assigned(manifest("x" * 40, folds=folds), validation_folds=["a"], test_fraction=0.5)
    assert Counter(split) == {"validation": 20, "test": 10, "train": 10}


def test_the_split_of_the_corpus_is_kept():
    """For any fractions."""
    own = ["train", "train", "validation", "test"] * 5
    split = assigned(manifest("x" * 20, splits=own), test_fraction=0.8, validation_fraction=0.1)
    assert split == own


def test_a_missing_split_is_sampled_from_the_training_clips():
    own = ["train"] * 80 + ["test"] * 20
    split = assigned(manifest("x" * 100, splits=own), validation_fraction=0.25)
    assert split[80:] == ["test"] * 20
    assert Counter(split[:80]) == {"train": 60, "validation": 20}


def test_clips_without_a_split_train_if_the_corpus_has_test_and_validation():
    own = ["test", "validation", None, None]
    assert assigned(manifest("xxxx", splits=own)) == ["test", "validation", "train", "train"]


@pytest.mark.parametrize("key", ["test_folds", "validation_folds"])
def test_an_unknown_fold_is_a_user_error_that_names_the_folds(key):
    with pytest.raises(UserError) as caught:
        assigned(manifest("xxx", folds=["1", "2", "10"]), **{key: ["2", "7"]})
    assert "fold 7" in str(caught.value)
    assert all(fold in str(caught.value) for fold in ("1", "2", "10"))


def test_a_corpus_without_folds_is_reported():
    with pytest.raises(UserError, match="none"):
        assigned(manifest("xxx"), test_folds=["1"])


def test_a_fold_cannot_be_both_test_and_validation():
    """Otherwise one would overwrite the other, and the test split would be sampled again."""
    table = manifest("xxxxxx", folds=["1", "2", "3"] * 2)
    with pytest.raises((UserError, ValueError), match="1"):
        assigned(table, test_folds=["1"], validation_folds=["1", "2"])


def test_a_recording_in_two_folds_is_not_on_both_sides():
    """It is a user error, or the recording stays together."""
    groups = ["tape", "b", "c", "tape", "e", "f"]
    table = manifest("xxxxxx", folds=["1", "1", "1", "2", "2", "2"], groups=groups)
    with suppress(UserError):
        split = assigned(table, test_folds=["2"], validation_fraction=0)
        assert split[0] == split[3]


def test_a_class_without_a_training_clip_is_a_user_error():
    """All its clips are in the test fold."""
    table = manifest(["dog", "cat", "dog", "owl"], folds=["1", "1", "2", "2"])
    with pytest.raises(UserError, match="owl"):
        assigned(table, test_folds=["2"], validation_fraction=0)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.3), (0.7, 0.3)])
def test_fractions_that_leave_nothing_to_train_on_are_a_user_error(fractions):
    shares = dict(zip(("test", "validation"), fractions, strict=True))
    names = np.array(list("abcdefghij"), dtype=object)

    with pytest.raises(UserError, match="test_fraction and validation_fraction"):
        stratified_split(names, names, shares, seed=0)


def test_only_the_split_column_changes():
    table = manifest(["dog", "cat"] * 10, folds=["1", "2"] * 10)
    out = assign_split(table, SplitSettings())
    assert out.schema == SCHEMA
    assert out.drop_columns("split").equals(table.drop_columns("split"))
    assert out["split"].null_count == 0


# Stratified sampling


def test_every_class_has_the_configured_shares():
    """Exactly, if each clip is a group and the numbers are divisible."""
    labels = ["a"] * 100 + ["b"] * 20 + ["c"] * 10
    split = assigned(manifest(labels), test_fraction=0.2, validation_fraction=0.1)
    counts = Counter(zip(labels, split, strict=True))
    for label, count in (("a", 100), ("b", 20), ("c", 10)):
        assert counts[label, "test"] == 0.2 * count
        assert counts[label, "validation"] == 0.1 * count


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_shares_of_single_clips_deviate_by_less_than_one_clip(counts, seed):
    """For any class sizes and seed."""
    labels = np.repeat([f"class {n}" for n in range(len(counts))], counts)
    groups = np.arange(len(labels)).astype(str)
    split = stratified_split(labels, groups, THIRDS, seed)
    for label, count in zip(np.unique(labels), counts, strict=True):
        for name, share in {"train": 0.5, **THIRDS}.items():
            assert abs((split[labels == label] == name).sum() - share * count) < 1


@pytest.mark.parametrize("share", [0.15, 0.3, 0.45])
@pytest.mark.parametrize("count", [2, 3, 5, 7, 12, 33])
def test_a_share_is_rounded_to_the_nearest_clip(share, count):
    """Small classes keep test and training clips."""
    labels = np.full(count, "a")
    split = stratified_split(labels, np.arange(count).astype(str), {"test": share}, 0)
    assert abs((split == "test").sum() - share * count) <= 0.5


clips_in_groups = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 15)), min_size=1, max_size=80
)


@settings(max_examples=100, deadline=None)
@given(clips=clips_in_groups, seed=st.integers(0, 1000))
def test_a_group_is_never_divided(clips, seed):
    """Even if a recording has several classes."""
    labels = np.array([label for label, _ in clips])
    groups = np.array([str(group) for _, group in clips])
    split = stratified_split(labels, groups, THIRDS, seed)
    assert set(split) <= {"train", "validation", "test"}
    for group in np.unique(groups):
        assert len(set(split[groups == group])) == 1


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=20, max_size=60),
    seed=st.integers(0, 1000),
)
def test_shares_of_groups_deviate_by_at_most_one_group(sizes, seed):
    """One class with recordings of one to six clips."""
    groups = np.repeat(np.arange(len(sizes)).astype(str), sizes)
    labels = np.full(len(groups), "a")
    split = stratified_split(labels, groups, THIRDS, seed)
    for name, share in THIRDS.items():
        assert abs((split == name).sum() - share * len(groups)) <= max(sizes)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shares", [{}, {"test": 0.15, "validation": 0.15}, {"test": 0.45}])
def test_a_class_of_one_clip_trains(shares, seed):
    """A classifier can't predict a class without a training clip."""
    labels = np.array(["common"] * 30 + ["rare"])
    split = stratified_split(labels, np.arange(31).astype(str), shares, seed)
    assert split[-1] == "train"


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_one_clip_trains_for_any_training_share(seed):
    """Also if most clips are test clips."""
    labels = ["common"] * 30 + ["rare"]
    split = assigned(manifest(labels), test_fraction=0.6, validation_fraction=0.2, seed=seed)
    assert split[-1] == "train"


@pytest.mark.parametrize("seed", range(5))
def test_every_class_trains_even_if_its_clips_are_one_recording(seed):
    labels = ["common"] * 30 + ["rare"] * 4
    groups = [str(n) for n in range(30)] + ["tape"] * 4
    assert assigned(manifest(labels, groups=groups), seed=seed)[-4:] == ["train"] * 4


def test_the_seed_determines_the_split():
    table = manifest(["dog", "cat"] * 50)
    draws = [assigned(table, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert Counter(draws[0]) == Counter(draws[2])


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    labels = np.array(["dog", "cat"] * 50)
    groups = np.arange(100).astype(str)
    split = stratified_split(labels, groups, THIRDS, 3)
    order = np.random.default_rng(0).permutation(100)
    assert (stratified_split(labels[order], groups[order], THIRDS, 3) == split[order]).all()


def test_a_fraction_of_0_yields_no_clips():
    table = manifest(["dog", "cat"] * 10)
    assert set(assigned(table, test_fraction=0, validation_fraction=0)) == {"train"}
    assert set(assigned(table, test_fraction=0)) == {"train", "validation"}
    assert set(assigned(table, validation_fraction=0)) == {"train", "test"}


def test_one_clip_trains():
    assert assigned(manifest("x")) == ["train"]


@pytest.mark.parametrize("clips", [2, 3, 4, 5, 7, 10])
@pytest.mark.parametrize("shares", [{"test": 0.15, "validation": 0.15}, {"test": 0.3}])
def test_many_small_classes_meet_the_shares_in_total(clips, shares):
    """Of 300 classes with 3 clips, no class can be divided by 15 %, but their total can."""
    labels = np.repeat([f"c{n:03d}" for n in range(300)], clips)
    groups = np.arange(len(labels)).astype(str)

    split = stratified_split(labels, groups, shares, 0)

    for name, share in {"train": 1 - sum(shares.values()), **shares}.items():
        assert (split == name).mean() == pytest.approx(share, rel=0.25)
        for label in np.unique(labels):
            assert abs((split[labels == label] == name).sum() - share * clips) < 1
    assert {*labels[split == "train"]} == {*labels}
    again = stratified_split(labels[::-1], groups[::-1], shares, 0)[::-1]
    assert (again == split).all()
    other = stratified_split(labels, groups, shares, 1)
    assert Counter(other) == Counter(split)


def test_groups_that_meet_the_shares_in_total_are_not_divided():
    labels = np.repeat([f"c{n:02d}" for n in range(60)], 6)
    groups = np.repeat(np.arange(180).astype(str), 2)

    split = stratified_split(labels, groups, {"test": 0.15, "validation": 0.15}, 0)

    assert all(len({*split[groups == group]}) == 1 for group in np.unique(groups))
    assert Counter(split)["test"] == Counter(split)["validation"] == 54


def test_a_split_that_meets_its_shares_equals_that_of_earlier_versions():
    """Training runs are found by the digest of the split, also after an update."""
    shares = {"test": 0.15, "validation": 0.15}
    labels = np.repeat([f"c{n}" for n in range(10)], 40)
    split = stratified_split(labels, np.arange(400).astype(str), shares, 0)
    assert (
        hashlib.sha256("".join(name[0] for name in split).encode()).hexdigest()[:12]
        == "957b69e4b4e0"
    )
