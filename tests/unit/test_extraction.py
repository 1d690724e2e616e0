import io
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram

from raysound.audio.decode import Reject, Unreadable
from raysound.corpora.manifest import read_corpus
from raysound.corpora.vocabulary import SCHEMA
from raysound.features import extraction, parquet
from raysound.features.extraction import (
    add_log_mels,
    extract_shard,
    read_windows,
    shard_digest,
    write_shard,
)
from raysound.features.records import Shard
from raysound.settings.features import FeatureSettings

RATE = 8000
SETTINGS = FeatureSettings(
    clip_length=0.25, sample_rate=RATE, hop_length=80, n_fft=256, n_mels=20, f_max=4000
)
SHAPE = (20, 26)
WINDOW_BYTES = 20 * 26 * 4


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Each test creates its own buffers."""
    extraction._decoder.cache_clear()
    extraction._log_mel.cache_clear()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns a function that sets the number of windows per table and row group."""

    def set_room(windows: int) -> None:
        monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", windows * WINDOW_BYTES)
        monkeypatch.setattr(extraction, "BLOCK_BYTES", windows * SETTINGS.clip_samples * 2)

    return set_room


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))


def save(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def manifest(*paths: Path) -> pa.Table:
    """Manifest rows for the files, in this order."""
    rows = [
        {
            "clip_id": path.name,
            "path": str(path),
            "label": f"label of {path.name}",
            "fold": str(row % 3),
            "split": "train" if row % 2 else None,
            "group": f"group {row // 2}",
            "size": path.stat().st_size if path.exists() else -1,
            "modified": row,
            "offset": None,
        }
        for row, path in enumerate(paths)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def extract(
    folder: Path, clips: pa.Table, name: str = "part.parquet", **options
) -> SimpleNamespace:
    """Extracts a shard; returns rows without tensors, tensors, row groups, record and bytes."""
    path = folder / "out" / name
    wanted = options.pop("settings", SETTINGS)
    record = extract_shard(str(path), clips, wanted, **options)
    table = pq.read_table(path)
    metadata = pq.read_metadata(path)
    there = parquet.read_record(str(path))
    assert there is not None
    assert there.to_json() == record.to_json()
    assert record.found == len(clips) == record.written + len(record.rejects)
    assert record.windows == len(table) == record.statistics.count / wanted.n_frames
    assert [file.name for file in (folder / "out").glob(f"{name}*")] == [name]
    return SimpleNamespace(
        rows=table.drop_columns("log_mel").to_pylist(),
        log_mels=parquet.tensor_array(table["log_mel"]),
        groups=[metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)],
        record=record,
        data=path.read_bytes(),
    )


def reasons(record: Shard) -> dict[str, str]:
    return {row["clip_id"]: row["reason"] for row in record.rejects}


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """Clips of 1, 3, 1, 1 and 5 windows; the third clip has another sample rate."""
    return [
        save(tmp_path / "exact.wav", noise(0.25, 1)),
        save(tmp_path / "long.wav", noise(0.6, 2)),
        save(tmp_path / "44100.wav", noise(0.2, 3, 44100), 44100),
        save(tmp_path / "short.flac", noise(0.1, 4)),
        save(tmp_path / "longest.wav", noise(1.25, 5)),
    ]


WINDOWS = {"exact.wav": 1, "long.wav": 3, "44100.wav": 1, "short.flac": 1, "longest.wav": 5}
SECONDS = {"exact.wav": 0.25, "long.wav": 0.6, "44100.wav": 0.2, "short.flac": 0.1}
SECONDS["longest.wav"] = 1.25


# Rows


@pytest.mark.parametrize("together", [1, 2, 3, 4, 11, 12, 1000])
def test_every_window_of_every_clip_is_a_row(tmp_path, sounds, room, together):
    """In order and with the columns of the manifest, for any row group size."""
    room(together)
    clips = manifest(*sounds)
    shard = extract(tmp_path, clips)
    expected = [
        {
            **{name: row[name] for name in ("clip_id", "label", "fold", "split", "group")},
            "window": window,
            "duration": SECONDS[row["clip_id"]],
            "sample_rate": 44100 if row["clip_id"] == "44100.wav" else RATE,
        }
        for row in clips.to_pylist()
        for window in range(WINDOWS[row["clip_id"]])
    ]
    assert shard.rows == expected
    assert shard.groups == [together] * (11 // together) + [11 % together] * (11 % together > 0)
    assert shard.log_mels.shape == (11, *SHAPE)
    assert len({log_mel.tobytes() for log_mel in shard.log_mels}) == 11
    record = shard.record
    assert (record.written, record.windows, record.unreadable) == (5, 11, 0)
    assert record.seconds == pytest.approx(sum(SECONDS.values()))
    assert record.rejects == []
    assert record.digest == shard_digest(clips, SETTINGS)


@pytest.mark.parametrize("together", [1, 3, 1000])
def test_the_record_has_mean_and_variance_of_all_rows(tmp_path, sounds, room, together):
    room(together)
    shard = extract(tmp_path, manifest(*sounds))
    log_mels = shard.log_mels.astype(np.float64)
    statistics = shard.record.statistics
    np.testing.assert_allclose(statistics.mean, log_mels.mean((0, 2)), rtol=1e-10)
    np.testing.assert_allclose(statistics.variance, log_mels.var((0, 2)), rtol=1e-10)


def test_log_mels_do_not_depend_on_row_groups(tmp_path, sounds, room):
    room(1000)
    whole = extract(tmp_path, manifest(*sounds)).log_mels
    for together in (1, 2, 5):
        room(together)
        assert (extract(tmp_path, manifest(*sounds)).log_mels == whole).all()


@pytest.mark.parametrize(("long_clips", "start"), [("center", 1400), ("start", 0)])
def test_start_and_center_keep_one_window_of_a_long_clip(tmp_path, sounds, long_clips, start):
    """The duration is that of the complete file."""
    settings = SETTINGS.model_copy(update={"long_clips": long_clips})
    shard = extract(tmp_path, manifest(sounds[1]), settings=settings)
    assert [(row["window"], row["duration"]) for row in shard.rows] == [(0, 0.6)]
    whole, _ = soundfile.read(sounds[1], dtype="float32")
    same = save(tmp_path / "same.wav", whole[start : start + 2000])
    assert (shard.log_mels == extract(tmp_path, manifest(same)).log_mels).all()


# Log-mels

# Subtype, channels, sample rate.
KINDS = {
    "mono": ("PCM_16", 1, RATE),
    "stereo": ("PCM_16", 2, RATE),
    "six channels": ("PCM_16", 6, RATE),
    "24 bit": ("PCM_24", 1, RATE),
    "24 bit stereo": ("PCM_24", 2, RATE),
    "float": ("FLOAT", 1, RATE),
    "float stereo": ("FLOAT", 2, RATE),
    "double": ("DOUBLE", 1, RATE),
    "from 44100 Hz": ("PCM_16", 1, 44100),
    "from 44100 Hz stereo": ("PCM_16", 2, 44100),
    "from 48000 Hz float": ("FLOAT", 1, 48000),
    "from 11025 Hz": ("PCM_24", 1, 11025),
    "from 6000 Hz": ("PCM_16", 1, 6000),
}


def by_torchaudio(path: Path, windows: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Log-mels of a file resampled as a whole, and a mask of values above rounding errors."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = resample(torch.from_numpy(samples.mean(axis=1)), rate, RATE)
    pieces = torch.stack([waveform[window] for window in windows])
    power = MelSpectrogram(sample_rate=RATE, n_fft=256, hop_length=80, n_mels=20)(pieces)
    audible = power >= 1e-6 * power.amax(dim=(1, 2), keepdim=True)
    return power.clamp(min=1e-10).log().numpy(), audible.numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 1e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_equals_torchaudio(tmp_path, room, monkeypatch, kind, dtype, tolerance):
    """The file is read in many blocks, and the shard has two row groups."""
    room(2)
    monkeypatch.setattr("raysound.corpora.formats.samples.BLOCK", 700)
    subtype, channels, rate = KINDS[kind]
    rng = np.random.default_rng(len(kind))
    samples = 0.1 * rng.standard_normal((round(0.6 * rate), channels))
    path = save(tmp_path / "sound.wav", samples, rate, subtype)
    settings = SETTINGS.model_copy(update={"dtype": dtype})
    shard = extract(tmp_path, manifest(path), settings=settings)
    starts = [0, 1400, 2800]
    expected, audible = by_torchaudio(path, [slice(start, start + 2000) for start in starts])
    assert shard.groups == [2, 1]
    assert shard.log_mels.dtype == dtype
    assert audible.mean() > 0.6
    difference = np.abs(shard.log_mels.astype(np.float64) - expected)
    assert difference[audible].max() < tolerance


def test_silence_yields_the_floor(tmp_path):
    path = save(tmp_path / "silence.wav", np.zeros(2000))
    log_mels = extract(tmp_path, manifest(path)).log_mels
    assert np.allclose(log_mels, np.log(1e-10), atol=1e-5)


# Rejects


def broken_at_the_end(path: Path, seconds: float) -> Path:
    """Writes a truncated FLAC, or a wav whose last sample is NaN."""
    if path.suffix == ".flac":
        save(path, noise(seconds, 6))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 9 // 10])
    else:
        save(path, np.append(noise(seconds, 6), np.nan), subtype="FLOAT")
    return path


LATE_REASON = {".flac": "not a sound file that can be decoded: ", ".wav": "NaN or infinite samples"}


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
@pytest.mark.parametrize("place", [0, 1, 3, 5])
@pytest.mark.parametrize("together", [1, 2, 3, 7, 1000])
def test_a_clip_that_is_broken_at_its_end_has_no_windows(
    tmp_path, sounds, room, monkeypatch, suffix, place, together
):
    """Even if its first windows are in an earlier table; all other clips are complete."""
    monkeypatch.setattr("raysound.corpora.formats.samples.BLOCK", 1000)
    room(together)
    good = extract(tmp_path, manifest(*sounds), "good.parquet")
    broken = broken_at_the_end(tmp_path / f"broken{suffix}", 2.5)
    paths = [*sounds[:place], broken, *sounds[place:]]

    shard = extract(tmp_path, manifest(*paths))

    assert shard.record.rejects == [
        {
            "clip_id": broken.name,
            "path": str(broken),
            "label": f"label of {broken.name}",
            "reason": shard.record.rejects[0]["reason"],
        }
    ]
    assert shard.record.rejects[0]["reason"].startswith(LATE_REASON[suffix])
    assert [row["clip_id"] for row in shard.rows] == [row["clip_id"] for row in good.rows]
    assert (shard.log_mels == good.log_mels).all()
    assert shard.groups == good.groups
    assert shard.record.seconds == good.record.seconds
    assert shard.record.statistics.count == good.record.statistics.count
    assert (shard.record.statistics.mean == good.record.statistics.mean).all()


def test_several_clips_may_be_broken_at_their_end(tmp_path, sounds, room, monkeypatch):
    """All other clips are complete."""
    monkeypatch.setattr("raysound.corpora.formats.samples.BLOCK", 1000)
    room(3)
    good = extract(tmp_path, manifest(*sounds), "good.parquet")
    (tmp_path / "text.wav").write_text("no sound")
    paths = [
        broken_at_the_end(tmp_path / "a.wav", 2.5), tmp_path / "gone.wav", *sounds[:2],
        broken_at_the_end(tmp_path / "b.flac", 2.5), tmp_path / "text.wav", *sounds[2:],
        broken_at_the_end(tmp_path / "c.wav", 2.5),
    ]  # fmt: skip
    known = {"stranger.wav": Reject("who?")}

    shard = extract(tmp_path, manifest(*paths), known=known)

    assert [*known] == ["stranger.wav"]
    assert [*reasons(shard.record)] == ["a.wav", "gone.wav", "b.flac", "text.wav", "c.wav"]
    assert shard.record.unreadable == 1
    assert (shard.log_mels == good.log_mels).all()
    assert [row["clip_id"] for row in shard.rows] == [row["clip_id"] for row in good.rows]


def test_a_clip_in_a_tar_file_may_be_broken_at_its_end(tmp_path, sounds, room, monkeypatch):
    monkeypatch.setattr("raysound.corpora.formats.samples.BLOCK", 1000)
    room(2)
    good = extract(tmp_path, manifest(*sounds), "good.parquet")
    broken = broken_at_the_end(tmp_path / "broken.wav", 2.5)
    (tmp_path / "corpus").mkdir()
    with tarfile.open(tmp_path / "corpus" / "all.tar", "w") as tar:
        for path in [*sounds[:3], broken, *sounds[3:]]:
            tar.add(path, f"dog/{path.name}")

    shard = extract(tmp_path, read_corpus(str(tmp_path / "corpus")))

    assert [*reasons(shard.record)] == ["all.tar/dog/broken.wav"]
    assert (shard.log_mels == good.log_mels).all()


def test_rejects_have_clip_and_reason(tmp_path, sounds):
    """Found is written plus rejected; unreadable files are also counted separately."""
    for name, data in {"empty.wav": b"", "text.wav": b"this is no sound" * 50}.items():
        (tmp_path / name).write_bytes(data)
    save(tmp_path / "nan.wav", np.full(100, np.nan), subtype="FLOAT")
    bad = [tmp_path / name for name in ("empty.wav", "gone.wav", "text.wav", "nan.wav")]
    paths = [bad[0], sounds[0], bad[1], bad[2], sounds[1], bad[3]]

    shard = extract(tmp_path, manifest(*paths))

    assert shard.record.rejects == [
        {"clip_id": path.name, "path": str(path), "label": f"label of {path.name}", "reason": why}
        for path, why in zip(
            bad,
            [
                "the file is empty (0 bytes)",
                "no such file",
                "not a sound file that can be decoded: Format not recognised.",
                "NaN or infinite samples: 100 of 100",
            ],
            strict=True,
        )
    ]
    assert shard.record.unreadable == 1
    assert (shard.record.found, shard.record.written) == (6, 2)
    assert shard.record.seconds == pytest.approx(0.85)
    assert [row["clip_id"] for row in shard.rows] == ["exact.wav"] + ["long.wav"] * 3


def test_known_rejects_are_not_decoded(tmp_path, sounds):
    """For any reason; known rejects of other shards have no effect."""
    known = {
        "long.wav": Reject("it kills"),
        "short.flac": Unreadable("it was not given"),
        "stranger.wav": Reject("who?"),
    }

    shard = extract(tmp_path, manifest(*sounds), known=known)

    assert reasons(shard.record) == {"long.wav": "it kills", "short.flac": "it was not given"}
    assert shard.record.unreadable == 1
    assert [row["clip_id"] for row in shard.rows] == ["exact.wav", "44100.wav"] + [
        "longest.wav"
    ] * 5
    assert [*known] == ["long.wav", "short.flac", "stranger.wav"]


def test_a_known_reject_takes_precedence_over_the_result_of_reading(tmp_path):
    """A clip that crashes the decoder may also be unreadable."""
    clips = manifest(tmp_path / "gone.wav")
    shard = extract(tmp_path, clips, known={"gone.wav": Reject("it kills")})
    assert reasons(shard.record) == {"gone.wav": "it kills"}
    assert shard.record.unreadable == 0


def test_a_shard_of_rejects_only(tmp_path):
    paths = [tmp_path / "gone.wav", tmp_path / "gone too.wav"]
    shard = extract(tmp_path, manifest(*paths))
    assert shard.log_mels.shape == (0, *SHAPE)
    assert (shard.groups, shard.record.written, shard.record.seconds) == ([], 0, 0.0)
    assert shard.record.unreadable == 2


def test_a_shard_of_no_clips(tmp_path):
    shard = extract(tmp_path, manifest())
    assert shard.log_mels.shape == (0, *SHAPE)
    assert (shard.record.found, shard.record.written, shard.record.rejects) == (0, 0, [])
    assert shard.record.statistics.count == 0


# Reproducibility


def test_a_shard_has_the_same_bytes_in_every_run(tmp_path, sounds, room):
    """In a new process, or after another shard, whose values are still in the buffers."""
    room(3)
    (tmp_path / "text.wav").write_text("no sound")
    clips = manifest(*sounds, tmp_path / "text.wav")
    loud = [save(tmp_path / f"{n}.wav", 5 * noise(0.1 + 0.2 * n, n), 11025) for n in range(5)]
    first = extract(tmp_path, clips)
    again = extract(tmp_path, clips)
    assert extract(tmp_path, manifest(*loud), "loud.parquet").data != first.data
    after_others = extract(tmp_path, clips)
    extraction._decoder.cache_clear()
    extraction._log_mel.cache_clear()
    afresh = extract(tmp_path, clips)
    assert {len(shard.data) for shard in (first, again, after_others, afresh)} == {len(first.data)}
    assert first.data == again.data == after_others.data == afresh.data


def test_a_failed_shard_does_not_change_the_next(tmp_path, sounds):
    """Its collected windows are not written, and no file remains."""
    clips = manifest(*sounds)
    whole = extract(tmp_path, clips)

    def failing() -> Iterator[pa.Table]:
        for block in read_windows(clips, SETTINGS):
            yield add_log_mels(block, SETTINGS)
            raise OSError("the network is down")

    with pytest.raises(OSError, match="the network is down"):
        write_shard(str(tmp_path / "out" / "failed.parquet"), clips, SETTINGS, failing())

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part.parquet"]
    assert extract(tmp_path, clips).data == whole.data


def test_other_settings_in_the_same_process_use_other_buffers(tmp_path, sounds):
    clips = manifest(*sounds)
    first = extract(tmp_path, clips)
    wide = SETTINGS.model_copy(update={"n_mels": 30, "clip_length": 0.5})
    assert extract(tmp_path, clips, settings=wide).log_mels.shape == (8, 30, 51)
    assert extract(tmp_path, clips).data == first.data


# The digest

CHANGES = {
    "clip_id": "other.wav", "path": "/other", "label": "other", "fold": "other", "split": "test",
    "group": "other", "size": 7, "modified": 7, "offset": 7,
}  # fmt: skip


@pytest.mark.parametrize("column", SCHEMA.names)
def test_every_change_of_a_manifest_row_changes_the_digest(tmp_path, sounds, column):
    clips = manifest(*sounds)
    rows = clips.to_pylist()
    rows[2][column] = CHANGES[column]
    changed = pa.Table.from_pylist(rows, schema=SCHEMA)
    assert shard_digest(changed, SETTINGS) != shard_digest(clips, SETTINGS)


def test_the_digest_depends_on_rows_their_order_and_settings(sounds):
    clips = manifest(*sounds)
    digests = {
        shard_digest(clips, SETTINGS),
        shard_digest(clips.slice(0, 4), SETTINGS),
        shard_digest(clips.take([1, 0, 2, 3, 4]), SETTINGS),
        shard_digest(clips.slice(0, 0), SETTINGS),
        shard_digest(clips, SETTINGS.model_copy(update={"n_mels": 21})),
        shard_digest(clips, SETTINGS.model_copy(update={"dtype": "float16"})),
    }
    assert len(digests) == 6


def test_the_digest_depends_only_on_values(sounds, tmp_path):
    """Not on Arrow's chunks, or on whether the rows were read from a file."""
    clips = manifest(*sounds)
    digest = shard_digest(clips, SETTINGS)
    pq.write_table(clips, tmp_path / "manifest.parquet", row_group_size=2)
    for same in (
        pa.concat_tables([clips.slice(0, 2), clips.slice(2)]),
        pq.read_table(tmp_path / "manifest.parquet"),
        pa.concat_tables([clips, clips]).slice(5),
    ):
        assert shard_digest(same, SETTINGS) == digest
    assert shard_digest(clips, FeatureSettings(**SETTINGS.model_dump())) == digest


# Timeouts and memory


def test_the_timeout_covers_only_decoding(tmp_path, sounds, room, monkeypatch):
    """It is set before each window, and cancelled before a table is yielded and after each clip."""
    room(2)
    (tmp_path / "text.wav").write_text("no sound")
    calls: list[float] = []
    monkeypatch.setattr(extraction, "set_timeout", calls.append)
    clips = manifest(sounds[0], tmp_path / "text.wav", sounds[1], sounds[3])

    windows = 0
    for block in read_windows(clips, SETTINGS, timeout=9):
        assert calls[-1] == 0
        windows += pc.sum(pc.is_null(block["reason"])).as_py()

    assert calls.count(9) == len(clips) + windows
    assert calls[-1] == 0


def test_without_a_timeout_no_timer_is_set(tmp_path, sounds, monkeypatch):
    calls: list[float] = []
    monkeypatch.setattr(extraction, "set_timeout", calls.append)

    extract(tmp_path, manifest(*sounds))

    assert calls == []


def test_a_long_file_is_decoded_one_table_at_a_time(tmp_path, room, monkeypatch):
    """Twenty minutes: 4800 windows, with at most 64 waveforms in memory."""
    room(64)
    monkeypatch.setattr("raysound.corpora.formats.samples.BLOCK", 1 << 16)
    samples = np.random.default_rng(0).integers(-9999, 9999, 20 * 60 * RATE).astype(np.int16)
    path = save(tmp_path / "long.wav", samples)
    del samples
    windows, arrow, python = [], [], []
    clips = manifest(path)
    before = pa.total_allocated_bytes()
    waveforms = 64 * SETTINGS.clip_samples * 2

    tracemalloc.start()
    for table in read_windows(clips, SETTINGS):
        windows.append(len(table))
        arrow.append(pa.total_allocated_bytes())
        python.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()

    assert windows == [64] * 75
    assert max(arrow) - before < 4 * waveforms
    assert max(python) < 8 * waveforms


def test_only_the_reasons_of_rejected_clips_stay_in_memory(tmp_path, monkeypatch):
    """Otherwise the bytes of all broken files of an archive would stay in memory."""
    file = io.BytesIO()
    soundfile.write(file, np.full(25_000, np.nan), RATE, format="WAV", subtype="FLOAT")
    (tmp_path / "corpus").mkdir()
    with tarfile.open(tmp_path / "corpus" / "all.tar", "w") as tar:
        for index in range(60):
            member = tarfile.TarInfo(f"dog/{index}.wav")
            member.size = file.getbuffer().nbytes
            tar.addfile(member, io.BytesIO(file.getvalue()))
    clips = read_corpus(str(tmp_path / "corpus"))
    extraction._decoder(SETTINGS)
    memory: list[int] = []
    monkeypatch.setattr(
        extraction, "set_timeout", lambda seconds: memory.append(tracemalloc.get_traced_memory()[0])
    )

    tracemalloc.start()
    record = extract_shard(str(tmp_path / "part.parquet"), clips, SETTINGS, None, timeout=9)
    tracemalloc.stop()

    assert len(record.rejects) == 60
    assert max(memory) - memory[0] < 10 * file.getbuffer().nbytes


# The transform


def test_a_transform_is_applied_to_waveforms(tmp_path, sounds):
    """Half the amplitude gives a quarter of the power in every frame above the floor."""
    clips = manifest(*sounds)
    plain = next(read_windows(clips, SETTINGS))
    shapes = []

    def halve(waveforms: np.ndarray) -> np.ndarray:
        shapes.append((waveforms.shape, waveforms.dtype))
        return waveforms / 2

    half = add_log_mels(plain, SETTINGS, halve)

    expected = parquet.tensor_array(add_log_mels(plain, SETTINGS)["log_mel"]) - np.log(4)
    audible = expected > np.log(1e-9)
    found = parquet.tensor_array(half["log_mel"])
    assert audible.mean() > 0.5
    np.testing.assert_allclose(found[audible], expected[audible], atol=2e-3)
    assert shapes == [((len(plain), SETTINGS.clip_samples), np.float32)]
    with pytest.raises(ValueError, match="the transform turns"):
        add_log_mels(plain, SETTINGS, lambda waveforms: waveforms[:, :-1])
