import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pydantic
import pytest
import torch
import yaml

from raysound.errors import UserError
from raysound.settings import features, optimizers
from raysound.settings.evaluation import CopiesSettings
from raysound.settings.features import FeatureSettings
from raysound.settings.fields import Section, digest
from raysound.settings.keys import closest_key, known_keys
from raysound.settings.loading import apply_override, from_tree, load, real_corpus
from raysound.settings.optimizers import Adam, StepLR
from raysound.settings.paths import configured_paths
from raysound.settings.renamed import RENAMED
from raysound.settings.schema import Config
from raysound.settings.training import (
    AugmentSettings,
    FinetuneSettings,
    ModelSettings,
    TrainingSettings,
)

LEAST = "name: least\noutput: out\ncorpora: {real: {path: sounds}}\n"
STEP = ["training.scheduler.name=StepLR", "training.scheduler.step_size=5"]


def written(tmp_path: Path, text: str = LEAST) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def least(tmp_path: Path) -> Path:
    """A YAML file with only the required settings."""
    return written(tmp_path)


def fault(path: Path, *overrides: str) -> str:
    """The error message."""
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    return str(caught.value)


# Overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=3", {"a": {"b": 3}}),
        ("a.b=0.001", {"a": {"b": 0.001}}),
        ("a.b=text", {"a": {"b": "text"}}),
        ("a.b='3'", {"a": {"b": "3"}}),
        ("a.b=null", {"a": {"b": None}}),
        ("a.b=", {"a": {"b": None}}),
        ("a.b=true", {"a": {"b": True}}),
        ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
        ("a.b={c: {d: 4}}", {"a": {"b": {"c": {"d": 4}}}}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
        ("a.b=s3://bucket/run?x=1", {"a": {"b": "s3://bucket/run?x=1"}}),
        ("new.deep.key=1", {"new": {"deep": {"key": 1}}}),
        ("top=1", {"top": 1}),
    ],
)
def test_an_override_sets_one_key(override, expected):
    """The value is read as YAML, and missing sections are created."""
    tree: dict = {}
    apply_override(tree, override)
    assert tree == expected


def test_an_override_keeps_the_rest_of_its_section():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    apply_override(tree, "a.b=9")
    assert tree == {"a": {"b": 9, "c": 2}, "d": 3}


def test_an_override_replaces_a_value_by_a_section():
    """`scheduler.name=…` replaces `scheduler: null` of the file."""
    tree = {"scheduler": None}
    apply_override(tree, "scheduler.name=StepLR")
    assert tree == {"scheduler": {"name": "StepLR"}}


@pytest.mark.parametrize("override", ["features.n_mels", "=3", ".a=1", "a.=1", "a..b=1", ""])
def test_an_invalid_override_is_rejected(override):
    """The message shows the override and the correct form."""
    with pytest.raises(UserError, match=r"section\.key=value") as caught:
        apply_override({}, override)
    assert f"'{override}'" in str(caught.value)


def test_a_value_that_is_not_yaml_is_rejected():
    with pytest.raises(UserError, match=r"a\.b=\[1"):
        apply_override({}, "a.b=[1")


def test_the_last_override_wins(least):
    assert load(least, ["features.n_mels=32", "features.n_mels=48"]).features.n_mels == 48


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", ".001", "1.0e-3"])
def test_a_learning_rate_is_a_number_in_any_notation(least, text):
    """In YAML 1.1 `1e-3` is a string."""
    config = load(least, ["training.optimizer.name=SGD", f"training.optimizer.lr={text}"])
    assert config.training.optimizer.lr == 1e-3


def test_a_setting_is_accepted_under_its_old_name_with_a_note(tmp_path, caplog):
    path = tmp_path / "old.yaml"
    path.write_text(
        "name: x\noutput: o\ncorpora: {real: {path: r}}\n"
        "training: {keep: last, average: 0.9, augment: {time_mask: 0.2}}\n"
        "search: {space: {training.clip_gradient: {choice: [1, 2]}}}\n"
    )

    config = load(path, ["compute.local_cpus=3"])

    assert (config.training.checkpoint_policy, config.training.ema_decay) == ("last", 0.9)
    assert config.training.augment.max_time_mask == 0.2
    assert list(config.search.space) == ["training.max_grad_norm"]
    assert config.compute.num_cpus == 3
    assert len(caplog.messages) == 5
    assert (
        f"note: {path}: training.keep is now called training.checkpoint_policy" in caplog.messages
    )


@pytest.mark.parametrize("key", RENAMED)
def test_an_old_name_has_a_current_name(key):
    assert RENAMED[key] in set(known_keys())
    assert key not in set(known_keys())


