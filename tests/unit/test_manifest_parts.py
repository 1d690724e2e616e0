"""A manifest in parts equals a single table, for any ranges."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysound import storage
from raysound.corpora.manifest_parts import (
    OLD,
    Index,
    digest_of,
    digest_text,
    manifest_rows,
    read_index,
    read_manifest,
    runs_of,
    shard_clips,
    write_index,
)
from raysound.corpora.vocabulary import SCHEMA
from raysound.features import ranges
from raysound.features.ranges import BLOCKS, Facts, Ranges, group, sort_range, write_range
from raysound.features.shards import first_shards

LOOSE, PACKED = "loose", "packed"


def clips_of(numbers: list[int], kind: str = LOOSE, size: int = 3) -> pa.Table:
    """Clips by number; clips in containers are in tar files of four clips."""
    is_packed = kind == PACKED
    columns = {
        "clip_id": [f"dog/{number:03d}.wav" for number in numbers],
        "path": [
            f"/sounds/{number // 4:02d}.tar" if is_packed else f"/sounds/{number:03d}.wav"
            for number in numbers
        ],
        "label": [("cat", "dog")[number % 2] for number in numbers],
        "fold": [None] * len(numbers),
        "split": [None] * len(numbers),
        "group": [f"dog/{number:03d}.wav" for number in numbers],
        "size": [size] * len(numbers),
        "modified": list(numbers),
        "offset": [number % 4 * 512 if is_packed else None for number in numbers],
    }
    return pa.table(columns, schema=SCHEMA)


def write_manifest(folder: Path, clips: pa.Table, blocks: int = 1, per_shard: int = 3) -> Index:
    """Writes the manifest of clips that are divided into blocks."""
    before = read_index(str(folder))
    order = random.Random(blocks).sample(range(len(clips)), len(clips))
    given = [clips.take(pa.array(order[start::blocks], pa.int64())) for start in range(blocks)]
    facts = Facts.all(map(Facts.of, given))
    divided = Ranges.of(facts)
    name = f"run-{before.clips if before else 0}-{len(clips)}-{facts.digest}"
    parts = [read_manifest(str(folder))] if before else []
    blocks = [
        group(some, divided, str(folder / name / f"block-{number}"))
        for number, some in enumerate([*given, *parts])
    ]
    listed = str(folder / name / "blocks")
    storage.write_table(listed, pa.Table.from_pylist(blocks, schema=BLOCKS))
    filled = sorted({one for row in blocks if not row["has_shards"] for one in row["ranges"]})
    uris = [str(folder / name / f"range-{number}") for number in filled]
    cuts = [
        sort_range(number, listed, per_shard, uri) for number, uri in zip(filled, uris, strict=True)
    ]
    firsts, anew = first_shards(cuts, before.shards[-1] if before else -1)
    names = [f"manifest/{name}/part-{number:08d}.parquet" for number in range(len(uris))]
    shards = [
        write_range(str(folder / part), uri, first, anew, per_shard)
        for part, uri, first in zip(names, uris, firsts, strict=True)
    ]
    runs = map(runs_of, shards)
    index = Index(facts.clips, digest_text(facts.digest), tuple(zip(names, runs, strict=True)))
    write_index(str(folder), index)
    return index


numbers = st.lists(st.integers(0, 99), min_size=1, max_size=40, unique=True)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    first=numbers, second=numbers, kind=st.sampled_from([LOOSE, PACKED]),
    together=st.sampled_from([4, 16, 1000]), then=st.sampled_from([4, 16, 1000]),
)  # fmt: skip
def test_each_clip_is_in_one_shard_and_keeps_it(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[int],
    second: list[int],
    kind: str,
    together: int,
    then: int,
) -> None:
    """For any number of blocks and ranges, also if these change."""
    folders = [tmp_path_factory.mktemp("features") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "CLIPS_TOGETHER", together)
        for folder, blocks in zip(folders, (1, 3), strict=True):
            write_manifest(folder, clips_of(first, kind), blocks)
        manifests = [read_manifest(str(folder)) for folder in folders]
        assert manifests[0].equals(manifests[1])
        before = {row["clip_id"]: row["shard"] for row in manifests[0].to_pylist()}

        patch.setattr(ranges, "CLIPS_TOGETHER", then)
        now = clips_of(second, kind, size=4)
        index = write_manifest(folders[0], now, 2)

    folder = str(folders[0])
    rows = read_manifest(folder)
    assert rows.drop_columns("shard").sort_by("clip_id").equals(now.sort_by("clip_id"))
    shards = {row["clip_id"]: row["shard"] for row in rows.to_pylist()}
    kept = {name for name in shards if name in before}
    if len({*shards.values()}) > 1:
        is_anew = min(shards.values()) == 0 and any(shards[name] != before[name] for name in kept)
        assert is_anew or all(shards[name] == before[name] for name in kept)
    assert index.shards == sorted({*shards.values()})
    for shard in index.shards:
        found = shard_clips(folder, f"{folder}{index.digest}", shard)
        assert {*found["clip_id"].to_pylist()} == {n for n in shards if shards[n] == shard}
        assert 1 <= len(found) <= 3
    assert read_index(folder) == index


def test_the_digest_depends_on_every_column_and_not_on_the_order() -> None:
    clips = clips_of(list(range(20)))
    digest = digest_of(clips)

    assert digest_of(clips.take(list(range(20))[::-1])) == digest
    halves = digest_of(clips.slice(0, 7)) + digest_of(clips.slice(7))
    assert digest_text(halves) == digest_text(digest)
    for place, field in enumerate(clips.schema):
        other = clips.column(place).to_pylist()
        other[3] = "other" if field.type == pa.string() else 12345
        changed = clips.set_column(place, field, pa.array(other, field.type))
        assert digest_of(changed) != digest
    assert digest_of(pa.concat_tables([clips, clips.slice(3, 1)])) != digest


@pytest.mark.parametrize(
    ("clips", "expected"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 4), (64, 8), (65, 16)]
)
def test_ranges_have_about_the_intended_number_of_clips(
    monkeypatch: pytest.MonkeyPatch, clips: int, expected: int
) -> None:
    monkeypatch.setattr(ranges, "CLIPS_TOGETHER", 8)
    found = Ranges.of(Facts.of(clips_of(list(range(clips)))))
    assert found.count == expected
    assert {*found.places(clips_of(list(range(1000)))).tolist()} == {*range(expected)}


def test_containers_are_divided_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "CLIPS_TOGETHER", 8)
    clips = clips_of(list(range(20)), PACKED)
    found = Ranges.of(Facts.of(clips))
    assert found.firsts == ("/sounds/00.tar", "/sounds/02.tar", "/sounds/04.tar")
    assert found.places(clips).tolist() == [0] * 8 + [1] * 8 + [2] * 4


def test_separate_files_and_containers_are_in_different_ranges() -> None:
    clips = pa.concat_tables([clips_of([1, 2]), clips_of([10], PACKED)])
    assert Ranges.of(Facts.of(clips)).places(clips).tolist() == [0, 0, 1]


def test_a_previous_clip_in_no_current_range_is_left_out(tmp_path: Path) -> None:
    """For example, if the corpus was in containers before."""
    divided = Ranges.of(Facts.of(clips_of([1, 2])))
    assert group(clips_of([7, 8], PACKED), divided, str(tmp_path / "block"))["ranges"] == []


def test_the_manifest_of_an_older_version_has_the_same_index(tmp_path: Path) -> None:
    new = write_manifest(tmp_path / "new", clips_of(list(range(30))), 2)
    table = read_manifest(str(tmp_path / "new"))
    (tmp_path / "old").mkdir()
    pq.write_table(table, tmp_path / "old" / OLD, row_group_size=7)

    old = read_index(str(tmp_path / "old"))

    assert old is not None
    assert (old.clips, old.digest, old.shards) == (new.clips, new.digest, new.shards)
    assert pa.concat_tables(manifest_rows(str(tmp_path / "old"))).equals(table)
    for shard in new.shards:
        found = shard_clips(str(tmp_path / "old"), "run", shard)
        assert found.equals(shard_clips(str(tmp_path / "new"), "run", shard))


def test_an_older_manifest_without_shards_is_ignored(tmp_path: Path) -> None:
    assert read_index(str(tmp_path)) is None
    pq.write_table(clips_of([1]), tmp_path / OLD)
    assert read_index(str(tmp_path)) is None


def test_other_readers_read_the_folder_as_one_table(tmp_path: Path) -> None:
    write_manifest(tmp_path, clips_of(list(range(10))))
    assert pq.read_table(tmp_path / "manifest").equals(read_manifest(str(tmp_path)))


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [([], ()), ([3], ((3, 3),)), ([4, 2, 3, 9, 7, 8, 1], ((1, 4), (7, 9)))],
)
def test_runs_of_numbers(numbers: list[int], runs: tuple[tuple[int, int], ...]) -> None:
    assert runs_of(numbers) == runs
