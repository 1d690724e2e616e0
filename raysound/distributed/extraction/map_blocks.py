"""Maps functions over blocks of rows, in this process or with Ray Data."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import ray.data

from raysound.distributed.cluster.failures import finite_retries

Result = TypeVar("Result")
# Limit of tasks in a step, because the driver holds each of them.
MAX_TASKS = 1000
# Size of blocks of files and clips, large enough for those that `list_blocks` yields.
BLOCK_BYTES = 16 << 20


def map_blocks(
    blocks: list[pa.Table] | ray.data.Dataset, function: Callable[..., Result], *arguments: Any
) -> list[Result]:
    """Calls a function with each block, and returns the results.

    Args:
        blocks: tables, for calls in this process, or a dataset, for calls in Ray tasks.
        function: takes a block first; defined in a module.
        arguments: its further arguments.
    """
    if isinstance(blocks, list):
        return [function(block, *arguments) for block in blocks]
    results = map_dataset(blocks, _call_on_block, function=function, arguments=arguments)
    return [pickle.loads(row["result"]) for row in results.iter_rows()]


def map_calls(
    on_cluster: bool, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]
) -> list[Result]:
    """Calls a function several times, and returns the results in the order of the calls.

    Args:
        on_cluster: True for calls in Ray tasks, False for calls in this process.
        function: defined in a module.
        calls: the arguments of each call.
    """
    if not on_cluster:
        return [function(*arguments) for arguments in calls]
    pickled = [{"call": pickle.dumps(arguments)} for arguments in calls]
    if not pickled:
        return []
    results = map_dataset(rows_dataset(pickled), _make_calls, function=function)
    return [pickle.loads(row["result"]) for row in results.iter_rows()]


def rows_dataset(rows: list[dict[str, Any]]) -> ray.data.Dataset:
    """Rows as a dataset of many blocks."""
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_TASKS))
    # By default Ray Data merges blocks up to 128 MB, which takes memory.
    dataset.context.target_max_block_size = BLOCK_BYTES
    return dataset


def map_dataset(dataset: ray.data.Dataset, step: Any, /, **arguments: Any) -> ray.data.Dataset:
    """A dataset with a function applied to each of its blocks."""
    with finite_retries() as retries:
        return dataset.map_batches(
            step, fn_kwargs=arguments,
            batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **retries,
        )  # fmt: skip


def _call_on_block(block: pa.Table, function: Any, arguments: tuple[Any, ...]) -> pa.Table:
    """Runs in a Ray task: calls a function with a block; the result is a table of one row."""
    result = pickle.dumps(function(block, *arguments))
    return pa.table({"result": pa.array([result], pa.large_binary())})


def _make_calls(block: pa.Table, function: Any) -> Iterator[pa.Table]:
    """Runs in a Ray task: makes some calls; each result is a table of one row."""
    for call in block["call"].to_pylist():
        result = pickle.dumps(function(*pickle.loads(call)))
        yield pa.table({"result": pa.array([result], pa.large_binary())})