def test_a_setting_under_both_names_is_rejected(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(
        "name: x\noutput: o\ncorpora: {real: {path: r}}\n"
        "training: {keep: last, checkpoint_policy: best}\n"
    )

    with pytest.raises(UserError, match="leave out training"):
        load(path)


def test_overrides_reach_a_section_that_the_file_lacks(least):
    """The other keys of the section keep their defaults."""
    config = load(least, ["features.n_mels=32", "corpora.real.split.test_folds=[1, 2]"])
    assert config.features == FeatureSettings(n_mels=32)
    assert config.corpora.real.split.test_folds == ("1", "2")


def test_one_override_changes_the_default_optimizer(least):
    """The optimizer stays Adam with the common override `training.optimizer.lr=…`."""
    assert load(least, ["training.optimizer.lr=0.01"]).training.optimizer == Adam(lr=0.01)


def test_null_removes_a_scheduler(tmp_path):
    path = written(tmp_path, LEAST + "training: {scheduler: {name: StepLR, step_size: 5}}\n")
    assert load(path).training.scheduler == StepLR(name="StepLR", step_size=5)
    assert load(path, ["training.scheduler=null"]).training.scheduler is None


def test_a_generated_corpus_can_be_added_by_override(least):
    config = load(least, ["corpora.generated.mine=/sounds/mine"])
    assert config.corpora.generated == {"mine": "/sounds/mine"}


# Unknown keys


@pytest.mark.parametrize(
    ("override", "unknown", "close"),
    [
        ("feature.n_mels=32", "feature", "features"),
        ("features.n_mel=32", "features.n_mel", "features.n_mels"),
        ("n_mels=32", "n_mels", "features.n_mels"),
        ("lr=0.1", "lr", "training.optimizer.lr"),
        ("training.lr=0.1", "training.lr", "training.optimizer.lr"),
        ("training.optimiser.lr=0.1", "training.optimiser", "training.optimizer"),
        ("training.batchsize=8", "training.batchsize", "training.batch_size"),
        ("model.nam=cnn", "model.nam", "model.name"),
        ("corpora.reel.path=x", "corpora.reel", "corpora.real"),
        ("corpora.real.pathh=x", "corpora.real.pathh", "corpora.real.path"),
        (
            "corpora.real.split.test_fold=[1]",
            "corpora.real.split.test_fold",
            "corpora.real.split.test_folds",
        ),
        ("evaluation.chekpoint=x", "evaluation.chekpoint", "evaluation.checkpoint"),
        ("compute.worker=2", "compute.worker", "compute.workers"),
        ("synthesis.formula.second=1", "synthesis.formula.second", "synthesis.formula.seconds"),
    ],
)
def test_an_unknown_key_is_rejected_with_the_closest_known_key(least, override, unknown, close):
    """At every level. A known name in the wrong section leads to the right section."""
    assert f"unknown key '{unknown}'; did you mean '{close}'?" in fault(least, override)


@pytest.mark.parametrize(
    ("overrides", "unknown", "close"),
    [
        ([*STEP, "training.scheduler.gama=0.5"], "training.scheduler.gama", "gamma"),
        (
            ["training.optimizer.name=SGD", "training.optimizer.momentun=0.5"],
            "training.optimizer.momentun",
            "momentum",
        ),
    ],
)
def test_an_unknown_key_inside_a_choice_is_named_as_in_the_file(least, overrides, unknown, close):
    """The key does not have the class name of the choice, such as StepLR or SGD."""
    section = unknown.rpartition(".")[0]
    assert f"unknown key '{unknown}'; did you mean '{section}.{close}'?" in fault(least, *overrides)


@pytest.mark.parametrize(
    ("overrides", "unknown"),
    [
        (["optimizer.name=Adam", "optimizer.momentum=0.9"], "training.optimizer.momentum"),
        (["optimizer.name=SGD", "optimizer.betas=[0.9, 0.99]"], "training.optimizer.betas"),
        (
            ["scheduler.name=ExponentialLR", "scheduler.gamma=0.9", "scheduler.patience=3"],
            "training.scheduler.patience",
        ),
    ],
)
def test_a_key_of_another_choice_is_not_its_own_suggestion(least, overrides, unknown):
    """Adam has no momentum, so training.optimizer.momentum must not be suggested."""
    text = fault(least, *(f"training.{override}" for override in overrides))
    assert unknown in text
    assert f"did you mean '{unknown}'" not in text


def test_an_unknown_word_without_a_similar_key_has_no_suggestion(least):
    assert fault(least, "zzzzzz=1").endswith("unknown key 'zzzzzz'")


def test_all_errors_are_reported_at_once(least):
    """There is one line per error, so a user can fix all of them at once."""
    text = fault(least, "features.n_mels=0", "features.hopp=3", "model.name=vgg")
    assert len(text.splitlines()) == 3
    assert all(key in text for key in ("features.n_mels", "features.hopp", "model.name"))
    assert all(line.startswith(str(least)) for line in text.splitlines())


def test_the_closest_key_is_none_if_no_key_is_similar():
    assert closest_key("zzzzzz", ["features.n_mels", "name"]) is None


def test_known_keys_include_every_section():
    keys = set(known_keys())
    assert {
        "name",
        "corpora.real.split.test_folds",
        "training.optimizer.betas",
        "training.optimizer.momentum",
        "training.scheduler.patience",
        "synthesis.griffin_lim.iterations",
    } <= keys


# Values


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("features.n_mels=0", ["features.n_mels", "greater than 0", "0"]),
        ("features.n_mels=64.5", ["features.n_mels", "64.5"]),
        ("features.n_mels=many", ["features.n_mels", "many"]),
        ("features.clip_length=-1", ["features.clip_length", "-1"]),
        ("features.clip_length=.inf", ["features.clip_length", "finite"]),
        ("features.clip_length=.nan", ["features.clip_length", "finite"]),
        ("features.hop_length=0", ["features.hop_length"]),
        ("features.n_fft=1", ["features.n_fft"]),
        ("features.f_min=-5", ["features.f_min", "-5"]),
        ("features.f_min=22050", ["f_min 22050 Hz", "f_max 22050 Hz"]),
        ("features.f_max=22051", ["f_max 22051 Hz", "22050 Hz"]),
        ("features={sample_rate: 16000, f_max: 22050}", ["f_max 22050 Hz", "8000 Hz"]),
        ("features.clip_length=0.0116", ["clip_length 0.0116", "n_fft", "512"]),
        ("features.long_clips=middle", ["features.long_clips", "'split'", "'center'", "'start'"]),
        ("features.dtype=float64", ["features.dtype", "'float32'", "'float16'"]),
        ("features=null", ["features"]),
        ("model.name=resnet", ["model.name", "'resnetish18'", "'resnet'"]),
        ("training.epochs=0", ["training.epochs"]),
        ("training.scheduler.name=Cosine", ["training.scheduler", "Cosine", "CosineAnnealingLR"]),
        ("training.scheduler={name: StepLR}", ["'training.scheduler.step_size' is missing"]),
        ("training.scheduler.gamma=0.5", ["training.scheduler", "name"]),
        ("training.optimizer={name: SGD, lr: 0}", ["training.optimizer.lr", "0"]),
        ("corpora.real.split.test_fraction=1", ["corpora.real.split.test_fraction"]),
        ("corpora.real.split.validation_fraction=-0.1", ["validation_fraction", "-0.1"]),
        ("corpora.real.split.test_folds=5", ["corpora.real.split.test_folds", "5"]),
        ("corpora.generated.real=x", ["'real'"]),
        ("corpora.generated={a/b: x}", ["corpora.generated", "a/b"]),
        ("name=a b", ["name", "a b"]),
        ("name=../up", ["name", "../up"]),
        ("output=null", ["output"]),
        ("compute.workers=0", ["compute.workers"]),
        ("compute.workers=many", ["compute.workers", "many", "[2, 8]"]),
        ("compute.workers=[4, 1]", ["compute.workers: [4, 1]", "the larger number"]),
        ("compute.workers=[0, 4]", ["compute.workers", "[0, 4]", "[2, 8]"]),
        ("compute.workers=[1, 2, 4]", ["compute.workers", "[1, 2, 4]", "[2, 8]"]),
        ("compute.workers=[1, 5]", ["training.batch_size 32", "compute.workers 5"]),
        ("compute.workers=[3, 4]", ["training.batch_size 32", "compute.workers 3"]),
        ("compute.precision=float16", ["compute.precision", "'bfloat16'", "float16"]),
        ("compute.channels_last=perhaps", ["compute.channels_last", "perhaps"]),
        ("compute.prefetch_batches=-1", ["compute.prefetch_batches", "-1"]),
        ("training.gradient_accumulation_steps=0", ["training.gradient_accumulation_steps", "0"]),
        ("training.checkpoint_policy=first", ["training.checkpoint_policy", "'best'", "'last'"]),
        ("training.early_stopping=0", ["training.early_stopping", "0"]),
        ("training.warmup_epochs=-1", ["training.warmup_epochs", "-1"]),
        ("training.finetune.lr=0", ["training.finetune.lr", "0"]),
        ("training.ema_decay=1", ["training.ema_decay", "1"]),
        ("training.max_grad_norm=0", ["training.max_grad_norm", "0"]),
        ("training.label_smoothing=1", ["training.label_smoothing", "1"]),
        ("training.class_balance=both", ["training.class_balance", "'weights'", "'sampling'"]),
        ("training.crop_length=0", ["training.crop_length", "0"]),
        ("training.folds=some", ["training.folds", "'all'"]),
        ("training.seeds=0", ["training.seeds", "0"]),
        ("training.augment.mixup=-0.1", ["training.augment.mixup", "-0.1"]),
        ("training.augment.gain_db=.inf", ["training.augment.gain_db", "finite"]),
        ("training.augment.max_time_mask=1", ["training.augment.max_time_mask", "1"]),
        ("training.augment.max_frequency_mask=0", ["training.augment.max_frequency_mask", "0"]),
        ("training.scheduler={name: OneCycleLR, pct_start: 1}", ["training.scheduler.pct_start"]),
        ("compute.use_gpu=perhaps", ["compute.use_gpu", "perhaps"]),
        ("compute.shard_clips=0", ["compute.shard_clips", "0"]),
        ("compute.shard_clips=many", ["compute.shard_clips", "many"]),
    ],
)
def test_an_invalid_value_is_rejected_with_its_key(least, override, words):
    text = fault(least, override)
    assert [word for word in words if word not in text] == []
    assert "Value error" not in text


