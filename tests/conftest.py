"""What all tests share: small sounds, small configs, and where ESC-10 lies."""

import os
from pathlib import Path

# Ray reads it while it is imported: closed to strangers in tests as for users.
os.environ["RAY_AUTH_MODE"] = "token"
# Two test processes share the CPUs: at Ray's niceness of 15 the workers of one would wait for the
# tests of the other.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
RATE = 8000
PITCHES = {"high": 2000.0, "low": 250.0, "mid": 700.0}


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def esc10() -> Path:
    """ESC-10's folder: RAYSOUND_ESC10, or beside the project."""
    folder = Path(os.environ.get("RAYSOUND_ESC10", ROOT.parent / "shared" / "esc10"))
    if not (folder / "metadata.csv").exists():
        pytest.skip(f"ESC-10 is not at {folder}")
    return folder


def write_tones(folder: Path, clips_per_class: int, noise: float, seed: int) -> Path:
    """Writes 0.5 s tones of three pitches, a folder a class; `noise` is its amplitude."""
    rng = np.random.default_rng(seed)
    time = np.arange(RATE // 2) / RATE
    for label, pitch in PITCHES.items():
        (folder / label).mkdir(parents=True)
        for index in range(clips_per_class):
            tone = 0.3 * np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * time)
            waveform = tone + noise * rng.standard_normal(len(time))
            soundfile.write(folder / label / f"{index:03d}.wav", waveform.clip(-1, 1), RATE)
    return folder


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three corpora of tones: real, good (as real) and bad (drowned in noise)."""
    folder = tmp_path_factory.mktemp("tones")
    return {
        "real": write_tones(folder / "real", 22, 0.01, 0),
        "good": write_tones(folder / "good", 8, 0.01, 1),
        "bad": write_tones(folder / "bad", 8, 3.0, 2),
    }


@pytest.fixture
def tone_config(tones: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    """A config tree over the tones that trains in seconds; tests change it and validate it."""
    return {
        "name": "tones",
        "output": str(tmp_path / "out"),
        "corpora": {
            "real": {"path": str(tones["real"])},
            "generated": {"good": str(tones["good"]), "bad": str(tones["bad"])},
        },
        "features": {
            "clip_length": 0.5, "sample_rate": RATE, "hop_length": 160, "n_fft": 512,
            "n_mels": 24, "f_min": 0, "f_max": RATE / 2,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": 6, "batch_size": 8, "optimizer": {"name": "Adam", "lr": 1e-3}},
        "compute": {"workers": 2, "shard_clips": 16, "use_gpu": False, "precision": "float32"},
    }  # fmt: skip
