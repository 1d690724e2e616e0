"""Synthesizes labelled corpora of any size, without a download.

`plan_clips` lists the clips of a corpus, `synthesize_clip` synthesizes one clip. `KINDS` maps the
name of a sound kind to its function `(rng, time, sample_rate) -> waveform`: time in seconds and
waveform are float64 of shape (n,), the level is arbitrary. The functions sample pitch, rate, onset,
brightness and other parameters from `rng`. The partials of a pitched kind fade out from 0.40 to
0.47 of the sample rate; below that, they do not depend on it.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float64]

# Increment it when a plan yields other sounds; existing corpora are then synthesized again.
FORMULA_VERSION = 2
LOWEST_SAMPLE_RATE = 8000  # Hz
SHORTEST_CLIP = 0.05  # seconds; a shorter clip may end before its sound begins
PEAK = 0.99
LEVEL_DB = (-20.0, -0.1)  # range of the peak of a clip, relative to PEAK
# Range of the signal-to-noise ratio, which is sampled per clip.
REAL_SNR_DB = (10.0, 30.0)
NOISY_SNR_DB = (-10.0, 2.0)
ROLE_SNR_DB = {
    "real": REAL_SNR_DB,
    "faithful": REAL_SNR_DB,
    "noisy": NOISY_SNR_DB,
    "confused": REAL_SNR_DB,
}


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Samples from [low, high), uniformly on a logarithmic scale."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _envelope(rng: np.random.Generator, time: Waveform) -> Waveform:
    """An envelope (n,) in 0..1 with an onset in the first third and possibly an end in the last."""
    length = time[-1] + time[1]
    start, stop = length * rng.uniform(0, 0.3), length * rng.uniform(0.7, 1.1)
    ramp = min(_log_uniform(rng, 0.01, 0.15), length / 8)
    linear = np.clip(np.minimum(time - start, stop - time) / ramp, 0, 1)
    return np.sin(np.pi / 2 * linear) ** 2


def _harmonics(frequency: Waveform, weights: Iterable[float], sample_rate: int) -> Waveform:
    """Sums harmonics, the k-th at k times `frequency` (Hz, (n,)); fades out those near Nyquist."""
    cycles = (np.cumsum(frequency) - (frequency + frequency[0]) / 2) / sample_rate  # trapezoid rule
    turn = np.exp(2j * np.pi * cycles)
    phasor, total = np.ones_like(turn), np.zeros_like(frequency)
    for number, weight in enumerate(weights, start=1):
        phasor *= turn
        fade = np.clip((0.47 - number * frequency / sample_rate) / 0.07, 0, 1)
        total += weight * fade * phasor.imag
    return total


def _shaped_noise(
    rng: np.random.Generator,
    time: Waveform,
    sample_rate: int,
    gain: Callable[[Waveform], Waveform],
) -> Waveform:
    """Gaussian noise with its spectrum multiplied by `gain(frequencies)`, Hz, at least 20."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequencies = np.maximum(np.fft.rfftfreq(len(time), 1 / sample_rate), 20.0)
    return np.fft.irfft(spectrum * gain(frequencies), len(time))


def _gaussian_gain(centre: float, octaves: float) -> Callable[[Waveform], Waveform]:
    """A Gaussian gain over log frequency, 1 at `centre` (Hz), with a width in octaves."""
    return lambda frequency: np.exp(-0.5 * (np.log2(frequency / centre) / octaves) ** 2)


def _few_harmonics(rng: np.random.Generator) -> Waveform:
    """Weights (5,) that decrease quickly: between almost a sine and a horn."""
    return np.power(rng.uniform(0.05, 0.5), np.arange(5.0))


