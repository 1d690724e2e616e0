import tracemalloc

import numpy as np
import pytest
import torch

from raysound.audio.log_mel import LogMel
from raysound.metrics import copy_search
from raysound.metrics.copies import Copies, by_clip, copied_share, find_copies, threshold_of
from raysound.metrics.copy_search import (
    TrainingWindows,
    candidates,
    coarse_vectors,
    frames_together,
    normalised,
    patches,
    similarity,
)
from raysound.settings.features import FeatureSettings

SETTINGS = FeatureSettings(
    clip_length=4.0, sample_rate=16000, hop_length=480, n_fft=1024, n_mels=32, f_max=8000
)
HOP = 480 / 16000
CLIPS = 24


def sound(seed: int) -> np.ndarray:
    """Steady noise, or bursts of noise from 1.1 s to 2.9 s; float32 `(64000,)`."""
    rng = np.random.default_rng(seed)
    n = SETTINGS.clip_samples
    hertz = np.linspace(0, 8000, n // 2 + 1)

    def resonance() -> np.ndarray:
        noise = np.fft.rfft(rng.standard_normal(n))
        return np.fft.irfft(noise * np.exp(-(((hertz - rng.uniform(200, 7000)) / 500) ** 2)), n)

    x = 0.003 * rng.standard_normal(n) if seed % 2 else resonance() + resonance()
    for first in rng.integers(17600, 42000, size=7) if seed % 2 else ():
        x[first : first + 4000] += (resonance()[:4000]) * np.exp(-np.arange(4000) / 1000)
    return (0.3 * x / np.abs(x).max()).astype(np.float32)


def patches_of(waves: list[np.ndarray]) -> np.ndarray:
    return patches(LogMel(SETTINGS)(torch.from_numpy(np.stack(waves))).numpy(), HOP)


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    return [sound(seed) for seed in range(CLIPS)]


@pytest.fixture(scope="module")
def reference(waves: list[np.ndarray]) -> TrainingWindows:
    return TrainingWindows.of(patches_of(waves), HOP)


@pytest.fixture(scope="module")
def independent(reference: TrainingWindows) -> Copies:
    return find_copies(patches_of([sound(1000 + seed) for seed in range(CLIPS)]), reference)


def shifted(wave: np.ndarray, seconds: float, roll: bool) -> np.ndarray:
    by = int(seconds * 16000)
    result = np.roll(wave, by)
    if not roll:
        result[slice(0, by) if by > 0 else slice(by, None)] = 0
    return result


def with_noise(wave: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(7).standard_normal(len(wave))
    return (wave + noise * np.sqrt(np.mean(wave**2) * 1e-3)).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "lag"),
    [
        (lambda x: x, 0),
        (lambda x: 2 * x, 0),
        (lambda x: 0.5 * x, 0),
        (with_noise, 0),
        (lambda x: shifted(x, 1.0, False), 1.0),
        (lambda x: shifted(x, -0.73, False), -0.73),
        (lambda x: shifted(x, 0.52, True), 0.52),
        (lambda x: shifted(x, -1.0, True), -1.0),
        # All rolls are aligned, including those beyond the maximum linear shift.
        (lambda x: shifted(x, 1.8, True), 1.8),
        (lambda x: with_noise(0.6 * shifted(x, 0.41, False)), 0.41),
    ],
)
def test_a_changed_copy_is_found_with_its_lag(change, lag, waves, reference, independent) -> None:
    found = find_copies(patches_of([change(wave) for wave in waves]), reference)

    assert found.index.tolist() == list(range(CLIPS))
    assert found.similarity.min() > 0.9 > independent.similarity.max() + 0.1
    assert np.abs(found.lag - lag).max() <= HOP


def test_an_exact_copy_has_similarity_1(waves, reference) -> None:
    found = find_copies(patches_of(waves), reference)

    assert found.similarity == pytest.approx(1, abs=1e-4)
    assert not found.lag.any()


def test_similarity_is_the_correlation_of_the_overlap() -> None:
    """It equals the definition, computed for each alignment of random patches."""
    rng = np.random.default_rng(3)
    one, other = rng.integers(0, 256, size=(2, 1, 5, 40), dtype=np.uint8)
    ((value,),), ((lag,),) = similarity(one, other, np.array([[0]]), HOP, max_lag=10 * HOP)

    margin, size, values = 2, 36, {}
    weights = np.array([1, 2, 3, 2, 1], np.float32) / 9
    x, y = (
        copy_search._smoothed(side, weights)[0, :, margin:-margin].astype(float)
        for side in (one, other)
    )

    def correlation(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        a, b = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
        a, b = (side - side.mean(axis=1, keepdims=True) for side in (a, b))
        return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))

    def overlap(by: int) -> tuple[np.ndarray, np.ndarray]:
        return x[:, max(0, by) : size + min(0, by)], y[:, max(0, -by) : size - max(0, by)]

    for by in range(-10, 11):
        values[by] = correlation([overlap(by)])
    for by in range(2 * margin + 1, size):
        signed = by - 40 if by > 20 else by
        rolled = correlation([overlap(by), overlap(by - 40)])
        values[signed] = max(values.get(signed, -1), rolled)
    best = max(values, key=lambda by: values[by])
    assert value == pytest.approx(values[best], abs=1e-4)
    assert lag == pytest.approx(best * HOP)


