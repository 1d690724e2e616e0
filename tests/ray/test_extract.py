import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import torchaudio

from raysound import features
from raysound.config import UserError, from_tree
from raysound.distributed.extract import extract, extract_corpus
from raysound.manifest import read_corpus
from raysound.settings import Config

RATE = 44100
CHINESE = "狗 叫 (1).wav"


def config_for(folder: Path, output: Path, **settings: Any) -> Config:
    tree = {
        "name": "test",
        "output": str(output),
        "corpora": {"real": {"path": str(folder)}},
        "features": {"clip_length": 1.0, **settings},
        "compute": {"shard_clips": 4},
    }
    return from_tree(tree, "test")


@pytest.fixture(scope="module")
def troubles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of one class in which every file is awkward in its own way."""
    folder = tmp_path_factory.mktemp("troubles") / "dog"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sound = (0.1 * rng.standard_normal(RATE)).astype(np.float32)

    def write(name: str, data: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> None:
        soundfile.write(folder / name, data, rate, subtype=subtype)

    write("good.wav", sound)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no sound\n" * 50)
    (folder / "truncated.wav").write_bytes((folder / "good.wav").read_bytes()[:30000])
    write("stereo.wav", np.stack([sound, -0.5 * sound], axis=1))
    write("8bit.wav", sound, subtype="PCM_U8")
    write("24bit.wav", sound, subtype="PCM_24")
    write("nan.wav", np.where(np.arange(RATE) == 7, np.nan, sound), subtype="FLOAT")
    write("96khz.wav", (0.1 * rng.standard_normal(96000)).astype(np.float32), 96000)
    write("one-sample.wav", sound[:1])
    write("no-frames.wav", sound[:0])
    write("silent.wav", np.zeros(RATE, np.float32))
    write("long.wav", np.tile(sound, 3))
    write(CHINESE, sound)
    return folder.parent


EXPECTED_REJECTS = {
    "dog/empty.wav": "the file is empty (0 bytes)",
    "dog/text.wav": "not a sound file that can be decoded",
    "dog/truncated.wav": "cut short: the header says 88200 bytes of sound, 29956 are there",
    "dog/nan.wav": "NaN or infinite samples: 1 of 44100",
    "dog/no-frames.wav": "no samples",
}
EXPECTED_WINDOWS = {
    "dog/good.wav": 1,
    "dog/stereo.wav": 1,
    "dog/8bit.wav": 1,
    "dog/24bit.wav": 1,
    "dog/96khz.wav": 1,
    "dog/one-sample.wav": 1,
    "dog/silent.wav": 1,
    "dog/long.wav": 3,
    f"dog/{CHINESE}": 1,
}


def rows_of(folder: str) -> list[dict[str, Any]]:
    return [
        {**row, "log_mel": log_mel}
        for uri in features.part_uris(folder)
        for table in [pq.read_table(uri)]
        for row, log_mel in zip(
            table.drop_columns("log_mel").to_pylist(),
            features.log_mel_array(table["log_mel"]) if len(table) else [],
            strict=True,
        )
    ]


def test_every_awkward_file_ends_as_a_row_or_as_a_reject_with_its_reason(
    troubles: Path, tmp_path: Path
) -> None:
    config = config_for(troubles, tmp_path)

    folder = extract_corpus("troubles", read_corpus(str(troubles)), config)

    rows = rows_of(folder)
    windows = {clip: sum(row["clip_id"] == clip for row in rows) for clip in EXPECTED_WINDOWS}
    assert windows == EXPECTED_WINDOWS
    assert len(rows) == sum(EXPECTED_WINDOWS.values())
    rejects = pq.read_table(Path(folder) / "rejects.parquet").to_pylist()
    assert {row["clip_id"] for row in rejects} == EXPECTED_REJECTS.keys()
    for row in rejects:
        assert row["reason"].startswith(EXPECTED_REJECTS[row["clip_id"]])
    summary = json.loads((Path(folder) / "summary.json").read_text())
    assert summary["found"] == 14 == summary["written"] + summary["rejected"]


def test_rows_hold_finite_log_mels_equal_to_torchaudio(troubles: Path, tmp_path: Path) -> None:
    config = config_for(troubles, tmp_path)
    folder = extract_corpus("troubles", read_corpus(str(troubles)), config)
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate=RATE, n_fft=1024, n_mels=64, hop_length=441, f_min=0, f_max=22050
    )
    sound, _ = soundfile.read(troubles / "dog" / "stereo.wav", dtype="float32")

    rows = {(row["clip_id"], row["window"]): row for row in rows_of(folder)}

    for row in rows.values():
        assert row["log_mel"].shape == (64, 101)
        assert np.isfinite(row["log_mel"]).all()
    power = mel(torch.from_numpy(sound.mean(axis=1))).numpy()
    expected = np.log(np.maximum(power, 1e-10))
    loud = power > 1e-6 * power.max()
    actual = rows["dog/stereo.wav", 0]["log_mel"]
    np.testing.assert_allclose(actual[loud], expected[loud], atol=1e-4)
    np.testing.assert_allclose(rows["dog/silent.wav", 0]["log_mel"], np.log(1e-10), atol=1e-5)
    assert rows["dog/96khz.wav", 0]["sample_rate"] == 96000
    assert rows["dog/long.wav", 2]["duration"] == pytest.approx(3.0)


def test_a_rerun_makes_only_the_shards_that_changed(troubles: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "dog").symlink_to(troubles / "dog")
    config = config_for(corpus, tmp_path)
    folder = Path(extract_corpus("troubles", read_corpus(str(corpus)), config))

    def stamps() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}

    first = stamps()
    extract_corpus("troubles", read_corpus(str(corpus)), config)
    assert stamps() == first

    manifest = read_corpus(str(corpus))
    changed = manifest.set_column(
        manifest.schema.get_field_index("modified"),
        "modified",
        [[*manifest["modified"].to_pylist()[:-1], 1]],
    )
    extract_corpus("troubles", changed, config)
    again = stamps()
    assert [name for name in first if again[name] != first[name]] == [max(first)]
    assert len(first) == 4


def test_shards_of_a_corpus_that_shrank_are_removed(troubles: Path, tmp_path: Path) -> None:
    config = config_for(troubles, tmp_path)
    manifest = read_corpus(str(troubles))
    folder = extract_corpus("troubles", manifest, config)
    assert len(features.part_uris(folder)) == 4

    extract_corpus("troubles", manifest.slice(0, 5), config)

    assert len(features.part_uris(folder)) == 2
    assert len({row["clip_id"] for row in rows_of(folder)}) <= 5


def test_other_settings_have_another_folder(troubles: Path, tmp_path: Path) -> None:
    manifest = read_corpus(str(troubles)).slice(0, 4)

    wide = extract_corpus("troubles", manifest, config_for(troubles, tmp_path, n_mels=32))
    half = extract_corpus("troubles", manifest, config_for(troubles, tmp_path, dtype="float16"))

    assert wide != half
    assert pq.read_schema(features.part_uris(wide)[0]).field("log_mel").type.shape == [32, 101]
    assert str(pq.read_schema(features.part_uris(half)[0]).field("log_mel").type.value_type) == (
        "halffloat"
    )


def test_a_corpus_without_one_usable_clip_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "dog").mkdir(parents=True)
    (tmp_path / "corpus" / "dog" / "a.wav").write_text("no sound")
    config = config_for(tmp_path / "corpus", tmp_path)

    with pytest.raises(UserError, match="none of the 1 clips can be used"):
        extract(config)
    assert not list(tmp_path.rglob("summary.json"))
