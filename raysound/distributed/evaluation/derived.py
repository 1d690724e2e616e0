"""Ray Data pipelines that derive parts from shards of log-mels and their predictions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa
import ray.data

from raysound.distributed.cluster.failures import finite_retries
from raysound.distributed.evaluation.score import delete_stale_parts, list_parts, split_parts
from raysound.evaluation.predictions import part_index, part_uri


def derived_parts(
    folders: Mapping[str, str], predictions: str, folder: str, keep: Collection[str] = ()
) -> pa.Table:
    """Lists the parts to write to a folder, and deletes other files there.

    Args:
        folders: of the log-mels, by the corpus's name.
        predictions: folder of the predictions.
        folder: to write to: `<corpus>/part-NNNNNNNN.parquet`.
        keep: further corpora, or files, of the folder that are not deleted.

    Returns:
        Rows of `corpus`, `shard`, `part` and `scored`, the part of the predictions.
    """
    parts = list_parts(folders, folder)
    delete_stale_parts(parts, folder, keep)
    scored = [
        part_uri(predictions, corpus, part_index(uri))
        for corpus, uri in zip(parts["corpus"].to_pylist(), parts["part"].to_pylist(), strict=True)
    ]
    return parts.append_column("scored", pa.array(scored, pa.string()))


def map_parts(
    parts: pa.Table,
    step: Callable[..., pa.Table] | type,
    arguments: Mapping[str, Any],
    parts_per_task: int,
    **actors: Any,
) -> ray.data.Dataset:
    """A pipeline that calls a step with a table of one part at a time.

    Args:
        parts: a row per part.
        step: a function, or a class whose instances are called; returns a table.
        arguments: further arguments of the function, or those of the class.
        parts_per_task: maximum; must not affect the results.
        actors: options of the class's actors; see `ray.data.Dataset.map_batches`.
    """
    option = "fn_constructor_kwargs" if actors else "fn_kwargs"
    with finite_retries() as retries:
        options = actors or {"num_cpus": 1, **retries}
        return ray.data.from_arrow(split_parts(parts, parts_per_task)).map_batches(
            step, batch_size=1, batch_format="pyarrow", zero_copy_batch=True,
            **{option: arguments}, **options,
        )  # fmt: skip
