import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysound import storage
from raysound.features import parquet
from raysound.features.records import MelStatistics, Shard, ShardTotals, suggest_clip_length
from raysound.settings.features import FeatureSettings

SETTINGS = FeatureSettings(
    clip_length=0.1, sample_rate=8000, hop_length=160, n_fft=256, n_mels=5, f_max=4000
)
SHAPE = (5, 6)
REJECT = {"clip_id": "dog/bad.wav", "path": "/x/dog/bad.wav", "label": "dog", "reason": "empty"}


def window_row(clip_id: str, window: int = 0, **changes: object) -> dict:
    """A row of extraction, with the columns of the manifest."""
    return {
        "clip_id": clip_id,
        "path": f"/sounds/{clip_id}",
        "label": "dog",
        "fold": None,
        "split": "train",
        "group": clip_id,
        "size": 3,
        "window": window,
        "duration": 0.25,
        "sample_rate": 44100,
        **changes,
    }


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-8, 4, (count, *SHAPE)).astype(np.float32)


def record(**changes) -> Shard:
    return Shard(
        **{
            "digest": "d1",
            "found": 3,
            "written": 2,
            "windows": 3,
            "seconds": 0.75,
            "statistics": MelStatistics.of(noise(3)),
            "rejects": [REJECT],
            "unreadable": 1,
            **changes,
        }
    )


def write(path: Path, rows: list[dict], log_mels: np.ndarray, *, group: int = 100, **changes):
    """Writes a shard with `group` windows per row group, and returns the writer."""
    wanted = changes.pop("settings", SETTINGS)
    with parquet.shard_writer(str(path), wanted) as writer:
        for first in range(0, max(len(rows), len(log_mels)), group):
            some = pa.Table.from_pylist(rows[first : first + group])
            writer.add(some, log_mels[first : first + group])
        writer.finish(record(**changes))
    return writer


