"""The public pipelines: datasets of log-mels that users build on."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data
import soundfile

import raysound
from raysound.distributed.extraction import datasets
from raysound.distributed.extraction.extract import extract
from raysound.features import parquet
from raysound.settings.loading import from_tree

SETTINGS = raysound.FeatureSettings(
    clip_length=0.5, sample_rate=8000, hop_length=160, n_fft=512, n_mels=24, f_min=0, f_max=4000
)


def by_clip(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {row["clip_id"]: np.asarray(row["log_mel"]) for row in rows}


def halve(waveforms: np.ndarray) -> np.ndarray:
    return waveforms / 2


def test_log_mels_equal_those_of_the_job_and_can_be_mapped(
    tones: dict[str, Path], tmp_path: Path
) -> None:
    config = from_tree(
        {
            "name": "public", "output": str(tmp_path),
            "corpora": {"real": {"path": str(tones["good"])}}, "features": SETTINGS.model_dump(),
        },
        "test",
    )  # fmt: skip
    extract(config)
    folder = parquet.folder(str(tmp_path), "real", SETTINGS)

    made = by_clip(raysound.log_mels(str(tones["good"]), SETTINGS).take_all())
    written = by_clip(raysound.read_features(folder).take_all())
    loudest = (
        raysound.log_mels(str(tones["good"]), SETTINGS)
        .map_batches(lambda batch: {"loudest": batch["log_mel"].max(axis=(1, 2))})
        .max("loudest")
    )

    assert len(made) == 24
    assert made.keys() == written.keys()
    for clip_id, log_mel in made.items():
        assert log_mel.shape == (24, SETTINGS.n_frames)
        np.testing.assert_array_equal(log_mel, written[clip_id])
    assert loudest == max(log_mel.max() for log_mel in made.values())


def test_a_transform_is_applied_before_the_log_mel(tones: dict[str, Path]) -> None:
    plain = by_clip(raysound.log_mels(str(tones["bad"]), SETTINGS).take_all())
    halved = by_clip(raysound.log_mels(str(tones["bad"]), SETTINGS, transform=halve).take_all())

    assert plain.keys() == halved.keys()
    for clip_id, log_mel in plain.items():
        np.testing.assert_allclose(halved[clip_id], log_mel - np.log(4), atol=2e-3)


def test_rejects_are_left_out_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One file is damaged at its head, one at its end, after a first block of windows."""
    settings = SETTINGS.model_copy(update={"clip_length": 0.25})
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 2 * settings.n_mels * settings.n_frames * 4)
    folder = tmp_path / "clips" / "dog"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 10
    soundfile.write(folder / "whole.wav", noise, 8000)
    (folder / "text.wav").write_text("no sound")
    noise[-1] = np.nan
    soundfile.write(folder / "late.wav", noise, 8000, subtype="FLOAT")
    clips = datasets.read_corpus(str(tmp_path / "clips"))

    with caplog.at_level(logging.WARNING):
        blocks = [*datasets.decode(clips, settings)]

    names = [name for block in blocks for name in block["clip_id"].to_pylist()]
    assert names.count("dog/whole.wav") == 4
    assert names.count("dog/late.wav") < 4
    assert "dog/text.wav" not in names
    assert "text.wav rejected: not a sound file" in caplog.text
    assert "late.wav rejected: NaN or infinite samples" in caplog.text


def test_unfinished_features_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run jobs/extract\.py first"):
        raysound.read_features(str(tmp_path))


def test_columns_of_features_can_be_chosen(trained: dict[str, Any]) -> None:
    folder = parquet.folder(trained["config"].output, "real", trained["config"].features)

    rows = raysound.read_features(folder).select_columns(["clip_id", "label"])

    assert isinstance(rows, ray.data.Dataset)
    assert rows.columns() == ["clip_id", "label"]
    assert rows.count() == sum(pq.read_metadata(uri).num_rows for uri in parquet.shard_uris(folder))
