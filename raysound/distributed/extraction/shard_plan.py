"""Divides the clips of a corpus into shards and writes the manifest, range by range."""

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
from raysound.distributed.extraction.map_blocks import map_blocks, map_calls
from raysound.features import parquet
from raysound.features.ranges import BLOCKS, Facts, Ranges, group, sort_range, write_range
from raysound.features.shards import clips_per_shard, first_shards
from raysound.settings.schema import Config


def plan_shards(
    clips: list[pa.Table] | ray.data.Dataset, name: str, config: Config
) -> dict[str, Any]:
    """Writes the manifest, with the shard of each clip, unless it is up to date.

    Args:
        clips: of the corpus, tables of SCHEMA.
        name: of the corpus.
        config: the experiment.

    Returns:
        The number of `clips`, their `labels`, the numbers of their `shards`, and `finished`: True
        if all shards exist.
    """
    folder = parquet.folder(config.output, name, config.features)
    facts = Facts.all(map_blocks(clips, Facts.of))
    index = read_index(folder)
    is_same = index is not None and index.digest == digest_text(facts.digest)
    finished = is_same and index is not None and is_extracted(folder, index.shards)
    if not finished:
        # Without its summary the corpus counts as unfinished while the shards change.
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
        before: of the present manifest, whose shards the clips keep.
        per_shard: maximum of clips per shard.
    """
    on_cluster = not isinstance(clips, list)
    ranges = Ranges.of(facts)
    run = uuid4().hex
    temp_folder = storage.join(folder, "listing", run)
    old = [name for name, _ in before.parts] if before else []
    try:
        blocks = [
            *map_blocks(clips, group_block, ranges, temp_folder),
            *map_calls(
                on_cluster,
                group_part,
                [(storage.join(folder, *name.split("/")), ranges, temp_folder) for name in old],
            ),
        ]
        # Written to a file, because there are too many pairs of block and range to send.
        uri = storage.join(temp_folder, "blocks")
        storage.write_table(uri, pa.Table.from_pylist(blocks, schema=BLOCKS))
        # An empty range makes no part.
        filled = sorted(
            {number for row in blocks if not row["has_shards"] for number in row["ranges"]}
        )
        sorted_uris = [storage.join(temp_folder, f"range-{number}") for number in filled]
        cuts = map_calls(
            on_cluster, sort_range,
            [(number, uri, per_shard, to) for number, to in zip(filled, sorted_uris, strict=True)],
        )  # fmt: skip
        firsts, renumber = first_shards(cuts, before.shards[-1] if before else -1)
        names = [f"manifest/{run}/part-{number:08d}.parquet" for number in range(len(filled))]
        shards = map_calls(
            on_cluster, write_range,
            [
                (storage.join(folder, *name.split("/")), sorted_uri, first, renumber, per_shard)
                for name, sorted_uri, first in zip(names, sorted_uris, firsts, strict=True)
            ],
        )  # fmt: skip
    finally:
        storage.delete(temp_folder)
    parts = tuple((name, runs_of(numbers)) for name, numbers in zip(names, shards, strict=True))
    index = Index(facts.clips, digest_text(facts.digest), parts)
    write_index(folder, index)
    for name in stale_files(folder, run):
        storage.delete(storage.join(folder, *name.split("/")))
    return index


def stale_files(folder: str, run: str) -> list[str]:
    """Files of earlier manifests and of killed listings in a feature folder."""
    names = storage.subfolders(folder, "manifest")
    return [*(name for name in names if name != f"manifest/{run}"), OLD, "listing"]


def group_block(clips: pa.Table, ranges: Ranges, temp_folder: str) -> dict[str, Any]:
    """`group` for a block of clips."""
    return group(clips, ranges, storage.join(temp_folder, uuid4().hex))


def group_part(uri: str, ranges: Ranges, temp_folder: str) -> dict[str, Any]:
    """`group` for a part of a manifest."""
    return group_block(storage.read_table(uri), ranges, temp_folder)


def is_extracted(folder: str, shards: list[int]) -> bool:
    """True if all of these shards exist, and no clip is to be tried again."""
    uri = storage.join(folder, "summary.json")
    if not storage.exists(uri) or json.loads(storage.read_bytes(uri)).get("unreadable") != 0:
        return False
    # By number: older versions gave their files shorter names.
    return {*shards} <= {index for index, _ in parquet.shard_names(folder)}
