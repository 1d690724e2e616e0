import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raysound.corpora.vocabulary import SCHEMA
from raysound.features import shards
from raysound.features.shards import LARGEST_SHARD, assign_shards, clips_per_shard
from raysound.settings.features import FeatureSettings

LARGE = LARGEST_SHARD // 3
# One second at 16 kHz: a row group has 1290 windows.
SECOND = FeatureSettings(clip_length=1.0, sample_rate=16000, hop_length=160, f_max=8000)

sizes = st.integers(-1, 5000) | st.sampled_from([LARGE, LARGEST_SHARD, 3 * LARGEST_SHARD])
corpora = st.dictionaries(st.integers(0, 300), sizes, min_size=1, max_size=40)


def manifest(clips: dict[int, int], modified: int = 0) -> pa.Table:
    """Clips by number and size (bytes), sorted by number."""
    names = [f"{number:03d}.wav" for number in sorted(clips)]
    nothing = [None] * len(names)
    columns = {
        "clip_id": names,
        "path": [f"/sounds/{name}" for name in names],
        "label": ["dog"] * len(names),
        "fold": nothing,
        "split": nothing,
        "group": names,
        "size": [clips[number] for number in sorted(clips)],
        "modified": [modified] * len(names),
        "offset": nothing,
    }
    return pa.table(columns, schema=SCHEMA)


def small(*numbers: int) -> pa.Table:
    """A manifest of clips of 3 bytes."""
    return manifest(dict.fromkeys(numbers, 3))


def by_shard(table: pa.Table) -> dict[int, list[dict]]:
    """The rows of each shard, in order."""
    found: dict[int, list[dict]] = {}
    for row in table.to_pylist():
        found.setdefault(row.pop("shard"), []).append(row)
    return found


def numbers(table: pa.Table) -> dict[int, list[int]]:
    """The numbers of the clips of each shard."""
    return {
        shard: [int(row["clip_id"][:3]) for row in rows] for shard, rows in by_shard(table).items()
    }


def check(table: pa.Table, clips: pa.Table, per_shard: int) -> None:
    """Checks that every clip occurs once, with its current row, in shards within the limits."""
    assert table.schema.equals(SCHEMA.append(pa.field("shard", pa.int32())))
    assert table["shard"].to_pylist() == sorted(table["shard"].to_pylist())
    assert table.drop_columns("shard").sort_by("clip_id").equals(clips.sort_by("clip_id"))
    for rows in by_shard(table).values():
        assert len(rows) <= per_shard
        assert len(rows) == 1 or sum(max(row["size"], 0) for row in rows) <= LARGEST_SHARD


# A new corpus


@settings(max_examples=200, deadline=None)
@given(corpora, st.integers(1, 10))
def test_clips_fill_shards_in_order(clips, per_shard):
    """Shards are numbered from 0; the next clip would exceed the limits of the shard before."""
    assigned = assign_shards(manifest(clips), None, per_shard)
    check(assigned, manifest(clips), per_shard)
    assert assigned.drop_columns("shard").equals(manifest(clips))
    full = by_shard(assigned)
    assert [*full] == [*range(len(full))]
    for shard in range(len(full) - 1):
        held = sum(max(row["size"], 0) for row in full[shard])
        first = max(full[shard + 1][0]["size"], 0)
        assert len(full[shard]) == per_shard or held + first > LARGEST_SHARD


def test_a_shard_may_have_exactly_the_maximum_size():
    """A larger clip has its own shard."""
    clips = {0: LARGEST_SHARD - 1, 1: 1, 2: 1, 3: 2 * LARGEST_SHARD, 4: 1}
    assert numbers(assign_shards(manifest(clips), None, 10)) == {0: [0, 1], 1: [2], 2: [3], 3: [4]}


def test_missing_files_take_no_bytes():
    """Their size -1 counts as 0."""
    clips = {**dict.fromkeys(range(8), -1), 8: LARGEST_SHARD, 9: 1}
    assert numbers(assign_shards(manifest(clips), None, 10)) == {0: [*range(9)], 1: [9]}


