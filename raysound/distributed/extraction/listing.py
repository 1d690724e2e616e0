"""Corpora are listed, and the manifests of their feature folders written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pyarrow as pa

from raysound import storage
from raysound.corpora.checks import check_real, check_unlabelled
from raysound.corpora.manifest import (
    read_corpus,
    warn_same_names,
)
from raysound.corpora.manifest_parts import (
    digest_of,
    digest_text,
    read_index,
    read_manifest,
)
from raysound.corpora.packed import CONTAINERS
from raysound.distributed.cluster.failures import translate_ray_errors
from raysound.distributed.cluster.session import Result, run_remote
from raysound.distributed.extraction.listing_pipeline import clips_of
from raysound.distributed.extraction.map_blocks import map_blocks
from raysound.distributed.extraction.shard_plan import plan_shards
from raysound.errors import UserError
from raysound.features import parquet
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config

logger = logging.getLogger(__name__)

# Files of a corpus whose rows, some hundred bytes each, one process may hold.
SMALL_CORPUS = 100_000
# Bytes of tar and Parquet files that it may list, and of a manifest that it may read.
SMALL_CONTAINERS = 32 << 20

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
    """Lists a corpus, see `plan_shards`, and prints what there is to say of it.

    Raises:
        UserError: it can't be listed.
    """
    plan = for_corpus(plan_here, plan_on_cluster, name, config)
    for note in plan["notes"]:
        logger.warning("%s", note)
    if "fault" in plan:
        raise UserError(plan["fault"])
    if not plan["labels"]:
        check_unlabelled(name, corpus_path(name, config))
    if _listed is not None:
        _listed.add(parquet.folder(config.output, name, config.features))
    return plan


def for_corpus(
    here: Callable[[str, Config], Result],
    on_cluster: Callable[[str, Config], Result],
    name: str,
    config: Config,
) -> Result:
    """Calls a function that holds the rows of a corpus if they are few, else another one."""
    path = corpus_path(name, config)
    if "://" not in path:
        return (here if is_small(path) else on_cluster)(name, config)
    # An object store is asked by one process of the cluster, which is near it.
    found = run_remote(call_if_small, here, path, name, config)
    return on_cluster(name, config) if found is None else found


def call_if_small(function: Callable[..., Result], path: str, *arguments: Any) -> Result | None:
    """Runs in a Ray task: calls a function, or returns None for a large corpus."""
    return function(*arguments) if is_small(path) else None


def call_for_corpus(function: Callable[..., Result], name: str, config: Config) -> Result:
    """Calls a function that holds the rows of a corpus: in this process if they are few.

    A worker of the cluster would first have to start.
    """
    path = corpus_path(name, config)
    if "://" not in path and is_small(path):
        return function(name, config)
    return run_remote(function, name, config)


def is_small(path: str) -> bool:
    """True for a corpus of few files, whose rows one process may hold."""
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
        # Whoever lists it says why it can't be.
        pass
    return True


def check_manifest(name: str, config: Config) -> str | None:
    """`check_real` of the real corpus as it was listed just now."""
    folder = parquet.folder(config.output, name, config.features)
    return check_real(read_manifest(folder), config)


def corpus_path(name: str, config: Config) -> str:
    """Where the clips of a corpus are."""
    return real_corpus(config).path if name == "real" else config.corpora.generated[name]


def list_corpus(name: str, config: Config, tell: Any = logger.warning) -> pa.Table:
    """The manifest of a corpus as it is on disk now."""
    return read_corpus(corpus_path(name, config), tell)


def finished_features(name: str, config: Config) -> str:
    """The folder of a corpus's log-mels.

    Raises:
        UserError: they were not extracted with these settings, or the corpus has changed since.
    """
    folder = parquet.folder(config.output, name, config.features)
    if not storage.exists(storage.join(folder, "summary.json")):
        raise UserError(f"{folder} holds no finished features of {name}: run jobs/extract.py first")
    if _listed is not None and folder in _listed:
        return folder
    digest = for_corpus(digest_here, digest_on_cluster, name, config)
    index = read_index(folder)
    if index is None or index.digest != digest:
        raise UserError(
            f"{name} has changed since its features were extracted (clips, labels or split): "
            "run jobs/extract.py again"
        )
    if _listed is not None:
        _listed.add(folder)
    return folder


def digest_here(name: str, config: Config) -> str:
    """The digest of a corpus's clips as they are now, by one process."""
    return digest_text(digest_of(list_corpus(name, config)))


def digest_on_cluster(name: str, config: Config) -> str:
    """The same by the whole cluster."""
    with (
        translate_ray_errors(f"the listing of {name}"),
        temporary_folder(name, config) as temporary,
    ):
        clips = clips_of(corpus_path(name, config), temporary, logger.warning)
        return digest_text(sum(map_blocks(clips, digest_of)))


@contextmanager
def temporary_folder(name: str, config: Config) -> Iterator[str]:
    """A folder for a corpus's rows while it is listed, which is removed in the end."""
    folder = parquet.folder(config.output, name, config.features)
    temporary = storage.join(folder, "listing", uuid4().hex)
    try:
        yield temporary
    finally:
        storage.delete(temporary)


def plan_here(name: str, config: Config) -> dict[str, Any]:
    """Lists a corpus in one process, and plans its shards.

    Returns:
        See `plan_shards`; of a corpus that can't be listed `notes` and `fault`, because the notes
        before it often say why.
    """
    notes: list[str] = []
    try:
        clips = [list_corpus(name, config, notes.append)]
    except UserError as error:
        return {"notes": notes, "fault": str(error)}
    return {"notes": notes, **plan_shards(clips, name, config)}


def plan_on_cluster(name: str, config: Config) -> dict[str, Any]:
    """The same by the whole cluster."""
    notes: list[str] = []
    try:
        with (
            translate_ray_errors(f"the listing of {name}"),
            temporary_folder(name, config) as temporary,
        ):
            path = corpus_path(name, config)
            plan = plan_shards(clips_of(path, temporary, notes.append), name, config)
            warn_same_names(plan["labels"], path, notes.append)
            return {"notes": notes, **plan}
    except UserError as error:
        return {"notes": notes, "fault": str(error)}
