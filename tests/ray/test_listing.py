"""A corpus is listed once in a job, and by the process that it fits into."""

from pathlib import Path
from typing import Any

import pytest

from raysound.config import UserError, from_tree
from raysound.distributed import listing
from raysound.distributed.extract import extract
from raysound.distributed.listing import finished_features, listed_once, plan_corpus
from raysound.distributed.train import train
from tests.conftest import write_tones


@pytest.fixture
def config(tone_config: dict[str, Any], tmp_path: Path) -> Any:
    """Tones in two folds."""
    folder = tmp_path / "folds"
    write_tones(folder / "0", 8, 0.01, 0)
    write_tones(folder / "1", 8, 0.01, 1)
    rows = [
        f"{wav.relative_to(folder)},{wav.parent.name},{wav.relative_to(folder).parts[0]}"
        for wav in sorted(folder.glob("*/*/*.wav"))
    ]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,fold", *rows]))
    tree = {
        **tone_config,
        "corpora": {"real": {"path": str(folder)}},
        "training": {"epochs": 1, "batch_size": 8, "folds": "all"},
    }
    return from_tree(tree, "test")


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The corpora that were listed, in this process."""
    paths: list[str] = []
    read_corpus = listing.read_corpus

    def noted(path: str, tell: Any) -> Any:
        paths.append(path)
        return read_corpus(path, tell)

    monkeypatch.setattr(listing, "read_corpus", noted)
    return paths


@pytest.mark.timeout(300)
def test_a_job_of_many_trainings_lists_its_corpus_once(config: Any, listings: list[str]) -> None:
    """A training a fold, after an extraction and without one."""
    with listed_once():
        extract(config)
        train(config)
    assert listings == [config.corpora.real.path]

    with listed_once():
        train(config)
    assert listings == [config.corpora.real.path] * 2


def test_another_job_sees_that_a_corpus_has_changed(config: Any) -> None:
    with listed_once():
        extract(config)
        (Path(config.corpora.real.path) / "0" / "high" / "000.wav").unlink()
        assert finished_features("real", config)

    with pytest.raises(UserError, match="real has changed"), listed_once():
        finished_features("real", config)


def test_a_large_corpus_is_listed_on_the_cluster(
    config: Any, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest is the same."""
    here = plan_corpus("real", config)
    monkeypatch.setattr(listing, "SMALL_CORPUS", 10)

    there = plan_corpus("real", config)

    assert listings == [config.corpora.real.path]
    assert there == here
