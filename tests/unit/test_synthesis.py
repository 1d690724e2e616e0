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
def test_a_clip_is_sound(kind, seed, seconds, sample_rate, snr_db):
    """Any clip is float32, has the length asked for, is finite, predicted, and below the peak."""
    clip = synthesize_clip(kind, seed, seconds, sample_rate, snr_db)
    assert clip.dtype == np.float32
    assert clip.shape == (round(seconds * sample_rate),)
    assert np.all(np.isfinite(clip))
    assert 0.05 < np.max(np.abs(clip)) <= PEAK


@pytest.mark.parametrize("kind", LABELS)
def test_peaks_are_scaled_not_clipped(kind):
    """Only one sample reaches the loudest level of a clip, so nothing was cut off."""
    clip = np.abs(synthesize_clip(kind, (1,), 1.0, 16000, REAL_SNR_DB))
    assert np.count_nonzero(clip == clip.max()) == 1


@pytest.mark.parametrize("kind", LABELS)
def test_the_seed_settles_the_clip(kind):
    """The same arguments give the same bytes; another seed gives another clip."""
    clips = [
        synthesize_clip(kind, seed, 0.3, 8000, REAL_SNR_DB) for seed in [(4, 2), (4, 2), (4, 3)]
    ]
    assert clips[0].tobytes() == clips[1].tobytes()
    assert not np.allclose(clips[0], clips[2])


def test_kinds_with_one_seed_differ():
    """One seed gives each kind its own draws, background included."""
    clips = [synthesize_clip(kind, (7,), 0.2, 8000, (-60.0, -60.0)) for kind in LABELS]
    likeness = np.abs(np.corrcoef(clips))
    assert np.max(likeness - np.eye(len(LABELS))) < 0.5


def test_a_clip_is_the_same_in_another_process():
    """Neither string hashing nor import order has a say."""
    code = (
        "from raysound.synthesis.formula import synthesize_clip as make; import zlib;"
        "print(zlib.crc32(make('bell', (3, 1), 0.2, 8000, (10, 30)).tobytes()))"
    )
    run = [sys.executable, "-c", code]
    sums = {subprocess.run(run, check=True, capture_output=True).stdout for _ in range(2)}
    assert len(sums) == 1


def test_levels_vary():
    """Clips of one kind are not all equally loud."""
    peaks = [np.abs(synthesize_clip("tone", (n,), 0.1, 8000, REAL_SNR_DB)).max() for n in range(20)]
    assert max(peaks) > 3 * min(peaks)


@pytest.mark.parametrize("kind", PITCHED)
def test_pitched_kinds_do_not_alias(kind):
    """At 8 kHz there is nothing below 3 kHz that is not there at 32 kHz, too."""
    for seed in range(8):
        waveforms = {}
        for sample_rate in (8000, 32000):
            time = np.arange(sample_rate) / sample_rate
            waveforms[sample_rate] = KINDS[kind](np.random.default_rng(seed), time, sample_rate)
        low, high = spectrum(waveforms[8000]), spectrum(waveforms[32000]) / 16
        strange = np.abs(np.sqrt(low[:3000]) - np.sqrt(high[:3000])) ** 2
        assert strange.sum() < 1e-4 * high[:3000].sum()


@pytest.mark.parametrize("kind", ["tone", "buzz", "chord"])
def test_pitched_kinds_leave_the_edge_of_the_band_empty(kind):
    """The last fiftieth below Nyquist holds less than a millionth of the power."""
    for seed in range(8):
        time = np.arange(8000) / 8000
        power = spectrum(KINDS[kind](np.random.default_rng(seed), time, 8000))
        assert power[3920:].sum() < 1e-6 * power.sum()


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
@pytest.mark.parametrize("kind", LABELS)
def test_the_background_has_the_ratio_asked_for(kind, snr_db):
    """Taking the clean sound of the same seed away leaves a background of that power."""
    noisy = synthesize_clip(kind, (5,), 1.0, 16000, (snr_db, snr_db)).astype(np.float64)
    clean = synthesize_clip(kind, (5,), 1.0, 16000, SILENT_BACKGROUND_DB).astype(np.float64)
    sound = clean * (noisy @ clean) / (clean @ clean)
    measured = 10 * np.log10(np.sum(sound**2) / np.sum((noisy - sound) ** 2))
    assert measured == pytest.approx(snr_db, abs=1.0)


def test_backgrounds_are_white_or_pink():
    """Some backgrounds are as strong in each octave, some grow with frequency."""
    shares = []
    for seed in range(12):
        power = spectrum(synthesize_clip("tone", (seed,), 1.0, 16000, (-60.0, -60.0)))
        shares.append(power[4000:].sum() / power.sum())
    shares = np.array(shares)
    white, pink = np.abs(shares - 0.5) < 0.05, np.abs(shares - 0.1) < 0.03
    assert np.all(white | pink)
    assert white.any()
    assert pink.any()


def test_an_unknown_kind_is_refused_with_the_known_ones():
    """The message names what was asked for and what there is."""
    with pytest.raises(ValueError, match=r"'oboe'.*bell.*tremolo"):
        synthesize_clip("oboe", (0,), 1.0, 8000, REAL_SNR_DB)


@pytest.mark.parametrize(("seconds", "sample_rate"), [(0.01, 16000), (0.0, 16000), (1.0, 4000)])
def test_what_cannot_be_made_is_refused(seconds, sample_rate):
    """A clip too short to hold a sound, or a rate too low, is an error."""
    with pytest.raises(ValueError, match="cannot make"):
        synthesize_clip("tone", (0,), seconds, sample_rate, REAL_SNR_DB)


# Plans


