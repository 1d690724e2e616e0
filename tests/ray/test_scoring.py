"""Which parts of the predictions are scored again, and the sums over them."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from raysound import storage
from raysound.distributed.evaluation.corpus_sums import sum_corpora
from raysound.distributed.evaluation.evaluate import read_rejects
from raysound.distributed.evaluation.score import NOISE_RMS, anchor_waveform, score_corpora
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.runs import split_clips
from raysound.evaluation.partial_sums import OTHERS, TRAIN, Plan, sum_parts
from raysound.evaluation.predictions import (
    embedding_size,
    part_index,
    prediction_parts,
    read_part_metadata,
)
from raysound.features import parquet
from raysound.metrics.selection import limits
from raysound.settings.features import FeatureSettings
from raysound.settings.schema import Config

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = pytest.mark.timeout(300)
NAMES = ["real", "good", "bad"]


class Scorer:
    """Scores the tones to a folder of its own."""

    def __init__(self, trained: dict[str, Any], folder: Path) -> None:
        self.config: Config = trained["config"]
        self.run = trained["run"]
        self.out = str(folder / "predictions")
        self.folders = {name: finished_features(name, self.config) for name in NAMES}
        clips = split_clips(self.config, self.folders["real"])
        self.chosen = clips.filter(pc.is_in(clips["split"], pa.array(["train", "test"])))

    def score(self, **changes: Any) -> dict[str, int]:
        """How many parts were made, compared and left as they were."""
        made = score_corpora(
            changes.get("folders", self.folders), changes.get("chosen", self.chosen),
            changes.get("run", self.run), self.config, self.out,
        )  # fmt: skip
        return dict(made)

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Time and content of each file below the predictions."""
        return {
            str(path.relative_to(self.out)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(Path(self.out).rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def scorer(trained: dict[str, Any], tmp_path: Path) -> Scorer:
    """One that has scored everything."""
    made = Scorer(trained, tmp_path)
    assert made.score() == {"score": 9}
    return made


def test_a_part_a_shard_and_none_is_scored_twice(scorer: Scorer) -> None:
    """Its footer says what it was made from; a rerun changes no file."""
    before = scorer.files()

    assert list(before) == sorted(
        f"{name}/part-{index:08d}.parquet"
        for name, count in {"real": 5, "good": 2, "bad": 2}.items()
        for index in range(count)
    )
    assert scorer.score() == {"done": 9}
    assert scorer.files() == before
    notes = [read_part_metadata(uri) for uri in prediction_parts(scorer.out, "real")]
    assert sum(note.clips for note in notes if note) == len(scorer.chosen)
    assert len({note.scored for note in notes if note}) == 5


def test_only_what_is_missing_cut_or_of_another_shard_is_scored_again(scorer: Scorer) -> None:
    before = scorer.files()
    (gone, cut) = prediction_parts(scorer.out, "good")
    Path(gone).unlink()
    Path(cut).write_bytes(Path(cut).read_bytes()[:100])
    (Path(scorer.out) / "bad/part-00000001.parquet.0a1b.tmp").write_bytes(b"half")

    assert scorer.score() == {"score": 2, "done": 7}

    after = scorer.files()
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    assert {name for name in after if after[name] != before[name]} == {
        f"good/part-0000000{index}.parquet" for index in (0, 1)
    }


def test_a_changed_shard_is_scored_again_alone(scorer: Scorer, tmp_path: Path) -> None:
    copy = tmp_path / "features"
    shutil.copytree(scorer.folders["bad"], copy)
    first = parquet.shard_uris(str(copy))[0]
    table = pq.read_table(first)
    metadata = dict(table.schema.metadata or {}) | dict(pq.read_metadata(first).metadata)
    record = json.loads(metadata[parquet.SHARD_KEY]) | {"digest": "another"}
    metadata[parquet.SHARD_KEY] = json.dumps(record).encode()
    storage.write_table(first, table.replace_schema_metadata(metadata))

    assert scorer.score(folders=scorer.folders | {"bad": str(copy)}) == {"score": 1, "done": 8}


def test_another_classifier_scores_everything_again(scorer: Scorer, tmp_path: Path) -> None:
    """One of the same path, too, as after a training that was repeated."""
    run = tmp_path / "run"
    shutil.copytree(scorer.run, run)
    assert scorer.score(run=str(run)) == {"done": 9}, "a copy is the same classifier"
    note = json.loads((run / "checkpoint.json").read_text())
    (run / "checkpoint.json").write_text(json.dumps(note | {"metrics": {"epoch": 99}}))

    assert scorer.score(run=str(run)) == {"score": 9}


def test_other_training_clips_cost_no_forward_pass(scorer: Scorer) -> None:
    """Only the real shards that hold them are scored; generated clips are set against them anew."""
    dropped = scorer.chosen.filter(pc.equal(scorer.chosen["split"], "train"))["clip_id"][0]
    before = pq.read_table(prediction_parts(scorer.out, "good")[0])

    made = scorer.score(
        chosen=scorer.chosen.filter(pc.not_equal(scorer.chosen["clip_id"], dropped))
    )

    assert made == {"score": 1, "done": 4, "compare": 4}
    after = pq.read_table(prediction_parts(scorer.out, "good")[0])
    assert dropped.as_py() not in after["nearest_train_clip_id"].to_pylist()
    for column in ("clip_id", "probabilities", "embedding"):
        assert after[column].equals(before[column])


def test_parts_of_a_corpus_that_is_gone_disappear(scorer: Scorer) -> None:
    """And those beyond the last shard."""
    shutil.copy(
        prediction_parts(scorer.out, "good")[0], Path(scorer.out) / "good/part-00000007.parquet"
    )
    left = {name: scorer.folders[name] for name in ("real", "good")}

    assert scorer.score(folders=left) == {"done": 7}

    assert {path.name for path in Path(scorer.out).iterdir()} == {"real", "good"}
    assert len(prediction_parts(scorer.out, "good")) == 2


def bits(sums: Any) -> bytes:
    """All numbers of some sums."""
    return pickle.dumps(
        [
            sums.classification.cells.tobytes(), sums.classification.counts.tobytes(),
            sums.classification.in_top, sums.classification.rows.tobytes(), sums.balls,
            sorted(sums.sounds.rates.items()), sums.sounds.rows.tobytes(), sums.entries.tobytes(),
        ]
    )  # fmt: skip


def test_sums_are_the_same_bits_for_any_number_of_parts_at_a_time(
    scorer: Scorer, trained: dict[str, Any]
) -> None:
    """In Ray Data tasks of 1, 2 or 7 parts, and in this process."""
    size = embedding_size(scorer.out, "real")
    plan = Plan(["high", "low", "mid"], 0.5, size, limits(3, size, 2))

    found = [
        {
            (name, clips): sums
            for name, one in sum_corpora(NAMES, scorer.out, plan, parts).items()
            for clips, sums in ray.get(one).items()
        }
        for parts in (1, 2, 7)
    ]

    keys = [("real", TRAIN), ("real", OTHERS), ("good", OTHERS), ("bad", OTHERS)]
    assert [sorted(one) for one in found] == [sorted(keys)] * 3
    for key in keys:
        assert len({bits(one[key]) for one in found}) == 1
    alone = sum_parts({part_index(uri): uri for uri in prediction_parts(scorer.out, "good")}, plan)
    good = found[0]["good", OTHERS]
    assert good.entries.tolist() == alone[OTHERS].entries.tolist()
    assert good.classification.clips == 24
    assert good.balls == alone[OTHERS].balls
    assert good.balls.clips == 24


def test_rejects_are_counted_by_kind_and_a_hundred_shown(tmp_path: Path) -> None:
    """Of any number; what only the first clips tell of is not the whole."""
    rows = [
        {"clip_id": f"{n}.wav", "path": "", "label": "a", "reason": f"cut short: {n} of 9 {end}"}
        for n in range(20_000)
        for end in [("frames", "samples")[n % 2]]
    ]
    for name, some in (("real", rows), ("good", rows[:3])):
        table = pa.Table.from_pylist(some, schema=parquet.REJECT_SCHEMA)
        storage.write_table(f"{tmp_path}/{name}/rejects.parquet", table)

    found = read_rejects({name: f"{tmp_path}/{name}" for name in ("real", "good")})

    assert found.counts == {
        ("real", "cut short: … of … frames"): 10_000,
        ("real", "cut short: … of … samples"): 10_000,
        ("good", "cut short: … of … frames"): 2,
        ("good", "cut short: … of … samples"): 1,
    }
    assert [row["clip_id"] for row in found.shown] == [f"{n}.wav" for n in range(100)]


def test_made_noise_has_the_loudness_of_any_clip_and_silence_stays_silence() -> None:
    for level, expected in ((None, NOISE_RMS), ({"rms": -40}, 0.01)):
        settings = FeatureSettings(loudness=level)
        noise, silence = (anchor_waveform(kind, 7, settings) for kind in ("noise", "silence"))

        assert np.sqrt(np.mean(noise**2)) == pytest.approx(expected, rel=0.01)
        assert noise.shape == silence.shape == (settings.clip_samples,)
        assert not silence.any()
