"""Copies of training clips: the searched clips, and the results of a search."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysound.evaluation.copy_parts import (
    COPIES,
    SearchedClips,
    calibrate,
    clip_copies,
    corpus_copies,
    merge_windows,
    prepare_windows,
    real_pairs,
    sample_training,
    search_sample,
    search_shard,
)
from raysound.evaluation.derived_parts import write_derived
from raysound.evaluation.predictions import part_uri
from raysound.features.parquet import shard_writer
from raysound.features.records import Shard
from raysound.metrics.copies import Copies, Threshold, find_copies
from raysound.metrics.copy_search import TrainingWindows, patches
from raysound.metrics.selection import keys
from raysound.settings.features import FeatureSettings

SETTINGS = FeatureSettings(
    clip_length=1.0, sample_rate=8000, hop_length=240, n_fft=512, n_mels=12, f_max=4000
)
RNG = np.random.default_rng(0)


def log_mels(count: int) -> np.ndarray:
    shape = (count, SETTINGS.n_mels, SETTINGS.n_frames)
    return RNG.uniform(-7, 0, size=shape).astype(np.float32)


def write(uri: str, clips: list[str], log_mel: np.ndarray) -> None:
    """A shard with one row per window, in row groups of three."""
    nothing = pa.nulls(len(clips), pa.string())
    rows = pa.table({
        "clip_id": clips, "window": pa.array([0] * len(clips), pa.int32()), "label": nothing,
        "fold": nothing, "split": nothing, "group": nothing,
        "duration": [1.0] * len(clips), "sample_rate": pa.array([8000] * len(clips), pa.int32()),
    })  # fmt: skip
    with shard_writer(uri, SETTINGS) as writer:
        for start in range(0, len(clips), 3):
            writer.add(rows.slice(start, 3), log_mel[start : start + 3])
        writer.finish(Shard("d", len(clips), len(clips), len(clips), 1.0, writer.statistics))


def clips_of(names: list[str], groups: list[str] | None = None) -> pa.Table:
    return pa.table({
        "clip_id": names, "split": ["train"] * len(names),
        "label": pa.nulls(len(names), pa.string()), "group": groups or names,
    })  # fmt: skip


def copies(*rows: tuple[str, str | None, float]) -> pa.Table:
    """COPIES with some columns that are not used."""
    nothing = {"split": "train", "label": None, "window": 0, "training_window": 0, "lag": 0.0}
    named = [
        {"clip_id": clip, "training_clip": other, "similarity": similarity, **nothing}
        for clip, other, similarity in rows
    ]
    return pa.Table.from_pylist(named, COPIES)


def test_clips_are_sampled_by_the_hash_of_their_names() -> None:
    names = [f"{number}.wav" for number in range(30)]
    counts = (np.arange(30) % 4 + 1).tolist()
    windows = pa.table({"clip_id": names[::-1], "windows": counts[::-1]})
    order = np.argsort(keys(names)).tolist()

    for most in (0, 1, 17, 18, 19, 1000):
        drawn = sample_training(clips_of(names), windows, most)
        expected = [n for place, n in enumerate(order)
                    if sum(counts[m] for m in order[: place + 1]) <= most]  # fmt: skip
        assert drawn["clip_id"].to_pylist() == [names[n] for n in expected]
        assert drawn["windows"].to_pylist() == [counts[n] for n in expected]
    with pytest.raises(RuntimeError, match=r"^29\.wav has no window"):
        sample_training(clips_of(names), windows.slice(1), 5)


@pytest.fixture
def searched(tmp_path: Path) -> tuple[SearchedClips, np.ndarray, str]:
    """Six windows of four training clips among others, from two shards; all log-mels; a shard."""
    log_mel = log_mels(9)
    first, second = (part_uri(str(tmp_path), "real", number) for number in (0, 1))
    write(first, ["x", "a", "a", "a", "b"], log_mel[:5])
    write(second, ["c", "y", "y", "d"], log_mel[5:])
    chosen = clips_of(["d", "c", "b", "a"], ["g", "h", "h", "g"])
    names = chosen["clip_id"].combine_chunks()
    tables = [prepare_windows(uri, names, SETTINGS) for uri in (first, second)]
    empty = prepare_windows(second, names.slice(3), SETTINGS)
    assert len(empty) == 0
    return merge_windows([tables[0], empty, tables[1]], chosen, SETTINGS), log_mel, second


def test_merged_windows_equal_those_of_the_chosen_clips(
    searched: tuple[SearchedClips, np.ndarray, str],
) -> None:
    training, log_mel, _ = searched
    expected = TrainingWindows.of(patches(log_mel[[1, 2, 3, 4, 5, 8]], 0.03), 0.03)

    assert training.clips["clip_id"].to_pylist() == ["a", "b", "c", "d"]
    assert training.clip.tolist() == [0, 0, 0, 1, 2, 3]
    groups = np.array(training.clips["group"].to_pylist())[training.clip]
    assert (groups[:, None] == groups).tolist() == (
        training.group[:, None] == training.group
    ).tolist()
    assert training.reference.frame_seconds == expected.frame_seconds
    for name in ("patches", "centre", "vectors"):
        np.testing.assert_array_equal(
            getattr(training.reference, name), getattr(expected, name), name
        )


def test_a_clip_gets_its_most_similar_pair_of_windows(
    searched: tuple[SearchedClips, np.ndarray, str], tmp_path: Path
) -> None:
    """The second window of a clip is the third window of a training clip at another level."""
    training, log_mel, _ = searched
    shard = part_uri(str(tmp_path), "made", 0)
    write(shard, ["new", "copy", "copy", "one"], np.stack([*log_mels(2), log_mel[3], log_mel[8]]))
    scored = clips_of(["new", "copy", "one"])
    scored = scored.set_column(1, "split", pa.array([None, None, "train"], pa.string()))

    found = search_shard(shard, scored, SETTINGS, training)

    assert found.schema.equals(COPIES)
    assert found["clip_id"].to_pylist() == ["new", "copy"]
    (copy,) = found.slice(1).to_pylist()
    assert (copy["window"], copy["training_clip"], copy["training_window"]) == (1, "a", 2)
    assert copy["similarity"] == pytest.approx(1, abs=1e-4)
    assert found["similarity"][0].as_py() < 0.9
    none = search_shard(shard, scored.slice(2), SETTINGS, training)
    assert none.equals(COPIES.empty_table())


def test_training_clips_are_compared_with_those_of_other_groups(
    searched: tuple[SearchedClips, np.ndarray, str],
) -> None:
    training, _, _ = searched
    whole = search_sample(training, 0, 10)
    cut = pa.concat_tables([search_sample(training, 0, 3), search_sample(training, 3, 10)])

    assert whole["clip_id"].to_pylist() == ["a", "b", "c", "d"]
    assert whole["training_clip"][1].as_py() in {"a", "d"}
    assert whole["training_clip"][2].as_py() in {"a", "d"}
    assert whole["training_clip"][3].as_py() in {"b", "c"}
    assert cut.drop_columns(["similarity"]).equals(whole.drop_columns(["similarity"]))
    reference, group = training.reference, training.group
    every = find_copies(reference.patches, reference, excluded=group)
    expected = [every.similarity[training.clip == clip].max() for clip in range(4)]
    assert whole["similarity"].to_numpy() == pytest.approx(expected, abs=1e-6)

    alone = search_sample(training._replace(group=np.zeros(6, np.int64)), 0, 10)
    assert alone["training_clip"].null_count == alone["training_window"].null_count == 4
    threshold = calibrate(alone, 0.5)
    assert (threshold.value, threshold.clips) == (None, 0)


def test_windows_that_are_not_those_of_the_clips_are_an_error(
    searched: tuple[SearchedClips, np.ndarray, str],
) -> None:
    found = [Copies(np.array([0]), np.ones(1, np.float32), np.zeros(1, np.float32))]
    with pytest.raises(RuntimeError, match="do not belong together"):
        clip_copies(clips_of(["a", "b"]), np.array([0]), found, searched[0])


def test_silent_real_clips_give_no_threshold() -> None:
    """Silence has a similarity of 0 to all clips, so a threshold of 0 would count it as a copy."""
    silent = copies(*((f"{n}", "x", 0.0) for n in range(99)))
    threshold = calibrate(silent, 0.01)
    assert threshold.value is None
    assert threshold.why == "99.0% of the real clips or more are silent or steady"
    assert calibrate(copies(*((f"{n}", "x", 0.3) for n in range(99))), 0.01).value > 0.29


def test_two_training_clips_that_match_each_other_are_one_pair() -> None:
    rows = copies(("a", "b", 0.8), ("c", None, -1), ("d", "a", 0.9), ("b", "a", 0.7))
    found = [(pair["clip_id"], pair["training_clip"]) for pair in real_pairs(rows)]
    assert found == [("d", "a"), ("a", "b")]


def test_the_ten_most_similar_pairs_of_a_corpus_are_kept(tmp_path: Path) -> None:
    similarity = RNG.uniform(0, 1, 40).round(1)
    rows = [(f"{n:02d}", "x", float(value)) for n, value in enumerate(similarity)]
    for number, part in enumerate((rows[:15], [], rows[15:])):
        write_derived(part_uri(str(tmp_path), "made", number), copies(*part), "d")

    found = corpus_copies(str(tmp_path), "made", Threshold(0.75, 0.01, 99))

    expected = sorted(rows, key=lambda row: (-row[2], row[0]))[:10]
    assert [pair["clip_id"] for pair in found["pairs"]] == [row[0] for row in expected]
    assert found["clips"] == 40
    assert found["share"]["value"] == np.mean(similarity > 0.75)
    nothing = corpus_copies(str(tmp_path), "none", Threshold(0.75, 0.01, 99))
    assert (nothing["clips"], nothing["share"]["value"], nothing["pairs"]) == (0, None, [])
