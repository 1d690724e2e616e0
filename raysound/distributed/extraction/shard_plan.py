"""The manifest of a feature folder is written: range by range, by one process or a cluster."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pyarrow as pa
import ray.data

from raysound import storage
from raysound.corpora.manifest_parts import (
    OLD,
    Index,
    digest_text,
    read_index,
    runs_of,
    write_index,
)
from raysound.distributed.extraction.map_blocks import (
    map_blocks,
    map_calls,
)
from raysound.features import parquet
from raysound.features.ranges import BLOCKS, Facts, Ranges, group, sort_range, write_range
from raysound.features.shards import clips_per_shard, first_shards
from raysound.settings.schema import Config


def plan_shards(
    clips: list[pa.Table] | ray.data.Dataset, name: str, config: Config
) -> dict[str, Any]:
    """Writes which clip of a corpus is in which shard, unless that is known.

    Args:
        clips: of the corpus, tables of SCHEMA.
        name: of the corpus.
        config: the experiment.

    Returns:
        How many `clips` there are, their `labels`, the numbers of their `shards`, and `finished`:
        True where all shards are there.
    """
    folder = parquet.folder(config.output, name, config.features)
    facts = Facts.all(map_blocks(clips, Facts.of))
    index = read_index(folder)
    is_same = index is not None and index.digest == digest_text(facts.digest)
    finished = is_same and index is not None and is_extracted(folder, index.shards)
    if not finished:
        # Shards change from here on: until all are made, nobody may take them for a corpus.
        storage.delete(storage.join(folder, "summary.json"))
    if index is None or not is_same:
        per_shard = clips_per_shard(facts.clips, config.compute.shard_clips, config.features)
        index = write_manifest(folder, clips, facts, index, per_shard)
    return {
        "clips": facts.clips, "labels": sorted(filter(None, facts.labels)), "shards": index.shards,
        "finished": finished,
    }  # fmt: skip


def write_manifest(
    folder: str,
    clips: list[pa.Table] | ray.data.Dataset,
    facts: Facts,
    before: Index | None,
    per_shard: int,
) -> Index:
    """Divides clips into shards and writes the manifest, range by range.

    Args:
        folder: of the features.
        clips: tables of SCHEMA.
        facts: of all of them.
        before: of the manifest until now, whose shards the clips keep.
        per_shard: clips of a shard at the most.
    """
    on_cluster = not isinstance(clips, list)
    ranges = Ranges.of(facts)
    run = uuid4().hex
    temporary = storage.join(folder, "listing", run)
    old = [name for name, _ in before.parts] if before else []
    try:
        blocks = [
            *map_blocks(clips, group_new, ranges, temporary),
            *map_calls(
                on_cluster,
                group_part,
                [(storage.join(folder, *name.split("/")), ranges, temporary) for name in old],
            ),
        ]
        # Too many pairs of block and range for the driver to hand out.
        uri = storage.join(temporary, "blocks")
        storage.write_table(uri, pa.Table.from_pylist(blocks, schema=BLOCKS))
        # A range that no clip falls into makes no part.
        filled = sorted({one for row in blocks if not row["has_shards"] for one in row["ranges"]})
        rows = [storage.join(temporary, f"range-{number}") for number in filled]
        cuts = map_calls(
            on_cluster, sort_range,
            [(number, uri, per_shard, to) for number, to in zip(filled, rows, strict=True)],
        )  # fmt: skip
        firsts, anew = first_shards(cuts, before.shards[-1] if before else -1)
        names = [f"manifest/{run}/part-{number:08d}.parquet" for number in range(len(filled))]
        shards = map_calls(
            on_cluster, write_range,
            [
                (storage.join(folder, *name.split("/")), laid_out, first, anew, per_shard)
                for name, laid_out, first in zip(names, rows, firsts, strict=True)
            ],
        )  # fmt: skip
    finally:
        storage.delete(temporary)
    parts = tuple((name, runs_of(some)) for name, some in zip(names, shards, strict=True))
    index = Index(facts.clips, digest_text(facts.digest), parts)
    write_index(folder, index)
    for name in stale_files(folder, run):
        storage.delete(storage.join(folder, *name.split("/")))
    return index


def stale_files(folder: str, run: str) -> list[str]:
    """What a feature folder holds of manifests before one, and of listings that were killed."""
    names = storage.subfolders(folder, "manifest")
    return [*(name for name in names if name != f"manifest/{run}"), OLD, "listing"]


def group_new(clips: pa.Table, ranges: Ranges, temporary: str) -> dict[str, Any]:
    """`group` for a block of clips."""
    return group(clips, ranges, storage.join(temporary, uuid4().hex))


def group_part(uri: str, ranges: Ranges, temporary: str) -> dict[str, Any]:
    """`group` for a part of a manifest."""
    return group_new(storage.read_table(uri), ranges, temporary)


def is_extracted(folder: str, shards: list[int]) -> bool:
    """True where all of these shards are there, and no clip is left to be tried again."""
    uri = storage.join(folder, "summary.json")
    if not storage.exists(uri) or json.loads(storage.read_bytes(uri)).get("unreadable") != 0:
        return False
    # By number: older versions gave their files shorter names.
    return {*shards} <= {index for index, _ in parquet.shard_names(folder)}
