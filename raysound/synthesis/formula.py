"""Labelled sounds by formula: a corpus anybody can make, of any size, without a download.

`plan_corpus` lists the clips of a corpus, `synthesize_clip` makes one of them. `KINDS` maps the
name of a sound kind to the function that makes it, `(rng, time, sample_rate) -> waveform`: time in
seconds and waveform are float64 of shape (n,), the level is arbitrary. Each draws its own pitch,
rate, onset, brightness and so on from `rng`. The partials of a pitched kind
fade out from 0.40 to 0.47 of the sample rate; below that, the rate makes no difference.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float64]

# Raise it when the same plan would give other sounds: corpora made before are then made anew.
FORMULA_VERSION = 2
LOWEST_SAMPLE_RATE = 8000  # Hz
SHORTEST_CLIP = 0.05  # seconds; a shorter one could end before its sound begins
PEAK = 0.99
LEVEL_DB = (-20.0, -0.1)  # of a clip's peak, under PEAK
# Lowest and highest ratio of sound to background; each clip draws its own in between.
REAL_SNR_DB = (10.0, 30.0)
NOISY_SNR_DB = (-10.0, 2.0)
ROLE_SNR_DB = {
    "real": REAL_SNR_DB,
    "faithful": REAL_SNR_DB,
    "noisy": NOISY_SNR_DB,
    "confused": REAL_SNR_DB,
}


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws from [low, high) with every octave equally likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _gate(rng: np.random.Generator, time: Waveform) -> Waveform:
    """An envelope (n,) in 0..1 that opens in the first third and may close in the last."""
    length = time[-1] + time[1]
    start, stop = length * rng.uniform(0, 0.3), length * rng.uniform(0.7, 1.1)
    ramp = min(_log_uniform(rng, 0.01, 0.15), length / 8)
    linear = np.clip(np.minimum(time - start, stop - time) / ramp, 0, 1)
    return np.sin(np.pi / 2 * linear) ** 2


def _glide(frequency: Waveform, weights: Iterable[float], sample_rate: int) -> Waveform:
    """Sums harmonics, the k-th at k times `frequency` (Hz, (n,)), those near Nyquist faded out."""
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
    """Gaussian noise whose spectrum is multiplied by `gain(frequencies in Hz, none below 20)`."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequencies = np.maximum(np.fft.rfftfreq(len(time), 1 / sample_rate), 20.0)
    return np.fft.irfft(spectrum * gain(frequencies), len(time))


def _bump(centre: float, octaves: float) -> Callable[[Waveform], Waveform]:
    """A gain that is 1 at `centre` Hz and falls on both sides like a bell curve."""
    return lambda frequency: np.exp(-0.5 * (np.log2(frequency / centre) / octaves) ** 2)


def _few_harmonics(rng: np.random.Generator) -> Waveform:
    """Weights (5,) that fall quickly: from nearly a sine to a mellow horn."""
    return np.power(rng.uniform(0.05, 0.5), np.arange(5.0))


