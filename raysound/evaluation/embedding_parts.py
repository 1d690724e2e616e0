"""The Parquet of another embedding than the classifier's: one shard embedded, written and read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.formats.samples import as_float
from raysound.corpora.manifest_parts import shard_clips
from raysound.errors import UserError
from raysound.evaluation.derived_parts import derive_part, log_mels_of, positions
from raysound.evaluation.log_mel_statistics import QUANTILES, log_mel_statistics
from raysound.evaluation.onnx_model import (
    BATCH_SAMPLES,
    BATCH_WINDOWS,
    GPU_PROVIDER,
    import_onnxruntime,
    load_onnx_model,
    read_model,
)
from raysound.evaluation.part_scoring import json_digest
from raysound.evaluation.predictions import part_index
from raysound.features.extraction import read_windows
from raysound.metrics.selection import keys, sampled, smallest
from raysound.settings.evaluation import (
    Embedding,
    OnnxEmbedding,
)
from raysound.settings.features import FeatureSettings

# Raised when the same model and clips give other embeddings.
EMBEDDING_VERSION = 1
# `embedding` is the mean over the windows of the clip. The rows are those of the predictions.
EMBEDDINGS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
# What is known of a clip before its embedding is read.
CLIP = np.dtype([("part", np.int32), ("row", np.int32), ("key", np.uint64)])


class EmbeddingSource(NamedTuple):
    """Where embeddings come from.

    Attributes:
        name: in the config.
        path: of the ONNX model; "" for log-mel statistics.
        sha256: of the model's file; "" for log-mel statistics.
        size: numbers of an embedding.
        windows: how the clips are cut for the model.
        on_gpu: whether the model runs on GPUs.
    """

    name: str
    path: str
    sha256: str
    size: int
    windows: FeatureSettings
    on_gpu: bool

    @property
    def digest(self) -> str:
        """Stands for everything that the embedding of a given clip depends on."""
        if self.path:
            of = self.windows
            return json_digest(
                EMBEDDING_VERSION, self.sha256, of.sample_rate, of.clip_length, of.long_clips
            )
        return json_digest(EMBEDDING_VERSION, "log_mel_statistics", self.windows.id)

    @property
    def words(self) -> str:
        """The same for a reader."""
        if self.path:
            file = self.path.rpartition("/")[2]
            return f"{file}, {self.windows.sample_rate} Hz, {self.windows.clip_length:g} s"
        return "mean, standard deviation and quantiles of log-mel bands and their differences"


def window_settings(embedding: OnnxEmbedding, long_clips: Any) -> FeatureSettings:
    """Settings by which `read_windows` cuts clips for a model; those of log-mels play no part."""
    return FeatureSettings(
        clip_length=embedding.clip_length,
        sample_rate=embedding.sample_rate,
        long_clips=long_clips,
        n_fft=4,
        hop_length=4,
        n_mels=1,
    )


def find_source(name: str, embedding: Embedding, settings: FeatureSettings) -> EmbeddingSource:
    """Checks an embedding of a config by loading its model and running it on a CPU.

    Args:
        name: in the config.
        embedding: its settings.
        settings: of the log-mels.

    Raises:
        UserError: the model is missing or can't be used, or onnxruntime is not installed.
    """
    if isinstance(embedding, str):
        size = 2 * (2 + len(QUANTILES)) * settings.n_mels
        return EmbeddingSource(name, "", "", size, settings, False)
    sha256 = read_model(name, embedding.path)[1]
    model = load_onnx_model(name, embedding.path, sha256, embedding.clip_samples, False)
    windows = window_settings(embedding, settings.long_clips)
    can_use_gpu = GPU_PROVIDER in import_onnxruntime(name).get_available_providers()
    return EmbeddingSource(name, embedding.path, sha256, model.size, windows, can_use_gpu)


def embed_part(row: dict[str, str], source: EmbeddingSource, run: str) -> dict[str, str]:
    """Computes the embeddings of the clips of one part of the predictions, unless they are there.

    Args:
        row: see `derive_part`.
        source: of the embeddings.
        run: of the evaluation; a process reads the index of a manifest once a run.

    Returns:
        See `derive_part`.

    Raises:
        UserError: a clip can't be read as the classifier read it, or its embedding is not finite.
    """

    def embed(shard: str, clips: pa.Table) -> pa.Table:
        names = clips["clip_id"].combine_chunks()
        if source.path:
            found = embedded_windows(shard, names, source, run)
        else:
            found = window_statistics(shard, names)
        return with_embedding(clips, mean_of_windows(names, found, source))

    return derive_part(row, json_digest(source.digest, BATCH_SAMPLES, BATCH_WINDOWS), embed)


def window_statistics(shard: str, names: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Log-mel statistics of the windows of some clips of a shard.

    Yields:
        The clip's place among the names, `(n,)`, and the embedding, `(n, size)`, of some windows.
    """
    for place, log_mel in log_mels_of(shard, names):
        # One by one: float64 copies of a row group would take twice its memory.
        yield place, np.concatenate([log_mel_statistics(one[np.newaxis]) for one in log_mel])


