"""Parquet files with the clips of the predictions, a part a shard: one made, one looked up.

They hold other embeddings than the classifier's, and the most similar training clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.evaluation.part_scoring import json_digest
from raysound.evaluation.predictions import read_metadata
from raysound.features import parquet

PART_KEY = b"raysound.derived"
# Of a part: it is there, or is to be made.
DONE, DERIVE = "done", "derive"


class DerivedRecord(NamedTuple):
    """The record of a part, kept in its Parquet metadata.

    Attributes:
        digest: of the shard, the clips and the source.
        clips: rows of the part.
    """

    digest: str
    clips: int


def derive_part(
    row: dict[str, str], source: str, derive: Callable[[str, pa.Table], pa.Table] | None
) -> dict[str, str]:
    """Makes one part, unless it is there.

    Args:
        row: `shard` (URI of the log-mels), `scored` (of the part of the predictions) and `part` (of
            the file to write).
        source: digest; together with the shard and the clips it determines the part.
        derive: takes the shard and `clip_id`, `split` and `label` of the clips that the classifier
            scored, and returns the table to write; None writes nothing.

    Returns:
        `todo`: DONE, or DERIVE where the part was missing or of another digest.
    """
    record = parquet.read_record(row["shard"])
    if record is None:
        raise FileNotFoundError(f"{row['shard']} is gone")
    clips = storage.read_table(row["scored"], ["clip_id", "split", "label"]).combine_chunks()
    chosen = json_digest(clips["clip_id"].to_pylist(), clips["split"].to_pylist())
    wanted = json_digest(source, record.digest, record.written, record.windows, chosen)
    if is_derived(row["part"], wanted):
        return {"todo": DONE}
    if derive is not None:
        write_derived(row["part"], derive(row["shard"], clips), wanted)
    return {"todo": DERIVE}


def is_derived(uri: str, wanted: str) -> bool:
    """Whether there is a file with this digest."""
    record = read_metadata(uri, PART_KEY, DerivedRecord)
    return record is not None and record.digest == wanted


def write_derived(uri: str, table: pa.Table, wanted: str) -> None:
    """Writes a table with its record as one Parquet file, which appears whole."""
    record = json.dumps(DerivedRecord(wanted, len(table))._asdict())
    storage.write_table(
        uri, table.replace_schema_metadata({PART_KEY: record}), compression="zstd",
        use_dictionary=["split", "label"],
    )  # fmt: skip


def log_mels_of(shard: str, names: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The windows of some clips of a shard, a row group at a time.

    Yields:
        The clip's place among the names, `(n,)`, and the log-mels, `(n, n_mels, n_frames)`.
    """
    with storage.open_file(shard) as opened:
        file = pq.ParquetFile(opened)
        for number in range(file.num_row_groups):
            here = file.read_row_group(number, ["clip_id"])["clip_id"]
            wanted = pc.is_in(here, names)
            # Log-mels are most of a shard: those of a group without such a clip are not read.
            if pc.any(wanted).as_py():
                rows = file.read_row_group(number, ["log_mel"]).filter(wanted)
                yield positions(here.filter(wanted), names), parquet.tensor_array(rows["log_mel"])


def positions(column: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    """Where the values of a column stand in an array that holds all of them."""
    found: np.ndarray = pc.index_in(column, names).to_numpy().astype(np.int64)
    return found
