import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raysound.corpora.layouts import SCHEMA
from raysound.features import shards
from raysound.features.shards import LARGEST_SHARD, assign_shards, clips_per_shard
from raysound.settings.features import FeatureSettings

LARGE = LARGEST_SHARD // 3
# One second at 16 kHz: 1290 windows make a row group.
SECOND = FeatureSettings(clip_length=1.0, sample_rate=16000, hop_length=160, f_max=8000)

sizes = st.integers(-1, 5000) | st.sampled_from([LARGE, LARGEST_SHARD, 3 * LARGEST_SHARD])
corpora = st.dictionaries(st.integers(0, 300), sizes, min_size=1, max_size=40)


def manifest(clips: dict[int, int], modified: int = 0) -> pa.Table:
    """Clips by number and size (bytes), in the one order that a manifest has: here the number's."""
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
    """The rows of each shard, in their order."""
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
    """What always holds: every clip once, as it is now, in shards that are not too large."""
    assert table.schema.equals(SCHEMA.append(pa.field("shard", pa.int32())))
    assert table["shard"].to_pylist() == sorted(table["shard"].to_pylist())
    assert table.drop_columns("shard").sort_by("clip_id").equals(clips.sort_by("clip_id"))
    for rows in by_shard(table).values():
        assert len(rows) <= per_shard
        assert len(rows) == 1 or sum(max(row["size"], 0) for row in rows) <= LARGEST_SHARD


# A corpus for the first time


@settings(max_examples=200, deadline=None)
@given(corpora, st.integers(1, 10))
def test_clips_fill_one_shard_after_the_other(clips, per_shard):
    """In their order, numbered from 0; the next clip would not have gone into the shard before."""
    laid = assign_shards(manifest(clips), None, per_shard)
    check(laid, manifest(clips), per_shard)
    assert laid.drop_columns("shard").equals(manifest(clips))
    full = by_shard(laid)
    assert [*full] == [*range(len(full))]
    for shard in range(len(full) - 1):
        held = sum(max(row["size"], 0) for row in full[shard])
        first = max(full[shard + 1][0]["size"], 0)
        assert len(full[shard]) == per_shard or held + first > LARGEST_SHARD


def test_a_shard_may_hold_just_as_many_bytes_as_is_allowed():
    """A clip that takes more by itself stands alone."""
    clips = {0: LARGEST_SHARD - 1, 1: 1, 2: 1, 3: 2 * LARGEST_SHARD, 4: 1}
    assert numbers(assign_shards(manifest(clips), None, 10)) == {0: [0, 1], 1: [2], 2: [3], 3: [4]}


def test_files_that_are_missing_take_no_room():
    """Their size is -1: summed as it stands, it would make room for others."""
    clips = {**dict.fromkeys(range(8), -1), 8: LARGEST_SHARD, 9: 1}
    assert numbers(assign_shards(manifest(clips), None, 10)) == {0: [*range(9)], 1: [9]}


def test_a_manifest_of_nothing_is_as_good_as_none():
    laid = assign_shards(
        small(1, 2, 3), small().append_column("shard", pa.array([], pa.int32())), 2
    )
    assert numbers(laid) == {0: [1, 2], 1: [3]}


# A corpus that has changed


@settings(max_examples=200, deadline=None)
@given(corpora, corpora, st.integers(1, 10))
def test_clips_that_are_added_move_nobody(old, more, per_shard):
    """Wherever their names stand among the others: they fill shards of their own."""
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
def test_however_a_corpus_changes_no_clip_is_lost(first, changes, per_shard):
    """Clips come, go and change their sizes, again and again; shards stay well filled."""
    laid = assign_shards(manifest(first), None, per_shard)
    for modified, clips in enumerate(changes, 1):
        laid = assign_shards(manifest(clips, modified), laid, per_shard)
        needed = assign_shards(manifest(clips, modified), None, per_shard)
        assert laid.drop_columns("shard").sort_by("clip_id").equals(manifest(clips, modified))
        assert max(map(len, by_shard(laid).values())) <= per_shard
        assert len(by_shard(laid)) <= 2 * len(by_shard(needed))


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 99), max_size=50))
@example(set(range(40, 90)))
def test_clips_that_are_removed_touch_their_own_shards_alone(removed):
    """Twenty shards of five clips; those of them that lost nothing are what they were."""
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
def test_a_clip_that_changed_stays_in_its_shard_as_it_is_now(changed, size):
    """Even where it has grown so large that it would not get in any more."""
    before = assign_shards(small(*range(30)), None, 4)
    clips = {number: size if number in changed else 3 for number in range(30)}
    after = assign_shards(manifest(clips, modified=7), before, 4)
    assert numbers(after) == numbers(before)
    assert after["size"].to_pylist() == [clips[number] for number in range(30)]
    assert after["modified"].to_pylist() == [7] * 30


