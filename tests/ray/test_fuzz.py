"""A corpus of damaged files goes through the whole extraction."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysound.distributed.extraction import extract
from raysound.distributed.extraction import pipeline as extraction_pipeline
from raysound.features import parquet
from raysound.settings.loading import from_tree
from tests.fuzzer import damaged_files, good_files

DAMAGED = 300


def no_sounds(rng: random.Random) -> dict[str, bytes]:
    """What bears a sound's name and is none."""
    return {
        "empty.wav": b"",
        "zeros.wav": bytes(5000),
        "text.wav": b"Not found\n" * 300,
        "page.mp3": b"<!DOCTYPE html><html><body>404</body></html>",
        "random.wav": rng.randbytes(3000),
        "random.mp3": rng.randbytes(3000),
        "random.ogg": b"OggS" + rng.randbytes(3000),
        "random.flac": b"fLaC" + rng.randbytes(3000),
        "archive.wav": b"PK\x03\x04" + rng.randbytes(3000),
        "header-alone.wav": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    }


def wrong_endings() -> dict[str, bytes]:
    """Good files, each with another's ending: they are what they are."""
    names = [*good_files()]
    return {
        f"wrongly-named-{index}{Path(name).suffix}": data
        for index, (name, data) in enumerate(zip(names[::-1], good_files().values(), strict=True))
    }


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds, listed in a table: so are those that no folder listing would show."""
    folder = tmp_path_factory.mktemp("damaged")
    files = {
        **{f"good-{name}": data for name, data in good_files().items()},
        **wrong_endings(),
        **no_sounds(random.Random(0)),
        **dict(damaged_files(DAMAGED, seed=0)),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.wav").mkdir()
    (folder / "nowhere.wav").symlink_to(folder / "gone.wav")
    # Whoever opens it to read waits for somebody who writes.
    os.mkfifo(folder / "pipe.wav")
    names = [*files, "folder.wav", "nowhere.wav", "pipe.wav", "missing.wav"]
    lines = [f"{name},{'odd' if index % 2 else 'even'}" for index, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    return folder


@pytest.mark.timeout(300)
def test_every_damaged_file_gives_finite_rows_or_a_reject_with_its_reason(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file stops the run or is lost."""
    monkeypatch.setattr(extraction_pipeline, "TIMEOUT", 10.0)
    tree: dict[str, Any] = {
        "name": "test",
        "output": str(tmp_path),
        "corpora": {"real": {"path": str(damaged)}, "generated": {"damaged": str(damaged)}},
        "features": {
            "clip_length": 0.25, "sample_rate": 8000, "hop_length": 80, "n_fft": 256,
            "n_mels": 20, "f_max": 4000,
        },
        "compute": {"shard_clips": 32},
    }  # fmt: skip

    folder = extract.extract_corpus("damaged", from_tree(tree, "test"))

    listed = [line.split(",")[0] for line in (damaged / "metadata.csv").read_text().split()[1:]]
    rejects = {
        row["clip_id"]: row["reason"]
        for row in pq.read_table(Path(folder) / "rejects.parquet").to_pylist()
    }
    windows: Counter[str] = Counter()
    for uri in parquet.shard_uris(folder):
        table = pq.read_table(uri)
        windows.update(zip(table["clip_id"].to_pylist(), table["window"].to_pylist(), strict=True))
        assert np.isfinite(parquet.tensor_array(table["log_mel"])).all()
        assert pq.read_metadata(uri).num_rows == len(table)
    assert len(listed) > 330
    assert set(windows.values()) == {1}
    written = {clip_id for clip_id, _ in windows}
    assert written | rejects.keys() == {*listed}
    assert not written & rejects.keys()
    for clip_id, reason in rejects.items():
        assert reason.isprintable(), clip_id
        assert 9 < len(reason) < 200, f"{clip_id}: {reason}"
        assert "<" not in reason, f"{clip_id}: {reason}"
    good = {name for name in listed if name.startswith(("good-", "wrongly-named-"))}
    assert len(good) == 44
    assert good < written
    assert {*no_sounds(random.Random(0))} < rejects.keys()
    assert rejects["pipe.wav"]
    assert 100 < len(rejects) < len(listed) - 100
