"""Sums over the predictions of every corpus, as a Ray Data pipeline over the parts."""

from __future__ import annotations

import pickle

import pyarrow as pa
import ray
import ray.data

from raysound.distributed.cluster.failures import RETRIES, finite_retries, translate_ray_errors
from raysound.distributed.evaluation.score import split_parts
from raysound.evaluation.partial_sums import PartialSums, Plan, add_sums, select_entries, sum_parts
from raysound.evaluation.predictions import part_index, prediction_parts

# Parts per task; does not affect the sums.
PARTS_PER_TASK = 32


def sum_corpora(
    corpora: list[str], predictions: str, plan: Plan, parts_per_task: int = PARTS_PER_TASK
) -> dict[str, ray.ObjectRef]:
    """References to the sums over all parts of each corpus, by TRAIN or OTHERS.

    Parts are added in order, so the sums don't depend on the number of tasks, to the last bit.
    """
    tables = {
        name: split_parts(
            pa.table([[name] * len(uris), uris], names=["corpus", "part"]), parts_per_task
        )
        for name in corpora
        if (uris := prediction_parts(predictions, name))
    }
    totals = {name: ray.put({}) for name in corpora}
    if not tables:
        return totals
    with finite_retries() as retries:
        blocks = [table for corpus_tables in tables.values() for table in corpus_tables]
        work = ray.data.from_arrow(blocks).map_batches(
            sum_step, batch_size=None, batch_format="pyarrow", fn_kwargs={"plan": plan},
            num_cpus=1, **retries,
        )  # fmt: skip
    with translate_ray_errors("summing up the predictions"):
        # In the order of the tables, because `ray_session` sets `preserve_order`.
        sums = work.to_arrow_refs()
    task = ray.remote(max_retries=RETRIES)(merge_block_sums)
    for name, corpus_tables in tables.items():
        totals[name] = task.remote(sums[: len(corpus_tables)], plan)
        sums = sums[len(corpus_tables) :]
    return totals


def merge_block_sums(blocks: list[ray.ObjectRef], plan: Plan) -> dict[str, PartialSums]:
    """Runs in a Ray task: adds the results of `sum_step` for a corpus, in order."""
    totals: dict[str, PartialSums] = {}
    for block in blocks:
        for row in ray.get(block).to_pylist():
            clips = row["clips"]
            totals[clips] = add_sums(totals.get(clips), pickle.loads(row["sums"]), plan)
    return {clips: select_entries(total, plan) for clips, total in totals.items()}


def sum_step(batch: pa.Table, plan: Plan) -> pa.Table:
    """Runs in a Ray Data task: sums over some parts of a corpus, with a row per kind."""
    uris = {part_index(uri): uri for uri in batch["part"].to_pylist()}
    rows = [
        {"clips": clips, "sums": pickle.dumps(sums)}
        for clips, sums in sum_parts(uris, plan).items()
    ]
    columns = {"clips": pa.string(), "sums": pa.large_binary()}
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))
