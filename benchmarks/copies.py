"""How many changed copies of ESC-10's training clips copy detection finds, and what it costs.

    python /path/to/esc10/to_wav.py data/esc10
    python benchmarks/copies.py data/esc10 --reference 50000

Fold 1 is the real test fold, folds 2 to 5 train. Every training clip is changed (level, noise,
shift, mp3) and searched among all training clips; a copy is found if its similarity reaches the
threshold and the most similar clip is its source. Thresholds are calibrated on the training clips,
each against those of other recordings. Prints Markdown tables.

`--reference N` adds mixtures of two clips of one class, rolled and filtered at random, until there
are N training windows, and repeats the search. Costs are CPU time of one thread.
"""

import argparse
import csv
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from raysound.audio.decode import read_clip
from raysound.audio.log_mel import LogMel
from raysound.metrics.copies import Copies, by_clip, find_copies, threshold_of
from raysound.metrics.copy_search import (
    CANDIDATES,
    TrainingWindows,
    candidates,
    coarse_vectors,
    frames_together,
    normalised,
    patches,
    similarity,
)
from raysound.metrics.intervals import wilson_interval
from raysound.settings.features import FeatureSettings
from raysound.settings.loading import load

RATES = (0.01, 0.02, 0.05)
GENERATED = 1_000_000
MP3_KBIT = 96
# Of a clip's energy: what a shift must leave so that the clip counts in the last column.
KEPT = 0.5

Change = Callable[[np.ndarray, int, np.random.Generator, np.ndarray], np.ndarray]


def shifted(x: np.ndarray, by: int, filling: np.ndarray | None = None) -> np.ndarray:
    """`x` later by some samples; the gap is silent, or holds the samples of `filling`."""
    result = np.zeros_like(x) if filling is None else np.resize(filling, len(x)).copy()
    if by >= 0:
        result[by:] = x[: len(x) - by]
    else:
        result[:by] = x[-by:]
    return result


