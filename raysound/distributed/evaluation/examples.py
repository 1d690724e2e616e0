"""Loads the clips of the report, with spectrogram and sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysound.audio.sounds import open_chosen
from raysound.corpora.manifest_parts import manifest_rows
from raysound.distributed.cluster.session import run_remote_all
from raysound.evaluation import examples
from raysound.evaluation.selected import Selected
from raysound.report.copies import ShownPair, pairs_to_show
from raysound.report.parts import Example
from raysound.settings.schema import Config

# Fraction of the page's capacity for sounds that pairs of clips may take.
PAIRS_SHARE = 0.25


def page_capacity(config: Config) -> int:
    """The number of windows whose sound fits in `evaluation.examples_megabytes`."""
    # A FLAC file is at most as large as its samples, and a third larger in base64.
    largest = config.features.clip_samples * 2 * 4 / 3
    return int(config.evaluation.examples_megabytes * 1e6 / largest)


def locate_sounds(folder: str, clip_ids: list[str]) -> pa.Table:
    """Runs in a Ray task: path, offset and size of some clips' sounds, in the order given."""
    wanted = pa.array(clip_ids, pa.string())
    rows = [
        batch.filter(pc.is_in(batch["clip_id"], wanted))
        for batch in manifest_rows(folder, ["clip_id", "path", "offset", "size"])
    ]
    found = pa.concat_tables(rows)
    return found.take(pc.index_in(wanted, found["clip_id"].combine_chunks()))


def load_examples(
    folders: Mapping[str, str], selected: Mapping[str, Selected], config: Config, capacity: int
) -> Iterator[Example]:
    """Loads the clips that the report shows, up to `capacity` windows."""
    per_corpus = max(0, capacity) // len(folders)
    chosen = {name: selected[name].examples[:per_corpus] for name in folders}
    calls = [
        (folder, [row["clip_id"] for row, _ in chosen[name]]) for name, folder in folders.items()
    ]
    for name, clips in zip(folders, run_remote_all(locate_sounds, calls), strict=True):
        loaded = {
            index: examples.load_example(name, *chosen[name][index], sound, config.features)
            for index, sound in open_chosen(clips)
        }
        for _, example in sorted(loaded.items()):
            if example is not None:
                yield example


def load_pairs(
    copies: Mapping[str, Any] | None, folders: Mapping[str, str], config: Config, capacity: int
) -> list[ShownPair]:
    """Loads clips and their most similar training clips, up to PAIRS_SHARE of the capacity."""
    if copies is None:
        return []
    chosen = pairs_to_show(copies, int(PAIRS_SHARE * capacity) // 2)
    sides = [
        (
            (corpus or "real", pair["clip_id"], pair["window"]),
            ("real", pair["training_clip"], pair["training_window"]),
        )
        for corpus, _, pair in chosen
    ]
    windows = [[key for pair in sides for key in pair if key[0] == name] for name in folders]
    calls = [
        (folder, [clip for _, clip, _ in keys])
        for folder, keys in zip(folders.values(), windows, strict=True)
    ]
    loaded = {}
    for keys, clips in zip(windows, run_remote_all(locate_sounds, calls), strict=True):
        for index, sound in open_chosen(clips):
            name, clip, number = keys[index]
            loaded[keys[index]] = examples.load_window(name, clip, sound, config.features, number)
    return [
        ShownPair(corpus, rank, first, second)
        for (corpus, rank, _), (clip, training) in zip(chosen, sides, strict=True)
        if (first := loaded[clip]) is not None and (second := loaded[training]) is not None
    ]
