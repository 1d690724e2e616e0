"""Functions over blocks of rows as Ray Data pipelines."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import ray.data

from raysound.distributed.cluster.failures import finite_retries

Result = TypeVar("Result")
# Tasks of one step: the driver holds each of them.
MOST_TASKS = 1000
# Of listed files and of clips, which then pass as `list_blocks` yields them.
BLOCK_BYTES = 16 << 20


def map_blocks(
    blocks: list[pa.Table] | ray.data.Dataset, function: Callable[..., Result], *arguments: Any
) -> list[Result]:
    """What a function returns for each block, which is its first argument.

    Args:
        blocks: tables of this process, or a dataset whose tasks call the function.
        function: of a module.
        arguments: its others.
    """
    if isinstance(blocks, list):
        return [function(block, *arguments) for block in blocks]
    results = _map(blocks, _pickled, function=function, arguments=arguments)
    return [pickle.loads(row["result"]) for row in results.iter_rows()]


def map_calls(
    on_cluster: bool, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]
) -> list[Result]:
    """What a function returns for each call, in the order of the calls.

    Args:
        on_cluster: True for tasks of Ray Data, else the calls are made in this process.
        function: of a module.
        calls: its arguments.
    """
    if not on_cluster:
        return [function(*arguments) for arguments in calls]
    pickled = [{"call": pickle.dumps(arguments)} for arguments in calls]
    if not pickled:
        return []
    results = _map(_dataset(pickled), _called, function=function)
    return [pickle.loads(row["result"]) for row in results.iter_rows()]


def _dataset(rows: list[dict[str, Any]]) -> ray.data.Dataset:
    """Rows as a dataset of many blocks."""
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_TASKS))
    # By default Ray Data joins blocks to up to 128 MB, which takes memory.
    dataset.context.target_max_block_size = BLOCK_BYTES
    return dataset


def _map(dataset: ray.data.Dataset, step: Any, /, **arguments: Any) -> ray.data.Dataset:
    """A dataset with a function applied to each of its blocks."""
    with finite_retries() as retries:
        return dataset.map_batches(
            step, fn_kwargs=arguments,
            batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **retries,
        )  # fmt: skip


def _pickled(block: pa.Table, function: Any, arguments: tuple[Any, ...]) -> pa.Table:
    """Runs in a Ray task: a function's result for a block, as a table of one row."""
    result = pickle.dumps(function(block, *arguments))
    return pa.table({"result": pa.array([result], pa.large_binary())})


def _called(block: pa.Table, function: Any) -> Iterator[pa.Table]:
    """Runs in a Ray task: a function's result for each call, as a table of one row."""
    for call in block["call"].to_pylist():
        result = pickle.dumps(function(*pickle.loads(call)))
        yield pa.table({"result": pa.array([result], pa.large_binary())})
