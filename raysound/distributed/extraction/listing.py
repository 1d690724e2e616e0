"""Lists corpora and writes the manifests of their feature folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pyarrow as pa

from raysound import storage
from raysound.corpora.checks import check_real, check_unlabelled
from raysound.corpora.manifest import read_corpus, warn_same_names
from raysound.corpora.manifest_parts import digest_of, digest_text, read_index, read_manifest
from raysound.corpora.packed import CONTAINERS
from raysound.distributed.cluster.failures import translate_ray_errors
from raysound.distributed.cluster.session import Result, run_remote
from raysound.distributed.extraction.listing_pipeline import list_clips
from raysound.distributed.extraction.map_blocks import map_blocks
from raysound.distributed.extraction.shard_plan import plan_shards
from raysound.errors import UserError
from raysound.features import parquet
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config

logger = logging.getLogger(__name__)

# A corpus with more files is listed by the cluster; a file's row takes some hundred bytes.
SMALL_CORPUS = 100_000
# So is one with more bytes of tar and Parquet files, or a larger manifest.
SMALL_CONTAINERS = 32 << 20

# Feature folders whose corpora were listed in the present job; see `cached_listings`.
_listed: set[str] | None = None


@contextmanager
def cached_listings() -> Iterator[None]:
    """Lists each corpus at most once in this block; later steps reuse the first listing."""
    global _listed
    before, _listed = _listed, set()
    try:
        yield
    finally:
        _listed = before


def plan_corpus(name: str, config: Config) -> dict[str, Any]:
    """Lists a corpus, plans its shards, see `plan_shards`, and logs warnings.

    Raises:
        UserError: it can't be listed.
    """
    plan = call_by_size(plan_locally, plan_on_cluster, name, config)
    for line in plan["warnings"]:
        logger.warning("%s", line)
    if "error" in plan:
        raise UserError(plan["error"])
    if not plan["labels"]:
        check_unlabelled(name, corpus_path(name, config))
    if _listed is not None:
        _listed.add(parquet.folder(config.output, name, config.features))
    return plan


def call_by_size(
    locally: Callable[[str, Config], Result],
    on_cluster: Callable[[str, Config], Result],
    name: str,
    config: Config,
) -> Result:
    """Calls `locally`, which holds all rows of a corpus, for a small corpus, else `on_cluster`."""
    path = corpus_path(name, config)
    if "://" not in path:
        return (locally if is_small(path) else on_cluster)(name, config)
    # A process of the cluster is nearer to the object store.
    found = run_remote(call_if_small, locally, path, name, config)
    return on_cluster(name, config) if found is None else found


def call_if_small(function: Callable[..., Result], path: str, *arguments: Any) -> Result | None:
    """Runs in a Ray task: calls a function, or returns None for a large corpus."""
    return function(*arguments) if is_small(path) else None


def call_near_corpus(function: Callable[..., Result], name: str, config: Config) -> Result:
    """Calls a function that holds all rows of a corpus: for a small local one in this process.

    This saves the start of a worker.
    """
    path = corpus_path(name, config)
    if "://" not in path and is_small(path):
        return function(name, config)
    return run_remote(function, name, config)


def is_small(path: str) -> bool:
    """True for a corpus whose rows fit in one process; see SMALL_CORPUS."""
    packed = 0
    try:
        size = storage.stat_files([path])[0][0]
        if size >= 0:
            return size <= SMALL_CONTAINERS
        for count, (file, size, _) in enumerate(storage.scan(path)):
            packed += size if file.endswith((*CONTAINERS,)) else 0
            if count == SMALL_CORPUS or packed > SMALL_CONTAINERS:
                return False
    except (OSError, ValueError):
        # Listing reports the error.
        pass
    return True


def check_manifest(name: str, config: Config) -> str | None:
    """Calls `check_real` with the manifest that was just written."""
    folder = parquet.folder(config.output, name, config.features)
    return check_real(read_manifest(folder), config)


def corpus_path(name: str, config: Config) -> str:
    """Path or URI of a corpus's clips."""
    return real_corpus(config).path if name == "real" else config.corpora.generated[name]


def list_corpus(name: str, config: Config, warn: Any = logger.warning) -> pa.Table:
    """Lists a corpus and returns its manifest."""
    return read_corpus(corpus_path(name, config), warn)


def finished_features(name: str, config: Config) -> str:
    """The folder of a corpus's log-mels.

    Raises:
        UserError: they were not extracted with these settings, or the corpus has changed.
    """
    folder = parquet.folder(config.output, name, config.features)
    if not storage.exists(storage.join(folder, "summary.json")):
        raise UserError(f"{folder} holds no finished features of {name}: run jobs/extract.py first")
    if _listed is not None and folder in _listed:
        return folder
    digest = call_by_size(digest_locally, digest_on_cluster, name, config)
    index = read_index(folder)
    if index is None or index.digest != digest:
        raise UserError(
            f"{name} has changed since its features were extracted (clips, labels or split): "
            "run jobs/extract.py again"
        )
    if _listed is not None:
        _listed.add(folder)
    return folder


def digest_locally(name: str, config: Config) -> str:
    """The digest of a corpus's clips, computed in one process."""
    return digest_text(digest_of(list_corpus(name, config)))


def digest_on_cluster(name: str, config: Config) -> str:
    """The digest of a corpus's clips, computed by the whole cluster."""
    with (
        translate_ray_errors(f"the listing of {name}"),
        temporary_folder(name, config) as temp_folder,
    ):
        clips = list_clips(corpus_path(name, config), temp_folder, logger.warning)
        return digest_text(sum(map_blocks(clips, digest_of)))


@contextmanager
def temporary_folder(name: str, config: Config) -> Iterator[str]:
    """A temporary folder for a corpus's rows, deleted at the end of the block."""
    folder = parquet.folder(config.output, name, config.features)
    temp_folder = storage.join(folder, "listing", uuid4().hex)
    try:
        yield temp_folder
    finally:
        storage.delete(temp_folder)


def plan_locally(name: str, config: Config) -> dict[str, Any]:
    """Lists a corpus in one process, and plans its shards.

    Returns:
        See `plan_shards`, and `warnings`. If the corpus can't be listed, `warnings` and `error`,
        because the warnings often explain the error.
    """
    warnings: list[str] = []
    try:
        clips = [list_corpus(name, config, warnings.append)]
    except UserError as error:
        return {"warnings": warnings, "error": str(error)}
    return {"warnings": warnings, **plan_shards(clips, name, config)}


def plan_on_cluster(name: str, config: Config) -> dict[str, Any]:
    """Like `plan_locally`, by the whole cluster."""
    warnings: list[str] = []
    try:
        with (
            translate_ray_errors(f"the listing of {name}"),
            temporary_folder(name, config) as temp_folder,
        ):
            path = corpus_path(name, config)
            plan = plan_shards(list_clips(path, temp_folder, warnings.append), name, config)
            warn_same_names(plan["labels"], path, warnings.append)
            return {"warnings": warnings, **plan}
    except UserError as error:
        return {"warnings": warnings, "error": str(error)}