def test_an_invalid_choice_is_reported_once(least):
    """`use_gpu` is a boolean or auto. Pydantic reports one error for each type."""
    text = fault(least, "compute.use_gpu=perhaps")
    assert len(text.splitlines()) == 1
    assert "use_gpu.bool" not in text


@pytest.mark.parametrize(
    "value", ["0", "many", "1.5", "null", "[4, 1]", "[0, 4]", "[4]", "[1, 2, 4]"]
)
def test_invalid_workers_are_reported_once(least, value):
    """For one number and for two, the error is one line with the key of the file."""
    text = fault(least, f"compute.workers={value}")
    assert len(text.splitlines()) == 1
    assert "compute.workers: " in text


@pytest.mark.parametrize(
    ("value", "expected"), [("2", (2, 2)), ("[1, 4]", (1, 4)), ("[4, 4]", (4, 4))]
)
def test_workers_are_a_number_or_minimum_and_maximum(least, tmp_path, value, expected):
    config = load(least, [f"compute.workers={value}"])
    assert config.compute.workers_range == expected
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8")
    assert load(again) == config


def test_clips_of_a_shard_are_a_number_or_auto(least):
    assert load(least).compute.shard_clips == "auto"
    assert load(least, ["compute.shard_clips=100"]).compute.shard_clips == 100
    assert load(least, ["compute.shard_clips=auto"]).compute.shard_clips == "auto"