def test_independent_sounds_are_not_similar(independent) -> None:
    assert independent.similarity.max() < 0.75


def test_silence_and_steady_tones_match_no_window(waves) -> None:
    t = np.arange(SETTINGS.clip_samples) / 16000
    tone = (0.3 * np.sin(2 * np.pi * 500 * t)).astype(np.float32)
    flat = patches_of([np.zeros_like(tone), tone, tone * 0.1])
    reference = TrainingWindows.of(np.concatenate([flat, patches_of(waves)]), HOP)

    found = find_copies(flat, reference)
    assert (found.similarity < 0.5).all()
    assert found.similarity[0] == 0
    assert find_copies(patches_of(waves), reference).index.tolist() == list(range(3, CLIPS + 3))


def test_a_clip_padded_with_silence_is_found_where_the_padding_differs(reference, waves) -> None:
    """The first three seconds of a clip, which hold its bursts, padded as extraction does."""
    cut = [np.pad(wave[:48000], (8000, 8000)) for wave in waves[1::2]]
    found = find_copies(patches_of(cut), reference)

    assert found.index.tolist() == list(range(1, CLIPS, 2))
    assert found.similarity.min() > 0.8
    assert found.lag == pytest.approx(0.5, abs=HOP)


def test_the_block_size_does_not_change_the_candidates(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, 20)).astype(np.float32) for n in (50, 300))
    y[100] = y[7]
    expected = candidates(x, y, 8)
    assert (expected == np.argsort(-(x @ y.T), axis=1, kind="stable")[:, :8]).all()

    for block in (1, 900, 7000):
        monkeypatch.setattr(copy_search, "BLOCK", block)
        assert (candidates(x, y, 8) == expected).all()


def test_the_result_of_a_window_does_not_depend_on_other_windows(waves, reference) -> None:
    windows = patches_of(waves[:6])
    together = find_copies(windows, reference)
    alone = [find_copies(windows[row : row + 1], reference) for row in range(6)]

    assert together.index.tolist() == [int(one.index[0]) for one in alone]
    assert together.similarity == pytest.approx([one.similarity[0] for one in alone], abs=1e-6)


def test_candidates_are_limited_to_the_training_windows() -> None:
    x = np.eye(3, dtype=np.float32)
    assert candidates(x, x, 16)[:, 0].tolist() == [0, 1, 2]
    assert candidates(x, x, 16).shape == (3, 3)


def test_the_memory_of_the_search_is_bounded(monkeypatch) -> None:
    """4,000 × 5,000 similarities would take 80 MB."""
    monkeypatch.setattr(copy_search, "BLOCK", 100_000)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, 8)).astype(np.float32) for n in (4000, 5000))
    tracemalloc.start()
    try:
        candidates(x, y, 4)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_training_clips_of_the_same_group_are_not_compared(reference, waves) -> None:
    doubled = TrainingWindows.of(np.concatenate([reference.patches, patches_of(waves[:3])]), HOP)
    groups = np.array([*range(CLIPS), 0, 1, 2])
    found = find_copies(doubled.patches, doubled, excluded=groups)
    assert (groups[found.index] != groups).all()
    assert found.similarity.max() < 0.8

    # Each of two clips of different groups finds the other.
    apart = find_copies(doubled.patches, doubled, excluded=np.arange(CLIPS + 3))
    assert apart.index[:3].tolist() == [CLIPS, CLIPS + 1, CLIPS + 2]
    assert apart.similarity[:3] == pytest.approx(1, abs=1e-4)

    alone = find_copies(doubled.patches, doubled, excluded=np.zeros(CLIPS + 3, np.int64))
    assert (alone.index == -1).all()
    assert (alone.similarity == -1).all()


