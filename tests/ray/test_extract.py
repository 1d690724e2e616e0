import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import torchaudio

import raysound
from raysound.corpora.manifest_parts import read_manifest, shard_clips
from raysound.distributed.extraction.extract import ExtractionProgress, extract, extract_corpus
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.pipeline import run_all
from raysound.distributed.training.runs import run_folder
from raysound.errors import UserError
from raysound.features import parquet
from raysound.features.extraction import extract_shard
from raysound.features.records import MelStatistics
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config

RATE = 44100
CHINESE = "狗 叫 (1).wav"
SMALL = {
    "clip_length": 0.25, "sample_rate": 8000, "hop_length": 80, "n_fft": 256, "n_mels": 20,
    "f_max": 4000,
}  # fmt: skip


def config_for(folder: Path, output: Path, **settings: Any) -> Config:
    """The same corpus as the real one and as a generated one, `made`, which has no split."""
    tree = {
        "name": "test",
        "output": str(output / "out"),
        "corpora": {"real": {"path": str(folder)}, "generated": {"made": str(folder)}},
        "features": {"clip_length": 1.0, **settings},
        "compute": {"shard_clips": 4},
    }
    return from_tree(tree, "test")


def write_noise(wav: Path, seed: int) -> None:
    wav.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(wav, 0.1 * np.random.default_rng(seed).standard_normal(2000), 8000)


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    """Twelve clips: three shards of four."""
    for index in range(12):
        write_noise(tmp_path / "corpus" / "dog" / f"{index}.wav", index)
    return tmp_path / "corpus"


def stamps(folder: str, pattern: str = "part-*") -> dict[str, int]:
    """When each file was written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(Path(folder).glob(pattern))}


def shard_of(folder: str, clip_id: str) -> str:
    """The file that holds a clip."""
    shards = {row["clip_id"]: row["shard"] for row in read_manifest(folder).to_pylist()}
    return parquet.shard_name(shards[clip_id])


def summary_of(folder: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text())
    return summary


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
    "dog/truncated.wav": "truncated: the header states 88200 bytes of sound, the file has 29956",
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
        for uri in parquet.shard_uris(folder)
        for table in [pq.read_table(uri)]
        for row, log_mel in zip(
            table.drop_columns("log_mel").to_pylist(),
            parquet.tensor_array(table["log_mel"]) if len(table) else [],
            strict=True,
        )
    ]


def test_every_awkward_file_ends_as_a_row_or_as_a_reject_with_its_reason(
    troubles: Path, tmp_path: Path
) -> None:
    config = config_for(troubles, tmp_path)

    folder = extract_corpus("real", config)

    rows = rows_of(folder)
    windows = {clip: sum(row["clip_id"] == clip for row in rows) for clip in EXPECTED_WINDOWS}
    assert windows == EXPECTED_WINDOWS
    assert len(rows) == sum(EXPECTED_WINDOWS.values())
    rejects = pq.read_table(Path(folder) / "rejects.parquet").to_pylist()
    assert {row["clip_id"] for row in rejects} == EXPECTED_REJECTS.keys()
    for row in rejects:
        assert row["reason"].startswith(EXPECTED_REJECTS[row["clip_id"]])
    summary = summary_of(folder)
    assert summary["found"] == 14 == summary["written"] + summary["rejected"]
    assert (summary["written"], summary["windows"], summary["shards"]) == (9, 11, 4)
    assert summary["hours"] == pytest.approx((7 + 3 + 1 / RATE) / 3600)


def test_the_summary_holds_mean_and_variance_of_every_band(noises: Path, tmp_path: Path) -> None:
    """They are computed over all frames of all rows."""
    folder = extract_corpus("real", config_for(noises, tmp_path, **SMALL))

    log_mels = np.stack([row["log_mel"] for row in rows_of(folder)])
    summary = summary_of(folder)

    assert log_mels.shape == (12, 20, 26)
    mean, variance = log_mels.mean((0, 2), np.float64), log_mels.var((0, 2), np.float64)
    np.testing.assert_allclose(summary["mel_mean"], mean, rtol=1e-9)
    np.testing.assert_allclose(summary["mel_variance"], variance, rtol=1e-9)
    assert np.ptp(mean) > 0.1


def test_rows_hold_finite_log_mels_equal_to_torchaudio(troubles: Path, tmp_path: Path) -> None:
    config = config_for(troubles, tmp_path)
    folder = extract_corpus("real", config)
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


def test_a_finished_corpus_is_not_extracted_again(
    noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("real", config)
    before = stamps(folder, "**/*")
    assert {"_index.json", "summary.json", "rejects.parquet"} < before.keys()

    assert extract_corpus("real", config) == folder

    assert stamps(folder, "**/*") == before
    assert caplog.messages[-1] == "real: 12 clips are extracted already"


def test_loudness_logs_counts_of_peaks_and_quiet_clips(
    noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The public pipeline gives the same log-mels, which do not depend on the level of a clip."""
    caplog.set_level("INFO")
    noise, _ = soundfile.read(noises / "dog" / "0.wav")
    soundfile.write(noises / "dog" / "0.wav", noise / 10, 8000, subtype="FLOAT")
    soundfile.write(noises / "dog" / "1.wav", 1e-5 * noise, 8000, subtype="FLOAT")
    config = config_for(noises, tmp_path, **SMALL, loudness={"rms": -3})

    folder = extract_corpus("real", config)

    summary = json.loads((Path(folder) / "summary.json").read_text())
    assert summary["loudness"] == {
        "source_above_full_scale": 0, "gained_above_full_scale": 11, "below_floor": 1,
    }  # fmt: skip
    assert caplog.messages[-1] == (
        "real: loudness -3 dBFS: of 12 clips, 0 exceed full scale before the gain, 11 after it "
        "(not clipped); 1 are below -70 dBFS and keep their level"
    )
    written = {row["clip_id"]: row["log_mel"] for row in raysound.read_features(folder).take_all()}
    made = raysound.log_mels(str(noises), config.features).take_all()
    assert {row["clip_id"] for row in made} == written.keys()
    for row in made:
        np.testing.assert_array_equal(row["log_mel"], written[row["clip_id"]])
        assert (row["gain_db"] is None) == (row["clip_id"] == "dog/1.wav")


