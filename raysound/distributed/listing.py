"""The manifests of feature folders: listed on the cluster, and read a shard at a time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import features, storage
from raysound.config import UserError
from raysound.corpus_checks import check_real
from raysound.distributed.session import Result, run_remote
from raysound.manifest import read_corpus
from raysound.settings import Config
from raysound.shards import assign_shards, clips_per_shard

logger = logging.getLogger(__name__)

# Rows of the manifest that a task reads to find its own.
MANIFEST_ROWS = 4096
# Files of a corpus whose rows, some hundred bytes each, the driver may hold.
SMALL_CORPUS = 20_000

# Feature folders whose corpora were listed in the present job; see `listed_once`.
_listed: set[str] | None = None


@contextmanager
def listed_once() -> Iterator[None]:
    """In this block a corpus is listed once: later steps of a job trust the first one's listing."""
    global _listed
    before, _listed = _listed, set()
    try:
        yield
    finally:
        _listed = before


def plan_corpus(name: str, config: Config) -> dict[str, Any]:
    """Lists a corpus, see `lay_out`, and prints what there is to say of it.

    Raises:
        UserError: it can't be listed.
    """
    plan = call_for_corpus(lay_out, name, config)
    for note in plan["notes"]:
        logger.warning("%s", note)
    if "fault" in plan:
        raise UserError(plan["fault"])
    if _listed is not None:
        _listed.add(features.folder(config.output, name, config.features))
    return plan


def call_for_corpus(function: Callable[..., Result], name: str, config: Config) -> Result:
    """Calls a function that holds the rows of a corpus: in this process if they are few.

    A worker of the cluster would first have to start.
    """
    if is_small(corpus_path(name, config)):
        return function(name, config)
    return run_remote(function, name, config)


def is_small(path: str) -> bool:
    """True for a local folder of a few files, whose rows the driver may hold."""
    if "://" in path or not os.path.isdir(path):
        return False
    count = 0
    for folder, folders, files in os.walk(path):
        count += len(files)
        # What a link leads to is not counted.
        linked = any(os.path.islink(os.path.join(folder, name)) for name in folders)
        if linked or count > SMALL_CORPUS:
            return False
    return True


def check_manifest(name: str, config: Config) -> str | None:
    """`check_real` of the real corpus as it was listed just now."""
    folder = features.folder(config.output, name, config.features)
    return check_real(read_manifest(folder), config)


def corpus_path(name: str, config: Config) -> str:
    """Where the clips of a corpus are."""
    return config.corpora.real.path if name == "real" else config.corpora.generated[name]


def list_corpus(name: str, config: Config, tell: Any = logger.warning) -> pa.Table:
    """The manifest of a corpus as it is on disk now."""
    return read_corpus(corpus_path(name, config), tell)


def finished_features(name: str, config: Config) -> str:
    """The folder of a corpus's log-mels.

    Raises:
        UserError: they were not extracted with these settings, or the corpus has changed since.
    """
    folder = features.folder(config.output, name, config.features)
    if not storage.exists(storage.join(folder, "summary.json")):
        raise UserError(f"{folder} holds no finished features of {name}: run jobs/extract.py first")
    if _listed is not None and folder in _listed:
        return folder
    if call_for_corpus(has_changed, name, config):
        raise UserError(
            f"{name} has changed since its features were extracted (clips, labels or split): "
            "run jobs/extract.py again"
        )
    if _listed is not None:
        _listed.add(folder)
    return folder


def has_changed(name: str, config: Config) -> bool:
    """True where a corpus is no longer what its manifest says."""
    folder = features.folder(config.output, name, config.features)
    return not same_clips(list_corpus(name, config), read_manifest(folder))


def read_manifest(folder: str) -> pa.Table:
    """The manifest of a feature folder, with its column `shard`."""
    return storage.read_table(storage.join(folder, "manifest.parquet"))


def same_clips(clips: pa.Table, manifest: pa.Table) -> bool:
    """True where a manifest holds these very clips, in whatever order."""
    if len(clips) != len(manifest) or {*clips.column_names, "shard"} != {*manifest.column_names}:
        return False
    place = pc.index_in(clips["clip_id"], manifest["clip_id"].combine_chunks())
    if place.null_count:
        return False
    return bool(manifest.take(place).select(clips.column_names).equals(clips))


def lay_out(name: str, config: Config) -> dict[str, Any]:
    """Lists a corpus and writes which clip is in which shard.

    What can't be listed is returned as `fault`: the notes before it often say why.
    """
    notes: list[str] = []
    try:
        clips = list_corpus(name, config, notes.append)
    except UserError as error:
        return {"notes": notes, "fault": str(error)}
    folder = features.folder(config.output, name, config.features)
    manifest_uri = storage.join(folder, "manifest.parquet")
    before = None
    if storage.exists(manifest_uri):
        before = storage.read_table(manifest_uri)
        before = before if "shard" in before.column_names else None
    if before is not None and same_clips(clips, before):
        manifest = before
    else:
        per_shard = clips_per_shard(len(clips), config.compute.shard_clips, config.features)
        manifest = assign_shards(clips, before, per_shard)
    shards = sorted(pc.unique(manifest["shard"]).to_pylist())
    finished = manifest is before and is_finished(folder, shards)
    if not finished:
        # Shards change from here on: until all are made, nobody may take them for a corpus.
        storage.delete(storage.join(folder, "summary.json"))
    if manifest is not before:
        # Of a corpus that is laid out in whole row groups a task reads no more than its own.
        storage.write_table(manifest_uri, manifest, row_group_size=MANIFEST_ROWS)
    labels = pc.unique(clips["label"]).to_pylist()
    return {
        "notes": notes, "clips": len(clips), "labels": labels, "shards": shards,
        "finished": finished,
    }  # fmt: skip


def is_finished(folder: str, shards: list[int]) -> bool:
    """True where all of these shards are there, and no clip is left to be tried again."""
    uri = storage.join(folder, "summary.json")
    if not storage.exists(uri) or json.loads(storage.read_bytes(uri)).get("unreadable") != 0:
        return False
    # By number: older versions gave their files shorter names.
    return {*shards} <= {index for index, _ in features.parts(folder)}


def shard_clips(folder: str, run: str, index: int) -> pa.Table:
    """The manifest rows of one shard, without their column `shard`."""
    uri = storage.join(folder, "manifest.parquet")
    metadata = manifest_metadata(uri, run)
    column = metadata.schema.names.index("shard")
    groups = []
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(column).statistics
        if statistics.min <= index <= statistics.max:
            groups.append(group)
    with storage.open_file(uri) as file:
        rows = pq.ParquetFile(file, metadata=metadata).read_row_groups(groups)
    return rows.filter(pc.equal(rows["shard"], index)).drop_columns("shard").combine_chunks()


@lru_cache(maxsize=1)
def manifest_metadata(uri: str, run: str) -> pq.FileMetaData:
    """Read once a process and run: it grows with the corpus."""
    with storage.open_file(uri) as file:
        return pq.read_metadata(file)
