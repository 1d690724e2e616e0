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


def test_each_shard_has_one_part_that_is_scored_once(scorer: Scorer) -> None:
    """Its footer names shard and classifier; a rerun changes no file."""
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


def test_only_missing_truncated_or_wrong_parts_are_scored_again(scorer: Scorer) -> None:
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


def test_only_a_changed_shard_is_scored_again(scorer: Scorer, tmp_path: Path) -> None:
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
    """Also a classifier with the same path, as after a repeated training."""
    run = tmp_path / "run"
    shutil.copytree(scorer.run, run)
    assert scorer.score(run=str(run)) == {"done": 9}, "a copy is the same classifier"
    note = json.loads((run / "checkpoint.json").read_text())
    (run / "checkpoint.json").write_text(json.dumps(note | {"metrics": {"epoch": 99}}))

    assert scorer.score(run=str(run)) == {"score": 9}


def test_a_change_of_training_clips_needs_no_forward_pass_of_generated_clips(
    scorer: Scorer,
) -> None:
    """Only the real shards that hold them are scored; generated clips are compared again."""
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


def test_parts_of_removed_corpora_are_deleted(scorer: Scorer) -> None:
    """So are parts beyond the last shard."""
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


def test_sums_are_bitwise_equal_for_any_number_of_parts_per_task(
    scorer: Scorer, trained: dict[str, Any]
) -> None:
    """The sums are computed in tasks of 1, 2 and 7 parts, and in this process."""
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


def test_rejects_are_counted_by_reason_and_a_hundred_are_shown(tmp_path: Path) -> None:
    """The counts include rejects that are not shown."""
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


def test_noise_is_normalised_to_the_loudness_and_silence_stays_silent() -> None:
    for level, expected in ((None, NOISE_RMS), ({"rms": -40}, 0.01)):
        settings = FeatureSettings(loudness=level)
        noise, silence = (anchor_waveform(kind, 7, settings) for kind in ("noise", "silence"))

        assert np.sqrt(np.mean(noise**2)) == pytest.approx(expected, rel=0.01)
        assert noise.shape == silence.shape == (settings.clip_samples,)
        assert not silence.any()
