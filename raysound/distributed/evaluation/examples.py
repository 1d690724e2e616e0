"""The clips of the report, with spectrogram and sound."""

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

# Of the room for sounds in the page, what pairs of clips may take.
PAIRS_SHARE = 0.25


def windows_of_page(config: Config) -> int:
    """How many windows `evaluation.examples_megabytes` of the page hold as sound."""
    # A FLAC is at the most as large as its samples, and a third larger as text in the page.
    largest = config.features.clip_samples * 2 * 4 / 3
    return int(config.evaluation.examples_megabytes * 1e6 / largest)


def places_of(folder: str, clip_ids: list[str]) -> pa.Table:
    """Runs in a Ray task: where the sounds of some clips lie, in the order given."""
    wanted = pa.array(clip_ids, pa.string())
    rows = [
        batch.filter(pc.is_in(batch["clip_id"], wanted))
        for batch in manifest_rows(folder, ["clip_id", "path", "offset", "size"])
    ]
    found = pa.concat_tables(rows)
    return found.take(pc.index_in(wanted, found["clip_id"].combine_chunks()))


def chosen_examples(
    folders: Mapping[str, str], selected: Mapping[str, Selected], config: Config, room: int
) -> Iterator[Example]:
    """The clips that the report shows, as far as they fit in so many windows."""
    most = max(0, room) // len(folders)
    chosen = {name: selected[name].examples[:most] for name in folders}
    calls = [
        (folder, [row["clip_id"] for row, _ in chosen[name]]) for name, folder in folders.items()
    ]
    for name, clips in zip(folders, run_remote_all(places_of, calls), strict=True):
        loaded = {
            place: examples.load_example(name, *chosen[name][place], sound, config.features)
            for place, sound in open_chosen(clips)
        }
        for _, example in sorted(loaded.items()):
            if example is not None:
                yield example


def chosen_pairs(
    copies: Mapping[str, Any] | None, folders: Mapping[str, str], config: Config, room: int
) -> list[ShownPair]:
    """Clips and their most similar training clips, in at most PAIRS_SHARE of so many windows."""
    if copies is None:
        return []
    chosen = pairs_to_show(copies, int(PAIRS_SHARE * room) // 2)
    sides = [
        (
            (corpus or "real", pair["clip_id"], pair["window"]),
            ("real", pair["training_clip"], pair["training_window"]),
        )
        for corpus, _, pair in chosen
    ]
    wanted = [[one for pair in sides for one in pair if one[0] == name] for name in folders]
    calls = [
        (folder, [clip for _, clip, _ in some])
        for folder, some in zip(folders.values(), wanted, strict=True)
    ]
    loaded = {}
    for some, clips in zip(wanted, run_remote_all(places_of, calls), strict=True):
        for place, sound in open_chosen(clips):
            name, clip, number = some[place]
            loaded[some[place]] = examples.load_window(name, clip, sound, config.features, number)
    return [
        ShownPair(corpus, rank, one, other)
        for (corpus, rank, _), (clip, training) in zip(chosen, sides, strict=True)
        if (one := loaded[clip]) is not None and (other := loaded[training]) is not None
    ]