def test_an_empty_previous_manifest_equals_none():
    assigned = assign_shards(
        small(1, 2, 3), small().append_column("shard", pa.array([], pa.int32())), 2
    )
    assert numbers(assigned) == {0: [1, 2], 1: [3]}


# A changed corpus


@settings(max_examples=200, deadline=None)
@given(corpora, corpora, st.integers(1, 10))
def test_added_clips_do_not_move_others(old, more, per_shard):
    """They fill new shards, for any position of their names."""
    grown = manifest({**more, **old})
    before = assign_shards(manifest(old), None, per_shard)
    after = assign_shards(grown, before, per_shard)
    check(after, grown, per_shard)
    now, then = by_shard(after), by_shard(before)
    assert {shard: rows for shard, rows in now.items() if shard in then} == then
    assert [*now] == [*range(len(now))]
    added = [int(row["clip_id"][:3]) for shard in now.keys() - then.keys() for row in now[shard]]
    assert sorted(added) == sorted(more.keys() - old.keys())


@settings(max_examples=100, deadline=None)
@given(corpora, st.lists(corpora, min_size=1, max_size=6), st.integers(1, 5))
def test_no_clip_is_lost_by_changes(first, changes, per_shard):
    """Clips are added, removed and resized repeatedly; shards stay well filled."""
    assigned = assign_shards(manifest(first), None, per_shard)
    for modified, clips in enumerate(changes, 1):
        assigned = assign_shards(manifest(clips, modified), assigned, per_shard)
        needed = assign_shards(manifest(clips, modified), None, per_shard)
        assert assigned.drop_columns("shard").sort_by("clip_id").equals(manifest(clips, modified))
        assert max(map(len, by_shard(assigned).values())) <= per_shard
        assert len(by_shard(assigned)) <= 2 * len(by_shard(needed))


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 99), max_size=50))
@example(set(range(40, 90)))
def test_removed_clips_change_only_their_shards(removed):
    """Twenty shards of five clips; the other shards are unchanged."""
    before = assign_shards(small(*range(100)), None, 5)
    kept = small(*{*range(100)} - removed)
    after = assign_shards(kept, before, 5)
    check(after, kept, 5)
    left = {
        shard: [n for n in clips if n not in removed] for shard, clips in numbers(before).items()
    }
    assert numbers(after) == {shard: clips for shard, clips in left.items() if clips}


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 29), min_size=1), sizes)
@example({0}, 3 * LARGEST_SHARD)
def test_a_changed_clip_stays_in_its_shard_with_its_new_row(changed, size):
    """Even if it exceeds the maximum size of the shard."""
    before = assign_shards(small(*range(30)), None, 4)
    clips = {number: size if number in changed else 3 for number in range(30)}
    after = assign_shards(manifest(clips, modified=7), before, 4)
    assert numbers(after) == numbers(before)
    assert after["size"].to_pylist() == [clips[number] for number in range(30)]
    assert after["modified"].to_pylist() == [7] * 30


def test_numbers_of_emptied_shards_are_not_reused():
    """Their files may still exist when the new shards are written."""
    before = assign_shards(small(*range(12)), None, 3)
    kept = small(0, 1, 2, 6, 7, 8, 20, 21, 22, 23)
    assert numbers(assign_shards(kept, before, 3)) == {
        0: [0, 1, 2], 2: [6, 7, 8], 4: [20, 21, 22], 5: [23],
    }  # fmt: skip


def test_clips_get_new_shards_above_twice_the_needed_number():
    before = assign_shards(small(*range(12)), None, 4)
    assert numbers(assign_shards(small(1, 6), before, 4)) == {0: [1], 1: [6]}
    assert numbers(assign_shards(small(1, 6, 9), before, 4)) == {0: [1, 6, 9]}
    assert numbers(assign_shards(small(1, 6, 9, 10, 11), before, 4)) == {
        0: [1], 1: [6], 2: [9, 10, 11],
    }  # fmt: skip


