import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysound.synthesis.formula import (
    KINDS,
    NOISY_SNR_DB,
    PEAK,
    REAL_SNR_DB,
    ROLE_SNR_DB,
    plan_clips,
    synthesize_clip,
)

LABELS = sorted(KINDS)
PITCHED = [kind for kind in LABELS if kind not in ("clicks", "hiss", "rumble")]
SILENT_BACKGROUND_DB = (150.0, 150.0)

some_labels = st.lists(st.sampled_from(LABELS), min_size=2, unique=True)
roles = st.sampled_from(sorted(ROLE_SNR_DB))


def spectrum(waveform):
    return np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))) ** 2


# Clips


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(LABELS),
    seed=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4).map(tuple),
    seconds=st.sampled_from([0.05, 0.1, 0.333, 1.37]),
    sample_rate=st.sampled_from([8000, 11025, 16000, 44100]),
    snr_db=st.sampled_from([REAL_SNR_DB, NOISY_SNR_DB, (-60.0, -60.0), SILENT_BACKGROUND_DB]),
)
def test_a_clip_is_valid(kind, seed, seconds, sample_rate, snr_db):
    """It is float32, has the requested length, is finite, not silent and below the peak."""
    clip = synthesize_clip(kind, seed, seconds, sample_rate, snr_db)
    assert clip.dtype == np.float32
    assert clip.shape == (round(seconds * sample_rate),)
    assert np.all(np.isfinite(clip))
    assert 0.05 < np.max(np.abs(clip)) <= PEAK


@pytest.mark.parametrize("kind", LABELS)
def test_peaks_are_scaled_not_clipped(kind):
    """Only one sample has the maximum absolute value, so the clip is not clipped."""
    clip = np.abs(synthesize_clip(kind, (1,), 1.0, 16000, REAL_SNR_DB))
    assert np.count_nonzero(clip == clip.max()) == 1


@pytest.mark.parametrize("kind", LABELS)
def test_the_seed_determines_the_clip(kind):
    """The same arguments give the same bytes; another seed gives another clip."""
    clips = [
        synthesize_clip(kind, seed, 0.3, 8000, REAL_SNR_DB) for seed in [(4, 2), (4, 2), (4, 3)]
    ]
    assert clips[0].tobytes() == clips[1].tobytes()
    assert not np.allclose(clips[0], clips[2])


def test_kinds_with_the_same_seed_differ():
    """Each kind samples other parameters and another background."""
    clips = [synthesize_clip(kind, (7,), 0.2, 8000, (-60.0, -60.0)) for kind in LABELS]
    likeness = np.abs(np.corrcoef(clips))
    assert np.max(likeness - np.eye(len(LABELS))) < 0.5


def test_a_clip_is_the_same_in_another_process():
    """It does not depend on string hashing or import order."""
    code = (
        "from raysound.synthesis.formula import synthesize_clip as make; import zlib;"
        "print(zlib.crc32(make('bell', (3, 1), 0.2, 8000, (10, 30)).tobytes()))"
    )
    run = [sys.executable, "-c", code]
    sums = {subprocess.run(run, check=True, capture_output=True).stdout for _ in range(2)}
    assert len(sums) == 1


def test_levels_vary():
    """Clips of one kind differ in level."""
    peaks = [np.abs(synthesize_clip("tone", (n,), 0.1, 8000, REAL_SNR_DB)).max() for n in range(20)]
    assert max(peaks) > 3 * min(peaks)


@pytest.mark.parametrize("kind", PITCHED)
def test_pitched_kinds_do_not_alias(kind):
    """Below 3 kHz, the spectra at 8 kHz and at 32 kHz are equal."""
    for seed in range(8):
        waveforms = {}
        for sample_rate in (8000, 32000):
            time = np.arange(sample_rate) / sample_rate
            waveforms[sample_rate] = KINDS[kind](np.random.default_rng(seed), time, sample_rate)
        low, high = spectrum(waveforms[8000]), spectrum(waveforms[32000]) / 16
        strange = np.abs(np.sqrt(low[:3000]) - np.sqrt(high[:3000])) ** 2
        assert strange.sum() < 1e-4 * high[:3000].sum()