def test_there_are_ten_kinds():
    """Kinds are ten lower-case words, fit for folder names."""
    assert len(KINDS) == 10
    assert all(kind.isalpha() and kind.islower() for kind in KINDS)


@given(roles, some_labels, st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_a_plan_lists_each_label_as_often_as_asked(role, labels, clips, seed):
    """Labels come in the order given; file names and seeds are unique and follow the label."""
    plan = plan_clips(role, labels, clips, seed)
    assert [clip["label"] for clip in plan] == [label for label in labels for _ in range(clips)]
    assert len({clip["file_name"] for clip in plan}) == len(plan)
    assert len({clip["seed"] for clip in plan}) == len(plan)
    assert all(clip["file_name"].startswith(f"{clip['label']}/{clip['label']}-") for clip in plan)
    assert all(clip["snr_db"] == ROLE_SNR_DB[role] for clip in plan)
    json.dumps(plan)


@given(roles, some_labels, st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_growing_a_corpus_only_adds_clips(role, labels, clips, more, seed):
    """Every clip of a smaller plan stands unchanged in a larger one."""
    larger = {clip["file_name"]: clip for clip in plan_clips(role, labels, clips + more, seed)}
    assert all(larger[clip["file_name"]] == clip for clip in plan_clips(role, labels, clips, seed))


@given(some_labels, st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_a_third_of_the_confused_clips_is_of_another_kind(labels, clips, seed):
    """Of each label round(clips / 3) are wrong, all of kinds that are labels; elsewhere none is."""
    plan = plan_clips("confused", labels, clips, seed)
    for label in labels:
        kinds = [clip["kind"] for clip in plan if clip["label"] == label]
        assert sum(kind != label for kind in kinds) == round(clips / 3)
        assert set(kinds) <= set(labels)
    for role in ("real", "faithful", "noisy"):
        assert all(c["kind"] == c["label"] for c in plan_clips(role, labels, clips, seed))


def test_wrong_clips_are_of_many_kinds():
    """The confusion is random, not one kind taken for one other."""
    plan = plan_clips("confused", LABELS, 60, 0)
    wrong = {clip["kind"] for clip in plan if clip["label"] == "bell"} - {"bell"}
    assert len(wrong) > 4


@given(some_labels, st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_roles_share_no_seed(labels, clips, seed):
    """No sound of one corpus is found in another of the same seed."""
    seeds = [clip["seed"] for role in ROLE_SNR_DB for clip in plan_clips(role, labels, clips, seed)]
    assert len(set(seeds)) == len(seeds)


def test_a_plan_example():
    """A clip is described by where it goes, what it was to be, and how to make it."""
    plan = plan_clips("real", ["bell"], 13, 9)
    assert plan[12]["file_name"] == "bell/bell-00012.wav"
    assert (plan[12]["label"], plan[12]["kind"]) == ("bell", "bell")
    assert plan[12]["seed"][0] == 9


def test_an_unknown_role_is_refused_with_the_known_ones():
    """The message names what was asked for and what there is."""
    with pytest.raises(ValueError, match=r"'fake'.*real.*faithful.*noisy.*confused"):
        plan_clips("fake", LABELS, 1, 0)


@pytest.mark.parametrize(
    ("role", "labels"), [("real", ["oboe"]), ("real", ["bell", "bell"]), ("confused", ["bell"])]
)
def test_labels_that_do_not_suit_are_refused(role, labels):
    """Unknown and repeated labels are errors, and so is confusing one label with nothing."""
    with pytest.raises(ValueError, match="labels"):
        plan_clips(role, labels, 3, 0)


# What the corpora are for


def log_spectrogram(waveform):
    """Shape (frames, 32 bands): what rises above 15 dB under the loudest; zero elsewhere."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 1024)[::256]
    power = np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2
    octaves = np.log2(np.maximum(np.fft.rfftfreq(1024, 1 / 16000), 15))
    bands = np.linspace(np.log2(60), np.log2(7800), 32)[:, np.newaxis]
    weights = np.exp(-0.5 * ((octaves - bands) / 0.12) ** 2)
    levels = 10 * np.log10(power @ (weights / weights.sum(axis=1, keepdims=True)).T + 1e-9)
    return np.maximum(levels - np.quantile(levels, 0.995) + 15, 0)


def coarse_features(plan):
    """Features that pitch and onset hardly change: the spectrogram's spectrum and mean bands."""
    features = []
    for clip in plan:
        waveform = synthesize_clip(clip["kind"], clip["seed"], 1.5, 16000, clip["snr_db"])
        levels = log_spectrogram(waveform)
        shape = np.log1p(np.abs(np.fft.fft2(levels))[:24, :16]).ravel()
        profile = levels.mean(axis=0)
        parts = [shape / np.linalg.norm(shape), 0.2 * profile / np.linalg.norm(profile)]
        features.append(np.concatenate(parts))
    return np.array(features), np.array([clip["label"] for clip in plan])


def nearest_neighbour_accuracy(known, asked):
    distances = ((asked[0][:, np.newaxis] - known[0]) ** 2).sum(axis=2)
    return np.mean(known[1][distances.argmin(axis=1)] == asked[1])


def test_kinds_are_told_apart_until_noise_covers_them():
    """A nearest neighbour knows clean kinds on coarse features, but not noisy or confused ones."""
    known = coarse_features(plan_clips("real", LABELS, 20, 0))
    accuracy = {
        role: nearest_neighbour_accuracy(known, coarse_features(plan_clips(role, LABELS, 15, 0)))
        for role in ("faithful", "noisy", "confused")
    }
    assert accuracy["faithful"] > 0.7
    assert 0.15 < accuracy["noisy"] < accuracy["faithful"] - 0.3
    assert accuracy["confused"] < accuracy["faithful"] - 0.15
