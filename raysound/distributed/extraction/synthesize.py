"""Synthesises corpora in parallel."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raysound import storage
from raysound.audio.decode import Reject, encode, read_window
from raysound.audio.griffin_lim import log_mel_to_waveform
from raysound.audio.log_mel import LogMel
from raysound.audio.sounds import open_sounds
from raysound.corpora.manifest import read_corpus
from raysound.corpora.split import assign_split
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.session import SYNTHESIS_OUTPUTS, check_durable, run_remote_all
from raysound.errors import UserError
from raysound.settings.features import FeatureSettings
from raysound.settings.fields import digest
from raysound.settings.loading import real_corpus
from raysound.settings.paths import configured_paths
from raysound.settings.schema import Config
from raysound.settings.synthesis import FormulaSettings, GriffinLimSettings, LadderSettings
from raysound.synthesis.formula import (
    FORMULA_VERSION,
    KINDS,
    ROLE_SNR_DB,
    plan_clips,
    synthesize_clip,
)
from raysound.wording import counted

logger = logging.getLogger(__name__)

MARKER = "synthesis.json"
CLIPS_PER_TASK = 64


def synthesize(config: Config) -> str:
    """Synthesises the corpora of the section `synthesis`. Returns the last line of the job."""
    check_durable(
        {key: at for key, at in configured_paths(config).items() if key in SYNTHESIS_OUTPUTS}
    )
    if config.synthesis.griffin_lim is not None or config.synthesis.ladder is not None:
        real_corpus(config)
    folders = []
    if config.synthesis.formula is not None:
        settings = config.synthesis.formula
        folders += [make_formula_corpus(role, settings) for role in ROLE_SNR_DB]
    if config.synthesis.griffin_lim is not None:
        folders.append(make_griffin_lim_corpus(config, config.synthesis.griffin_lim))
    if config.synthesis.ladder is not None:
        folders += make_ladder_corpora(config, config.synthesis.ladder)
    if not folders:
        raise UserError("the config has no synthesis section, which names the corpora to make")
    return f"corpora: {', '.join(folders)}"


def make_formula_corpus(role: str, settings: FormulaSettings) -> str:
    """Synthesises one corpus by formula, with a folder per class, and returns its folder."""
    folder = storage.join(settings.output, role)
    real = role == "real"
    clips_per_class = settings.clips_per_class if real else settings.generated_clips_per_class
    plan = plan_clips(role, list(KINDS), clips_per_class, settings.seed)
    identity = {
        "formulas": FORMULA_VERSION, "role": role, **settings.model_dump(exclude={"output"}),
    }  # fmt: skip
    with sole_writer(folder):
        if start_corpus(folder, identity):
            calls = (
                (plan[start : start + CLIPS_PER_TASK], folder, settings)
                for start in range(0, len(plan), CLIPS_PER_TASK)
            )
            finish_corpus(folder, identity, sum(run_remote_all(formula_clips, calls)))
    return folder


def formula_clips(plan: list[dict[str, Any]], folder: str, settings: FormulaSettings) -> int:
    """Runs in a Ray task: writes some clips of a plan, and returns how many."""
    for clip in plan:
        waveform = synthesize_clip(
            clip["kind"],
            tuple(clip["seed"]),
            settings.seconds,
            settings.sample_rate,
            tuple(clip["snr_db"]),
        )
        wav = encode(waveform, settings.sample_rate, "WAV")
        storage.write_bytes(storage.join(folder, clip["file_name"]), wav)
    return len(plan)


def make_griffin_lim_corpus(config: Config, settings: GriffinLimSettings) -> str:
    """Resynthesises the real test clips from their log-mels, and returns the new folder."""
    return make_from_test_clips(
        config,
        settings.output,
        {"griffin_lim": settings.iterations},
        griffin_lim_clips,
        without_loudness(config.features),
        settings.iterations,
    )


def make_ladder_corpora(config: Config, settings: LadderSettings) -> list[str]:
    """Degrades the real test clips in steps, a corpus per step, and returns the new folders."""
    folders = []
    for n_mels in settings.n_mels:
        # An overlap of 75 % helps Griffin-Lim to estimate the phase.
        change = {"n_mels": n_mels, "hop_length": config.features.n_fft // 4}
        features = without_loudness(config.features).model_copy(update=change)
        folder = storage.join(settings.output, f"mel-{n_mels}")
        identity = {"mel": n_mels, "iterations": settings.iterations}
        folders.append(
            make_from_test_clips(
                config, folder, identity, griffin_lim_clips, features, settings.iterations
            )
        )
    for snr_db in settings.snr_db:
        folder = storage.join(settings.output, f"noise-{snr_db:g}dB")
        folders.append(
            make_from_test_clips(
                config,
                folder,
                {"snr_db": snr_db},
                noisy_clips,
                without_loudness(config.features),
                snr_db,
            )
        )
    return folders


def make_from_test_clips(
    config: Config,
    folder: str,
    identity: dict[str, Any],
    make: Callable[..., int],
    *arguments: Any,
) -> str:
    """Makes a corpus from the real test clips, and returns its folder.

    Args:
        config: the experiment.
        folder: of the new corpus.
        identity: of the corpus; the clips and features are added.
        make: takes some clips, the folder and the arguments, and returns how many clips it used.
        arguments: further arguments of `make`.
    """
    real = real_corpus(config)
    clips = assign_split(read_corpus(real.path), real.split)
    test = clips.filter(pc.equal(clips["split"], "test"))
    identity = {
        **identity,
        "features": without_loudness(config.features).model_dump(),
        "clips": digest(test.to_pydict()),
    }
    with sole_writer(folder):
        if start_corpus(folder, identity):
            calls = (
                (test.slice(start, CLIPS_PER_TASK), folder, *arguments)
                for start in range(0, len(test), CLIPS_PER_TASK)
            )
            done = sum(run_remote_all(make, calls))
            if done < len(test):
                logger.warning(
                    "%d of %s can't be used: jobs/extract.py reports the reasons",
                    len(test) - done, counted(len(test), "test clip"),
                )  # fmt: skip
            finish_corpus(folder, identity, done)
    return folder


def without_loudness(features: FeatureSettings) -> FeatureSettings:
    """The settings without `loudness`, so that clips keep the level of their originals."""
    return features.model_copy(update={"loudness": None})


def griffin_lim_clips(
    clips: pa.Table, folder: str, features: FeatureSettings, iterations: int
) -> int:
    """Runs in a Ray task: resynthesises the first window of each clip from its log-mel.

    Returns:
        How many clips could be used.
    """
    torch.set_num_threads(1)
    log_mel = LogMel(features)

    def resynthesize(window: np.ndarray, seed: int) -> np.ndarray:
        features_of_window = log_mel(torch.from_numpy(window))
        return log_mel_to_waveform(features_of_window, features, iterations, seed).numpy()

    return write_changed_clips(clips, folder, features, resynthesize)


def noisy_clips(clips: pa.Table, folder: str, features: FeatureSettings, snr_db: float) -> int:
    """Runs in a Ray task: adds white noise to the first window of each clip.

    Returns:
        How many clips could be used.
    """

    def add_noise(window: np.ndarray, seed: int) -> np.ndarray:
        rms = np.sqrt(np.mean(window**2, dtype=np.float64)) * 10 ** (-snr_db / 20)
        noise = np.random.default_rng(seed).normal(0, rms, len(window))
        return (window + noise).astype(np.float32)

    return write_changed_clips(clips, folder, features, add_noise)


def write_changed_clips(
    clips: pa.Table,
    folder: str,
    features: FeatureSettings,
    change: Callable[[np.ndarray, int], np.ndarray],
) -> int:
    """Writes the first window of each clip, changed by a function of the window and a seed.

    Returns:
        How many clips could be used.
    """
    done = 0
    names = zip(clips["clip_id"].to_pylist(), clips["label"].to_pylist(), strict=True)
    for (clip_id, label), sound in zip(names, open_sounds(clips), strict=True):
        try:
            if isinstance(sound, Reject):
                raise sound
            window = read_window(sound, features)
        except Reject:
            continue
        name = clip_id.replace("/", "-") + ".wav"
        wav = encode(change(window, zlib.crc32(name.encode())), features.sample_rate, "WAV")
        storage.write_bytes(storage.join(folder, label, name), wav)
        done += 1
    return done


def start_corpus(folder: str, identity: dict[str, Any]) -> bool:
    """Prepares the folder of a corpus; returns False if the same corpus is finished already.

    Raises:
        UserError: the folder holds files that raysound did not write.
    """
    marker = storage.join(folder, MARKER)
    if storage.exists(marker):
        if json.loads(storage.read_bytes(marker)) == {**identity, "finished": True}:
            logger.info("%s exists already", folder)
            return False
        storage.delete(folder)
    elif storage.list_files(folder):
        raise UserError(f"{folder} holds other files: set another synthesis output, or remove it")
    storage.write_bytes(marker, json.dumps({**identity, "finished": False}).encode())
    return True


def finish_corpus(folder: str, identity: dict[str, Any], clips: int) -> None:
    """Marks a corpus as finished."""
    content = json.dumps({**identity, "finished": True}, indent=2)
    storage.write_bytes(storage.join(folder, MARKER), content.encode())
    logger.info("%s: %s written", folder, counted(clips, "clip"))
