"""Classification accuracy score: who learned from generated clips is tested on real ones.

Ravuri and Vinyals, "Classification accuracy score for conditional generative models", NeurIPS 2019.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import features, storage
from raysound.config import UserError
from raysound.distributed.extract import check_classes, finished_features
from raysound.distributed.judge import check_clips, split_clips, train_judge
from raysound.distributed.score import score_corpora
from raysound.metrics.intervals import paired_difference, share_measure
from raysound.predictions import of_corpus, read_index
from raysound.settings import Config

logger = logging.getLogger(__name__)

CAS_SCHEMA = 1


def cas(config: Config) -> str:
    """Trains on real and on each generated corpus, tests on real and on generated clips.

    Returns:
        The last line of the job.

    Raises:
        UserError: there is no generated corpus, or no real test clip.
    """
    names = list(config.corpora.generated)
    if not names:
        raise UserError("the config has no corpora.generated: there is nothing to learn from")
    folders = {name: finished_features(name, config) for name in ("real", *names)}
    clips = split_clips(config, folders["real"])
    test = clips.filter(pc.equal(clips["split"], "test"))
    if not len(test):
        raise UserError("no real test clip: name corpora.real.split.test_folds")
    out = storage.join(config.output, "cas")
    # Told now, not after the trainings before it.
    usable = {name: features.usable_clips(folders[name])["label"] for name in folders}
    check_classes({name: pc.unique(labels).to_pylist() for name, labels in usable.items()})
    for name in names:
        check_clips(of_generated(config), split_clips(of_generated(config), folders[name]), name)
    judge = train_judge(single(config), "real")
    heard = scored(folders, test, judge, config, storage.join(out, "real.parquet"))
    by_real = of_corpus(heard, "real")
    ceiling = tested(by_real)
    generated = {}
    for name in names:
        run = train_judge(of_generated(config), name, corpus=name)
        uri = storage.join(out, f"{name}.parquet")
        by_generated = scored({"real": folders["real"]}, test, run, config, uri)
        learned = tested(by_generated)
        generated[name] = {
            "run": run.rpartition("/")[2],
            "train_clips": len(split_clips(of_generated(config), folders[name]).filter(
                pc.field("split") == "train"
            )),
            "generated_to_real": learned,
            "real_to_generated": tested(of_corpus(heard, name)),
            "lost": paired_difference(*right_of_each(by_real, by_generated)),
        }  # fmt: skip
    result = {
        "schema": CAS_SCHEMA,
        "name": config.name,
        "test_clips": len(test),
        "real_to_real": {"run": judge.rpartition("/")[2], **ceiling},
        "generated": generated,
    }
    uri = storage.join(out, "cas.json")
    storage.write_bytes(uri, json.dumps(result, indent=2, ensure_ascii=False).encode())
    for line in table(result):
        logger.info("%s", line)
    return f"classification accuracy scores: {uri}"


def single(config: Config) -> Config:
    """The config of one judge."""
    tree = config.model_dump()
    tree["training"] |= {"folds": None, "seeds": 1}
    return Config.model_validate(tree)


def of_generated(config: Config) -> Config:
    """The same for a classifier of generated clips: none of them tests, so none is held back."""
    tree = single(config).model_dump()
    tree["corpora"]["real"]["split"] |= {
        "test_folds": [],
        "validation_folds": [],
        "test_fraction": 0,
    }
    if not config.training.needs_validation:
        tree["corpora"]["real"]["split"]["validation_fraction"] = 0
    return Config.model_validate(tree)


def right_of_each(one: pa.Table, other: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Whether each clip was heard as its label, by one and by another, in one order."""
    place = pc.index_in(one["clip_id"], other["clip_id"].combine_chunks())
    tables = (one, other.take(place))
    first, second = (pc.equal(rows["label"], rows["prediction"]).to_numpy() for rows in tables)
    return first, second


def scored(folders: dict[str, str], test: pa.Table, run: str, config: Config, uri: str) -> pa.Table:
    """Predictions of some corpora, of `real` the test clips alone."""
    score_corpora(folders, test, run, config, uri)
    return read_index(uri)


def tested(rows: pa.Table) -> dict[str, Any]:
    """How many of some clips were heard as their label, in all and of each label."""

    def accuracy(some: pa.Table) -> dict[str, Any]:
        right = pc.sum(pc.equal(some["label"], some["prediction"])).as_py() or 0
        return share_measure(right, len(some))

    labels = sorted(set(rows["label"].to_pylist()))
    return {
        "accuracy": accuracy(rows),
        "per_class": {
            label: accuracy(rows.filter(pc.equal(rows["label"], label))) for label in labels
        },
    }


def table(result: dict[str, Any]) -> Iterator[str]:
    """The scores as lines of text."""
    width = max(map(len, ("trained on", *result["generated"])))
    head = "clips  tested on real     lost against real   real → generated"
    yield f"{'trained on':<{width}}   {head}"

    def cell(measure: dict[str, Any]) -> str:
        return f"{measure['value']:6.1%} ({measure['low']:.0%}–{measure['high']:.0%})"

    yield f"{'real':<{width}}          {cell(result['real_to_real']['accuracy'])}"
    for name, row in result["generated"].items():
        lost = row["lost"]
        learned = cell(row["generated_to_real"]["accuracy"])
        yield (
            f"{name:<{width}}  {row['train_clips']:6d}  {learned}  "
            f"{lost['value']:+6.1%} ({lost['low']:+.0%} to {lost['high']:+.0%})  "
            f"{cell(row['real_to_generated']['accuracy'])}"
        )