def test_batches_must_split_evenly_over_the_workers(least):
    assert load(least, ["compute.workers=4"]).compute.workers == 4
    text = fault(least, "compute.workers=3")
    assert "training.batch_size 32" in text
    assert "compute.workers 3" in text


def test_a_batch_need_not_split_evenly_inside_a_range_of_workers(least):
    """It must at both ends. Between them the last clips of a batch wait for the next one."""
    assert load(least, ["compute.workers=[2, 4]"]).compute.workers == (2, 4)
    for workers in ("[2, 5]", "[3, 4]"):
        assert "can't be split evenly" in fault(least, f"compute.workers={workers}")


@pytest.mark.parametrize(
    ("override", "expected"), [("seed=3", False), ("seeds=2", True), ("folds=all", True)]
)
def test_folds_and_seeds_train_several_classifiers(least, override, expected):
    assert load(least, [f"training.{override}"]).training.trains_several == expected


def test_overrides_set_augmentation_and_finetuning(least):
    """Both are off by default."""
    plain = load(least).training
    assert plain.augment == AugmentSettings()
    assert not any(
        getattr(plain.augment, name)
        for name in ("roll", "gain_db", "mixup", "frequency_masks", "time_masks")
    )
    assert plain.finetune.epochs == 0
    config = load(least, ["training.augment.mixup=0.2", "training.finetune.epochs=3"])
    assert config.training.augment == AugmentSettings(mixup=0.2)
    assert config.training.finetune == FinetuneSettings(epochs=3)


@pytest.mark.parametrize("key", ["name", "output", "corpora", "corpora.real.path"])
def test_a_missing_key_is_named(tmp_path, key):
    tree = yaml.safe_load(LEAST)
    *sections, last = key.split(".")
    section = tree
    for name in sections:
        section = section[name]
    del section[last]
    assert f"'{key}' is missing" in fault(written(tmp_path, yaml.safe_dump(tree)))