@pytest.mark.parametrize("kind", ["tone", "buzz", "chord"])
def test_pitched_kinds_are_silent_near_nyquist(kind):
    """The last fiftieth below Nyquist has less than a millionth of the power."""
    for seed in range(8):
        time = np.arange(8000) / 8000
        power = spectrum(KINDS[kind](np.random.default_rng(seed), time, 8000))
        assert power[3920:].sum() < 1e-6 * power.sum()


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
@pytest.mark.parametrize("kind", LABELS)
def test_the_background_has_the_requested_ratio(kind, snr_db):
    """The difference from the clean sound of the same seed has the expected power."""
    noisy = synthesize_clip(kind, (5,), 1.0, 16000, (snr_db, snr_db)).astype(np.float64)
    clean = synthesize_clip(kind, (5,), 1.0, 16000, SILENT_BACKGROUND_DB).astype(np.float64)
    sound = clean * (noisy @ clean) / (clean @ clean)
    measured = 10 * np.log10(np.sum(sound**2) / np.sum((noisy - sound) ** 2))
    assert measured == pytest.approx(snr_db, abs=1.0)


def test_backgrounds_are_white_or_pink():
    """The power per octave is constant, or increases with frequency."""
    shares = []
    for seed in range(12):
        power = spectrum(synthesize_clip("tone", (seed,), 1.0, 16000, (-60.0, -60.0)))
        shares.append(power[4000:].sum() / power.sum())
    shares = np.array(shares)
    white, pink = np.abs(shares - 0.5) < 0.05, np.abs(shares - 0.1) < 0.03
    assert np.all(white | pink)
    assert white.any()
    assert pink.any()


def test_an_unknown_kind_is_an_error_that_lists_the_known_kinds():
    """The message has the given name and the known names."""
    with pytest.raises(ValueError, match=r"'oboe'.*bell.*tremolo"):
        synthesize_clip("oboe", (0,), 1.0, 8000, REAL_SNR_DB)


@pytest.mark.parametrize(("seconds", "sample_rate"), [(0.01, 16000), (0.0, 16000), (1.0, 4000)])
def test_too_short_a_clip_or_too_low_a_rate_is_an_error(seconds, sample_rate):
    """The limits are 0.05 s and 8000 Hz."""
    with pytest.raises(ValueError, match="cannot make"):
        synthesize_clip("tone", (0,), seconds, sample_rate, REAL_SNR_DB)


# Plans


def test_there_are_ten_kinds():
    """Their names are lower-case words, usable as folder names."""
    assert len(KINDS) == 10
    assert all(kind.isalpha() and kind.islower() for kind in KINDS)


