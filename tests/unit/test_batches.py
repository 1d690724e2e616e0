"""Which clips go to which worker, in which order; no cluster is needed for that."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest
import torch

from raysound.training.batches import (
    DeviceTransfer,
    Rows,
    class_weights,
    epoch_order,
    prefetch,
    row_batches,
    validation_order,
)
from raysound.training.step import Batch

HERE = DeviceTransfer(torch.device("cpu"))


def rows(classes: list[int]) -> Rows:
    """Clips whose every value is their number."""
    number = np.arange(len(classes))
    return Rows(
        np.broadcast_to(number[:, None, None], (len(number), 2, 3)).astype(np.float32),
        np.array(classes),
        np.array([f"clip-{row}" for row in number], dtype=object),
    )


def numbers(batch: Batch) -> list[int]:
    """The clips of a batch; log-mel, class and name belong together."""
    found = [int(value) for value in batch.log_mel[:, 0, 0]]
    assert list(batch.clip_ids) == [f"clip-{row}" for row in found]
    assert batch.target.tolist() == [row % 3 for row in found]
    assert batch.target.dtype == torch.int64
    return found


def shares(clips: int, batch_size: int, workers: int, order: np.ndarray) -> list[list[list[int]]]:
    """The clips of each batch, by worker."""
    some = rows([row % 3 for row in range(clips)])
    return [
        [
            numbers(batch)
            for batch in row_batches(some, batch_size, order, rank, workers, HERE, None)
        ]
        for rank in range(workers)
    ]


def drawn(clips: int) -> np.ndarray:
    return np.random.default_rng(clips).permutation(clips)


# Batches


@pytest.mark.parametrize("workers", [2, 3, 4, 6])
@pytest.mark.parametrize("clips", [24, 29, 30, 31, 36])
def test_workers_share_the_batches_of_a_single_worker(clips: int, workers: int) -> None:
    """Except for the remainder of the last batch, which can't be divided evenly."""
    order = drawn(clips)
    (alone,) = shares(clips, 12, 1, order)

    together = list(zip(*shares(clips, 12, workers, order), strict=True))

    assert list(chain.from_iterable(alone)) == order.tolist()
    for parts, whole in zip(together, alone, strict=False):
        even = len(whole) // workers * workers
        assert len({len(part) for part in parts}) == 1
        # Dealt round, each clip to one worker: by turns they are the batch in its order.
        assert [row for turn in zip(*parts, strict=True) for row in turn] == whole[:even]
    missing = alone[len(together) :]
    assert all(len(whole) < workers for whole in missing)


def test_a_batch_that_is_not_divisible_by_the_workers_drops_clips() -> None:
    """With three workers, two of each 8 clips are dropped, and seen in another epoch."""
    together = shares(24, 8, 3, np.arange(24))

    assert [len(part) for worker in together for part in worker] == [2] * 9
    seen = [row for worker in together for part in worker for row in part]
    assert sorted(seen) == [row for row in range(24) if row % 8 < 6]


def test_every_worker_has_the_same_number_of_batches() -> None:
    """Otherwise one would wait forever for the gradients of the others."""
    for workers in range(1, 9):
        for clips in range(1, 30):
            counts = {len(share) for share in shares(clips, 8, workers, drawn(clips))}
            assert len(counts) == 1, (workers, clips)


def test_rows_on_the_device_give_the_same_batches() -> None:
    some = rows([row % 3 for row in range(20)])
    kept = torch.from_numpy(some.log_mel)

    fetched = list(row_batches(some, 6, drawn(20), 1, 2, HERE, None))
    there = list(row_batches(some, 6, drawn(20), 1, 2, HERE, kept))

    assert [numbers(batch) for batch in there] == [numbers(batch) for batch in fetched]
    assert all(one.log_mel.equal(other.log_mel) for one, other in zip(there, fetched, strict=True))


def test_batches_keep_the_stored_type() -> None:
    some = rows([0, 1, 2])
    half = Rows(some.log_mel.astype(np.float16), some.target, some.clip_id)

    (batch,) = row_batches(half, 8, np.arange(3), 0, 1, HERE, None)

    assert batch.log_mel.dtype == torch.float16


