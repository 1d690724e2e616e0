"""One sound file → waveforms of exactly `clip_length`: decode, mix down, resample, cut or pad."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torchaudio.transforms import Resample

from raysound import storage
from raysound.settings import FeatureSettings

# Writers that stream a wav don't know its length yet and leave a size near the field's end.
UNKNOWN_LENGTH = 0x7FFF0000
# The largest sample that a float file of 32-bit integers can hold; beyond it lies no sound.
LARGEST_SAMPLE = 2.0**31
# Resampling kernels grow with the terms of the ratio of two rates. This keeps every common pair
# exact, and shifts the pitch of an odd one by less than half a thousandth: under a cent.
LARGEST_RATIO_TERM = 2000
# Of a window. Encoders make clips a few frames longer than asked: no reason to hear them twice.
LEAST_SURPLUS = 0.05


class Reject(Exception):  # noqa: N818 - the word of the manifest, the summary and the report
    """A file that can't be used; its text is the reason, for a person to read."""


@dataclass(frozen=True)
class Clip:
    """One decoded clip.

    Attributes:
        windows: float32 `(n_windows, clip_samples)`, mono, at the settings' sample rate.
        duration: seconds of the source.
        sample_rate: Hz of the source.
    """

    windows: np.ndarray
    duration: float
    sample_rate: int


def read_clip(uri: str, settings: FeatureSettings) -> Clip:
    """Reads one sound file into windows of exactly `clip_length`.

    Raises:
        Reject: the file is missing, empty, no sound, cut short, or holds NaN or absurd samples.
    """
    try:
        with storage.open_file(uri) as file:
            waveform, sample_rate = decode(file)
    except FileNotFoundError as error:
        raise Reject("no such file") from error
    except OSError as error:
        raise Reject(f"can't be read: {error.strerror or error}") from error
    except ValueError as error:
        # pyarrow's word for a path that is none, such as one with a NUL in it.
        raise Reject(f"can't be read: {error}") from error
    duration = len(waveform) / sample_rate
    waveform = resample(waveform, sample_rate, settings.sample_rate)
    windows = cut_or_pad(waveform, settings.clip_samples, settings.long_clips)
    return Clip(windows, duration, sample_rate)


def decode(file: BinaryIO) -> tuple[np.ndarray, int]:
    """Decodes a whole file and mixes it down to mono by the mean of its channels.

    Args:
        file: seekable, in any format that libsndfile reads.

    Returns:
        float32 `(n_samples,)`, within [-1, 1] for integer formats, and the sample rate in Hz.

    Raises:
        Reject: see `read_clip`.
    """
    if file.seek(0, 2) == 0:
        raise Reject("the file is empty (0 bytes)")
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            _refuse_truncated(sound)
            samples = sound.read(dtype="float32", always_2d=True)
            sample_rate, frames = int(sound.samplerate), int(sound.frames)
    except (MemoryError, ValueError) as error:
        raise Reject("its header tells no length, or one that can't be true") from error
    except soundfile.LibsndfileError as error:
        raise Reject(f"not a sound file that can be decoded: {error.error_string}") from error
    if len(samples) < frames:
        raise Reject(f"cut short: the header says {frames} samples, {len(samples)} are there")
    if len(samples) == 0:
        raise Reject("no samples: the header is there, the sound is not")
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        bad = int((~np.isfinite(samples)).sum())
        raise Reject(f"NaN or infinite samples: {bad} of {samples.size}")
    if peak > LARGEST_SAMPLE:
        raise Reject(f"samples up to {peak:.3g}, where sound lies within 1")
    return samples.mean(axis=1, dtype=np.float32), sample_rate


def _refuse_truncated(sound: soundfile.SoundFile) -> None:
    """Finds the cut that libsndfile mends in silence: its log alone tells of the promise."""
    found = re.search(
        r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE
    )
    if found is None:
        return
    promised, held = int(found[1]), int(found[2])
    if held + sound.channels <= promised < UNKNOWN_LENGTH:
        raise Reject(f"cut short: the header says {promised} bytes of sound, {held} are there")


def resample(waveform: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resamples float32 `(n,)` from one rate (Hz) to another, by windowed sinc interpolation.

    Raises:
        Reject: no sound has a rate so far from the other.
    """
    if source_rate == target_rate:
        return waveform
    if max(source_rate, target_rate) > LARGEST_RATIO_TERM * min(source_rate, target_rate):
        raise Reject(f"a sample rate of {source_rate} Hz can't be brought to {target_rate} Hz")
    with torch.inference_mode():
        resampled: np.ndarray = _resampler(source_rate, target_rate)(
            torch.from_numpy(waveform)
        ).numpy()
    return resampled


@lru_cache(maxsize=16)
def _resampler(source_rate: int, target_rate: int) -> Resample:
    """Made once a pair of rates and process: the kernel costs more than its use."""
    ratio = Fraction(source_rate, target_rate)
    if max(ratio.numerator, ratio.denominator) > LARGEST_RATIO_TERM:
        ratio = _simpler(ratio)
    return Resample(ratio.numerator, ratio.denominator)


def _simpler(ratio: Fraction) -> Fraction:
    """The nearest fraction whose terms both stay within LARGEST_RATIO_TERM."""
    if ratio > 1:
        return 1 / _simpler(1 / ratio)
    return ratio.limit_denominator(LARGEST_RATIO_TERM)


def cut_or_pad(waveform: np.ndarray, clip_samples: int, long_clips: str) -> np.ndarray:
    """Brings a waveform to one or more windows of exactly `clip_samples`.

    A short one gets zeros on both sides, the odd zero behind. A long one is cut: `start` and
    `center` keep one window; `split` keeps as few as cover it, evenly spread, so that neighbours
    overlap instead of the last one being padded. What exceeds whole windows by less than
    LEAST_SURPLUS earns no window of its own: the two ends are trimmed alike.

    Args:
        waveform: float32 `(n_samples,)`.
        clip_samples: length of a window.
        long_clips: split, center or start.

    Returns:
        float32 `(n_windows, clip_samples)`.
    """
    surplus = len(waveform) - clip_samples
    if surplus <= 0:
        before = -surplus // 2
        return np.pad(waveform, (before, -surplus - before))[np.newaxis]
    if long_clips == "start":
        return waveform[np.newaxis, :clip_samples]
    windows = math.ceil(len(waveform) / clip_samples - LEAST_SURPLUS)
    if long_clips == "center" or windows == 1:
        starts = np.array([surplus // 2])
    else:
        trimmed = max(0, len(waveform) - windows * clip_samples) // 2
        last = min(surplus - trimmed, trimmed + (windows - 1) * clip_samples)
        starts = np.linspace(trimmed, last, windows).round().astype(int)
    return np.stack([waveform[start : start + clip_samples] for start in starts])


def encode(waveform: np.ndarray, sample_rate: int, container: str) -> bytes:
    """A mono waveform `(n_samples,)` as a 16-bit file, `WAV` or `FLAC`.

    What exceeds full scale is scaled down to it, not clipped; nothing is made louder.
    """
    file = io.BytesIO()
    peak = float(np.abs(waveform).max(initial=1.0))
    soundfile.write(file, waveform / peak, sample_rate, format=container, subtype="PCM_16")
    return file.getvalue()
