"""Scores one shard of log-mels in three steps: read, classify, write.

Between the steps a part is a row of `WORK`. A step that has nothing to do returns it unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from raysound import storage
from raysound.evaluation.predictions import (
    COMPARED,
    PREDICTIONS,
    PREDICTIONS_VERSION,
    as_array,
    read_part_metadata,
    write_part,
)
from raysound.features import parquet
from raysound.features.records import Shard
from raysound.metrics.mismatch import spectrum_and_level
from raysound.metrics.nearest import nearest_reference_clips
from raysound.metrics.neighbours import K, nearest_others, per_clip
from raysound.metrics.selection import keys
from raysound.models import EmbeddingClassifier
from raysound.training import checkpoint
from raysound.training.checkpoint import ClassifierMetadata
from raysound.training.inference import mean_by_clip, score

COLUMNS = ("clip_id", "label", "duration", "sample_rate")
# What to do with a part: nothing, compare its clips with the references, or score and compare.
DONE, COMPARE, SCORE = "done", "compare", "score"
# A part between two steps; `table` is the result of the last step, as an Arrow stream.
WORK = pa.schema(
    [
        ("corpus", pa.string()),
        ("shard", pa.string()),
        ("part", pa.string()),
        ("todo", pa.string()),
        ("scored", pa.string()),
        ("table", pa.large_binary()),
    ]
)
RESULT = pa.schema(
    [
        ("corpus", pa.string()),
        ("part", pa.string()),
        ("todo", pa.string()),
        ("clips", pa.int64()),
        ("train", pa.int64()),
        ("embedding_size", pa.int64()),
    ]
)


class Identity(NamedTuple):
    """What predictions depend on besides the shard.

    Attributes:
        classifier: digest of its weights and metadata.
        batch_size: log-mels per forward pass.
        compared: digest of the training clips to compare with; "" for none, None until they
            are scored.
    """

    classifier: str
    batch_size: int
    compared: str | None


class References(NamedTuple):
    """Real training clips to compare other clips with.

    Attributes:
        clip_id: names, `(n,)`.
        embedding: float32 `(n, size)`.
        near: squared distances to the K nearest of the others, `(n, K)`; empty if too few clips.
    """

    clip_id: pa.Array
    embedding: np.ndarray
    near: np.ndarray


def json_digest(*values: Any) -> str:
    """A digest of some values, by their JSON."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def classifier_digest(run: str) -> str:
    """A digest of the weights and the metadata of a trained classifier."""
    names = (checkpoint.METADATA_FILE, checkpoint.WEIGHTS)
    return json_digest(*(file_sha256(storage.join(run, name)) for name in names))


def file_sha256(uri: str) -> str:
    """SHA-256 of a file's content, as hex digits."""
    with storage.open_file(uri) as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def read_shard(row: dict[str, Any], identity: Identity, chosen: pa.Table | None) -> dict[str, Any]:
    """First step: decides what to do with a part, and reads the log-mels if it is to be scored.

    Args:
        row: of WORK, with `corpus`, `shard` and `part`.
        identity: of the predictions.
        chosen: `clip_id` and `split` of the clips to score; None for all clips.
    """
    with storage.open_file(row["shard"]) as opened:
        file = pq.ParquetFile(opened)
        record = Shard.from_json(file.metadata.metadata[parquet.SHARD_KEY].decode())
        splits = None
        if chosen is not None:
            names = file.read(["clip_id"])["clip_id"].combine_chunks()
            splits = split_column(names, chosen)
        # The record's digest does not change if clips that were unreadable are read later, so the
        # counts are part of this digest.
        scored = json_digest(
            PREDICTIONS_VERSION, record.digest, record.written, record.windows,
            identity.classifier, identity.batch_size,
            None if splits is None else splits.to_pylist(),
        )  # fmt: skip
        metadata = read_part_metadata(row["part"])
        if metadata is not None and metadata.scored == scored:
            is_compared = identity.compared in (None, metadata.compared)
            return row | {"todo": DONE if is_compared else COMPARE, "scored": scored, "table": b""}
        if splits is None or splits.null_count < len(splits):
            table = file.read([*COLUMNS, "log_mel"])
        else:
            table, splits = file.schema_arrow.empty_table(), None
    if splits is not None:
        table = table.append_column("split", splits).filter(pc.is_valid(splits))
    table = table.replace_schema_metadata(None)
    return row | {"todo": SCORE, "scored": scored, "table": to_stream(table)}


def split_column(names: pa.Array, chosen: pa.Table) -> pa.Array:
    """The split of each of some clips, `(n,)`; null for those that are not chosen."""
    clips = chosen.filter(pc.is_in(chosen["clip_id"], names)).combine_chunks()
    index = pc.index_in(names, clips["clip_id"].combine_chunks())
    return clips["split"].combine_chunks().take(index)


def classify(row: dict[str, Any], run: str, identity: Identity, device: str) -> dict[str, Any]:
    """Second step: computes the predictions of a shard's log-mels.

    A shard is scored in one call, so that scores do not depend on the number of processes.
    """
    if row["todo"] != SCORE:
        return row
    rows = from_stream(row["table"])
    if not len(rows):
        return row | {"table": to_stream(PREDICTIONS.empty_table())}
    classifier, model = load_classifier(run, device, identity.classifier)
    log_mel = parquet.tensor_array(rows["log_mel"])
    splits = rows["split"] if "split" in rows.column_names else None
    predictions = make_predictions(
        row["corpus"], rows.select(COLUMNS), splits, log_mel, classifier, model,
        identity.batch_size,
    )  # fmt: skip
    return row | {"table": to_stream(predictions)}