def with_noise(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise 30 dB below the clip's mean power."""
    scale = np.sqrt(np.mean(x.astype(np.float64) ** 2) * 1e-3)
    return x + (rng.standard_normal(len(x)) * scale).astype(np.float32)


def any_shift(rate: int, rng: np.random.Generator) -> int:
    return int(rng.uniform(-rate, rate))


def all_changes(x: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Level, roll and noise; half the level first, so that mp3 does not clip."""
    level = 0.5 * 10 ** (rng.uniform(-6, 6) / 20)
    return with_noise(np.roll(x * np.float32(level), any_shift(rate, rng)), rng)


MP3 = ("mp3 at 96 kbit/s", "roll up to 1 s, gain ±6 dB, noise, mp3")
CHANGES: dict[str, Change] = {
    "none": lambda x, rate, rng, other: x,
    "gain +6 dB": lambda x, rate, rng, other: 2 * x,
    "gain −6 dB": lambda x, rate, rng, other: x / 2,
    "gain +6 dB, clipped at full scale": lambda x, rate, rng, other: (2 * x).clip(-1, 1),
    "noise at 30 dB SNR": lambda x, rate, rng, other: with_noise(x, rng),
    "roll by up to 1 s": lambda x, rate, rng, other: np.roll(x, any_shift(rate, rng)),
    "roll by +1 s": lambda x, rate, rng, other: np.roll(x, rate),
    "roll by −1 s": lambda x, rate, rng, other: np.roll(x, -rate),
    "shift by up to 1 s, silent gap": lambda x, rate, rng, other: shifted(x, any_shift(rate, rng)),
    "shift by +1 s, silent gap": lambda x, rate, rng, other: shifted(x, rate),
    "shift by −1 s, silent gap": lambda x, rate, rng, other: shifted(x, -rate),
    "shift by up to 1 s, gap filled with another clip": (
        lambda x, rate, rng, other: shifted(x, any_shift(rate, rng), other)
    ),
    MP3[0]: lambda x, rate, rng, other: x,
    MP3[1]: lambda x, rate, rng, other: all_changes(x, rate, rng),
}


def encoded(x: np.ndarray, rate: int, mp3: bool) -> io.BytesIO:
    file = io.BytesIO()
    if mp3:
        # libsndfile maps 0 to 320 kbit/s and 1 to 32 kbit/s.
        level = 1 - (MP3_KBIT - 32) / 288
        soundfile.write(
            file, x, rate, format="MP3", bitrate_mode="CONSTANT", compression_level=level
        )
    else:
        soundfile.write(file, x, rate, format="WAV", subtype="FLOAT")
    file.seek(0)
    return file


class Extractor:
    """Waveforms → patches, as raysound extracts log-mels."""

    def __init__(self, settings: FeatureSettings) -> None:
        self.settings = settings
        self.log_mel = LogMel(settings)
        self.hop = settings.hop_length / settings.sample_rate

    def __call__(
        self, waves: list[np.ndarray], rate: int, mp3: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-mels `(windows, n_mels, n_frames)`, and the first window of each clip."""
        starts, log_mels = [], []
        for wave in waves:
            starts.append(len(log_mels))
            windows = read_clip(encoded(wave, rate, mp3), self.settings).windows
            log_mels.extend(self.log_mel(torch.from_numpy(windows)).numpy())
        return np.stack(log_mels), np.array(starts)


def mixtures(
    log_mel: np.ndarray, label: np.ndarray, n: int, hop: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patches of `n` mixtures of two windows of one label, and which two, `(n, 2)`.

    The windows are rolled and filtered at random.
    """
    rng = np.random.default_rng(seed)
    power = np.exp(log_mel - log_mel.max(axis=(1, 2), keepdims=True))
    of_label = {name: np.flatnonzero(label == name) for name in np.unique(label)}
    n_mels, n_frames = log_mel.shape[1:]
    knots, bands = np.linspace(0, n_mels - 1, 5), np.arange(n_mels)
    result, parts = [], np.empty((n, 2), np.int64)
    for start in range(0, n, 200):
        mixed = np.full((min(200, n - start), n_mels, n_frames), 1e-10, np.float32)
        for number, row in enumerate(mixed, start=start):
            first = rng.integers(len(power))
            parts[number] = first, rng.choice(of_label[label[first]])
            for index in parts[number]:
                # Up to ±3 dB of level, and a smooth filter of 3 dB standard deviation.
                gain = rng.uniform(-0.7, 0.7) + np.interp(bands, knots, rng.normal(0, 0.7, 5))
                row += (
                    np.roll(power[index], rng.integers(n_frames), axis=1)
                    * np.exp(gain.astype(np.float32))[:, np.newaxis]
                )
        result.append(patches(np.log(mixed), hop))
    return np.concatenate(result), parts


def share(hits: np.ndarray) -> str:
    return f"{hits.mean():.1%}"


def with_interval(hits: np.ndarray) -> str:
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return f"{hits.mean():.1%} ({int(hits.sum())} of {len(hits)}; {low:.1%} – {high:.1%})"


def milliseconds(work: Callable[[], object], n: int, repeats: int = 3) -> float:
    """Least CPU time of some runs, per item."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) / n * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sounds", type=Path, help="ESC-10 as wav, with metadata.csv")
    parser.add_argument("--reference", type=int, default=0, metavar="N")
    parser.add_argument("--config", default="configs/esc10.yaml")
    parser.add_argument("overrides", nargs="*", help="as of the jobs: features.hop_length=441")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = load(arguments.config, arguments.overrides).features
    extract = Extractor(settings)
    hop = extract.hop
    frame = hop * frames_together(hop)

    with open(arguments.sounds / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    name, label, group = (
        np.array([row[key] for row in rows]) for key in ("file_name", "label", "group")
    )
    fold = np.array([int(row["fold"]) for row in rows])
    waves, rates = zip(
        *(soundfile.read(arguments.sounds / file, dtype="float32") for file in name), strict=True
    )
    (rate,) = set(rates)
    log_mel, starts = extract(list(waves), rate)
    clip = np.repeat(np.arange(len(rows)), np.diff(np.append(starts, len(log_mel))))
    windows = patches(log_mel, hop)

    def search(held_out: int) -> tuple[np.ndarray, TrainingWindows, Copies, Copies]:
        """Training windows, their reference; calibration, and the test fold, a row a clip."""
        known = np.flatnonzero(fold[clip] != held_out)
        new = np.flatnonzero(fold[clip] == held_out)
        reference = TrainingWindows.of(windows[known], frame)
        groups = np.unique(group[clip[known]], return_inverse=True)[1]
        own = by_clip(find_copies(reference.patches, reference, excluded=groups), first(known))
        return known, reference, own, by_clip(find_copies(windows[new], reference), first(new))

    def first(rows: np.ndarray) -> np.ndarray:
        return np.unique(clip[rows], return_index=True)[1]

    known, reference, own, new = search(1)
    train, test = np.unique(clip[known]), np.flatnonzero(fold == 1)
    limits = [threshold_of(own.similarity, value).value for value in RATES]
    assert None not in limits
    print(f"{len(train)} training clips, {len(test)} real test clips, {settings.id}\n")
    print("| | " + " | ".join(f"{value:.0%}" for value in RATES) + " |")
    print("|---" * (len(RATES) + 1) + "|")
    print("| threshold | " + " | ".join(f"{limit:.3f}" for limit in limits) + " |")
    print(
        "| real test clips flagged, fold 1 | "
        + " | ".join(with_interval(new.similarity >= limit) for limit in limits)
        + " |"
    )
    flagged: list[list[np.ndarray]] = [[] for _ in RATES]
    pairs = []
    for held_out in np.unique(fold):
        others, _, calibration, other = search(held_out)
        limit = threshold_of(calibration.similarity, RATES[0]).value
        for row in np.flatnonzero(other.similarity >= limit):
            source = name[clip[others[other.index[row]]]]
            pairs.append(f"{name[fold == held_out][row]} ({source}, {other.similarity[row]:.3f})")
        for hits, value in zip(flagged, RATES, strict=True):
            hits.append(other.similarity >= threshold_of(calibration.similarity, value).value)
    print(
        "| each fold against the other four | "
        + " | ".join(with_interval(np.concatenate(hits)) for hits in flagged)
        + " |"
    )
    print(f"\nFlagged at {RATES[0]:.0%}, of all folds: {', '.join(pairs) or 'none'}.")

    print("\nThe most similar real clips, of training and of fold 1:\n")
    print("| clip | most similar training clip | similarity | lag, s |\n|---|---|---|---|")
    for copies, ids in ((own, train), (new, test)):
        for row in np.argsort(-copies.similarity, kind="stable")[:8]:
            other_name = name[clip[known[copies.index[row]]]]
            print(
                f"| {name[ids[row]]} | {other_name} | {copies.similarity[row]:.3f} "
                f"| {copies.lag[row]:+.2f} |"
            )

    # A mixture is a copy of each of its two clips.
    large, sources = None, np.column_stack([clip[known], clip[known]])
    if arguments.reference > len(known):
        more, parts = mixtures(
            log_mel[known], label[clip[known]], arguments.reference - len(known), hop, seed=1
        )
        large = TrainingWindows.of(np.concatenate([reference.patches, more]), frame)
        sources = np.concatenate([sources, clip[known][parts]])

    head = ["change", *(f"found at {value:.0%}" for value in RATES)]
    head += [
        "clips with half of their energy",
        "of these found at 1%",
        "lowest similarity of these",
    ]
    if large:
        head.append(f"found at 1% among {len(large.patches):,} windows")
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for change, apply in CHANGES.items():
        rng = np.random.default_rng(0)
        made, kept = [], []
        for index in train:
            wave = waves[index]
            same = np.flatnonzero((label == label[index]) & (group != group[index]))
            made.append(apply(wave, rate, rng, waves[rng.choice(same)]))
            energy = (made[-1].astype(np.float64) ** 2).sum() / (wave.astype(np.float64) ** 2).sum()
            kept.append("silent gap" not in change or energy >= KEPT)
        changed, begin = extract(made, rate, mp3=change in MP3)
        changed = patches(changed, hop)

        def found(reference: TrainingWindows) -> tuple[Copies, np.ndarray]:
            copies = by_clip(find_copies(changed, reference), begin)  # noqa: B023
            return copies, (sources[copies.index] == train[:, np.newaxis]).any(axis=1)

        copies, right = found(reference)
        hits = [(copies.similarity >= limit) & right for limit in limits]
        keeping = np.array(kept)
        cells = [share(values) for values in hits]
        cells += [str(keeping.sum()), share(hits[0][keeping])]
        cells.append(f"{copies.similarity[keeping].min():.2f}")
        if large:
            copies, right = found(large)
            cells.append(share(((copies.similarity >= limits[0]) & right)[keeping]))
        print(f"| {change} | " + " | ".join(cells) + " |", flush=True)

    part = windows[:100]
    rng = np.random.default_rng(0)
    random = [
        normalised(rng.standard_normal((n, reference.vectors.shape[1]), np.float32), np.float32(0))
        for n in (500, 50_000)
    ]
    few = rng.integers(len(known), size=(100, CANDIDATES))
    costs = {
        "patch": milliseconds(lambda: patches(log_mel[:100], hop), 100),
        "coarse vector": milliseconds(lambda: coarse_vectors(part), 100),
        f"coarse search among 50,000 vectors of {random[0].shape[1]}": milliseconds(
            lambda: candidates(*random), 500
        ),
        f"similarity to {CANDIDATES} candidates": milliseconds(
            lambda: similarity(part, reference.patches, few, frame), 100
        ),
    }
    print("\n| step | ms per window | 1,000,000 windows, hours on one core |\n|---|---|---|")
    for step, cost in [*costs.items(), ("all", sum(costs.values()))]:
        print(f"| {step} | {cost:.2f} | {cost * GENERATED / 3.6e6:.2f} |")


if __name__ == "__main__":
    main()