def test_numbers_of_emptied_shards_are_not_given_anew():
    """Their files may still lie there when the new ones are made."""
    before = assign_shards(small(*range(12)), None, 3)
    kept = small(0, 1, 2, 6, 7, 8, 20, 21, 22, 23)
    assert numbers(assign_shards(kept, before, 3)) == {
        0: [0, 1, 2], 2: [6, 7, 8], 4: [20, 21, 22], 5: [23],
    }  # fmt: skip


def test_twice_the_shards_needed_are_borne_more_are_laid_out_anew():
    before = assign_shards(small(*range(12)), None, 4)
    assert numbers(assign_shards(small(1, 6), before, 4)) == {0: [1], 1: [6]}
    assert numbers(assign_shards(small(1, 6, 9), before, 4)) == {0: [1, 6, 9]}
    assert numbers(assign_shards(small(1, 6, 9, 10, 11), before, 4)) == {
        0: [1], 1: [6], 2: [9, 10, 11],
    }  # fmt: skip


def test_a_corpus_that_grows_clip_by_clip_does_not_end_as_a_file_a_clip():
    """It is laid out anew now and then; what that costs is no more than a shard for each clip."""
    laid, made = assign_shards(small(0), None, 10), 0
    for count in range(2, 301):
        before = numbers(laid)
        laid = assign_shards(small(*range(count)), laid, 10)
        after = numbers(laid)
        made += sum(len(clips) for shard, clips in after.items() if clips != before.get(shard))
        assert len(after) <= 2 * -(-count // 10)
    assert 300 < made < 10 * 300


def test_another_number_of_clips_a_shard_moves_nobody():
    """It is for shards to come, unless there are far too many."""
    before = assign_shards(small(*range(10)), None, 5)
    after = assign_shards(small(*range(16)), before, 3)
    assert numbers(after) == {0: [*range(5)], 1: [*range(5, 10)], 2: [10, 11, 12], 3: [13, 14, 15]}
    assert numbers(assign_shards(small(*range(10)), before, 100)) == numbers(before)


@settings(max_examples=60, deadline=None)
@given(corpora, corpora, st.randoms(use_true_random=False))
def test_shards_depend_on_names_and_places_alone(old, now, random):
    """Not on what else was known, nor on how Arrow holds the rows, nor on the rows' order then."""
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


def test_a_shard_lies_in_the_order_in_which_its_clips_lie_now():
    """What is packed in one file is read forwards, whoever packed it anew."""
    before = assign_shards(small(*range(6)), None, 3)
    turned = small(*range(6)).take([5, 4, 3, 2, 1, 0])
    assert numbers(assign_shards(turned, before, 3)) == {0: [2, 1, 0], 1: [5, 4, 3]}


# How many clips


@pytest.mark.parametrize("wanted", [1, 17, 10**6])
def test_a_number_that_is_asked_for_is_what_is_used(wanted):
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
def test_auto_fills_a_row_group_where_that_leaves_shards_enough(clips, changes, expected):
    """64 shards are enough; of a small corpus's clips no fewer than 64 make one."""
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


def test_a_million_clips_are_laid_out_in_a_moment():
    """Columns, not rows: a corpus of a million clips grows by ten without a million objects."""
    count = 1_000_000
    names = pa.array(np.char.add("clip-", np.arange(count).astype(str)))
    clips = pa.table({"clip_id": names, "size": pa.array(np.full(count, 100_000))})
    before = assign_shards(clips.slice(0, count - 10), None, 1000)
    after = assign_shards(clips, before, 1000)
    assert after["shard"].to_pylist()[-12:] == [999, 999] + [1000] * 10
    assert after.slice(0, count - 10).equals(before)