def embedded_windows(
    shard: str, names: pa.Array, source: EmbeddingSource, run: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a model makes of the windows of some clips of a shard; yields as `window_statistics`."""
    if not len(names):
        return
    settings = source.windows
    model = load_onnx_model(
        source.name, source.path, source.sha256, settings.clip_samples, source.on_gpu
    )
    folder = shard.rpartition("/")[0]
    manifest = shard_clips(folder, run, part_index(shard))
    rows = manifest.take(pc.index_in(names, manifest["clip_id"].combine_chunks()))
    for block in read_windows(rows, settings):
        rejected = block.filter(pc.is_valid(block["reason"]))
        if len(rejected):
            reject = rejected.select(["path", "reason"]).slice(0, 1).to_pylist()[0]
            raise UserError(
                f"evaluation.embeddings.{source.name}: {reject['path']} can't be read any more as "
                f"it was when its features were extracted: {reject['reason']}"
            )
        place = positions(block["clip_id"], names)
        for start in range(0, len(block), model.most):
            end = min(start + model.most, len(block))
            found = [block["waveform"][row].as_buffer() for row in range(start, end)]
            waveforms = np.stack([to_float(one, settings.clip_samples) for one in found])
            yield place[start:end], model.embed(waveforms)


def to_float(waveform: pa.Buffer, samples: int) -> np.ndarray:
    """A waveform of `read_windows` as float32 with full scale at 1."""
    dtype = np.int16 if waveform.size == 2 * samples else np.float32
    return as_float(np.frombuffer(waveform, dtype))


def mean_of_windows(
    names: pa.Array, windows: Iterator[tuple[np.ndarray, np.ndarray]], source: EmbeddingSource
) -> np.ndarray:
    """The mean embedding of each clip, float32 `(n, size)`, added in float64 in their order.

    Raises:
        UserError: one is not finite.
    """
    sums = np.zeros((len(names), source.size))
    counts = np.zeros(len(names), np.int64)
    for place, found in windows:
        np.add.at(sums, place, found)
        np.add.at(counts, place, 1)
    if not counts.all():
        raise RuntimeError(f"{names[int(np.argmin(counts))]} has no window")
    means: np.ndarray = (sums / counts[:, np.newaxis]).astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(means).all(axis=1))
    if len(broken):
        raise UserError(
            f"evaluation.embeddings.{source.name}: the embedding of {names[int(broken[0])]} is not "
            "finite"
        )
    return means


def with_embedding(clips: pa.Table, embedding: np.ndarray) -> pa.Table:
    """EMBEDDINGS of some clips and their embeddings, `(n, size)`."""
    ends = pa.array(np.arange(len(clips) + 1) * embedding.shape[1], pa.int32())
    column = pa.ListArray.from_arrays(ends, pa.array(embedding.reshape(-1)))
    return clips.append_column("embedding", column).cast(EMBEDDINGS)


def sample_of_parts(uris: list[str], is_train: bool, most: int) -> tuple[np.ndarray, int]:
    """Clips drawn by a hash of their names, as the metrics of the classifier draw them.

    Args:
        uris: the parts of a corpus.
        is_train: whether real training clips are drawn, or all others.
        most: clips to draw.

    Returns:
        Entries of CLIP in the order in which they are drawn, at most `most`, and how many clips
        there are in all.
    """
    kept, clips = np.zeros(0, CLIP), 0
    for uri in uris:
        table = storage.read_table(uri, ["clip_id", "split"])
        own = pc.fill_null(pc.equal(table["split"], "train"), False).to_numpy() == is_train
        found = np.zeros(int(own.sum()), CLIP)
        found["part"], found["row"] = part_index(uri), np.flatnonzero(own)
        found["key"] = keys(table["clip_id"].filter(pa.array(own)).to_pylist())
        clips += len(found)
        kept = np.concatenate([kept, found])
        kept = kept[smallest(kept["key"], most)]
    return sampled(kept), clips
