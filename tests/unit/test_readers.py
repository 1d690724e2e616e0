"""Other programs read shards with the code of docs/outputs.md."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysound.corpora.vocabulary import SCHEMA as LISTED_COLUMNS
from raysound.evaluation.copy_parts import COPIES
from raysound.evaluation.predictions import PREDICTIONS
from raysound.features import parquet
from raysound.features.records import Shard
from raysound.settings.features import FeatureSettings

SETTINGS = FeatureSettings(
    clip_length=0.1, sample_rate=8000, hop_length=160, n_fft=256, n_mels=5, f_max=4000
)
SHAPE = (5, 6)
LABELS = ["cat", "dog", "dog", "cow"]


def lines_of(root: Path, package: str) -> str:
    """The Python code of docs/outputs.md that imports a package."""
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs/outputs.md").read_text(), re.DOTALL)
    found = [block for block in blocks if re.search(rf"^(import|from) {package}\b", block, re.M)]
    # Examples for a single package come first.
    return str(found[0])


@pytest.fixture(scope="module")
def log_mels() -> np.ndarray:
    return np.random.default_rng(0).normal(-8, 4, (len(LABELS), *SHAPE)).astype(np.float32)


@pytest.fixture(params=["float32", "float16"])
def shard(
    request: pytest.FixtureRequest, tmp_path: Path, log_mels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> np.ndarray:  # fmt: skip
    """Writes two shards of two rows at the paths of the examples; returns their log-mels."""
    settings = SETTINGS.model_copy(update={"dtype": request.param})
    for index in range(2):
        rows = slice(2 * index, 2 * index + 2)
        table = pa.Table.from_pylist(
            [
                {
                    "clip_id": f"{label}/{index}.wav", "window": 0, "label": label, "fold": None,
                    "split": "test", "group": None, "duration": 0.1, "sample_rate": 8000,
                }
                for label in LABELS[rows]
            ],
            schema=parquet.schema(settings).remove(8),
        )  # fmt: skip
        with parquet.shard_writer(str(tmp_path / parquet.shard_name(index)), settings) as writer:
            writer.add(table, log_mels[rows])
            writer.finish(Shard("digest", 2, 2, 2, 0.2, writer.statistics))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    return log_mels.astype(request.param)


def run(lines: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(lines, names)
    return names


def test_pyarrow(root: Path, shard: np.ndarray) -> None:
    assert np.array_equal(run(lines_of(root, "pyarrow"))["log_mel"], shard[:2])


def test_polars_and_duckdb(root: Path, shard: np.ndarray) -> None:
    found = run(lines_of(root, "polars"))
    assert np.array_equal(found["log_mel"], shard.reshape(len(LABELS), -1))
    assert sorted(found["per_label"].fetchall()) == [("cat", 1), ("cow", 1), ("dog", 2)]


def test_hugging_face_datasets(root: Path, shard: np.ndarray) -> None:
    """In a separate process, because the package reads its cache folder during its import."""
    lines = lines_of(root, "datasets")
    lines += "print(rows['label'][:], str(log_mel.dtype), log_mel.tolist())"
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{LABELS} float32 {shard[0].tolist()}"


def test_torch(root: Path, shard: np.ndarray) -> None:
    data = run(lines_of(root, "torch"))["data"]
    assert len(data) == len(LABELS)
    for (log_mel, target), expected, label in zip(data, shard, LABELS, strict=True):
        assert np.array_equal(log_mel.numpy(), expected[np.newaxis])
        assert sorted({*LABELS})[target] == label


def test_the_page_has_every_column(root: Path) -> None:
    page = (root / "docs/outputs.md").read_text()
    schemas = (LISTED_COLUMNS, parquet.schema(SETTINGS), PREDICTIONS, COPIES)
    columns = {name for schema in schemas for name in schema.names}
    assert [name for name in sorted(columns) if f"`{name}`" not in page] == []