def test_a_finished_folder_of_an_older_version_is_kept(
    noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its manifest is one file, and its shards have five-digit names."""
    caplog.set_level("INFO")
    config = config_for(noises, tmp_path, **SMALL)
    folder = Path(extract_corpus("real", config))
    manifest = read_manifest(str(folder))
    shutil.rmtree(folder / "manifest")
    pq.write_table(manifest, folder / "manifest.parquet")
    for part in folder.glob("part-*.parquet"):
        part.rename(folder / f"part-{int(part.stem[5:]):05d}.parquet")
    before = stamps(folder, "**/*")

    extract_corpus("real", config)

    assert stamps(folder, "**/*") == before
    assert caplog.messages[-1] == "real: 12 clips are extracted already"
    assert finished_features("real", config) == str(folder)


def test_clips_added_to_a_folder_of_an_older_version_keep_its_shards(
    noises: Path, tmp_path: Path
) -> None:
    config = config_for(noises, tmp_path, **SMALL)
    folder = Path(extract_corpus("made", config))
    manifest = read_manifest(str(folder))
    shutil.rmtree(folder / "manifest")
    pq.write_table(manifest, folder / "manifest.parquet")
    before = stamps(str(folder))
    write_noise(noises / "cat" / "new.wav", 100)

    extract_corpus("made", config)

    assert stamps(str(folder)).keys() - before.keys() == {"part-00000003.parquet"}
    assert before.items() < stamps(str(folder)).items()
    assert not (folder / "manifest.parquet").exists()
    assert len(read_manifest(str(folder))) == 13


def test_added_clips_go_to_new_shards(noises: Path, tmp_path: Path) -> None:
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("made", config)
    before = stamps(folder)
    for index in range(5):
        write_noise(noises / "cat" / f"{index}.wav", 100 + index)

    extract_corpus("made", config)

    after = stamps(folder)
    assert len(before) == 3
    assert before.items() < after.items()
    assert after.keys() - before.keys() == {"part-00000003.parquet", "part-00000004.parquet"}
    assert len({row["clip_id"] for row in rows_of(folder)}) == 17
    assert summary_of(folder)["written"] == 17


@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_only_the_shard_of_a_changed_clip_is_written_again(
    noises: Path, tmp_path: Path, what: str
) -> None:
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("made", config)
    before, rows = stamps(folder), {row["clip_id"]: row for row in rows_of(folder)}

    if what == "replaced":
        write_noise(noises / "dog" / "7.wav", 77)
    else:
        (noises / "dog" / "7.wav").unlink()
    changed = shard_of(folder, "dog/7.wav")
    extract_corpus("made", config)

    after = stamps(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == [changed]
    now = {row["clip_id"]: row for row in rows_of(folder)}
    assert rows.keys() - now.keys() == ({"dog/7.wav"} if what == "removed" else set())
    for clip_id, row in now.items():
        same = np.array_equal(row["log_mel"], rows[clip_id]["log_mel"])
        assert same == (clip_id != "dog/7.wav")


def test_a_shard_that_lost_all_its_clips_is_removed(noises: Path, tmp_path: Path) -> None:
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("made", config)
    before = stamps(folder)
    for row in read_manifest(folder).to_pylist():
        if row["shard"] == 1:
            (noises / row["clip_id"]).unlink()

    extract_corpus("made", config)

    del before["part-00000001.parquet"]
    assert stamps(folder) == before
    assert summary_of(folder)["shards"] == 2


def test_a_corpus_that_shrank_is_sharded_again(noises: Path, tmp_path: Path) -> None:
    """Otherwise a few clips would be spread over many files."""
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("made", config)
    manifest = read_manifest(folder).to_pylist()
    for row in manifest:
        if sum(other["shard"] == row["shard"] for other in manifest[: manifest.index(row)]):
            (noises / row["clip_id"]).unlink()
    assert len(list(noises.rglob("*.wav"))) == 3

    extract_corpus("made", config)

    assert stamps(folder).keys() == {"part-00000000.parquet"}
    assert len(rows_of(folder)) == 3 == summary_of(folder)["found"]


@pytest.mark.parametrize("harm", ["deleted", "emptied", "cut"])
def test_a_damaged_shard_is_written_again(noises: Path, tmp_path: Path, harm: str) -> None:
    """For example by a machine that went down while writing."""
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("made", config)
    part = Path(folder) / "part-00000001.parquet"
    whole, before = part.read_bytes(), stamps(folder)
    if harm == "deleted":
        part.unlink()
    else:
        part.write_bytes(whole[: len(whole) // 2 if harm == "cut" else 0])
        (Path(folder) / "summary.json").unlink()

    extract_corpus("made", config)

    after = stamps(folder)
    assert [name for name in before if after[name] != before[name]] == [part.name]
    assert part.read_bytes() == whole


def test_an_unreadable_clip_is_tried_again_in_the_next_run(noises: Path, tmp_path: Path) -> None:
    """The cause may be the network. A file that is not a sound stays a reject."""
    (noises / "text.wav").write_text("no sound")
    names = [f"dog/{index}.wav" for index in range(12)]
    table = "".join(f"{name},dog\n" for name in [*names, "text.wav", "gone.wav"])
    (noises / "metadata.csv").write_text("file_name,label\n" + table)
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("made", config)
    assert (summary_of(folder)["rejected"], summary_of(folder)["unreadable"]) == (2, 1)
    before = stamps(folder)

    extract_corpus("made", config)

    after = stamps(folder)
    again = [name for name in before if after[name] != before[name]]
    assert again == [shard_of(folder, "gone.wav")]
    write_noise(noises / "gone.wav", 0)
    extract_corpus("made", config)
    assert (summary_of(folder)["rejected"], summary_of(folder)["unreadable"]) == (1, 0)


def test_a_partial_extraction_is_not_used_as_a_corpus(noises: Path, tmp_path: Path) -> None:
    config = config_for(noises, tmp_path, **SMALL)
    extract_corpus("made", config)
    assert finished_features("made", config)
    for wav in noises.rglob("*.wav"):
        wav.write_text("no sound any more")

    with pytest.raises(UserError, match="none of the 12 clips can be used"):
        extract_corpus("made", config)

    with pytest.raises(UserError, match=r"no finished features of made: run jobs/extract\.py"):
        finished_features("made", config)


def test_a_shard_depends_only_on_its_clips(noises: Path, tmp_path: Path) -> None:
    """It does not depend on the process, nor on earlier shards of that process."""
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("made", config)

    for index in (2, 0, 1, 0):
        clips = shard_clips(folder, "test", index)
        extract_shard(str(tmp_path / parquet.shard_name(index)), clips, config.features)

    for uri in parquet.shard_uris(folder):
        assert (tmp_path / Path(uri).name).read_bytes() == Path(uri).read_bytes()


def test_the_record_of_a_shard_holds_its_statistics(noises: Path, tmp_path: Path) -> None:
    folder = extract_corpus("made", config_for(noises, tmp_path, **SMALL))

    for uri in parquet.shard_uris(folder):
        shard = parquet.read_record(uri)
        log_mels = parquet.tensor_array(pq.read_table(uri)["log_mel"])
        assert shard is not None
        assert (shard.found, shard.written, shard.windows) == (4, 4, 4)
        np.testing.assert_array_equal(shard.statistics.mean, MelStatistics.of(log_mels).mean)


def test_progress_and_rejects_are_logged(
    troubles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    extract_corpus("real", config_for(troubles, tmp_path))

    progress, rejected = caplog.messages
    assert re.fullmatch(
        r"real: 14 of 14 clips, \d+ clips/s, 0\.00 h of audio, 5 rejected", progress
    )
    assert re.fullmatch(
        r"real: 5 clips rejected \((1 × [^;]+; ){2}1 × [^;]+\); all of them with reasons: "
        r"/.+/real-\w+/rejects\.parquet", rejected
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "rate", "left"), [(0, 0.0, ""), (0, 2.0, ", 6 s left"), (12, 2.0, "")]
)
def test_the_remaining_time_is_logged_once_there_is_a_rate(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, found: int, rate: float, left: str
) -> None:
    progress = ExtractionProgress(str(tmp_path), "real", {"clips": 12, "shards": {}}, "test")
    progress.add(found, 0, 0.0)
    with caplog.at_level("INFO"):
        progress.show(rate)
    (line,) = caplog.messages
    assert line.startswith(f"real: {found} of 12 clips, {rate:.0f} clips/s, ")
    assert line.endswith(f"0 rejected{left}")


def test_a_replaced_recording_needs_another_classifier(noises: Path, tmp_path: Path) -> None:
    config = config_for(noises, tmp_path, **SMALL)
    folder = extract_corpus("real", config)
    first = run_folder(config, folder)
    assert run_folder(config, extract_corpus("real", config)) == first

    write_noise(noises / "dog" / "3.wav", 33)

    assert extract_corpus("real", config) == folder
    assert run_folder(config, folder) != first


def test_other_settings_have_another_folder(troubles: Path, tmp_path: Path) -> None:
    wide = extract_corpus("real", config_for(troubles, tmp_path, n_mels=32))
    half = extract_corpus("real", config_for(troubles, tmp_path, dtype="float16"))

    assert wide != half
    assert pq.read_schema(parquet.shard_uris(wide)[0]).field("log_mel").type.shape == [32, 101]
    assert str(pq.read_schema(parquet.shard_uris(half)[0]).field("log_mel").type.value_type) == (
        "halffloat"
    )


def test_a_corpus_without_a_usable_clip_is_a_user_error(tmp_path: Path) -> None:
    for label in ("dog", "cat"):
        (tmp_path / "corpus" / label).mkdir(parents=True)
        (tmp_path / "corpus" / label / "a.wav").write_text("no sound")
    config = config_for(tmp_path / "corpus", tmp_path)

    with pytest.raises(UserError, match="none of the 2 clips can be used"):
        extract(config)
    assert not list(tmp_path.rglob("summary.json"))


def test_errors_of_a_corpus_are_reported_before_decoding(
    noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The error comes after the warnings of the listing, which often explain it."""
    (noises / "dog" / "x.m4a").write_bytes(b"abc")
    config = config_for(noises, tmp_path, **SMALL)

    with pytest.raises(UserError, match="the corpus real has a single class, 'dog'"):
        extract(config)
    for index in range(4):
        write_noise(noises / "cat" / f"{index}.wav", index)
    rows = ["dog/0.wav,dog,train,tape", "cat/0.wav,cat,test,tape"]
    (noises / "metadata.csv").write_text("\n".join(["file_name,label,split,group", *rows]))
    with pytest.raises(UserError, match="the clips of group 'tape' are not all in test"):
        extract(config)
    (noises / "metadata.csv").write_text("file_name,label\ndog/0.wav,dog\ncat/0.wav,cat\n")
    with pytest.raises(UserError, match="no validation clip among the 2 real clips"):
        run_all(config)

    assert any("(1 .m4a; for example 'dog/x.m4a')" in note for note in caplog.messages)
    assert not [*tmp_path.glob("out/features/*/part-*"), *tmp_path.rglob("summary.json")]

    folders = extract(config)
    assert any(note.startswith("no validation clip among") for note in caplog.messages)
    assert summary_of(parquet.folder(config.output, "real", config.features))["written"] == 2
    out = str(tmp_path / "out")
    assert folders == {
        name: parquet.folder(out, name, config.features) for name in ("real", "made")
    }
