"""What a judge hears in whole corpora, a shard a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

from raysound import checkpoint, features, storage
from raysound.checkpoint import Checkpoint
from raysound.config import UserError
from raysound.distributed.session import await_nodes, cluster_gpus, run_remote_all
from raysound.logmel import LogMel
from raysound.metrics.mismatch import sound_of
from raysound.metrics.nearest import nearest
from raysound.metrics.neighbours import K
from raysound.models import Classifier
from raysound.predictions import PREDICTIONS, as_array
from raysound.scoring import mean_by_clip, score
from raysound.settings import Config

# White noise of this root mean square: -20 dB of full scale.
NOISE_RMS = 0.1


class References(NamedTuple):
    """Real clips that others are set against: names `(n,)`, embeddings float32 `(n, size)`."""

    clip_id: pa.Array
    embedding: np.ndarray


def score_corpora(
    folders: Mapping[str, str],
    chosen: pa.Table,
    run: str,
    config: Config,
    predictions: str,
) -> None:
    """Scores all shards and writes them, in order, as one Parquet file of PREDICTIONS.

    The real corpus comes first; every other clip is set against its training clips.

    Args:
        folders: of the features, by the corpus's name, `real` among them.
        chosen: which clips of `real` are scored, with their `split`.
        run: the judge's folder.
        config: the experiment.
        predictions: the file to write.
    """
    wanted = ray.put(chosen.select(["clip_id", "split"]))
    with storage.whole_file(predictions) as file, pq.ParquetWriter(file, PREDICTIONS) as writer:
        real = pa.concat_tables(
            score_shards("real", folders["real"], run, config, [wanted], []),
        )
        references = references_of(real)
        writer.write_table(set_against(real, references))
        kept = [ray.put(references)]
        for name in folders:
            if name != "real":
                for scored in score_shards(name, folders[name], run, config, [], kept):
                    writer.write_table(scored)


def score_shards(
    corpus: str,
    folder: str,
    run: str,
    config: Config,
    chosen: list[ray.ObjectRef],
    references: list[ray.ObjectRef],
) -> Iterator[pa.Table]:
    """The predictions of one corpus, a table a shard, in order."""
    calls = (
        (run, corpus, uri, chosen, references, config.evaluation.batch_size)
        for uri in features.part_uris(folder)
    )
    return iter(run_remote_all(score_shard, calls, num_gpus=1 if on_gpus(config) else 0))


def on_gpus(config: Config) -> bool:
    """Whether clips are scored on GPUs.

    Raises:
        UserError: they are to be, and the cluster has none.
    """
    use_gpu = config.compute.use_gpu
    if use_gpu is not True:
        return use_gpu == "auto" and cluster_gpus() > 0
    await_nodes([{"CPU": 1, "GPU": 1}], config.compute)
    if not cluster_gpus():
        raise UserError("compute.use_gpu is true, and the cluster has no GPU")
    return True


def score_shard(
    run: str,
    corpus: str,
    uri: str,
    chosen: list[ray.ObjectRef],
    references: list[ray.ObjectRef],
    batch_size: int,
) -> pa.Table:
    """Runs in a Ray task: the predictions of one shard, or of some of its clips.

    A shard is scored whole, so that no score depends on how many tasks run at once.
    """
    torch.set_num_threads(1)
    judge, model = load_judge(run)
    columns = ["clip_id", "label", "duration", "sample_rate", "log_mel"]
    with storage.open_file(uri) as file:
        rows = pq.read_table(file, columns=columns)
    splits = None
    if chosen:
        wanted = ray.get(chosen[0])
        place = pc.index_in(rows["clip_id"], wanted["clip_id"].combine_chunks())
        rows, place = rows.filter(pc.is_valid(place)), place.drop_null()
        splits = wanted["split"].take(place)
    if len(rows) == 0:
        return PREDICTIONS.empty_table()
    log_mel = features.tensor_array(rows["log_mel"])
    scored = predictions_of(
        corpus, rows.drop_columns("log_mel"), splits, log_mel, judge, model, batch_size
    )
    return set_against(scored, ray.get(references[0])) if references else scored


def predictions_of(
    corpus: str,
    rows: pa.Table,
    splits: pa.ChunkedArray | None,
    log_mel: np.ndarray,
    judge: Checkpoint,
    model: Classifier,
    batch_size: int,
) -> pa.Table:
    """PREDICTIONS of some windows, those of a clip next to each other.

    Args:
        corpus: its name.
        rows: a row a window: clip_id, label, duration, sample_rate.
        splits: train, validation or test, one a window; None of a generated corpus.
        log_mel: `(n, n_mels, n_frames)`.
        judge: whose labels count.
        model: in eval mode.
        batch_size: log-mels a forward pass.
    """
    probabilities, embeddings = score(model, judge.normalisation, log_mel, batch_size)
    spectra, levels, shares = sound_of(log_mel)
    names = rows["clip_id"].to_numpy()
    starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
    labels = rows["label"].take(starts)
    probabilities = mean_by_clip(probabilities, starts)
    # Asked for a class that the judge never learned, a clip has no probability of it.
    asked = np.append(probabilities, np.zeros((len(starts), 1), np.float32), axis=1)
    column = [judge.labels.index(x) if x in judge.labels else -1 for x in labels.to_pylist()]
    count, nothing = len(starts), pa.nulls(len(starts))
    return pa.table(
        {
            "corpus": [corpus] * count,
            "clip_id": names[starts],
            "split": nothing if splits is None else splits.take(starts),
            "label": labels,
            "prediction": [judge.labels[index] for index in probabilities.argmax(axis=1)],
            "probability": probabilities.max(axis=1),
            "asked_probability": asked[np.arange(count), column],
            "windows": np.diff(np.append(starts, len(names))),
            "sample_rate": rows["sample_rate"].take(starts),
            "duration": rows["duration"].take(starts),
            "level": mean_by_clip(levels[:, np.newaxis], starts)[:, 0],
            "sounding": mean_by_clip(shares[:, np.newaxis], starts)[:, 0],
            "realism": nothing,
            "nearest": nothing,
            "probabilities": list(probabilities),
            "embedding": list(mean_by_clip(embeddings, starts)),
            "spectrum": list(mean_by_clip(spectra, starts)),
        }
    ).cast(PREDICTIONS)


def references_of(real: pa.Table) -> References:
    """The training clips among some predictions."""
    train = real.filter(pc.equal(real["split"], "train"))
    return References(train["clip_id"].combine_chunks(), as_array(train["embedding"]))


def set_against(scored: pa.Table, references: References) -> pa.Table:
    """Predictions with `realism` and `nearest` filled in, but for those of the references."""
    if len(scored) == 0 or len(references.embedding) <= K:
        return scored
    found = nearest(as_array(scored["embedding"]), references.embedding)
    own = pc.fill_null(pc.equal(scored["split"], "train"), False).to_numpy()
    names = references.clip_id.take(pa.array(found.index))
    for name, values in (("realism", pa.array(found.realism, pa.float32())), ("nearest", names)):
        values = pc.if_else(pa.array(own), pa.scalar(None, values.type), values)
        scored = scored.set_column(scored.schema.get_field_index(name), name, values)
    return scored.cast(PREDICTIONS)


def score_made(run: str, kind: str, labels: list[str], batch_size: int) -> pa.Table:
    """Runs in a Ray task: predictions of clips that no generator should make.

    Args:
        run: the judge's folder.
        kind: `noise`, white and of an rms of 0.1, or `silence`.
        labels: what each is asked to be.
        batch_size: log-mels a forward pass.
    """
    torch.set_num_threads(1)
    judge, model = load_judge(run)
    log_mel, length = LogMel(judge.features), judge.features.clip_samples
    waveforms = (
        np.random.default_rng(number).normal(0, NOISE_RMS, length) * (kind == "noise")
        for number in range(len(labels))
    )
    made = [log_mel(torch.from_numpy(wave.astype(np.float32))).numpy() for wave in waveforms]
    rows = pa.table(
        {
            "clip_id": [f"{kind}-{number}" for number in range(len(labels))],
            "label": labels,
            "duration": [judge.features.clip_length] * len(labels),
            "sample_rate": pa.array([judge.features.sample_rate] * len(labels), pa.int32()),
        }
    )
    return predictions_of(kind, rows, None, np.stack(made), judge, model, batch_size)


@lru_cache(maxsize=1)
def load_judge(run: str) -> tuple[Checkpoint, Classifier]:
    """The judge on this process's device, loaded once a process."""
    judge = checkpoint.read_note(run)
    # A task that was given no GPU may see one nevertheless: it is another's.
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    # TensorFloat-32 saves little here, and a score is to be the same wherever it is made.
    torch.backends.cudnn.allow_tf32 = False
    return judge, checkpoint.load_model(run, judge).to(device)
