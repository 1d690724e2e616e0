"""Parquet files derived from a shard and its predictions: further embeddings, and copies."""

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
# State of a part: it exists, or was missing.
DONE, DERIVE = "done", "derive"


class DerivedRecord(NamedTuple):
    """The record of a part, in its Parquet metadata.

    Attributes:
        digest: of the shard, the clips and the source.
        clips: number of rows.
    """

    digest: str
    clips: int


def derive_part(
    row: dict[str, str], source: str, derive: Callable[[str, pa.Table], pa.Table] | None
) -> dict[str, str]:
    """Writes one part, unless it exists.

    Args:
        row: URIs of the `shard`, of `scored`, the part of the predictions, and of `part`, the file
            to write.
        source: digest of all that the part depends on besides shard and clips.
        derive: takes the shard and `clip_id`, `split` and `label` of the scored clips, and returns
            the table to write; None writes nothing.

    Returns:
        `todo`: DONE, or DERIVE if the part was missing or had another digest.
    """
    record = parquet.read_record(row["shard"])
    if record is None:
        raise FileNotFoundError(f"{row['shard']} is gone")
    clips = storage.read_table(row["scored"], ["clip_id", "split", "label"]).combine_chunks()
    clips_digest = json_digest(clips["clip_id"].to_pylist(), clips["split"].to_pylist())
    digest = json_digest(source, record.digest, record.written, record.windows, clips_digest)
    if is_derived(row["part"], digest):
        return {"todo": DONE}
    if derive is not None:
        write_derived(row["part"], derive(row["shard"], clips), digest)
    return {"todo": DERIVE}


def is_derived(uri: str, digest: str) -> bool:
    """Whether there is a file with this digest."""
    record = read_metadata(uri, PART_KEY, DerivedRecord)
    return record is not None and record.digest == digest


def write_derived(uri: str, table: pa.Table, digest: str) -> None:
    """Writes a table with its record as one Parquet file, atomically."""
    record = json.dumps(DerivedRecord(digest, len(table))._asdict())
    storage.write_table(
        uri, table.replace_schema_metadata({PART_KEY: record}), compression="zstd",
        use_dictionary=["split", "label"],
    )  # fmt: skip


def read_log_mels(shard: str, names: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads the windows of some clips of a shard, a row group at a time.

    Yields:
        The index of each window's clip in the names, `(n,)`, and log-mels `(n, n_mels, n_frames)`.
    """
    with storage.open_file(shard) as opened:
        file = pq.ParquetFile(opened)
        for number in range(file.num_row_groups):
            clip_ids = file.read_row_group(number, ["clip_id"])["clip_id"]
            wanted = pc.is_in(clip_ids, names)
            # Log-mels are most of a shard, so they are read only if needed.
            if pc.any(wanted).as_py():
                rows = file.read_row_group(number, ["log_mel"]).filter(wanted)
                index = positions(clip_ids.filter(wanted), names)
                yield index, parquet.tensor_array(rows["log_mel"])


def positions(column: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    """The index of each value of a column in an array that contains all of them."""
    index: np.ndarray = pc.index_in(column, names).to_numpy().astype(np.int64)
    return index