def test_a_reference_replaces_the_real_corpus(least):
    given = ["evaluation.reference=real.safetensors", "evaluation.checkpoint=runs/classifier"]
    generated = "corpora.generated.gan=wavs"
    config = load(least, [*given, generated, "corpora.real=null"])
    assert config.corpora.real is None
    assert config.corpora.names == ("gan",)
    assert config.evaluation.reference == os.path.abspath("real.safetensors")
    assert configured_paths(config)["evaluation.reference"] == config.evaluation.reference
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config
    with pytest.raises(UserError, match=r"^corpora\.real is missing, and this step needs"):
        real_corpus(config)
    with_real = load(least, [generated])
    assert with_real.corpora.names == ("real", "gan")
    assert real_corpus(with_real) is with_real.corpora.real


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "leave out either it or corpora.real"),
        (["corpora.real=null", "evaluation.checkpoint=null"], "requires evaluation.checkpoint"),
        (["corpora.real=null", "corpora.generated={}"], "requires corpora.generated"),
        (["corpora.real=null", "evaluation.copies={}"], "evaluation.copies compares with the real"),
        (["corpora.real=null", "evaluation.reference=null"], "'corpora.real' is missing"),
        (["corpora.real=null", "evaluation.reference=s3://a:b@c/d"], "write it as s3://"),
    ],
)
def test_an_invalid_reference_is_an_error_of_one_line(least, overrides, words):
    given = ["evaluation.reference=r", "evaluation.checkpoint=c", "corpora.generated.gan=wavs"]
    with pytest.raises(UserError) as refusal:
        load(least, [*given, *overrides])
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("rate", [8000, 44100, 11025])
def test_f_max_may_be_exactly_half_the_rate(rate):
    assert FeatureSettings(sample_rate=rate, f_max=rate / 2).f_max == rate / 2


def test_the_shortest_clip_length_gives_a_log_mel():
    """Mirroring at the ends requires more samples than half of n_fft."""
    shortest = FeatureSettings(clip_length=513 / 44100)
    assert shortest.clip_samples == 513
    with pytest.raises(pydantic.ValidationError, match="512 samples"):
        FeatureSettings(clip_length=512 / 44100)


def test_folds_are_names(least):
    """`5` in YAML and `"5"` in CSV are the same fold."""
    config = load(least, ["corpora.real.split.test_folds=[5, '6', b]"])
    assert config.corpora.real.split.test_folds == ("5", "6", "b")


# Files


def test_a_missing_file_is_a_user_error(tmp_path):
    assert "No such file" in fault(tmp_path / "absent.yaml")


def test_a_folder_is_not_a_config(tmp_path):
    assert str(tmp_path) in fault(tmp_path)


@pytest.mark.parametrize("text", ["", "# only a remark\n", "- a\n- b\n", "just text", "3"])
def test_a_file_without_a_mapping_is_a_user_error(tmp_path, text):
    assert "has no settings" in fault(written(tmp_path, text))


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\tname: x", "a: !!python/object:os.x {}"])
def test_a_file_that_is_not_yaml_is_a_user_error(tmp_path, text):
    assert "is not a YAML file" in fault(written(tmp_path, text))


