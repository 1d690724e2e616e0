"""Invalid settings are rejected before a job starts, and torch accepts all valid ones."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from raysound.errors import UserError
from raysound.metrics.anchors import anchors_of_real
from raysound.metrics.corpus import Scored
from raysound.settings.corpora import RESERVED_NAMES
from raysound.settings.features import FeatureSettings
from raysound.settings.loading import load
from raysound.settings.schema import Config
from raysound.settings.search_space import sampled_config
from raysound.settings.training import TrainingSettings
from raysound.training.optimizers import make_optimizer, make_scheduler, step_scheduler

LEAST = "name: least\noutput: out\ncorpora: {real: {path: sounds}}\n"


@pytest.fixture
def least(tmp_path: Path) -> Path:
    """A YAML file with only the required settings."""
    path = tmp_path / "least.yaml"
    path.write_text(LEAST, encoding="utf-8")
    return path


def numbers(annotation: Any) -> bool:
    """Whether a type accepts arbitrary numbers."""
    return annotation in (int, float) or any(numbers(part) for part in get_args(annotation))


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section models in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections(part)


def number_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """Yields key, section name and whether it is a list, of every setting with a number."""
    for name, field in model.model_fields.items():
        for section in sections(field.annotation):
            yield from number_keys(section, f"{prefix}{name}.")
        if numbers(field.annotation) and not list(sections(field.annotation)):
            fields = model.model_fields
            words = get_args(fields["name"].annotation) if "name" in fields else ()
            yield prefix + name, str(words[0]) if len(words) == 1 else "", "tuple" in str(field)


NUMBER_KEYS = sorted(set(number_keys(Config)))


@pytest.mark.parametrize("value", ["true", "'5'", ".nan", ".inf", "-.inf", "1.0e+400", "five"])
def test_number_settings_reject_other_types_and_infinite_numbers(least: Path, value: str) -> None:
    """This holds for every number of every section, alone and in a list."""
    assert len(NUMBER_KEYS) > 60
    for key, choice, is_list in NUMBER_KEYS:
        section, _, name = key.rpartition(".")
        text = f"[{value}, {value}]" if is_list else value
        text = f"{{name: {choice}, {name}: {text}}}" if choice else text
        where = section if choice else key
        if key.startswith("search.space."):
            where, text = "search.space", f"{{training.optimizer.lr: {{{name}: {text}}}}}"
        required = [f"{section}.output=x"] if section.startswith("synthesis.") else []
        with pytest.raises(UserError, match=name) as caught:
            load(least, [*required, f"{where}={text}"])
        assert all("\n" not in line for line in str(caught.value).split("\n")), key


@pytest.mark.parametrize(
    "key",
    [
        "training.augment.roll",
        "evaluation.tensorboard",
        "evaluation.csv",
        "compute.compile",
        "compute.tf32",
    ],
)
@pytest.mark.parametrize("value", ["1", "0", "'maybe'", "null"])
def test_a_boolean_setting_is_true_or_false(least: Path, key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{key}: Input should be a valid boolean"):
        load(least, [f"{key}={value}"])


REFUSED = [
    ("training.optimizer={name: Adam, betas: [2, 0.9]}", ["optimizer.betas.0", "less than 1", "2"]),
    ("training.optimizer={name: AdamW, betas: [0.9, 1]}", ["optimizer.betas.1", "less than 1"]),
    ("training.optimizer={name: SGD, momentum: 1}", ["optimizer.momentum", "less than 1"]),
    ("training.optimizer={name: SGD, momentum: 0, nesterov: true}", ["nesterov", "momentum"]),
    ("training.scheduler={name: MultiStepLR, milestones: []}", ["scheduler.milestones", "[]"]),
    (
        "training.scheduler={name: MultiStepLR, milestones: [9, 3]}",
        ["milestones [9, 3]", "increase"],
    ),
    ("training.scheduler={name: CosineAnnealingLR, eta_min: 1}", ["eta_min 1 ", "lr 0.001"]),
    (
        "training.scheduler={name: CosineAnnealingWarmRestarts, T_0: 5, eta_min: 1}",
        ["eta_min 1 ", "lr 0.001"],
    ),
    ("training.scheduler={name: OneCycleLR, div_factor: 0.5}", ["scheduler.div_factor", "0.5"]),
    ("training.scheduler={name: OneCycleLR, final_div_factor: 0.5}", ["final_div_factor", "0.5"]),
    (
        "training={warmup_epochs: 3, scheduler: {name: OneCycleLR}}",
        ["warmup_epochs 3", "pct_start"],
    ),
    ("training={epochs: 4, warmup_epochs: 4}", ["warmup_epochs 4", "epochs 4"]),
    ("training={seed: 4294967295, seeds: 2}", ["seed 4294967295", "seeds 2"]),
    ("training.epochs=1e12", ["training.epochs", "2147483648"]),
    (
        "training.gradient_accumulation_steps=33",
        ["training.gradient_accumulation_steps 33", "32 clips"],
    ),
    ("training.crop_length=5.1", ["crop_length 5.1 s", "clip_length 5 s"]),
    ("training.augment.mixup=1e-30", ["training.augment.mixup", "0.001", "1e-30"]),
    ("training.augment.mixup=1000", ["training.augment.mixup", "100", "1000"]),
    ("training.augment.gain_db=101", ["training.augment.gain_db", "100", "101"]),
    ("training.augment.time_masks=101", ["training.augment.time_masks", "100", "101"]),
    ("features.hop_length=1025", ["hop_length 1025", "n_fft 1024"]),
    ("features.n_mels=1023", ["n_mels 1023", "511 Fourier bins", "n_fft 1024"]),
    ("features.f_min=22049", ["n_mels 64", "0 Fourier bins", "22049 Hz"]),
    ("features.clip_length=1e5", ["clip_length 100000 s", "4410000000", "268435456"]),
    ("features={clip_length: 6000, hop_length: 10}", ["n_mels 64", "frames", "hop_length"]),
    ("corpora.real.split.seed=-1", ["corpora.real.split.seed", "0", "-1"]),
    ("corpora.real.split={test_fraction: 0.9}", ["test_fraction 0.9", "validation_fraction 0.15"]),
    ("corpora.real.split.test_folds=[null]", ["test_folds.0", "None"]),
    ("corpora.real.split.test_folds=[true]", ["test_folds.0", "True"]),
    ("corpora.real.path=''", ["corpora.real.path"]),
    ("output=''", ["output"]),
    ("search.seed=4294967296", ["search.seed", "4294967296"]),
    ("search.gpus_per_trial=1.5", ["search.gpus_per_trial", "whole number of GPUs", "1.5"]),
    ("search.scheduler={name: ASHAScheduler, grace_period: 51}", ["grace_period 51", "50 epochs"]),
    ("compute.cpus_per_worker=1e-5", ["compute.cpus_per_worker", "0.0001", "1e-05"]),
    ("synthesis.formula={output: x, seconds: 0.01}", ["synthesis.formula.seconds", "0.05"]),
    ("synthesis.formula={output: x, sample_rate: 4000}", ["formula.sample_rate", "8000"]),
    ("synthesis.ladder={output: x, n_mels: [8, 8]}", ["n_mels [8, 8]", "twice"]),
    ("synthesis.ladder={output: x, n_mels: [], snr_db: []}", ["n_mels []", "snr_db []"]),
    ("synthesis.ladder={output: x, snr_db: [500]}", ["ladder.snr_db.0", "200", "500"]),
]


@pytest.mark.parametrize(("override", "words"), REFUSED, ids=[text for text, _ in REFUSED])
def test_invalid_or_ineffective_settings_are_rejected_in_one_line(
    least: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load(least, [override])

    text = str(caught.value).removeprefix(f"{least}: ")
    assert [word for word in words if word not in text] == []
    assert "\n" not in text


@pytest.mark.parametrize(
    "overrides",
    [
        ["training={epochs: 4, warmup_epochs: 3}"],
        ["training.scheduler={name: OneCycleLR}"],
        ["training.gradient_accumulation_steps=32"],
        ["training.crop_length=5"],
        ["training={seed: 4294967295}"],
        ["features.n_mels=1022"],
        ["features.hop_length=1024"],
        ["search.gpus_per_trial=2"],
        ["corpora.real.split={test_fraction: 0.5, validation_fraction: 0.49}"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_the_last_valid_value_is_accepted(least: Path, overrides: list[str]) -> None:
    load(least, overrides)


@pytest.mark.parametrize(
    ("training", "note"),
    [
        ("{epochs: 9, scheduler: {name: StepLR, step_size: 8}}", None),
        (
            "{epochs: 9, scheduler: {name: StepLR, step_size: 9}}",
            "step_size 9 is not reached in 9 epochs",
        ),
        (
            "{epochs: 9, warmup_epochs: 4, scheduler: {name: StepLR, step_size: 5}}",
            "step_size 5 is not reached in 5 epochs after 4 of warm-up",
        ),
        (
            "{epochs: 9, scheduler: {name: MultiStepLR, milestones: [3, 9]}}",
            "milestones 9 is not reached in 9 epochs",
        ),
        ("{epochs: 9, scheduler: {name: CosineAnnealingLR}}", None),
        ("{epochs: 9, scheduler: {name: CosineAnnealingWarmRestarts, T_0: 8}}", None),
        (
            "{epochs: 9, scheduler: {name: CosineAnnealingWarmRestarts, T_0: 9}}",
            "T_0 9 is not reached in 9 epochs",
        ),
    ],
)
def test_a_schedule_step_after_the_last_epoch_is_reported(
    least: Path, training: str, note: str | None
) -> None:
    expected = note and f"training.scheduler.{note}"

    assert load(least, [f"training={training}"]).training.unreached_step == expected


def test_an_error_of_a_setting_that_a_default_depends_on_is_reported_once(least: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(least, ["features.sample_rate=fast"])

    text = "features.sample_rate: Input should be a number (got 'fast')"
    assert str(caught.value) == f"{least}: {text}"


def test_the_names_of_rows_that_an_evaluation_adds_are_reserved(least: Path) -> None:
    rows = np.arange(24)
    some = Scored(rows % 2, np.full((24, 2), 0.5), np.ones((24, 3)))
    added = {"real", "noise", "silence", "real_halves", *anchors_of_real(some, some, 24)}
    assert {*RESERVED_NAMES} == added
    for name in added:
        with pytest.raises(UserError, match=f"the name '{name}' in generated is reserved"):
            load(least, [f"corpora.generated={{{name}: sounds}}"])


# f_max


def test_f_max_is_half_the_sample_rate_unless_it_is_given(least: Path) -> None:
    assert load(least, ["features.sample_rate=16000"]).features.f_max == 8000
    assert load(least, ["features={sample_rate: 16000, f_max: 7000}"]).features.f_max == 7000
    assert load(least, ["features={f_max: 7000}", "features.f_max=null"]).features.f_max == 22050


def test_a_searched_sample_rate_sets_f_max(least: Path) -> None:
    space = "search.space={features.sample_rate: {choice: [16000, 44100]}}"
    config = load(least, [space])

    found = [
        sampled_config(config, {"features.sample_rate": rate}).features.f_max
        for rate in (16000, 44100)
    ]

    assert found == [8000, 22050]


def test_the_default_feature_id_equals_that_with_an_explicit_f_max() -> None:
    """Feature folders of earlier versions keep their names."""
    assert FeatureSettings().id == FeatureSettings(f_max=22050).id == "289b7613"


# Optimizers and schedulers

ODD = st.sampled_from(
    [-1, -0.0, 0, 1e-12, 1e-9, 1e-6, 0.001, 0.1, 1 / 3, 0.5, 0.9, 1 - 1e-9, 1, 2, 3, 10, 25.5, 1e12]
)
COUNT = st.integers(0, 12)


def some_of(name: str, **values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Settings of a section, each of which may be left out."""
    return st.fixed_dictionaries({"name": st.just(name)}, optional=values)