def tone(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A sustained note with slight vibrato."""
    pitch, depth, rate = _log_uniform(rng, 200, 1500), rng.uniform(0, 0.004), rng.uniform(4, 7)
    frequency = pitch * (1 + depth * np.sin(2 * np.pi * rate * time))
    return _envelope(rng, time) * _harmonics(frequency, _few_harmonics(rng), sample_rate)


def chord(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """Three or four sustained notes of a chord."""
    root, weights = _log_uniform(rng, 220, 800), _few_harmonics(rng)
    steps = rng.choice([(0, 4, 7, 12), (0, 3, 7, 12), (0, 4, 7, 10), (0, 5, 7, 12), (0, 3, 6, 9)])
    total = np.zeros_like(time)
    for step in steps[: rng.integers(3, 5)]:
        pitch = root * 2 ** ((step + rng.normal(0, 0.05)) / 12)
        total += rng.uniform(0.5, 1) * _harmonics(np.full_like(time, pitch), weights, sample_rate)
    return _envelope(rng, time) * total


def buzz(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A low, bright, slightly unsteady harmonic sound, similar to a razor, a horn or mains hum."""
    pitch, depth, rate = _log_uniform(rng, 60, 260), rng.uniform(0, 0.02), _log_uniform(rng, 1, 9)
    frequency = pitch * (1 + depth * np.sin(2 * np.pi * rate * time))
    weights = np.arange(1.0, 49.0) ** -rng.uniform(0.3, 1.1)
    weights[1::2] *= rng.uniform(0, 1)
    return _envelope(rng, time) * _harmonics(frequency, weights, sample_rate)


def tremolo(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A note with amplitude modulation of 4 to 7 Hz."""
    pitch, rate = _log_uniform(rng, 200, 1500), _log_uniform(rng, 4, 7)
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * (rate * time + rng.random()))
    loudness = 1 - rng.uniform(0.9, 1) * beat ** rng.uniform(0.7, 1.5)
    harmonics = _harmonics(np.full_like(time, pitch), _few_harmonics(rng), sample_rate)
    return _envelope(rng, time) * loudness * harmonics


def sweep(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """One glide over two to four octaves, up or down."""
    low, bend = _log_uniform(rng, 120, 500), rng.uniform(0.6, 1.7)
    octaves = rng.uniform(2, min(4, np.log2(3600 / low)))
    course = (time / (time[-1] + time[1])) ** bend
    if rng.random() < 0.5:
        course = 1 - course
    return _envelope(rng, time) * _harmonics(
        low * 2 ** (octaves * course), _few_harmonics(rng), sample_rate
    )


def siren(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A pitch that rises and falls periodically: between a smooth siren and a two-tone horn."""
    centre, swing = _log_uniform(rng, 400, 1300), rng.uniform(0.4, 0.8)
    hardness, swings = _log_uniform(rng, 0.5, 6), _log_uniform(rng, 1.5, 5) * time + rng.random()
    course = np.tanh(hardness * np.sin(2 * np.pi * swings)) / np.tanh(hardness)
    frequency = centre * 2 ** (swing * course)
    return _envelope(rng, time) * _harmonics(frequency, _few_harmonics(rng), sample_rate)


def bell(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """One to three strokes of a bell: inharmonic partials with different decay times."""
    pitch, decay = _log_uniform(rng, 250, 1200), _log_uniform(rng, 0.15, 0.8)
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.52, 2.67, 4.17])
    ratios *= rng.uniform(0.98, 1.02, len(ratios))
    weights = rng.uniform(0.2, 1, len(ratios)) * ratios ** -rng.uniform(0.2, 0.8)
    strokes = rng.integers(1, 4)
    starts = (np.arange(strokes) + rng.uniform(0.02, 0.5, strokes)) / strokes * (time[-1] + time[1])
    since = np.maximum(time - starts[:, np.newaxis], 0)
    # An attack of 5 ms, because a step would add energy at all frequencies.
    attack = np.sin(np.pi / 2 * np.minimum(since / 0.005, 1)) ** 2
    total = np.zeros_like(time)
    for ratio, weight in zip(ratios, weights, strict=True):
        ringing = np.sum(attack * np.exp(-since / decay * ratio**0.7), axis=0)
        total += ringing * _harmonics(np.full_like(time, pitch * ratio), [weight], sample_rate)
    return total


def clicks(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """Short broad-band clicks, 3 to 12 per second, with some irregularity."""
    rate, spread = _log_uniform(rng, 3, 12), rng.uniform(0, 0.25)
    decay, start = _log_uniform(rng, 0.002, 0.01), min(1 / rate, time[-1] / 2) * rng.random()
    envelope = np.zeros_like(time)
    while start < time[-1]:
        since = time - start
        envelope += rng.uniform(0.5, 1) * np.exp(-np.abs(since) / decay) * (since >= 0)
        start += (1 + rng.uniform(-spread, spread)) / rate
    gain = _gaussian_gain(_log_uniform(rng, 900, 3000), rng.uniform(0.8, 2))
    return envelope * _shaped_noise(rng, time, sample_rate, gain)


def hiss(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """Sustained noise around a high frequency, similar to steam or rain."""
    gain = _gaussian_gain(_log_uniform(rng, 1200, 5000), rng.uniform(0.4, 1.1))
    return _envelope(rng, time) * _shaped_noise(rng, time, sample_rate, gain)


def rumble(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """Low noise with a slowly varying level, similar to thunder or a distant engine."""
    gain = _gaussian_gain(_log_uniform(rng, 50, 250), rng.uniform(0.4, 1.1))
    swell = rng.uniform(0, 0.8) * np.sin(2 * np.pi * (rng.uniform(0.3, 2) * time + rng.random()))
    return _envelope(rng, time) * (1 + swell) * _shaped_noise(rng, time, sample_rate, gain)


KINDS: dict[str, Callable[[np.random.Generator, Waveform, int], Waveform]] = {
    kind.__name__: kind
    for kind in (bell, buzz, chord, clicks, hiss, rumble, siren, sweep, tone, tremolo)
}


def _name_hash(name: str) -> int:
    """A hash of a name in 0..2**32-1, equal in every process."""
    return zlib.crc32(name.encode())


def synthesize_clip(
    kind: str, seed: tuple[int, ...], seconds: float, sample_rate: int, snr_db: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Synthesizes one clip: a sound with white or pink background noise, at a random level.

    Args:
        kind: A key of `KINDS`.
        seed: Non-negative integers; with the other arguments they determine every sample.
        seconds: Length of the clip, 0.05 or more.
        sample_rate: In Hz, 8000 or more.
        snr_db: Minimum and maximum signal-to-noise ratio over the clip, in dB.

    Returns:
        float32 of shape (round(seconds * sample_rate),), finite, within -0.99..0.99.

    Raises:
        ValueError: If the kind is unknown, the clip too short or the sample rate too low.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown sound kind {kind!r}; the kinds are {', '.join(KINDS)}")
    if sample_rate < LOWEST_SAMPLE_RATE or seconds < SHORTEST_CLIP:
        raise ValueError(
            f"cannot make {seconds} s at {sample_rate} Hz: "
            f"the least is {SHORTEST_CLIP} s at {LOWEST_SAMPLE_RATE} Hz"
        )
    rng = np.random.default_rng((*seed, _name_hash(kind)))
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    sound = KINDS[kind](rng, time, sample_rate)
    slope = rng.choice([0.0, 0.5])  # of the amplitude: white or pink
    noise = _shaped_noise(rng, time, sample_rate, lambda frequency: frequency**-slope)
    ratio = 10 ** (rng.uniform(*snr_db) / 20)
    mixture = sound + noise * np.sqrt(np.mean(sound**2) / np.mean(noise**2)) / ratio
    level = PEAK * 10 ** (rng.uniform(*LEVEL_DB) / 20)
    return (mixture * (level / np.max(np.abs(mixture)))).astype(np.float32)


def plan_clips(
    role: str, labels: Sequence[str], clips_per_class: int, seed: int
) -> list[dict[str, Any]]:
    """Lists the clips of one corpus, label by label.

    A clip depends only on role, label, index and seed (for "confused" also on the labels), so a
    larger corpus contains the clips of a smaller one. Different roles use different clip seeds.

    Args:
        role: "real"; "faithful", other clips of the same distribution; "noisy", a louder
            background; "confused", where the clips 1, 4, 7, ... of each label
            (round(clips_per_class / 3) clips) are of another kind in `labels`.
        labels: Keys of `KINDS`, without repetition; two or more for "confused".
        clips_per_class: Number of clips per label.
        seed: Non-negative.

    Returns:
        Dicts of file_name ("bell/bell-00012.wav"), label (the nominal kind), kind (the synthesized
        kind), and the seed (a tuple) and snr_db (minimum, maximum) for `synthesize_clip`.

    Raises:
        ValueError: If the role is unknown, or the labels are invalid.
    """
    if role not in ROLE_SNR_DB:
        raise ValueError(f"unknown role {role!r}; the roles are {', '.join(ROLE_SNR_DB)}")
    unknown = sorted(set(labels) - set(KINDS))
    if unknown or len(set(labels)) < len(labels):
        raise ValueError(f"labels must be different ones of {', '.join(KINDS)}, not {list(labels)}")
    if role == "confused" and len(labels) < 2:
        raise ValueError(f"a confused corpus needs two labels or more, not {list(labels)}")
    plan = []
    for label in labels:
        others = sorted(set(labels) - {label})
        for index in range(clips_per_class):
            # With the label, so that clips of two labels with the same kind differ.
            clip_seed = (seed, _name_hash(role), _name_hash(label), index)
            kind = label
            if role == "confused" and index % 3 == 1:
                kind = str(np.random.default_rng(clip_seed).choice(others))
            clip = {"label": label, "kind": kind, "seed": clip_seed, "snr_db": ROLE_SNR_DB[role]}
            plan.append({"file_name": f"{label}/{label}-{index:05d}.wav", **clip})
    return plan