ROWS = [
    window_row("dog/雨 1.wav"),
    window_row("dog/雨 1.wav", 1),
    window_row("cat/b.wav", label="cat", fold="3", split=None, group="tape"),
]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of three windows."""
    path = tmp_path / "part-00000000.parquet"
    write(path, ROWS, noise(3))
    return path


# One shard


def test_a_shard_round_trips(shard):
    """Names, numbers, nulls and all bits of the log-mels."""
    table = storage.read_table(str(shard))
    assert table.column_names == [
        "clip_id", "window", "label", "fold", "split", "group",
        "duration", "sample_rate", "log_mel",
    ]  # fmt: skip
    columns = table.drop_columns("log_mel").to_pylist()
    assert columns == [{name: row[name] for name in columns[0]} for row in ROWS]
    assert (parquet.tensor_array(table["log_mel"]) == noise(3)).all()


def test_a_record_round_trips(shard):
    """Counts, rejects and all bits of the statistics."""
    there = parquet.read_record(str(shard))
    assert there is not None
    assert there.to_json() == record().to_json()
    assert {**vars(there), "statistics": None} == {**vars(record()), "statistics": None}
    assert there.rejects == [REJECT]
    assert there.statistics.count == 18
    for name in ("mean", "squares"):
        actual, expected = getattr(there.statistics, name), getattr(record().statistics, name)
        assert actual.dtype == np.float64
        assert (actual == expected).all()


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7])
def test_a_shard_may_have_several_row_groups(tmp_path, group):
    """Rows, their order and statistics equal those of one row group."""
    rows = [window_row(f"{n}.wav", n, label=f"label {n % 2}") for n in range(7)]
    path = tmp_path / "part-00000000.parquet"
    writer = write(path, rows, noise(7), group=group)
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert sizes == [group] * (7 // group) + [7 % group] * (7 % group > 0)
    table = pq.read_table(path)
    assert table["clip_id"].to_pylist() == [row["clip_id"] for row in rows]
    assert table["window"].to_pylist() == [*range(7)]
    assert (parquet.tensor_array(table["log_mel"]) == noise(7)).all()
    whole = MelStatistics.of(noise(7))
    assert (writer.windows, writer.statistics.count) == (7, whole.count)
    assert np.allclose(writer.statistics.mean, whole.mean, rtol=1e-12)
    assert np.allclose(writer.statistics.variance, whole.variance, rtol=1e-12)


def test_added_arrays_may_be_overwritten(tmp_path):
    """Extraction reuses the same buffer."""
    path = tmp_path / "part-00000000.parquet"
    buffer = noise(3)
    with parquet.shard_writer(str(path), SETTINGS) as writer:
        writer.add(pa.Table.from_pylist(ROWS), buffer)
        buffer[:] = noise(3, seed=1)
        writer.add(pa.Table.from_pylist(ROWS), buffer)
        buffer[:] = 0
        writer.finish(record())
    both = np.concatenate([noise(3), noise(3, seed=1)])
    assert (parquet.tensor_array(pq.read_table(path)["log_mel"]) == both).all()


def test_plain_pyarrow_reads_tensors_with_their_shape(shard):
    """Without Ray, torch or raysound: the shape is in the type of Arrow."""
    table = pq.read_table(shard)
    assert table.schema.equals(parquet.schema(SETTINGS))
    kind = table.schema.field("log_mel").type
    assert isinstance(kind, pa.FixedShapeTensorType)
    assert (list(kind.shape), kind.value_type) == (list(SHAPE), pa.float32())
    tensors = table["log_mel"].combine_chunks()
    tensors = tensors.chunk(0) if isinstance(tensors, pa.ChunkedArray) else tensors
    assert (tensors.to_numpy_ndarray() == noise(3)).all()


def test_log_mels_may_be_float16(tmp_path):
    """The relative error is below 0.001; the statistics are exact."""
    halved = SETTINGS.model_copy(update={"dtype": "float16"})
    path = tmp_path / "part-00000000.parquet"
    writer = write(path, ROWS, noise(3), settings=halved)
    column = pq.read_table(path)["log_mel"]
    assert column.type.value_type == pa.float16()
    array = parquet.tensor_array(column)
    assert array.dtype == np.float16
    assert np.allclose(array, noise(3), rtol=1e-3, atol=1e-3)
    assert np.allclose(writer.statistics.mean, noise(3).mean((0, 2), np.float64), rtol=1e-12)


def test_a_shard_contains_its_settings(shard):
    """Feature id and settings as JSON, in the schema metadata of Parquet."""
    note = json.loads(pq.read_table(shard).schema.metadata[b"raysound"])
    assert note["feature_id"] == SETTINGS.id
    assert FeatureSettings(**note["features"]) == SETTINGS
    metadata = pq.read_metadata(shard).metadata
    assert json.loads(metadata[b"raysound"]) == note
    assert json.loads(metadata[b"raysound.shard"])["rejects"] == [REJECT]


def test_the_tensor_is_split_into_bytes_and_compressed(shard):
    """Byte-stream split is used; a wrong column name would be ignored without an error."""
    group = pq.ParquetFile(shard).metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    tensor = columns[parquet.LOG_MEL_LEAF]
    assert "BYTE_STREAM_SPLIT" in tensor.encodings
    assert not {"PLAIN", "RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(tensor.encodings)
    assert not tensor.is_stats_set
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert all("RLE_DICTIONARY" in columns[name].encodings for name in parquet.NAME_COLUMNS)
    assert columns["window"].statistics.max == 1


def test_a_shard_of_smooth_log_mels_is_smaller_than_their_bytes(tmp_path):
    big = FeatureSettings()
    smooth = np.linspace(-20, 5, big.n_frames, dtype=np.float32) + np.zeros((4, 64, 1), np.float32)
    path = tmp_path / "part-00000000.parquet"
    write(path, [window_row("a")] * 4, smooth, settings=big)
    assert path.stat().st_size < 0.5 * smooth.nbytes


def test_a_shard_without_rows_is_valid(tmp_path):
    """All clips were rejected; the record counts them."""
    path = tmp_path / "part-00000000.parquet"
    empty = {
        "found": 1, "written": 0, "windows": 0, "seconds": 0.0,
        "statistics": MelStatistics.empty(5),
    }  # fmt: skip
    writer = write(path, [], noise(0), **empty)
    assert (writer.windows, writer.statistics.count) == (0, 0)
    table = pq.read_table(path)
    assert table.schema.equals(parquet.schema(SETTINGS))
    assert parquet.tensor_array(table["log_mel"]).shape == (0, *SHAPE)
    there = parquet.read_record(str(path))
    assert there is not None
    assert there.to_json() == record(**empty).to_json()


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 5, 7), (3, 1, 5, 6), (3, 30), (90,)])
def test_log_mels_of_another_shape_are_refused(tmp_path, shape):
    """Even with the same number of values; no file remains."""
    path = tmp_path / "part-00000000.parquet"
    with pytest.raises(ValueError, match=r"3 rows of \(5, 6\), but log-mels of \("):
        write(path, ROWS, np.zeros(shape, np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 2, 4])
def test_the_numbers_of_log_mels_and_rows_must_be_equal(tmp_path, count):
    """With too few, a window would have arbitrary values."""
    path = tmp_path / "part-00000000.parquet"
    with pytest.raises(ValueError, match=rf"3 rows of .* log-mels of \({count}, 5, 6\)"):
        write(path, ROWS, noise(count))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_log_mel_that_is_not_finite_is_refused(tmp_path, wrong):
    """One such value would become the mean of its band; the error names the clip."""
    path = tmp_path / "part-00000000.parquet"
    log_mels = noise(3)
    log_mels[2, 4, 5] = wrong
    with pytest.raises(ValueError, match=r"^cat/b\.wav: its log-mel is not finite$"):
        write(path, ROWS, log_mels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinities_that_cancel_each_other_are_refused(tmp_path):
    log_mels = noise(3)
    log_mels[1, 2, :2] = np.inf, -np.inf
    with pytest.raises(ValueError, match=r"^dog/雨 1\.wav"):
        write(tmp_path / "part-00000000.parquet", ROWS, log_mels)


def test_a_shard_is_written_atomically(shard):
    """An existing file is kept if writing fails at any point."""
    before = shard.read_bytes()

    def write_and_stop() -> None:
        with parquet.shard_writer(str(shard), SETTINGS) as writer:
            writer.add(pa.Table.from_pylist(ROWS), noise(3, seed=1))
            writer.finish(record(digest="d2"))
            assert shard.read_bytes() == before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert shard.read_bytes() == before
    assert list(shard.parent.iterdir()) == [shard]
    write(shard, ROWS, noise(3, seed=1), digest="d2")
    there = parquet.read_record(str(shard))
    assert there is not None
    assert there.digest == "d2"


def test_a_missing_file_has_no_record(tmp_path):
    assert parquet.read_record(str(tmp_path / "absent.parquet")) is None


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, 32 * 2**20 // (64 * 501 * 4)),
        ({"dtype": "float16"}, 32 * 2**20 // (64 * 501 * 4)),
        ({"clip_length": 1.0, "n_mels": 32}, 32 * 2**20 // (32 * 101 * 4)),
        ({"clip_length": 3600.0}, 1),
    ],
)
def test_a_row_group_holds_32_mib_of_float32_and_at_least_a_window(changes, windows):
    assert parquet.windows_together(FeatureSettings(**changes)) == windows


def test_tensor_array_joins_chunks():
    """A column of several row groups or files has several chunks."""
    tensors = [
        pa.FixedShapeTensorArray.from_numpy_ndarray(noise(count, seed=count)) for count in (2, 1, 3)
    ]
    array = parquet.tensor_array(pa.chunked_array(tensors))
    assert (array == np.concatenate([noise(count, seed=count) for count in (2, 1, 3)])).all()


# A folder


def test_other_settings_have_another_folder():
    other = SETTINGS.model_copy(update={"n_mels": 6})
    uri = parquet.folder("s3://bucket/run/", "real", SETTINGS)
    assert uri == f"s3://bucket/run/features/real-{SETTINGS.id}"
    assert parquet.folder("s3://bucket/run/", "real", other) != uri


def test_shard_uris_are_in_order(tmp_path):
    """By number, of five digits as in older versions or eight; other files are ignored."""
    names = ["part-00000000.parquet", "part-99999.parquet", "part-100000.parquet"]
    for name in (*names, parquet.shard_name(100), parquet.shard_name(100_001)):
        storage.write_bytes(str(tmp_path / name), b"")
    for name in ("manifest.parquet", "rejects.parquet", "summary.json"):
        storage.write_bytes(str(tmp_path / name), b"")
    storage.write_bytes(str(tmp_path / f"{parquet.shard_name(3)}.0123456789abcdef.tmp"), b"half")
    names[1:1] = ["part-00000100.parquet"]
    names.append("part-00100001.parquet")
    assert parquet.shard_uris(str(tmp_path)) == [f"{tmp_path}/{name}" for name in names]


@pytest.mark.parametrize("rejected", [[], ["b"], ["a", "b", "c"]])
def test_without_rejects_keeps_the_other_clips(tmp_path, rejected):
    manifest = pa.table({"clip_id": ["a", "b", "c"], "label": ["x", "y", "z"]})
    rejects = [
        {"clip_id": clip_id, "path": "p", "label": "x", "reason": "r"} for clip_id in rejected
    ]
    storage.write_table(
        str(tmp_path / "rejects.parquet"),
        pa.Table.from_pylist(rejects, schema=parquet.REJECT_SCHEMA),
    )
    usable = parquet.without_rejects(manifest, str(tmp_path)).to_pylist()
    assert usable == [row for row in manifest.to_pylist() if row["clip_id"] not in rejected]


# A corpus


def total(shards: list[Shard], settings: FeatureSettings = SETTINGS) -> ShardTotals:
    totals = ShardTotals("real", settings)
    for shard in shards:
        totals.add(shard)
    return totals


def test_totals_add_up():
    other = record(
        digest="d2", found=4, written=4, windows=5, seconds=3.25, rejects=[], unreadable=0
    )
    summary = total([record(), other]).summary(7)
    digest = summary.pop("digest")
    assert summary.pop("mel_mean") == pytest.approx(record().statistics.mean, rel=1e-12)
    assert summary.pop("mel_variance") == pytest.approx(record().statistics.variance, rel=1e-12)
    assert summary == {
        "corpus": "real",
        "feature_id": SETTINGS.id,
        "features": SETTINGS.model_dump(),
        "found": 7,
        "written": 6,
        "rejected": 1,
        "unreadable": 1,
        "windows": 8,
        "bytes": 8 * 5 * 6 * 4,
        "hours": 4.0 / 3600,
        "shards": 2,
    }
    assert len(digest) == 16


def test_a_summary_is_json():
    """It contains no NumPy types."""
    summary = total([record(), record()]).summary(6)
    assert json.loads(json.dumps(summary)) == summary


def test_totals_count_the_bytes_of_float16():
    halved = SETTINGS.model_copy(update={"dtype": "float16"})
    assert total([record()], halved).summary(3)["bytes"] == 3 * 5 * 6 * 2


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any),
    offset=st.sampled_from([0.0, -23.0, 1e3]),
    seed=st.integers(0, 10**6),
)
def test_mean_and_variance_do_not_depend_on_the_sharding(sizes, offset, seed):
    """Also with empty shards, and through the JSON records."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, 6)[:, np.newaxis]
    parts = [(offset + spread * rng.standard_normal((n, *SHAPE))).astype(np.float32) for n in sizes]
    shards = [
        record(statistics=MelStatistics.of(part) if len(part) else MelStatistics.empty(5))
        for part in parts
    ]
    summary = total([Shard.from_json(shard.to_json()) for shard in shards]).summary(3 * len(sizes))
    rows = np.concatenate(parts).astype(np.float64)
    mean, variance = rows.mean(axis=(0, 2)), rows.var(axis=(0, 2))
    np.testing.assert_allclose(summary["mel_mean"], mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(summary["mel_variance"], variance, rtol=1e-6)


def test_a_corpus_of_rejects_only_has_a_summary():
    nothing = record(found=1, written=0, windows=0, statistics=MelStatistics.empty(5))
    summary = total([nothing, nothing]).summary(2)
    assert (summary["written"], summary["rejected"], summary["windows"]) == (0, 2, 0)
    assert summary["mel_mean"] == summary["mel_variance"] == [0.0] * 5


@pytest.mark.parametrize("changes", [{"found": 4}, {"written": 3}, {"rejects": []}])
def test_totals_raise_if_clips_are_lost(changes):
    """If found is not written plus rejected, the error contains all numbers."""
    lost = record(**changes)
    with pytest.raises(RuntimeError, match=r"^real: ") as caught:
        total([record(), lost]).summary(3 + lost.found)
    assert f"{3 + lost.found} found" in str(caught.value)
    assert f"{2 + lost.written} written" in str(caught.value)
    assert f"{1 + len(lost.rejects)} rejected" in str(caught.value)


@pytest.mark.parametrize("clips", [0, 3, 5, 7, 9])
def test_totals_raise_if_a_shard_is_lost_or_counted_twice(clips):
    """Consistent sums may still differ from the manifest."""
    totals = total([record(), record()])
    with pytest.raises(RuntimeError, match=rf"real: {clips} clips in the manifest and 6 found"):
        totals.summary(clips)
    assert totals.summary(6)["found"] == 6


def test_the_digest_of_the_summary_depends_on_all_shards_and_their_order():
    one, two = record(), record(digest="d2")
    digests = {
        total(shards).summary(3 * len(shards))["digest"]
        for shards in ([one, two], [two, one], [one], [one, one])
    }
    assert len(digests) == 4
    assert total([one, two]).summary(6) == total([one, two]).summary(6)


# Clip length


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(0.001, 30), st.integers(1, 300).map(lambda tenths: tenths / 10)),
        min_size=1,
        max_size=30,
    )
)
def test_the_suggested_clip_length_covers_four_clips_in_five(seconds):
    """It is the smallest multiple of 0.1 s, and at most the longest clip."""
    durations = np.array(seconds)
    suggested = suggest_clip_length(durations)
    assert 0 < suggested <= durations.max()
    assert suggested == round(suggested, 1) or suggested > durations.max() - 0.001
    assert (durations <= suggested + 0.02 + 1e-6).mean() >= 0.8 - 1e-9
    if suggested > 0.1:
        assert (durations <= suggested - 0.08 - 1e-6).mean() < 0.8


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([5.0] * 10, 5.0),
        ([1.0] * 8 + [9.0] * 2, 1.0),
        ([0.02], 0.02),
        ([0.25] * 3, 0.25),
        ([0.2, 0.2511], 0.251),
        ([0.0001], 0.0001),
        ([5.0153] * 3, 5.0),
        ([0.3, 0.3, 0.3], 0.3),
    ],
)
def test_the_suggested_clip_length_is_minimal(durations, expected):
    assert suggest_clip_length(np.array(durations)) == expected


