import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from raysound.corpora.manifest import read_corpus
from raysound.corpora.split import assign_split
from raysound.distributed.extraction.synthesize import synthesize
from raysound.errors import UserError
from raysound.settings.corpora import SplitSettings
from raysound.settings.features import Loudness
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config


def config_for(output: Path, real: Path, **synthesis: object) -> Config:
    tree = {
        "name": "test",
        "output": str(output),
        "corpora": {"real": {"path": str(real)}},
        "features": {
            "clip_length": 0.5, "sample_rate": 8000, "hop_length": 80, "n_fft": 512,
            "n_mels": 40, "f_max": 4000,
        },
        "synthesis": synthesis,
    }  # fmt: skip
    return from_tree(tree, "test")


def test_four_corpora_are_synthesised_once(tmp_path: Path) -> None:
    formula = {
        "output": str(tmp_path / "made"),
        "clips_per_class": 3,
        "generated_clips_per_class": 2,
        "seconds": 0.3,
        "sample_rate": 8000,
    }
    config = config_for(tmp_path, tmp_path / "made" / "real", formula=formula)

    synthesize(config)

    sizes = {
        role: len(read_corpus(str(tmp_path / "made" / role)))
        for role in ("real", "faithful", "noisy", "confused")
    }
    assert sizes == {"real": 30, "faithful": 20, "noisy": 20, "confused": 20}
    wavs = sorted((tmp_path / "made").rglob("*.wav"))
    assert {soundfile.info(wav).frames for wav in wavs} == {2400}
    assert len({wav.read_bytes() for wav in wavs}) == len(wavs) == 90
    before = [wav.stat().st_mtime_ns for wav in wavs]
    synthesize(config)
    assert [wav.stat().st_mtime_ns for wav in wavs] == before


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "made" / "real").mkdir(parents=True)
    (tmp_path / "made" / "real" / "thesis.txt").write_text("mine")
    config = config_for(tmp_path, tmp_path, formula={"output": str(tmp_path / "made")})

    with pytest.raises(UserError, match="holds other files"):
        synthesize(config)
    assert (tmp_path / "made" / "real" / "thesis.txt").read_text() == "mine"


def test_griffin_lim_resynthesises_each_test_clip(tones: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "griffin-lim"
    config = config_for(
        tmp_path, tones["real"], griffin_lim={"output": str(output), "iterations": 8}
    )

    synthesize(config)

    clips = read_corpus(str(output))
    assert json.loads((output / "synthesis.json").read_text())["finished"]
    real = assign_split(read_corpus(str(tones["real"])), SplitSettings())
    assert len(clips) == real["split"].to_pylist().count("test") > 6
    assert set(clips["label"].to_pylist()) == {"high", "low", "mid"}
    sound, rate = soundfile.read(next(output.glob("mid/*.wav")))
    assert (len(sound), rate) == (4000, 8000)
    pitch = np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound)
    assert 600 < pitch < 800


def test_the_ladder_degrades_clips_step_by_step(tones: dict[str, Path], tmp_path: Path) -> None:
    """They have the level of the original clips, whatever `features.loudness` is."""
    output = tmp_path / "ladder"
    ladder = {"output": str(output), "n_mels": [64, 8], "snr_db": [40, 0], "iterations": 8}
    config = config_for(tmp_path, tones["real"], ladder=ladder)
    features = config.features.model_copy(update={"loudness": Loudness(rms=-60)})
    config = config.model_copy(update={"features": features})

    synthesize(config)

    rungs = ["mel-64", "mel-8", "noise-40dB", "noise-0dB"]
    assert sorted(path.name for path in output.iterdir()) == sorted(rungs)
    real = assign_split(read_corpus(str(tones["real"])), SplitSettings()).to_pylist()
    test = [row for row in real if row["split"] == "test"]
    assert {len(read_corpus(str(output / rung))) for rung in rungs} == {len(test)}

    def distance(rung: str, of: Callable[[np.ndarray], np.ndarray]) -> float:
        """How far the clips are from those that they were made of."""
        gaps = []
        for row in test:
            name = row["clip_id"].replace("/", "-") + ".wav"
            ours, _ = soundfile.read(row["path"])
            theirs, _ = soundfile.read(output / rung / row["label"] / name)
            gaps.append(np.linalg.norm(of(ours) - of(theirs)) / np.linalg.norm(of(ours)))
        return float(np.mean(gaps))

    def spectrum(sound: np.ndarray) -> np.ndarray:
        return np.abs(np.fft.rfft(sound))

    assert distance("mel-8", spectrum) > distance("mel-64", spectrum)
    assert distance("noise-40dB", np.asarray) == pytest.approx(0.01, rel=0.05)
    assert distance("noise-0dB", np.asarray) == pytest.approx(1, rel=0.05)


def test_a_config_without_synthesis_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no synthesis section"):
        synthesize(config_for(tmp_path, tmp_path))
