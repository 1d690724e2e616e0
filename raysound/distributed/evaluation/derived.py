"""Ray Data pipelines over shards of log-mels and the parts that follow their predictions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa
import ray.data

from raysound.distributed.cluster.failures import finite_retries
from raysound.distributed.evaluation.score import delete_others, parts_of, tables_of_parts
from raysound.evaluation.predictions import part_index, part_uri


def derived_parts(
    folders: Mapping[str, str], predictions: str, folder: str, others: Collection[str] = ()
) -> pa.Table:
    """The parts to write to a folder, in which all others are deleted.

    Args:
        folders: of the log-mels, by the corpus's name.
        predictions: folder of the predictions.
        folder: to write to: `<corpus>/part-NNNNNNNN.parquet`.
        others: corpora, or files, of the folder that stay as they are.

    Returns:
        Rows of `corpus`, `shard`, `part` and `scored`, the part of the predictions.
    """
    parts = parts_of(folders, folder)
    delete_others(parts, folder, others)
    scored = [
        part_uri(predictions, corpus, part_index(uri))
        for corpus, uri in zip(parts["corpus"].to_pylist(), parts["part"].to_pylist(), strict=True)
    ]
    return parts.append_column("scored", pa.array(scored, pa.string()))


def map_parts(
    parts: pa.Table,
    step: Callable[..., pa.Table] | type,
    arguments: Mapping[str, Any],
    parts_of_a_task: int,
    **actors: Any,
) -> ray.data.Dataset:
    """A pipeline that calls a step with a table of one part at a time.

    Args:
        parts: a row a part.
        step: a function, or a class whose instances are called; returns a table.
        arguments: of the function after the first, or of the class.
        parts_of_a_task: at most; no result is to depend on it.
        actors: how the class is run; see `ray.data.Dataset.map_batches`.
    """
    named = "fn_constructor_kwargs" if actors else "fn_kwargs"
    with finite_retries() as retries:
        options = actors or {"num_cpus": 1, **retries}
        return ray.data.from_arrow(tables_of_parts(parts, parts_of_a_task)).map_batches(
            step, batch_size=1, batch_format="pyarrow", zero_copy_batch=True,
            **{named: arguments}, **options,
        )  # fmt: skip