def test_bytes_that_are_not_text_are_a_user_error(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: café\n".encode("latin-1"))
    assert "is not a YAML file" in fault(path)


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "notepad.yaml"
    path.write_text(LEAST, encoding="utf-8-sig")
    assert load(path).name == "least"


def test_a_config_is_frozen(least):
    config = load(least)
    with pytest.raises(pydantic.ValidationError):
        config.name = "other"
    with pytest.raises(pydantic.ValidationError):
        config.features.n_mels = 3


@pytest.mark.parametrize(
    "uri", ["s3://me:hush@bucket/out", "s3://bucket/out?secret_key=hush", "gs://hush@bucket"]
)
@pytest.mark.parametrize(
    "key", ["output", "corpora.real.path", "corpora.generated.gan", "evaluation.checkpoint"]
)
def test_a_uri_with_a_secret_is_rejected_and_not_printed(least, key, uri):
    with pytest.raises(UserError, match="keys, secrets and endpoints come from the") as refusal:
        load(least, [f"{key}={uri}"])

    assert f": {key}: write it as" in str(refusal.value)
    assert "hush" not in str(refusal.value)


def test_local_paths_become_absolute_and_uris_stay(least, monkeypatch, tmp_path):
    """They are relative to the folder in which the job starts; `~` is the user's home."""
    start = tmp_path / "start here"
    start.mkdir()
    monkeypatch.chdir(start)
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load(
        least,
        [
            "corpora.generated.near=../near",
            "corpora.generated.home=~/wavs",
            "corpora.generated.far=gs://bucket/far",
            "evaluation.checkpoint=runs/classifier",
            "synthesis.formula.output=data/formula",
            "synthesis.griffin_lim.output=s3://bucket/griffin",
            "synthesis.ladder.output=data/ladder",
        ],
    )
    assert configured_paths(config) == {
        "output": str(start / "out"),
        "corpora.real.path": str(start / "sounds"),
        "corpora.generated.near": str(tmp_path / "near"),
        "corpora.generated.home": "/home/somebody/wavs",
        "corpora.generated.far": "gs://bucket/far",
        "evaluation.checkpoint": str(start / "runs" / "classifier"),
        "synthesis.formula.output": str(start / "data" / "formula"),
        "synthesis.griffin_lim.output": "s3://bucket/griffin",
        "synthesis.ladder.output": str(start / "data" / "ladder"),
    }
    assert config.output == str(start / "out")
    assert config.corpora.real.path == str(start / "sounds")
    assert config.corpora.generated == {
        "near": str(tmp_path / "near"),
        "home": "/home/somebody/wavs",
        "far": "gs://bucket/far",
    }
    assert config.evaluation.checkpoint == str(start / "runs" / "classifier")
    assert config.synthesis.formula.output == str(start / "data" / "formula")
    assert config.synthesis.griffin_lim.output == "s3://bucket/griffin"
    assert load(least, ["output=s3://bucket/run"]).output == "s3://bucket/run"


def test_no_checkpoint_stays_none(least):
    assert load(least).evaluation.checkpoint is None


def test_to_yaml_round_trips(least, tmp_path):
    """This includes defaults, unions, tuples, small floats and Chinese paths."""
    overrides = [
        "corpora.generated.mine=/sounds/雨 #1",
        "corpora.real.split.test_folds=[1, '02']",
        "training.optimizer={name: AdamW, lr: 1.0e-7, betas: [0.8, 0.99]}",
        "training.scheduler={name: MultiStepLR, milestones: [3, 5]}",
        "compute.use_gpu=false",
    ]
    config = load(least, overrides)
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8")
    assert load(again) == config
    assert "雨" in config.to_yaml()


def test_from_tree_accepts_a_dumped_config(least):
    config = load(least)
    assert from_tree(config.model_dump(), "a checkpoint") == config


def test_every_shipped_config_loads(root):
    paths = sorted((root / "configs").rglob("*.yaml"))
    assert len(paths) >= 2
    assert all(isinstance(load(path), Config) for path in paths)


# The feature id

OTHER_FEATURES = {
    "clip_length": 4.0,
    "sample_rate": 48000,
    "hop_length": 442,
    "n_fft": 2048,
    "n_mels": 65,
    "f_min": 1.0,
    "f_max": 22049.0,
    "long_clips": "center",
    "dtype": "float16",
    "loudness": {"rms": -23},
}


def test_every_feature_setting_changes_the_feature_id():
    """A new setting of FeatureSettings must be added here, too."""
    assert OTHER_FEATURES.keys() == FeatureSettings.model_fields.keys()
    ids = {FeatureSettings(**{key: value}).id for key, value in OTHER_FEATURES.items()}
    assert len(ids | {FeatureSettings().id}) == len(OTHER_FEATURES) + 1


def test_the_feature_version_changes_the_feature_id(monkeypatch):
    before = FeatureSettings().id
    monkeypatch.setattr(features, "FEATURE_VERSION", features.FEATURE_VERSION + 1)
    assert FeatureSettings().id != before


def test_the_feature_id_does_not_depend_on_notation():
    """8000 and 8000.0 are equal, and the order of keys has no effect."""
    assert FeatureSettings(f_max=8000).id == FeatureSettings(f_max=8000.0).id
    assert FeatureSettings(n_mels=3, n_fft=999).id == FeatureSettings(n_fft=999, n_mels=3).id


def test_a_digest_depends_only_on_the_value():
    """The order of keys has no effect; the order of lists and the types of values have one."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    values = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, [1, 2], [2, 1], [[1], 2], "雨", None]
    assert len({digest(value) for value in values}) == len(values)


def test_the_feature_id_is_the_same_in_another_process():
    """It does not depend on string hashing or import order."""
    code = "from raysound.settings.features import FeatureSettings as F; print(F(n_mels=40).id)"
    ids = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert ids == {FeatureSettings(n_mels=40).id}


def test_the_feature_id_is_a_short_folder_name():
    assert len(FeatureSettings().id) == 8
    assert set(FeatureSettings().id) <= set("0123456789abcdef")


def test_n_frames_of_the_defaults():
    """5 s at 44.1 kHz with a hop of 10 ms give 501 centred frames."""
    assert FeatureSettings().clip_samples == 220500
    assert FeatureSettings().n_frames == 501


@pytest.mark.parametrize(
    ("seconds", "frames"), [(5.0, 500), (1.0, 100), (0.014, 1), (0.016, 2), (1e-9, 1)]
)
def test_frames_of_a_duration_are_its_hops(seconds, frames):
    """Durations are rounded to hops of 10 ms, and have at least one frame."""
    assert FeatureSettings().frames_of(seconds) == frames


# Names of torch and of the models


OPTIMIZERS = get_args(get_args(optimizers.Optimizer)[0])
SCHEDULERS = get_args(get_args(optimizers.Scheduler)[0])


def test_workers_are_a_number_or_a_range(least):
    assert load(least, ["compute.workers=2"]).compute.workers_range == (2, 2)
    assert load(least, ["compute.workers=[1, 4]"]).compute.workers_range == (1, 4)
    assert "begins with the larger number" in fault(least, "compute.workers=[4, 1]")
    text = fault(least, "compute.workers=[1, 5]")
    assert "can't be split evenly over compute.workers 5" in text
    assert fault(least, "compute.workers=[1, 2, 3]")


@pytest.mark.parametrize(
    ("training", "needs"),
    [
        ({}, True),
        ({"checkpoint_policy": "last"}, False),
        ({"checkpoint_policy": "last", "early_stopping": 3}, True),
        ({"checkpoint_policy": "last", "scheduler": {"name": "ReduceLROnPlateau"}}, True),
        ({"checkpoint_policy": "last", "scheduler": {"name": "StepLR", "step_size": 3}}, False),
    ],
)
def test_validation_is_needed_if_it_selects_something(training, needs):
    assert TrainingSettings(**training).needs_validation == needs


def test_every_optimizer_and_scheduler_can_be_chosen():
    names = {model.__name__ for model in (*OPTIMIZERS, *SCHEDULERS)}
    keys = {
        model.__name__
        for model in vars(optimizers).values()
        if isinstance(model, type)
        and issubclass(model, Section)
        and (
            hasattr(torch.optim, model.__name__)
            or hasattr(torch.optim.lr_scheduler, model.__name__)
        )
    }
    assert keys == names


@pytest.mark.parametrize(
    ("model", "module"),
    [(model, torch.optim) for model in OPTIMIZERS]
    + [(model, torch.optim.lr_scheduler) for model in SCHEDULERS],
    ids=lambda value: value.__name__,
)
def test_optimizers_and_schedulers_have_the_names_of_torch(model, module):
    """Every setting is a parameter of the torch class of the same name."""
    parameters = inspect.signature(getattr(module, model.__name__)).parameters
    assert set(model.model_fields) - {"name"} <= set(parameters)
    assert model.model_fields["name"].annotation.__args__ == (model.__name__,)


def test_the_settings_have_the_names_of_all_models():
    from raysound.models import MODELS

    named = ModelSettings.model_fields["name"].annotation.__args__
    assert sorted(named) == sorted(MODELS)


# YAML


def test_a_duplicate_key_is_rejected(tmp_path: Path) -> None:
    twice = "training:\n  epochs: 3\n  batch_size: 4\n  epochs: 5\n"

    message = fault(written(tmp_path, LEAST + twice))

    assert "'epochs' occurs twice in the section that begins on line 5" in message
    assert "'a' occurs twice" in fault(written(tmp_path), "training={a: 1, a: 2}")


def test_a_section_can_merge_another_and_change_it(tmp_path: Path) -> None:
    text = LEAST + "training: {optimizer: &one {name: SGD, lr: 0.1}}\n"
    text += "search: {space: {training.optimizer: {choice: [*one, {<<: *one, lr: 0.2}]}}}\n"

    first, second = load(written(tmp_path, text)).search.space["training.optimizer"].values

    assert (first["lr"], second["lr"]) == (0.1, 0.2)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "+1e-3", ".1e-2"])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str) -> None:
    space = f"search: {{space: {{training.optimizer.lr: {{choice: [{text}]}}}}}}\n"

    values = load(written(tmp_path, LEAST + space)).search.space["training.optimizer.lr"].values

    assert values == (0.001,)


@pytest.mark.parametrize(
    "text",
    [
        "x/run #7", "a: b", "- a", "*.wav", "&a", "!a", "%a", "@a", "`a`", "|", "<<", "?", "no",
        "yes", "on", "off", "0123", "01", "1_000", "12:30:45", "2024-01-01", "007.5", "1.2.3",
    ],
)  # fmt: skip
def test_a_name_on_the_command_line_is_read_as_written(least: Path, text: str) -> None:
    """YAML 1.1 cuts some at a `#`, rejects some, and reads others as numbers, dates or booleans."""
    tree: dict = {}
    apply_override(tree, f"a={text}")
    assert tree == {"a": text}

    config = load(least, [f"output=/x/{text}", f"corpora.generated.gan={text}"])

    assert config.output == f"/x/{text}"
    assert config.corpora.generated["gan"] == os.path.abspath(text)


def test_names_in_a_yaml_file_are_read_as_written(tmp_path: Path) -> None:
    """This holds for folds, corpora and folders. Boolean settings accept yes, no, on and off."""
    text = (
        "name: 007\noutput: 2024-01-01\n"
        "corpora: {real: {path: 12:30:45, split: {test_folds: [01, no, 2, 1_0]}},\n"
        "  generated: {100: a, no: b, 1.0: c}}\n"
        "compute: {use_gpu: no, tf32: Off}\ntraining: {augment: {roll: yes}}\n"
    )

    config = load(written(tmp_path, text))

    assert config.name == "007"
    assert config.output == os.path.abspath("2024-01-01")
    assert config.corpora.real.path == os.path.abspath("12:30:45")
    assert config.corpora.real.split.test_folds == ("01", "no", "2", "1_0")
    assert list(config.corpora.generated) == ["100", "no", "1.0"]
    assert (config.compute.use_gpu, config.compute.tf32) == (False, False)
    assert config.training.augment.roll is True


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_yaml_file_from_windows_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "notepad.yaml"
    path.write_bytes(LEAST.replace("\n", "\r\n").encode(encoding))

    assert load(path).name == "least"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name: x\n\toutput: y\n", "line 2, column 1"),
        ("name: x\noutput: a: b\n", "line 2, column 10"),
        ("name: [x\n", "line 2, column 1"),
    ],
)
def test_an_error_in_a_yaml_file_is_one_line(tmp_path: Path, text: str, place: str) -> None:
    message = fault(written(tmp_path, text))

    assert len(message.splitlines()) == 1
    assert f"is not a YAML file: {place}: " in message


@pytest.mark.parametrize("wrong", ["compute.prefetch_batches=-1", "compute.shard_clips=0"])
def test_an_error_of_a_number_or_word_is_one_line(least: Path, wrong: str) -> None:
    key, _, value = wrong.partition("=")

    message = fault(least, wrong)

    assert len(message.splitlines()) == 1
    assert message.startswith(f"{least}: {key}: Input should be greater than ")
    assert message.endswith(f"0 or 'auto' (got {value})")


@pytest.mark.parametrize("name", ["HyperBandScheduler", "PopulationBasedTraining"])
def test_schedulers_that_pause_trials_are_rejected_with_several_workers(least, name):
    scheduler = f"search.scheduler={{name: {name}}}"
    assert load(least, [scheduler]).search.scheduler.name == name

    with pytest.raises(UserError, match=rf"search\.scheduler {name} pauses .* compute\.workers 1"):
        load(least, [scheduler, "compute.workers=2"])
    load(least, ["search.scheduler={name: ASHAScheduler}", "compute.workers=2"])


def test_searched_weight_files_are_absolute(least, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    space = "search.space={model.weights: {choice: [null, b.pt, s3://bucket/c.pt]}}"

    config = load(least, ["model.weights=a.pt", space])

    assert config.model.weights == str(tmp_path / "a.pt")
    assert configured_paths(config)["model.weights"] == str(tmp_path / "a.pt")
    choice = config.search.space["model.weights"].choice
    assert choice == (None, str(tmp_path / "b.pt"), "s3://bucket/c.pt")


def test_copies_are_off_or_have_defaults(least, tmp_path):
    assert load(least, []).evaluation.copies is None
    config = load(least, ["evaluation.copies={}"])
    assert config.evaluation.copies == CopiesSettings(rate=0.01, training_windows=50_000)
    assert load(written(tmp_path, config.to_yaml())) == config
    assert load(least, ["evaluation.copies.rate=0.05"]).evaluation.copies.rate == 0.05
    for wrong in ("rate=0", "rate=1", "training_windows=0", "training_windows=1.5"):
        key = wrong.partition("=")[0]
        assert f"evaluation.copies.{key}: " in fault(least, f"evaluation.copies.{wrong}")


EMBEDDING = "{path: a.onnx, sample_rate: 32000, clip_length: 10}"


def test_embeddings_are_models_or_log_mel_statistics(least, monkeypatch, tmp_path):
    """The config also round-trips through YAML."""
    monkeypatch.chdir(tmp_path)

    config = load(least, [f"evaluation.embeddings={{mel: log_mel_statistics, panns: {EMBEDDING}}}"])

    embeddings = config.evaluation.embeddings
    assert embeddings["mel"] == "log_mel_statistics"
    assert embeddings["panns"].path == str(tmp_path / "a.onnx")
    assert embeddings["panns"].clip_samples == 320000
    assert configured_paths(config)["evaluation.embeddings.panns.path"] == str(tmp_path / "a.onnx")
    assert load(written(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ("{mel: mel_statistics}", "mel: Input should be 'log_mel_statistics'"),
        ("{a: {path: a.onnx, clip_length: 1}}", "'evaluation.embeddings.a.sample_rate' is missing"),
        (EMBEDDING.replace("10", "0"), "Input should be"),
        ("{a: {path: a.onnx, sample_rate: 8000, clip_length: -1}}", "a.clip_length: Input should"),
        ("{a: {path: a.onnx, sample_rate: 8000, clip_length: 1e9}}", "a clip must have 3 to"),
        ("{'a/b': log_mel_statistics}", "String should match"),
        ("{a: {path: a.onnx, rate: 8000}}", "unknown key 'evaluation.embeddings.a.rate'"),
    ],
)
def test_an_invalid_embedding_is_reported(least, embeddings, message):
    assert message in fault(least, f"evaluation.embeddings={embeddings}")
