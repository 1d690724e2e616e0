"""Sums over the predictions of every corpus: a Ray Data pipeline over the parts."""

from __future__ import annotations

import pickle

import pyarrow as pa
import ray
import ray.data

from raysound.distributed.cluster.failures import RETRIES, finite_retries, translate_ray_errors
from raysound.distributed.evaluation.score import tables_of_parts
from raysound.evaluation.partial_sums import (
    PartialSums,
    Plan,
    add,
    of_parts,
    selected,
)
from raysound.evaluation.predictions import (
    part_index,
    prediction_parts,
)

# Parts that a task sums up; how many does not change a bit of the sums.
PARTS_OF_A_TASK = 32


def sum_corpora(
    corpora: list[str], predictions: str, plan: Plan, parts_of_a_task: int = PARTS_OF_A_TASK
) -> dict[str, ray.ObjectRef]:
    """Sums over all parts of each corpus, by TRAIN or OTHERS; the driver holds references to them.

    They are added in the order of the parts: bit by bit the same, however many parts a task takes,
    and however many tasks run at once.
    """
    tables = {
        name: tables_of_parts(
            pa.table([[name] * len(uris), uris], names=["corpus", "part"]), parts_of_a_task
        )
        for name in corpora
        if (uris := prediction_parts(predictions, name))
    }
    found = {name: ray.put({}) for name in corpora}
    if not tables:
        return found
    with finite_retries() as retries:
        work = ray.data.from_arrow([one for some in tables.values() for one in some]).map_batches(
            sum_step, batch_size=None, batch_format="pyarrow", fn_kwargs={"plan": plan},
            num_cpus=1, **retries,
        )  # fmt: skip
    with translate_ray_errors("summing up the predictions"):
        # In the order of the tables, as `ray_session` tells Ray Data to keep it.
        sums = work.to_arrow_refs()
    task = ray.remote(max_retries=RETRIES)(merge_sums)
    for name, some in tables.items():
        found[name] = task.remote(sums[: len(some)], plan)
        sums = sums[len(some) :]
    return found


def merge_sums(blocks: list[ray.ObjectRef], plan: Plan) -> dict[str, PartialSums]:
    """Runs in a Ray task: adds what `sum_step` returned for a corpus, in the order of the parts."""
    totals: dict[str, PartialSums] = {}
    for block in blocks:
        for row in ray.get(block).to_pylist():
            clips = row["clips"]
            totals[clips] = add(totals.get(clips), pickle.loads(row["sums"]), plan)
    return {clips: selected(one, plan) for clips, one in totals.items()}


def sum_step(batch: pa.Table, plan: Plan) -> pa.Table:
    """Runs in a Ray Data task: sums over some parts of a corpus, a row a kind of clips."""
    uris = {part_index(uri): uri for uri in batch["part"].to_pylist()}
    rows = [
        {"clips": clips, "sums": pickle.dumps(one)} for clips, one in of_parts(uris, plan).items()
    ]
    columns = {"clips": pa.string(), "sums": pa.large_binary()}
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))