OPTIMIZERS = st.one_of(
    *(
        some_of(name, lr=ODD, weight_decay=ODD, betas=st.lists(ODD, min_size=2, max_size=2))
        for name in ("Adam", "AdamW")
    ),
    some_of("SGD", lr=ODD, momentum=ODD, weight_decay=ODD, nesterov=st.booleans()),
)
SCHEDULERS = st.one_of(
    st.none(),
    some_of("StepLR", step_size=COUNT, gamma=ODD),
    some_of("MultiStepLR", milestones=st.lists(COUNT, max_size=3), gamma=ODD),
    some_of("ExponentialLR", gamma=ODD),
    some_of("CosineAnnealingLR", eta_min=ODD),
    some_of("CosineAnnealingWarmRestarts", T_0=COUNT, T_mult=COUNT, eta_min=ODD),
    some_of("OneCycleLR", pct_start=ODD, div_factor=ODD, final_div_factor=ODD),
    some_of(
        "ReduceLROnPlateau",
        mode=st.sampled_from(["min", "max"]), factor=ODD, patience=COUNT, min_lr=ODD,
    ),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@hypothesis_settings(max_examples=150, deadline=None)
@given(
    optimizer=OPTIMIZERS,
    scheduler=SCHEDULERS,
    epochs=st.integers(1, 12),
    warmup_epochs=st.one_of(st.just(0), COUNT),
)
def test_torch_accepts_every_valid_optimizer_and_scheduler(
    optimizer: dict[str, Any], scheduler: dict[str, Any] | None, epochs: int, warmup_epochs: int
) -> None:
    """Learning rates are finite, not negative, and at most the initial one unless gamma > 1."""
    tree = {"epochs": epochs, "warmup_epochs": warmup_epochs}
    try:
        wanted = TrainingSettings(**tree, optimizer=optimizer, scheduler=scheduler)
    except ValidationError:
        return
    made = make_optimizer(torch.nn.Linear(1, 1), wanted)
    schedule = make_scheduler(made, wanted)
    rates = []
    for _ in range(epochs - warmup_epochs):
        rates.append(made.param_groups[0]["lr"])
        if schedule is not None:
            step_scheduler(schedule, {"validation_loss": 1.0, "validation_accuracy": 0.5})
    if getattr(wanted.scheduler, "gamma", 0) > 1:
        assert rates == sorted(rates)
        return
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
    assert max(rates) <= wanted.optimizer.lr * (1 + 1e-6)
    if warmup_epochs == 0 and wanted.scheduler is None:
        assert set(rates) == {wanted.optimizer.lr}
