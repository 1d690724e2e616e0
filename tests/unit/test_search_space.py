"""Checks of search.space before a search starts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysound.errors import UserError
from raysound.settings.loading import from_tree, load
from raysound.settings.schema import Config
from raysound.settings.search_space import sampled_config

RATES = {"loguniform": [1e-4, 1e-2]}


def config_of(space: dict[str, Any], **more: Any) -> Config:
    """A config with a search space; `more` are further sections and settings of `search`."""
    tree = copy.deepcopy(more)
    search = tree.pop("search", {})
    base = {"name": "search", "output": "out", "corpora": {"real": {"path": "sounds"}}}
    return from_tree({**base, **tree, "search": {"space": space, **search}}, "a.yaml")


def fault(space: dict[str, Any], **more: Any) -> str:
    """The error message."""
    with pytest.raises(UserError) as caught:
        config_of(space, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("training.optimizer.lrr", "did you mean 'training.optimizer.lr'"),
        ("training.epoch", "did you mean 'training.epochs'"),
        ("modle.name", "did you mean 'model.name'"),
        ("zzzz", "there is no setting 'zzzz'"),
        ("training", "'training' can't be searched"),
        ("name", "'name' can't be searched, only model, features and training"),
        ("search.trials", "can't be searched"),
        ("compute.workers", "can't be searched"),
        ("corpora.real.path", "can't be searched"),
        ("training.folds", "can't be searched"),
        ("training.seeds", "can't be searched"),
    ],
)  # fmt: skip
def test_a_key_that_can_not_be_searched_is_rejected(path: str, message: str) -> None:
    assert message in fault({path: {"choice": [1, 2]}})


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({}, "write one of {choice: [a, b, …]}"),
        ({"uniform": [0, 1], "choice": [1]}, "write one of"),
        ({"uniform": [1, 0]}, "must begin with the lower number"),
        ({"uniform": [1, 1]}, "must begin with the lower number"),
        ({"loguniform": [0, 1]}, "greater than 0"),
        ({"loguniform": [1]}, "search.space.training.optimizer.lr.loguniform"),
        ({"choice": []}, "at least 1"),
        ({"lognormal": [0, 1]}, "unknown key"),
        ([0, 1], "search.space.training.optimizer.lr"),
    ],
)
def test_a_dimension_is_one_kind_with_a_range(dimension: Any, message: str) -> None:
    assert message in fault({"training.optimizer.lr": dimension})


@pytest.mark.parametrize(
    ("path", "dimension"),
    [
        ("training.optimizer.lr", {"uniform": [-0.1, 0.1]}),
        ("training.label_smoothing", {"uniform": [0.0, 2.0]}),
        ("training.batch_size", {"integer": [0, 8]}),
        ("training.batch_size", {"uniform": [8, 32]}),
        ("model.name", {"choice": ["cnn", "resnet"]}),
        ("training.scheduler", {"choice": [None, {"name": "StepLR", "gama": 0.1}]}),
        ("training.scheduler", {"choice": [{"name": "StepLR", "step_size": 0}]}),
        ("features.n_fft", {"choice": [1024, "many"]}),
    ],
)
def test_every_choice_and_both_ends_are_validated(path: str, dimension: Any) -> None:
    text = fault({path: dimension})

    assert "a.yaml: search.space: " in text
    assert f"{path}=" in text


def test_a_value_is_valid_if_some_values_of_the_others_allow_it() -> None:
    """The gamma belongs to StepLR, which is in the search space but not in the file."""
    scheduler = {"choice": [None, {"name": "StepLR", "step_size": 5}]}
    config_of(
        {"training.scheduler": scheduler, "training.scheduler.gamma": {"uniform": [0.1, 0.5]}}
    )

    with pytest.raises(UserError, match="gamma"):
        config_of({"training.scheduler.gamma": {"uniform": [0.1, 0.5]}})


def test_features_and_grids_require_choices() -> None:
    assert "each value needs its own extraction" in fault(
        {"features.clip_length": {"uniform": [1.0, 4.0]}}
    )
    assert "search.algorithm is grid" in fault(
        {"training.optimizer.lr": RATES}, search={"algorithm": "grid"}
    )


def test_a_trial_trains_one_classifier() -> None:
    for training in ({"folds": "all"}, {"seeds": 3}):
        assert "leave out training.folds and seeds" in fault(
            {"training.optimizer.lr": RATES}, training=training
        )


def test_population_based_training_changes_only_settings_that_can_change() -> None:
    population = {"scheduler": {"name": "PopulationBasedTraining"}}

    assert "not possible for 'model.name'" in fault(
        {"model.name": {"choice": ["cnn"]}}, search=population
    )
    assert "leave out training.scheduler" in fault(
        {"training.optimizer.lr": RATES},
        search=population,
        training={"scheduler": {"name": "StepLR", "step_size": 3}},
    )
    config_of({"training.optimizer.lr": RATES, "training.augment.mixup": {"uniform": [0.0, 0.4]}},
              search=population)  # fmt: skip


def test_a_sampled_config_has_the_values_and_no_search() -> None:
    config = config_of(
        {"training.scheduler": {"choice": [None, {"name": "StepLR", "step_size": 5}]},
         "training.optimizer.lr": RATES},
        training={"optimizer": {"name": "SGD", "momentum": 0.5}},
    )  # fmt: skip

    one = sampled_config(config, {"training.scheduler": {"name": "StepLR", "step_size": 5},
                           "training.optimizer.lr": 0.003})  # fmt: skip

    assert one.training.optimizer.model_dump()["momentum"] == 0.5
    assert one.training.optimizer.lr == 0.003
    assert one.training.scheduler.step_size == 5
    assert not one.search.space
    assert one.output == config.output


def test_a_written_sample_is_a_valid_config(tmp_path: Path) -> None:
    config = config_of({"training.optimizer.lr": RATES})
    one = sampled_config(config, {"training.optimizer.lr": 0.0031415926535})
    (tmp_path / "best.yaml").write_text(one.to_yaml())

    again = load(tmp_path / "best.yaml")

    assert again == Config.model_validate(one.model_dump())
    assert "search" not in yaml.safe_load(one.to_yaml())


def test_contradicting_values_are_reported_with_their_keys() -> None:
    config = config_of({"features.n_fft": {"choice": [512, 1024]}})

    with pytest.raises(UserError, match=r"features\.n_fft=512, features\.n_mels=0"):
        sampled_config(config, {"features.n_fft": 512, "features.n_mels": 0})