@given(roles, some_labels, st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_a_plan_has_the_requested_number_of_clips_per_label(role, labels, clips, seed):
    """Labels keep their order; file names and seeds are unique and contain the label."""
    plan = plan_clips(role, labels, clips, seed)
    assert [clip["label"] for clip in plan] == [label for label in labels for _ in range(clips)]
    assert len({clip["file_name"] for clip in plan}) == len(plan)
    assert len({clip["seed"] for clip in plan}) == len(plan)
    assert all(clip["file_name"].startswith(f"{clip['label']}/{clip['label']}-") for clip in plan)
    assert all(clip["snr_db"] == ROLE_SNR_DB[role] for clip in plan)
    json.dumps(plan)


@given(roles, some_labels, st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_growing_a_corpus_only_adds_clips(role, labels, clips, more, seed):
    """A larger plan contains every clip of a smaller plan unchanged."""
    larger = {clip["file_name"]: clip for clip in plan_clips(role, labels, clips + more, seed)}
    assert all(larger[clip["file_name"]] == clip for clip in plan_clips(role, labels, clips, seed))


@given(some_labels, st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_a_third_of_the_confused_clips_is_of_another_kind(labels, clips, seed):
    """Per label, round(clips / 3) clips are of other labels' kinds; in other roles none are."""
    plan = plan_clips("confused", labels, clips, seed)
    for label in labels:
        kinds = [clip["kind"] for clip in plan if clip["label"] == label]
        assert sum(kind != label for kind in kinds) == round(clips / 3)
        assert set(kinds) <= set(labels)
    for role in ("real", "faithful", "noisy"):
        assert all(c["kind"] == c["label"] for c in plan_clips(role, labels, clips, seed))


def test_wrong_clips_are_of_many_kinds():
    """The other kind is random."""
    plan = plan_clips("confused", LABELS, 60, 0)
    wrong = {clip["kind"] for clip in plan if clip["label"] == "bell"} - {"bell"}
    assert len(wrong) > 4


@given(some_labels, st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_roles_have_different_seeds(labels, clips, seed):
    """Corpora of the same seed have no common clip."""
    seeds = [clip["seed"] for role in ROLE_SNR_DB for clip in plan_clips(role, labels, clips, seed)]
    assert len(set(seeds)) == len(seeds)


def test_a_plan_example():
    """A clip has a file name, a label, and the arguments of `synthesize_clip`."""
    plan = plan_clips("real", ["bell"], 13, 9)
    assert plan[12]["file_name"] == "bell/bell-00012.wav"
    assert (plan[12]["label"], plan[12]["kind"]) == ("bell", "bell")
    assert plan[12]["seed"][0] == 9


def test_an_unknown_role_is_an_error_that_lists_the_known_roles():
    """The message has the given name and the known names."""
    with pytest.raises(ValueError, match=r"'fake'.*real.*faithful.*noisy.*confused"):
        plan_clips("fake", LABELS, 1, 0)


@pytest.mark.parametrize(
    ("role", "labels"), [("real", ["oboe"]), ("real", ["bell", "bell"]), ("confused", ["bell"])]
)
def test_invalid_labels_are_an_error(role, labels):
    """Unknown and repeated labels, and a single label for "confused"."""
    with pytest.raises(ValueError, match="labels"):
        plan_clips(role, labels, 3, 0)


# Classification of the corpora


def log_spectrogram(waveform):
    """Shape (frames, 32 bands): level above a floor 15 dB below the maximum, otherwise zero."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 1024)[::256]
    power = np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2
    octaves = np.log2(np.maximum(np.fft.rfftfreq(1024, 1 / 16000), 15))
    bands = np.linspace(np.log2(60), np.log2(7800), 32)[:, np.newaxis]
    weights = np.exp(-0.5 * ((octaves - bands) / 0.12) ** 2)
    levels = 10 * np.log10(power @ (weights / weights.sum(axis=1, keepdims=True)).T + 1e-9)
    return np.maximum(levels - np.quantile(levels, 0.995) + 15, 0)


def coarse_features(plan):
    """Features almost independent of pitch and onset: the spectrogram's spectrum and mean bands."""
    features = []
    for clip in plan:
        waveform = synthesize_clip(clip["kind"], clip["seed"], 1.5, 16000, clip["snr_db"])
        levels = log_spectrogram(waveform)
        shape = np.log1p(np.abs(np.fft.fft2(levels))[:24, :16]).ravel()
        profile = levels.mean(axis=0)
        parts = [shape / np.linalg.norm(shape), 0.2 * profile / np.linalg.norm(profile)]
        features.append(np.concatenate(parts))
    return np.array(features), np.array([clip["label"] for clip in plan])


def nearest_neighbour_accuracy(known, unknown):
    distances = ((unknown[0][:, np.newaxis] - known[0]) ** 2).sum(axis=2)
    return np.mean(known[1][distances.argmin(axis=1)] == unknown[1])


def test_a_classifier_distinguishes_clean_kinds_but_not_noisy_ones():
    """A nearest-neighbour classifier on coarse features; it also fails for confused kinds."""
    known = coarse_features(plan_clips("real", LABELS, 20, 0))
    accuracy = {
        role: nearest_neighbour_accuracy(known, coarse_features(plan_clips(role, LABELS, 15, 0)))
        for role in ("faithful", "noisy", "confused")
    }
    assert accuracy["faithful"] > 0.7
    assert 0.15 < accuracy["noisy"] < accuracy["faithful"] - 0.3
    assert accuracy["confused"] < accuracy["faithful"] - 0.15