def test_a_search_of_some_training_clips_equals_that_of_all(reference, waves) -> None:
    """Each window finds the best window of another group, for any size of its own group."""
    doubled = TrainingWindows.of(np.concatenate([reference.patches, patches_of(waves[:3])]), HOP)
    groups = np.array([*(np.arange(CLIPS) // 20), 7, 8, 9])
    of_all = find_copies(doubled.patches, doubled, k=2, excluded=groups)
    assert of_all.index[:3].tolist() == [CLIPS, CLIPS + 1, CLIPS + 2]
    assert (groups[of_all.index] != groups).all()

    some = np.array([1, 5, CLIPS])
    found = find_copies(doubled.patches[some], doubled, k=2, excluded=groups, own=groups[some])
    assert found.index.tolist() == of_all.index[some].tolist()
    assert found.similarity == pytest.approx(of_all.similarity[some], abs=1e-6)
    with pytest.raises(ValueError, match="2 and 27 groups for 3 windows and 27 training windows"):
        find_copies(doubled.patches[some], doubled, excluded=groups, own=groups[:2])


def test_patches_do_not_depend_on_the_level_and_average_short_frames() -> None:
    log_mel = np.random.default_rng(0).uniform(-9, 0, size=(2, 8, 101)).astype(np.float32)

    made = patches(log_mel, 0.03)
    assert made.shape == (2, 8, 101)
    assert made.max() == 255
    assert (patches(log_mel - 3, 0.03).astype(int) - made <= 1).all()
    assert frames_together(0.01) == 3
    assert patches(log_mel, 0.01).shape == (2, 8, 33)
    assert patches(np.full((1, 4, 9), -23.03, np.float32), 0.03).min() == 255


def test_patches_raise_on_invalid_log_mels() -> None:
    with pytest.raises(ValueError, match="n_mels, n_frames"):
        patches(np.zeros((4, 5), np.float32), 0.03)
    with pytest.raises(ValueError, match="window 1 is not finite"):
        patches(np.array([[[0.0]], [[np.nan]]]), 0.03)
    with pytest.raises(ValueError, match="got none"):
        TrainingWindows.of(np.zeros((0, 4, 9), np.uint8), 0.03)


def test_windows_of_different_shapes_raise_an_error(reference) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        similarity(reference.patches[:, :, 1:], reference.patches, np.zeros((CLIPS, 1), int), HOP)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9])
def test_short_windows_are_compared_without_an_error(frames) -> None:
    windows = np.random.default_rng(frames).integers(0, 256, size=(6, 8, frames), dtype=np.uint8)
    found = find_copies(windows, TrainingWindows.of(windows, HOP))

    assert np.isfinite(found.similarity).all()
    if frames > 3:
        assert found.index.tolist() == list(range(6))


def test_coarse_vectors_have_length_1_less_the_centre(reference) -> None:
    lengths = np.linalg.norm(reference.vectors, axis=1)
    assert lengths == pytest.approx(1, abs=1e-5)
    silence = np.full((1, 32, reference.patches.shape[2]), 255, np.uint8)
    assert not coarse_vectors(silence).any()
    assert not normalised(reference.centre[np.newaxis], reference.centre).any()


def test_a_clip_has_the_similarity_of_its_best_window() -> None:
    windows = Copies(
        np.array([4, 5, 6, 7]),
        np.array([0.2, 0.9, 0.9, 0.1], np.float32),
        np.array([0.0, 0.5, 0.7, 1.0], np.float32),
    )
    clips = by_clip(windows, [0, 3])

    assert clips.index.tolist() == [5, 7]
    assert clips.similarity.tolist() == pytest.approx([0.9, 0.1])
    assert clips.lag.tolist() == pytest.approx([0.5, 1.0])


def test_the_threshold_flags_no_more_than_its_rate_of_new_real_clips() -> None:
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(2000):
        known, new = rng.normal(size=150), rng.normal()
        flagged.append(new >= threshold_of(known, 0.02).value)
    # 3 of 151 are expected; four standard errors to each side.
    assert np.mean(flagged) == pytest.approx(3 / 151, abs=4 * np.sqrt(0.02 / 2000))


def test_too_few_real_clips_have_no_threshold_and_a_reason() -> None:
    short = threshold_of(np.linspace(0, 0.5, 98), 0.01)
    assert short.value is None
    assert short.why == "98 real clips: a threshold at 1.00% needs at least 99"

    assert threshold_of(np.linspace(0, 0.5, 99), 0.01).value == 0.5
    assert threshold_of(np.linspace(0, 0.5, 199), 0.01).value < 0.5


def test_the_share_of_copies_counts_those_that_reach_the_threshold() -> None:
    limit = threshold_of(np.linspace(0, 0.5, 99), 0.01)
    found = copied_share([0.49, 0.5, 0.9, 1.0], limit)
    assert (found["value"], found["of"]) == (0.75, 4)
    assert found["low"] < 0.75 < found["high"]

    none = copied_share([1.0], threshold_of([0.1], 0.01))
    assert none["value"] is None
    assert none["why"].startswith("1 real clips: a threshold at 1.00%")


def test_a_threshold_raises_on_invalid_rates_and_similarities() -> None:
    with pytest.raises(ValueError, match="rate"):
        threshold_of([0.1], 1.0)
    with pytest.raises(ValueError, match="not finite"):
        threshold_of([np.nan], 0.5)