def test_a_batch_is_a_copy() -> None:
    """Arrays of the object store are read-only, so augmentation needs a copy."""
    some = rows([0, 1, 2])
    some.log_mel.flags.writeable = False

    (batch,) = row_batches(some, 8, np.arange(3), 0, 1, HERE, None)
    batch.log_mel.fill_(-1)

    assert some.log_mel[2].min() == 2


# Batches ahead of their use


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_prefetching_keeps_the_batches_and_their_order(count: int) -> None:
    some = rows([row % 3 for row in range(20)])

    def made() -> Iterator[Batch]:
        return row_batches(some, 6, drawn(20), 0, 1, HERE, None)

    assert [numbers(batch) for batch in prefetch(made(), count)] == [numbers(one) for one in made()]


@pytest.mark.parametrize("count", [0, 2])
def test_prefetching_raises_an_error_after_the_batches_before_it(count: int) -> None:
    batch = Batch(torch.zeros(1, 2, 3), torch.zeros(1, dtype=torch.int64), ["a"])

    def made() -> Iterator[Batch]:
        yield batch
        yield batch
        raise OSError("no disk")

    got = prefetch(made(), count)

    assert [next(got), next(got)] == [batch, batch]
    with pytest.raises(OSError, match="no disk"):
        next(got)


def test_prefetching_is_limited_to_its_count() -> None:
    made = []
    batch = Batch(torch.zeros(1, 2, 3), torch.zeros(1, dtype=torch.int64), ["a"])

    def count() -> Iterator[Batch]:
        for index in range(20):
            made.append(index)
            yield batch

    got = prefetch(count(), 3)
    next(got)
    got.close()

    assert 1 <= len(made) <= 4


# The order of an epoch


def test_an_epoch_holds_every_clip_once_in_a_random_order() -> None:
    some = rows([row % 3 for row in range(50)])
    seeds_and_epochs = [(seed, epoch) for seed in range(4) for epoch in range(1, 5)]

    orders = [epoch_order(some, seed, epoch, False) for seed, epoch in seeds_and_epochs]

    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_order_depends_on_seed_and_epoch(balanced: bool) -> None:
    some = rows([0] * 30 + [1] * 10)

    first = epoch_order(some, 7, 3, balanced)

    np.testing.assert_array_equal(epoch_order(some, 7, 3, balanced), first)
    assert epoch_order(some, 7, 4, balanced).tolist() != first.tolist()
    assert epoch_order(some, 8, 3, balanced).tolist() != first.tolist()


def test_a_balanced_epoch_samples_classes_equally() -> None:
    """Classes of 90, 9 and 1 clips each get a third of the samples."""
    some = rows([0] * 90 + [1] * 9 + [2])

    draws = np.concatenate([epoch_order(some, 0, epoch, True) for epoch in range(100)])

    assert len(draws) == 100 * 100
    share = np.bincount(some.target[draws]) / len(draws)
    # Five standard deviations of ten thousand draws.
    np.testing.assert_allclose(share, 1 / 3, atol=5 * np.sqrt(2 / 9 / len(draws)))
    # Within a class every clip alike: each of the ninety some 37 times.
    first = np.bincount(draws, minlength=100)[:90]
    assert first.min() > 10
    assert first.max() < 70


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_workers_validate_every_batch_once(workers: int) -> None:
    some = rows([row % 3 for row in range(20)])

    order = [validation_order(some, 6, rank, workers) for rank in range(workers)]

    batches = [
        numbers(batch) for mine in order for batch in row_batches(some, 6, mine, 0, 1, HERE, None)
    ]
    assert sorted(batches) == [[*range(start, min(start + 6, 20))] for start in range(0, 20, 6)]


# Class weights


def test_class_weights_have_a_mean_of_1_over_rows() -> None:
    """Forty rows of two balanced classes are twenty each."""
    count = np.array([30, 10])

    weights = class_weights(count)

    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([20 / 30, 20 / 10])
    assert (weights.numpy() * count).sum() / count.sum() == pytest.approx(1)
    assert class_weights(np.array([5, 5, 5])).tolist() == [1, 1, 1]