def test_a_corpus_that_grows_by_single_clips_has_few_shards():
    """Renumbering writes at most one shard per added clip on average."""
    assigned, made = assign_shards(small(0), None, 10), 0
    for count in range(2, 301):
        before = numbers(assigned)
        assigned = assign_shards(small(*range(count)), assigned, 10)
        after = numbers(assigned)
        made += sum(len(clips) for shard, clips in after.items() if clips != before.get(shard))
        assert len(after) <= 2 * -(-count // 10)
    assert 300 < made < 10 * 300


def test_another_number_of_clips_per_shard_moves_no_clip():
    """It applies to new shards, unless there are far too many."""
    before = assign_shards(small(*range(10)), None, 5)
    after = assign_shards(small(*range(16)), before, 3)
    assert numbers(after) == {0: [*range(5)], 1: [*range(5, 10)], 2: [10, 11, 12], 3: [13, 14, 15]}
    assert numbers(assign_shards(small(*range(10)), before, 100)) == numbers(before)


@settings(max_examples=60, deadline=None)
@given(corpora, corpora, st.randoms(use_true_random=False))
def test_shards_depend_only_on_names_and_previous_shards(old, now, random):
    """Not on other columns, Arrow's chunks, or the previous order of the rows."""
    before = assign_shards(manifest(old), None, 4)
    expected = assign_shards(manifest(now), before, 4)
    order = list(range(len(before)))
    random.shuffle(order)
    bare = before.take(order).select(["shard", "clip_id"])
    pieces = [bare.slice(start, 3) for start in range(0, len(bare), 3)]
    table = manifest(now)
    slices = [table.slice(start, 7) for start in range(0, len(table), 7)]
    actual = assign_shards(pa.concat_tables(slices), pa.concat_tables(pieces), 4)
    assert actual.equals(expected)


def test_a_shard_has_the_current_order_of_its_clips():
    """Containers are read sequentially, even if they were written again."""
    before = assign_shards(small(*range(6)), None, 3)
    turned = small(*range(6)).take([5, 4, 3, 2, 1, 0])
    assert numbers(assign_shards(turned, before, 3)) == {0: [2, 1, 0], 1: [5, 4, 3]}


# Number of clips per shard


@pytest.mark.parametrize("wanted", [1, 17, 10**6])
def test_a_configured_number_is_used(wanted):
    assert clips_per_shard(5, wanted, SECOND) == wanted


@pytest.mark.parametrize(
    ("clips", "changes", "expected"),
    [
        (1, {}, 64),
        (4096, {}, 64),
        (4097, {}, 65),
        (64_000, {}, 1000),
        (10_000_000, {}, 2**25 // (64 * 101 * 4)),
        (10_000_000, {"dtype": "float16"}, 2**25 // (64 * 101 * 4)),
        (10_000_000, {"clip_length": 60.0}, 2**25 // (64 * 6001 * 4)),
        (1, {"clip_length": 60.0}, 2**25 // (64 * 6001 * 4)),
        (1000, {"clip_length": 3600.0}, 1),
        (10_000_000, {"clip_length": 0.1, "n_mels": 4}, 16384),
        (100_000, {"clip_length": 0.1, "n_mels": 4}, 1563),
    ],
)
def test_auto_fills_a_row_group_if_there_are_enough_shards(clips, changes, expected):
    """64 shards are enough; shards of a small corpus have at least 64 clips."""
    wanted = SECOND.model_copy(update=changes)
    assert clips_per_shard(clips, "auto", wanted) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**8), st.floats(0.05, 1000))
def test_auto_stays_within_its_bounds(clips, seconds):
    wanted = SECOND.model_copy(update={"clip_length": seconds})
    count = clips_per_shard(clips, "auto", wanted)
    assert isinstance(count, int)
    assert 1 <= count <= shards.MOST_CLIPS
    windows = count * wanted.n_mels * wanted.n_frames * 4
    assert count == 1 or windows <= 32 * 2**20


def test_a_million_clips_are_assigned_quickly():
    """The clips are columns, not a million Python objects."""
    count = 1_000_000
    names = pa.array(np.char.add("clip-", np.arange(count).astype(str)))
    clips = pa.table({"clip_id": names, "size": pa.array(np.full(count, 100_000))})
    before = assign_shards(clips.slice(0, count - 10), None, 1000)
    after = assign_shards(clips, before, 1000)
    assert after["shard"].to_pylist()[-12:] == [999, 999] + [1000] * 10
    assert after.slice(0, count - 10).equals(before)
