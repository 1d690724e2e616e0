"""Computes a further embedding of the clips of a shard, and writes and reads its Parquet file."""

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
from raysound.evaluation.derived_parts import derive_part, positions, read_log_mels
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
from raysound.settings.evaluation import Embedding, OnnxEmbedding
from raysound.settings.features import FeatureSettings

# Incremented when embeddings of the same model and clips change.
EMBEDDING_VERSION = 1
# `embedding` is the mean over the windows of the clip. The rows match those of the predictions.
EMBEDDINGS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
# Part, row and hash of a clip.
CLIP = np.dtype([("part", np.int32), ("row", np.int32), ("key", np.uint64)])


class EmbeddingSource(NamedTuple):
    """The source of an embedding: an ONNX model or log-mel statistics.

    Attributes:
        name: in the config.
        path: of the ONNX model; "" for log-mel statistics.
        sha256: of the model's file; "" for log-mel statistics.
        size: dimension of the embedding.
        windows: settings that cut clips into windows.
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
        """A digest of everything that the embedding of a clip depends on."""
        if self.path:
            cut = self.windows
            return json_digest(
                EMBEDDING_VERSION, self.sha256, cut.sample_rate, cut.clip_length, cut.long_clips
            )
        return json_digest(EMBEDDING_VERSION, "log_mel_statistics", self.windows.id)

    @property
    def description(self) -> str:
        """The source as text for the report."""
        if self.path:
            file = self.path.rpartition("/")[2]
            return f"{file}, {self.windows.sample_rate} Hz, {self.windows.clip_length:g} s"
        return "mean, standard deviation and quantiles of log-mel bands and their differences"


def window_settings(embedding: OnnxEmbedding, long_clips: Any) -> FeatureSettings:
    """Settings that `read_windows` cuts clips for a model by; log-mel settings have no effect."""
    return FeatureSettings(
        clip_length=embedding.clip_length,
        sample_rate=embedding.sample_rate,
        long_clips=long_clips,
        n_fft=4,
        hop_length=4,
        n_mels=1,
    )


def load_source(name: str, embedding: Embedding, settings: FeatureSettings) -> EmbeddingSource:
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
    """Writes the embeddings of the clips of one part of the predictions, unless they exist.

    Args:
        row: see `derive_part`.
        source: of the embeddings.
        run: id of the evaluation; a process reads the index of a manifest once per run.

    Returns:
        See `derive_part`.

    Raises:
        UserError: a clip can't be read any more, or its embedding is not finite.
    """

    def embed(shard: str, clips: pa.Table) -> pa.Table:
        names = clips["clip_id"].combine_chunks()
        if source.path:
            windows = model_embeddings(shard, names, source, run)
        else:
            windows = window_statistics(shard, names)
        return with_embedding(clips, mean_of_windows(names, windows, source))

    return derive_part(row, json_digest(source.digest, BATCH_SAMPLES, BATCH_WINDOWS), embed)


def window_statistics(shard: str, names: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Log-mel statistics of the windows of some clips of a shard.

    Yields:
        The index of each window's clip in the names, `(n,)`, and the embeddings, `(n, size)`.
    """
    for index, log_mel in read_log_mels(shard, names):
        # One by one, because float64 copies of a row group take twice its memory.
        yield index, np.concatenate([log_mel_statistics(window[np.newaxis]) for window in log_mel])


def model_embeddings(
    shard: str, names: pa.Array, source: EmbeddingSource, run: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A model's embeddings of the windows of some clips of a shard; see `window_statistics`."""
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
        index = positions(block["clip_id"], names)
        for start in range(0, len(block), model.batch_size):
            end = min(start + model.batch_size, len(block))
            buffers = [block["waveform"][row].as_buffer() for row in range(start, end)]
            waveforms = np.stack([to_float(buffer, settings.clip_samples) for buffer in buffers])
            yield index[start:end], model.embed(waveforms)


def to_float(waveform: pa.Buffer, samples: int) -> np.ndarray:
    """A waveform of `read_windows` as float32 with full scale at 1."""
    dtype = np.int16 if waveform.size == 2 * samples else np.float32
    return as_float(np.frombuffer(waveform, dtype))


def mean_of_windows(
    names: pa.Array, windows: Iterator[tuple[np.ndarray, np.ndarray]], source: EmbeddingSource
) -> np.ndarray:
    """The mean embedding of each clip, float32 `(n, size)`, summed in float64.

    Raises:
        UserError: an embedding is not finite.
    """
    sums = np.zeros((len(names), source.size))
    counts = np.zeros(len(names), np.int64)
    for index, embeddings in windows:
        np.add.at(sums, index, embeddings)
        np.add.at(counts, index, 1)
    if not counts.all():
        raise RuntimeError(f"{names[int(np.argmin(counts))]} has no window")
    means: np.ndarray = (sums / counts[:, np.newaxis]).astype(np.float32)
    infinite = np.flatnonzero(~np.isfinite(means).all(axis=1))
    if len(infinite):
        raise UserError(
            f"evaluation.embeddings.{source.name}: the embedding of {names[int(infinite[0])]} is "
            "not finite"
        )
    return means


def with_embedding(clips: pa.Table, embedding: np.ndarray) -> pa.Table:
    """A table of EMBEDDINGS from clips and their embeddings, `(n, size)`."""
    ends = pa.array(np.arange(len(clips) + 1) * embedding.shape[1], pa.int32())
    column = pa.ListArray.from_arrays(ends, pa.array(embedding.reshape(-1)))
    return clips.append_column("embedding", column).cast(EMBEDDINGS)


def sample_of_parts(uris: list[str], is_train: bool, size: int) -> tuple[np.ndarray, int]:
    """Samples clips by the hash of their names, as the classifier's metrics do.

    Args:
        uris: the parts of a corpus.
        is_train: whether to sample real training clips, or all others.
        size: maximum of clips.

    Returns:
        Entries of CLIP in the order of sampling, and the number of all clips.
    """
    best, clips = np.zeros(0, CLIP), 0
    for uri in uris:
        table = storage.read_table(uri, ["clip_id", "split"])
        wanted = pc.fill_null(pc.equal(table["split"], "train"), False).to_numpy() == is_train
        entries = np.zeros(int(wanted.sum()), CLIP)
        entries["part"], entries["row"] = part_index(uri), np.flatnonzero(wanted)
        entries["key"] = keys(table["clip_id"].filter(pa.array(wanted)).to_pylist())
        clips += len(entries)
        best = np.concatenate([best, entries])
        best = best[smallest(best["key"], size)]
    return sampled(best), clips