def write_predictions(
    row: dict[str, Any], identity: Identity, references: References | None
) -> dict[str, Any]:
    """Third step: compares the clips with the references, and writes the part atomically.

    Returns:
        A row of RESULT.
    """
    if row["todo"] == DONE:
        metadata = read_part_metadata(row["part"])
        if metadata is None:
            raise FileNotFoundError(f"{row['part']} is gone")
    else:
        if row["todo"] == SCORE:
            table = from_stream(row["table"])
        else:
            table = storage.read_table(row["part"])
        if references is not None:
            table = add_nearest_neighbours(table, references)
        metadata = write_part(row["part"], table, row["scored"], identity.compared or "")
    result = {name: row[name] for name in ("corpus", "part", "todo")}
    return result | {
        "clips": metadata.clips, "train": metadata.train, "embedding_size": metadata.embedding_size,
    }  # fmt: skip


def to_stream(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_stream(stream: Any) -> pa.Table:
    """The table of an Arrow stream, without a copy."""
    return pa.ipc.open_stream(stream).read_all()


def make_predictions(
    corpus: str,
    rows: pa.Table,
    splits: pa.ChunkedArray | None,
    log_mel: np.ndarray,
    classifier: ClassifierMetadata,
    model: EmbeddingClassifier,
    batch_size: int,
) -> pa.Table:
    """PREDICTIONS of the clips of some windows, which are in consecutive rows.

    Args:
        corpus: its name.
        rows: `clip_id`, `label`, `duration` and `sample_rate` of each window.
        splits: train, validation or test of each window; None for a generated corpus.
        log_mel: `(n, n_mels, n_frames)`.
        classifier: its metadata.
        model: in eval mode.
        batch_size: log-mels per forward pass.
    """
    probabilities, embeddings = score(model, classifier.normalisation, log_mel, batch_size)
    spectra, levels, shares = spectrum_and_level(log_mel)
    names = rows["clip_id"].to_numpy()
    starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
    labels = rows["label"].take(starts)
    probabilities = mean_by_clip(probabilities, starts)
    # The last column is the probability 0 of classes that are unknown to the classifier.
    padded = np.append(probabilities, np.zeros((len(starts), 1), np.float32), axis=1)
    known = classifier.labels
    column = [known.index(x) if x in known else -1 for x in labels.to_pylist()]
    target = pa.array(padded[np.arange(len(starts)), column], mask=labels.is_null().to_numpy())
    count, nulls = len(starts), pa.nulls(len(starts))
    return pa.table(
        {
            "corpus": [corpus] * count,
            "clip_id": names[starts],
            "split": nulls if splits is None else splits.take(starts),
            "label": labels,
            "prediction": [known[index] for index in probabilities.argmax(axis=1)],
            "probability": probabilities.max(axis=1),
            "target_probability": target,
            "windows": np.diff(np.append(starts, len(names))),
            "sample_rate": rows["sample_rate"].take(starts),
            "duration": rows["duration"].take(starts),
            "level_db": mean_by_clip(levels[:, np.newaxis], starts)[:, 0],
            "nonsilent_fraction": mean_by_clip(shares[:, np.newaxis], starts)[:, 0],
            **dict.fromkeys(COMPARED, nulls),
            "probabilities": list(probabilities),
            "embedding": list(mean_by_clip(embeddings, starts)),
            "spectrum": list(mean_by_clip(spectra, starts)),
        }
    ).cast(PREDICTIONS)


def read_references(parts: Sequence[str]) -> References:
    """Reads the training clips of some parts, in the order of sampling."""
    tables = [storage.read_table(uri, ["clip_id", "split", "embedding"]) for uri in parts]
    real = pa.concat_tables([table.filter(pc.equal(table["split"], "train")) for table in tables])
    order = np.argsort(keys(real["clip_id"].to_pylist()), kind="stable")
    real = real.take(pa.array(order))
    return make_references(real["clip_id"].to_pylist(), as_array(real["embedding"]))


def make_references(clip_ids: list[str], embedding: np.ndarray) -> References:
    """References from the names and embeddings, float32 `(n, size)`, of training clips."""
    near = np.empty((0, K))
    if len(embedding) > K:
        near = nearest_others(embedding.astype(np.float64), K)[1]
    return References(pa.array(clip_ids, pa.string()), embedding, near)


def add_nearest_neighbours(scored: pa.Table, references: References) -> pa.Table:
    """Fills the columns COMPARED of all clips but training clips."""
    is_train = pc.fill_null(pc.equal(scored["split"], "train"), False)
    values: dict[str, pa.Array] = dict.fromkeys(COMPARED, pa.nulls(len(scored)))
    if len(scored) and len(references.near):
        embedding = as_array(scored["embedding"])
        nearest = nearest_reference_clips(embedding, references.embedding, K, references.near)
        counts = per_clip(embedding, references.embedding, K, references.near)
        values = {
            "realism": pa.array(nearest.realism, pa.float32()),
            "nearest_train_clip_id": references.clip_id.take(pa.array(nearest.index)),
            "balls": pa.array(counts.balls, pa.int32()),
            "authentic": pa.array(counts.authentic),
        }
    for name in COMPARED:
        column = pc.if_else(is_train, pa.scalar(None, values[name].type), values[name])
        scored = scored.set_column(scored.schema.get_field_index(name), name, column)
    return scored.cast(PREDICTIONS)


@lru_cache(maxsize=1)
def load_classifier(
    run: str, device: str, classifier: str
) -> tuple[ClassifierMetadata, EmbeddingClassifier]:
    """Loads the classifier to a device, once per process and digest."""
    torch.set_num_threads(1)
    # TensorFloat-32 saves little time, and scores would depend on the machine.
    torch.backends.cudnn.allow_tf32 = False
    metadata = checkpoint.load_metadata(run)
    return metadata, checkpoint.load_model(run, metadata).to(device)