def tone(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A held note with a little vibrato."""
    pitch, depth, rate = _log_uniform(rng, 200, 1500), rng.uniform(0, 0.004), rng.uniform(4, 7)
    frequency = pitch * (1 + depth * np.sin(2 * np.pi * rate * time))
    return _gate(rng, time) * _glide(frequency, _few_harmonics(rng), sample_rate)


def chord(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """Three or four notes of one chord, held together."""
    root, weights = _log_uniform(rng, 220, 800), _few_harmonics(rng)
    steps = rng.choice([(0, 4, 7, 12), (0, 3, 7, 12), (0, 4, 7, 10), (0, 5, 7, 12), (0, 3, 6, 9)])
    total = np.zeros_like(time)
    for step in steps[: rng.integers(3, 5)]:
        pitch = root * 2 ** ((step + rng.normal(0, 0.05)) / 12)
        total += rng.uniform(0.5, 1) * _glide(np.full_like(time, pitch), weights, sample_rate)
    return _gate(rng, time) * total


def buzz(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A low, bright, slightly unsteady harmonic sound, as of a razor, a horn or a mains hum."""
    pitch, depth, rate = _log_uniform(rng, 60, 260), rng.uniform(0, 0.02), _log_uniform(rng, 1, 9)
    frequency = pitch * (1 + depth * np.sin(2 * np.pi * rate * time))
    weights = np.arange(1.0, 49.0) ** -rng.uniform(0.3, 1.1)
    weights[1::2] *= rng.uniform(0, 1)
    return _gate(rng, time) * _glide(frequency, weights, sample_rate)


def tremolo(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A note that beats in loudness, 4 to 7 times a second."""
    pitch, rate = _log_uniform(rng, 200, 1500), _log_uniform(rng, 4, 7)
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * (rate * time + rng.random()))
    loudness = 1 - rng.uniform(0.9, 1) * beat ** rng.uniform(0.7, 1.5)
    harmonics = _glide(np.full_like(time, pitch), _few_harmonics(rng), sample_rate)
    return _gate(rng, time) * loudness * harmonics


def sweep(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """One glide over two to four octaves, up or down."""
    low, bend = _log_uniform(rng, 120, 500), rng.uniform(0.6, 1.7)
    octaves = rng.uniform(2, min(4, np.log2(3600 / low)))
    course = (time / (time[-1] + time[1])) ** bend
    if rng.random() < 0.5:
        course = 1 - course
    return _gate(rng, time) * _glide(
        low * 2 ** (octaves * course), _few_harmonics(rng), sample_rate
    )


def siren(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A pitch that swings up and down, from a gentle wail to a hard two-tone horn."""
    centre, swing = _log_uniform(rng, 400, 1300), rng.uniform(0.4, 0.8)
    hardness, swings = _log_uniform(rng, 0.5, 6), _log_uniform(rng, 1.5, 5) * time + rng.random()
    course = np.tanh(hardness * np.sin(2 * np.pi * swings)) / np.tanh(hardness)
    frequency = centre * 2 ** (swing * course)
    return _gate(rng, time) * _glide(frequency, _few_harmonics(rng), sample_rate)


def bell(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """One to three strokes on something whose partials are inharmonic and die away one by one."""
    pitch, decay = _log_uniform(rng, 250, 1200), _log_uniform(rng, 0.15, 0.8)
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.52, 2.67, 4.17])
    ratios *= rng.uniform(0.98, 1.02, len(ratios))
    weights = rng.uniform(0.2, 1, len(ratios)) * ratios ** -rng.uniform(0.2, 0.8)
    strokes = rng.integers(1, 4)
    starts = (np.arange(strokes) + rng.uniform(0.02, 0.5, strokes)) / strokes * (time[-1] + time[1])
    since = np.maximum(time - starts[:, np.newaxis], 0)
    # Five milliseconds of attack: a jump would splash over all frequencies.
    attack = np.sin(np.pi / 2 * np.minimum(since / 0.005, 1)) ** 2
    total = np.zeros_like(time)
    for ratio, weight in zip(ratios, weights, strict=True):
        ringing = np.sum(attack * np.exp(-since / decay * ratio**0.7), axis=0)
        total += ringing * _glide(np.full_like(time, pitch * ratio), [weight], sample_rate)
    return total


def clicks(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """Short broad-band ticks, 3 to 12 a second, more or less regular."""
    rate, spread = _log_uniform(rng, 3, 12), rng.uniform(0, 0.25)
    decay, start = _log_uniform(rng, 0.002, 0.01), min(1 / rate, time[-1] / 2) * rng.random()
    envelope = np.zeros_like(time)
    while start < time[-1]:
        since = time - start
        envelope += rng.uniform(0.5, 1) * np.exp(-np.abs(since) / decay) * (since >= 0)
        start += (1 + rng.uniform(-spread, spread)) / rate
    gain = _bump(_log_uniform(rng, 900, 3000), rng.uniform(0.8, 2))
    return envelope * _shaped_noise(rng, time, sample_rate, gain)


def hiss(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """A held rush of noise around a high frequency, as of steam or rain."""
    gain = _bump(_log_uniform(rng, 1200, 5000), rng.uniform(0.4, 1.1))
    return _gate(rng, time) * _shaped_noise(rng, time, sample_rate, gain)


def rumble(rng: np.random.Generator, time: Waveform, sample_rate: int) -> Waveform:
    """Low noise that swells and ebbs, as of thunder or an engine far away."""
    gain = _bump(_log_uniform(rng, 50, 250), rng.uniform(0.4, 1.1))
    swell = rng.uniform(0, 0.8) * np.sin(2 * np.pi * (rng.uniform(0.3, 2) * time + rng.random()))
    return _gate(rng, time) * (1 + swell) * _shaped_noise(rng, time, sample_rate, gain)


KINDS: dict[str, Callable[[np.random.Generator, Waveform, int], Waveform]] = {
    kind.__name__: kind
    for kind in (bell, buzz, chord, clicks, hiss, rumble, siren, sweep, tone, tremolo)
}


def _code(name: str) -> int:
    """A number in 0..2**32-1 for a name, the same in every process."""
    return zlib.crc32(name.encode())


def synthesize_clip(
    kind: str, seed: tuple[int, ...], seconds: float, sample_rate: int, snr_db: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Makes one clip: a sound of a kind over white or pink background noise, at a random level.

    Args:
        kind: A key of `KINDS`.
        seed: Whole numbers from 0 on; with the other arguments they settle every sample.
        seconds: Length of the clip, 0.05 or more.
        sample_rate: In Hz, 8000 or more.
        snr_db: Lowest and highest ratio of sound to background, in dB over the whole clip.

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
    rng = np.random.default_rng((*seed, _code(kind)))
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

    A clip depends on role, label, its index and seed alone (in "confused" on the labels, too), so
    a larger corpus holds the clips of a smaller one. No two roles share a clip's seed.

    Args:
        role: "real"; "faithful", the same distribution anew; "noisy", a louder background;
            "confused", where of each label the clips 1, 4, 7, ... are of another kind among
            `labels`: round(clips_per_class / 3) of them.
        labels: Keys of `KINDS`, each once; two or more for "confused".
        clips_per_class: How many clips of each label.
        seed: From 0 on.

    Returns:
        Dicts of file_name ("bell/bell-00012.wav"), label (the kind asked for), kind (the kind to be
        made), and the seed (a tuple) and snr_db (lowest, highest) for `synthesize_clip`.

    Raises:
        ValueError: If the role is unknown, or the labels do not suit.
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
            # The label is part of it, lest two labels confused with one kind get the same clip.
            clip_seed = (seed, _code(role), _code(label), index)
            kind = label
            if role == "confused" and index % 3 == 1:
                kind = str(np.random.default_rng(clip_seed).choice(others))
            clip = {"label": label, "kind": kind, "seed": clip_seed, "snr_db": ROLE_SNR_DB[role]}
            plan.append({"file_name": f"{label}/{label}-{index:05d}.wav", **clip})
    return plan
