"""Crashing clips, simulated by tests/traps in the PYTHONPATH of the child process."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from raysound.features.probe import find_crashing_clips
from raysound.settings.features import FeatureSettings
from tests.traps.sitecustomize import trapped

SETTINGS = FeatureSettings(
    clip_length=0.25, sample_rate=8000, hop_length=80, n_fft=256, n_mels=20, f_max=4000
)


def clips_of(folder: Path, files: dict[str, bytes]) -> pa.Table:
    """The manifest columns that the probe reads."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    nothing = pa.nulls(len(files), pa.int64())
    paths = [str(folder / name) for name in files]
    return pa.table({"clip_id": [*files], "path": paths, "offset": nothing, "size": nothing})


@pytest.fixture
def wav(tmp_path: Path) -> bytes:
    path = tmp_path / "good.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(2000), 8000)
    return path.read_bytes()


@pytest.fixture
def traps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For child processes only, because this process started without the traps."""
    monkeypatch.syspath_prepend(root / "tests" / "traps")


@pytest.mark.usefixtures("traps")
def test_exactly_the_crashing_clips_are_found(wav: bytes, tmp_path: Path) -> None:
    """A clip that crashes only once is not rejected, and a clip that prints is no problem."""
    files = {
        "chatty.wav": trapped(wav, "print"),
        "unlucky.wav": trapped(wav, "once", tmp_path / "died"),
        "deadly.wav": trapped(wav, "SIGSEGV"),
        "text.wav": b"no sound",
        "good.wav": wav,
        "endless.wav": trapped(wav, "hang"),
    }

    found = find_crashing_clips(clips_of(tmp_path, files), SETTINGS, timeout=2.0)

    assert {clip_id: str(reject) for clip_id, reject in found.items()} == {
        "deadly.wav": "decoding it killed the process (SIGSEGV)",
        "endless.wav": "decoding it took longer than 2 s",
    }
    assert (tmp_path / "died").exists()


def test_without_crashes_no_clip_is_rejected(wav: bytes, tmp_path: Path) -> None:
    """Broken files are rejected later, by extraction, with the reason."""
    files = {"good.wav": wav, "empty.wav": b"", "cut.wav": wav[:-500], "good too.wav": wav}
    clips = clips_of(tmp_path, files)
    (tmp_path / "good too.wav").unlink()

    assert find_crashing_clips(clips, SETTINGS, timeout=60) == {}


def test_a_child_that_fails_to_start_is_an_error(
    wav: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho hello\necho no memory >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)

    with pytest.raises(RuntimeError, match="can't be decoded in a child process: no memory"):
        find_crashing_clips(clips_of(tmp_path, {"good.wav": wav}), SETTINGS, timeout=60)


@pytest.mark.parametrize(
    ("calls", "status"),
    [
        ("watch(0.5); time.sleep(60)", -signal.SIGALRM),
        ("[(watch(2), time.sleep(0.5)) for _ in range(6)]; watch(0)", 0),
        ("watch(0.5); watch(0); time.sleep(1)", 0),
    ],
    ids=["hangs", "continues", "timeout cancelled"],
)
def test_the_timeout_ends_a_hanging_process(calls: str, status: int) -> None:
    code = f"import time; from raysound.features.probe import set_timeout as watch; {calls}"

    done = subprocess.run([sys.executable, "-c", code], timeout=50, check=False)

    assert done.returncode == status