# Statistics


def test_statistics_are_per_band_over_clips_and_frames():
    log_mels = noise(7)
    statistics = MelStatistics.of(log_mels)
    assert statistics.count == 7 * 6
    assert np.allclose(statistics.mean, log_mels.astype(np.float64).mean(axis=(0, 2)))
    assert np.allclose(statistics.std, log_mels.astype(np.float64).std(axis=(0, 2)))
    assert statistics.mean.dtype == statistics.std.dtype == np.float64


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, -23.0, 1e4]),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_merged_statistics_equal_those_of_all_rows(sizes, offset, seed, data):
    """In any order, and far from zero, where a sum of squares would lose precision."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(offset, 2, (size, 3, 4)) for size in sizes]
    merged = None
    for part in data.draw(st.permutations(parts)):
        one = MelStatistics.of(part)
        merged = one if merged is None else merged.merge(one)
    whole = np.concatenate(parts)
    assert merged.count == whole.shape[0] * whole.shape[2]
    assert np.allclose(merged.mean, whole.mean(axis=(0, 2)), rtol=1e-12)
    assert np.allclose(merged.std, whole.std(axis=(0, 2)), rtol=1e-9)


def test_a_merge_with_empty_statistics_changes_nothing():
    """Not even by rounding; empty statistics have mean and variance 0."""
    some, nothing = MelStatistics.of(noise(3)), MelStatistics.empty(5)
    for merged in (some.merge(nothing), nothing.merge(some)):
        assert merged.count == some.count
        assert (merged.mean == some.mean).all()
        assert (merged.squares == some.squares).all()
    both = nothing.merge(nothing)
    assert both.count == 0
    assert both.mean.tolist() == both.variance.tolist() == both.std.tolist() == [0.0] * 5


def test_variance_is_the_square_of_std():
    log_mels = noise(7).astype(np.float64)
    statistics = MelStatistics.of(log_mels)
    assert np.allclose(statistics.variance, log_mels.var(axis=(0, 2)))
    assert np.allclose(statistics.std**2, statistics.variance)


def test_merging_is_associative():
    """A tree of merges, as on a cluster, equals a chain."""
    a, b, c, d = (MelStatistics.of(noise(n, seed=n)) for n in (1, 2, 3, 4))
    tree, chain = a.merge(b).merge(c.merge(d)), a.merge(b).merge(c).merge(d)
    assert np.allclose(tree.mean, chain.mean)
    assert np.allclose(tree.std, chain.std)
    for one, two in itertools.permutations([a, b, c, d], 2):
        assert np.allclose(one.merge(two).std, two.merge(one).std)


def test_statistics_of_float16_log_mels_are_computed_in_float64():
    """A sum of 100,000 values of 20 would overflow float16."""
    log_mels = np.full((100, 2, 1000), -20.0, np.float16)
    log_mels[:, 1, ::2] = -10
    statistics = MelStatistics.of(log_mels)
    assert statistics.mean.tolist() == [-20, -15]
    assert statistics.std.tolist() == [0, 5]
