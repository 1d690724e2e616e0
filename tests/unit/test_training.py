import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from raysound.errors import UserError
from raysound.settings.training import TrainingSettings
from raysound.training import checkpoint
from raysound.training.checkpoint import Weights
from raysound.training.epochs import Metrics, best_epoch, is_finished, quality, selected_epoch
from raysound.training.history import epoch_lines
from raysound.training.inference import Normalisation
from raysound.training.loop import TrainState, fit
from raysound.training.optimizers import make_optimizer, make_scheduler, step_scheduler
from raysound.training.step import Batch, Hardware

IDENTITY = Normalisation((0.0,) * 4, (1.0,) * 4)
# EpochRunner that change no float32: an epoch's loss is that of the weights it began with.
FROZEN = {"name": "SGD", "lr": 1e-30}
AUGMENT = {
    "roll": True, "gain_db": 6, "mixup": 0.3,
    "frequency_masks": 1, "max_frequency_mask": 0.3, "time_masks": 1, "max_time_mask": 0.3,
}  # fmt: skip


class Linear(nn.Module):
    """The plainest classifier of (B, 1, 4, 5); it keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 3)
        self.seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits (B, 3)."""
        self.seen[self.training].append(log_mel.detach().clone())
        return self.layer(log_mel.flatten(1))


class Pooled(nn.Module):
    """A classifier of clips of any width, with convolution and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(32, 3)
        self.widths: dict[bool, set[int]] = {True: set(), False: set()}

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits (B, 3)."""
        self.widths[self.training].add(log_mel.shape[-1])
        return self.last(self.norm(self.conv(log_mel)).relu().mean(3).flatten(1))


def data(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips whose class is the band that is loudest."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(clips) % 3
    log_mel = torch.randn(clips, 4, 5, generator=generator)
    log_mel[torch.arange(clips), target] += 2
    return log_mel, target


TRAINING, HELD = data(60, 1), data(31, 2)


def batches(clips: tuple[Tensor, Tensor], order: Tensor, size: int) -> list[Batch]:
    """Clips in some order; they are named by their number."""
    log_mel, target = clips
    return [
        Batch(log_mel[rows], target[rows], [f"clip-{row}" for row in rows.tolist()])
        for rows in order.split(size)
    ]


def train_batches(epoch: int) -> list[Batch]:
    """Eight batches in another order each epoch, the last one smaller."""
    order = torch.randperm(60, generator=torch.Generator().manual_seed(epoch))
    return batches(TRAINING, order, 8)


def validation_batches() -> list[Batch]:
    return batches(HELD, torch.arange(31), 8)


def run(
    settings: TrainingSettings,
    model: nn.Module | None = None,
    train: Callable[[int], list[Batch]] = train_batches,
    validation: Callable[[], list[Batch]] | None = validation_batches,
    **options: Any,
) -> list[Metrics]:
    """The history of a training."""
    torch.manual_seed(settings.seed)
    seen: list[TrainState] = []
    fit(
        model or Linear(), train, validation, settings, IDENTITY, seen.append,
        classes=3, **options,
    )  # fmt: skip
    return seen[-1].history


def without_seconds(history: list[Metrics]) -> list[Metrics]:
    """A history without its times."""
    return [{key: row[key] for key in row if key != "seconds"} for row in history]


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    """Equal bit by bit."""
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for key, value in one.state_dict().items():
        assert value.equal(expected[key]), key


# What is reported


def test_loss_falls_and_accuracy_rises_over_every_clip() -> None:
    history = run(TrainingSettings(epochs=8, optimizer={"name": "Adam", "lr": 1e-2}))

    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["validation_accuracy"] > 0.9
    assert {row["train_clips"] for row in history} == {60}
    assert {row["validation_clips"] for row in history} == {31}


def test_the_reported_loss_is_the_mean_over_clips_not_over_batches() -> None:
    """The last batch is smaller, so a mean of batch means would give its clips more weight."""
    model = Linear()

    row = run(TrainingSettings(epochs=1, optimizer=FROZEN), model)[0]

    for split, (log_mel, target) in {"train": TRAINING, "validation": HELD}.items():
        with torch.no_grad():
            logits = model(log_mel.unsqueeze(1))
        expected = nn.functional.cross_entropy(logits, target).item()
        assert row[f"{split}_loss"] == pytest.approx(expected, rel=1e-6)
        accuracy = (logits.argmax(1) == target).float().mean().item()
        assert row[f"{split}_accuracy"] == pytest.approx(accuracy)


def test_without_validation_clips_the_last_epoch_is_selected() -> None:
    settings = TrainingSettings(epochs=2, checkpoint_policy="last")

    history = run(settings, validation=None)

    assert [row["epoch"] for row in history] == [1, 2]
    for row in history:
        assert row["validation_loss"] is None
        assert row["validation_accuracy"] is None
        assert row["validation_clips"] == 0
        assert row["train_clips"] == 60
    assert selected_epoch(history, settings) == 2


@pytest.mark.parametrize(("empty", "split"), [("train", "training"), ("validation", "validation")])
def test_a_split_without_batches_is_an_error(empty: str, split: str) -> None:
    settings = TrainingSettings(epochs=1)

    with pytest.raises(RuntimeError, match=f"the {split} split gave no batch"):
        run(settings, **{empty: lambda *_: []})


# Seeds, and going on


def test_the_history_depends_on_the_seed() -> None:
    """Initial weights are equal, so only random numbers of the training differ."""
    first = Linear()

    def history(seed: int) -> list[Metrics]:
        settings = TrainingSettings(epochs=3, seed=seed, augment=AUGMENT)
        return without_seconds(run(settings, copy.deepcopy(first)))

    assert history(0) == history(0)
    assert history(0)[0]["train_loss"] != history(1)[0]["train_loss"]


def test_every_epoch_augments_differently() -> None:
    """Batches and weights are the same in each epoch."""
    settings = TrainingSettings(epochs=3, optimizer=FROZEN, augment=AUGMENT)

    history = run(settings, train=lambda _: train_batches(1))

    assert len({row["train_loss"] for row in history}) == 3


class CutOffError(Exception):
    """What ends a training after an epoch."""


def train_cut_off_after_each_epoch(
    settings: TrainingSettings, folder: str
) -> tuple[Pooled, Pooled, list[Metrics]]:
    """A training whose epochs share nothing but what is written to a folder."""
    for start in range(100):
        torch.manual_seed(1000 + start)
        model = Pooled()
        averaged = copy.deepcopy(model)
        before = checkpoint.load_progress(folder)
        if before is None:
            first, first_averaged = models(settings)
            model.load_state_dict(first.state_dict())
            averaged.load_state_dict(first_averaged.state_dict())
            progress = None
        else:
            weights, progress = before
            model.load_state_dict(weights.model)
            averaged.load_state_dict(weights.averaged)

        def after_epoch(
            progress: TrainState, model: nn.Module = model, averaged: nn.Module = averaged
        ) -> None:
            weights = Weights(model.state_dict(), averaged.state_dict())
            checkpoint.save_progress(folder, weights, progress)
            raise CutOffError

        try:
            fit(
                model, train_batches, validation_batches, settings, IDENTITY, after_epoch,
                classes=3, crop_frames=4, averaged=averaged, progress=progress,
            )  # fmt: skip
        except CutOffError:
            continue
        assert progress is not None
        return model, averaged, progress.history
    raise AssertionError("it has no end")


def models(settings: TrainingSettings) -> tuple[Pooled, Pooled]:
    """A classifier and the copy that takes the mean of its weights."""
    torch.manual_seed(settings.seed)
    model = Pooled()
    return model, copy.deepcopy(model)


ADAM = {"name": "Adam", "lr": 0.05}
SCHEDULES: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 3], "gamma": 0.5},
    "ExponentialLR": {"gamma": 0.8},
    "CosineAnnealingLR": {"eta_min": 1e-4},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2, "eta_min": 1e-4},
    "OneCycleLR": {"pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 100.0},
    "ReduceLROnPlateau": {"mode": "min", "factor": 0.5, "patience": 0},
}


@pytest.mark.parametrize(
    ("scheduler", "optimizer"),
    [({"name": name, **options}, ADAM) for name, options in SCHEDULES.items()]
    + [
        ({"name": "ReduceLROnPlateau", "mode": "max", "patience": 0, "factor": 0.5}, ADAM),
        ({"name": "OneCycleLR"}, {"name": "SGD", "lr": 0.1, "nesterov": True}),
        (None, {"name": "AdamW", "lr": 0.01}),
        (None, {"name": "SGD", "lr": 0.1}),
        (None, {"name": "SGD", "lr": 0.1, "momentum": 0}),
    ],
    ids=lambda value: value and value.get("mode", value["name"]),
)
def test_a_resumed_training_gives_identical_results(
    scheduler: dict[str, Any] | None, optimizer: dict[str, Any], tmp_path: Path
) -> None:
    """Training is interrupted after each epoch, in warm-up, main epochs and fine-tuning."""
    # OneCycleLR has a warm-up of its own.
    warmup_epochs = 0 if scheduler and scheduler["name"] == "OneCycleLR" else 2
    settings = TrainingSettings(
        epochs=7, warmup_epochs=warmup_epochs, finetune={"epochs": 2, "lr": 1e-3}, seed=3,
        augment=AUGMENT,
        scheduler=scheduler, optimizer=optimizer, ema_decay=0.9,
        gradient_accumulation_steps=2, max_grad_norm=1.0,
        label_smoothing=0.1,
    )  # fmt: skip
    model, averaged = models(settings)

    history = run(settings, model, crop_frames=4, averaged=averaged)
    other, other_averaged, other_history = train_cut_off_after_each_epoch(settings, str(tmp_path))

    assert len(history) == 9
    # Between warm-up and finetuning: the schedule has done something that can be forgotten.
    assert (len({row["lr"] for row in history[2:7]}) > 1) == (scheduler is not None)
    assert without_seconds(other_history) == without_seconds(history)
    assert_same_state(other, model)
    assert_same_state(other_averaged, averaged)


def test_a_finished_training_does_not_continue() -> None:
    model, before = Linear(), Linear()
    before.load_state_dict(model.state_dict())
    seen: list[TrainState] = []
    settings = TrainingSettings(epochs=2)
    run(settings, copy.deepcopy(model))
    fit(
        copy.deepcopy(model), train_batches, validation_batches, settings, IDENTITY, seen.append,
        classes=3,
    )  # fmt: skip

    fit(
        model, train_batches, validation_batches, settings, IDENTITY, seen.append,
        classes=3, progress=seen[-1],
    )  # fmt: skip

    assert len(seen) == 2
    assert_same_state(model, before)


# Optimizers and schedulers


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ({"name": "Adam", "lr": 3e-4}, torch.optim.Adam),
        ({"name": "AdamW", "weight_decay": 0.1}, torch.optim.AdamW),
        ({"name": "SGD", "lr": 0.1, "momentum": 0.5, "nesterov": True}, torch.optim.SGD),
    ],
)
def test_optimizers_are_those_of_torch_with_the_settings(
    optimizer: dict[str, Any], kind: type
) -> None:
    made = make_optimizer(Linear(), TrainingSettings(optimizer=optimizer))

    assert type(made) is kind
    for name, value in optimizer.items():
        if name != "name":
            assert made.param_groups[0][name] == value


def rates(scheduler: dict[str, Any] | None, losses: list[float], hits: list[float]) -> list[float]:
    """The learning rate of each epoch under a schedule, from 1e-3."""
    settings = TrainingSettings(epochs=len(losses), scheduler=scheduler)
    optimizer = make_optimizer(Linear(), settings)
    schedule = make_scheduler(optimizer, settings)
    seen = []
    for loss, accuracy in zip(losses, hits, strict=True):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            step_scheduler(schedule, {"validation_loss": loss, "validation_accuracy": accuracy})
    return seen


def test_schedulers_step_once_per_epoch() -> None:
    flat = [1.0] * 4

    assert rates(None, flat, flat) == [1e-3] * 4
    assert rates({"name": "StepLR", "step_size": 2}, flat, flat) == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4]
    )
    assert rates(
        {"name": "MultiStepLR", "milestones": [1, 3], "gamma": 0.5}, flat, flat
    ) == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])
    assert rates({"name": "ExponentialLR", "gamma": 0.5}, flat, flat)[-1] == pytest.approx(1.25e-4)
    cosine = rates({"name": "CosineAnnealingLR"}, flat, flat)
    assert cosine == pytest.approx([5e-4 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])


def test_one_cycle_rises_to_the_rate_and_falls_far_below_it() -> None:
    flat = [1.0] * 20

    seen = rates({"name": "OneCycleLR", "pct_start": 0.25, "div_factor": 10}, flat, flat)

    assert seen[0] == pytest.approx(1e-4)
    assert max(seen) == pytest.approx(1e-3, rel=0.02)
    assert seen.index(max(seen)) in (4, 5)
    assert seen[-1] < 2e-5


def test_reduce_on_plateau_uses_the_metric_of_its_mode() -> None:
    """If the loss improves and the accuracy does not, only `max` lowers the rate."""
    losses, hits = [1.0, 0.8, 0.6, 0.4], [0.5] * 4

    def plateau(mode: str) -> list[float]:
        settings = {"name": "ReduceLROnPlateau", "mode": mode, "patience": 0, "min_lr": 2e-4}
        return rates(settings, losses, hits)

    assert plateau("min") == [1e-3] * 4
    assert plateau("max") == pytest.approx([1e-3, 1e-3, 2e-4, 2e-4])
    reverse = {"name": "ReduceLROnPlateau", "mode": "min", "patience": 0}
    assert rates(reverse, [0.5] * 4, [0.1, 0.2, 0.3, 0.4])[-1] < 1e-3


def torchs(name: str, optimizer: Optimizer) -> Any:
    """The schedule as torch makes it, over six epochs."""
    extra = {
        "CosineAnnealingLR": {"T_max": 6},
        "OneCycleLR": {"max_lr": 0.05, "total_steps": 7},
    }
    options = {**SCHEDULES[name], **extra.get(name, {})}
    return getattr(lr_scheduler, name)(optimizer, **options)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_equal_those_of_torch_after_the_warm_up(name: str) -> None:
    warm = 0 if name == "OneCycleLR" else 3
    settings = TrainingSettings(
        epochs=warm + 6,
        warmup_epochs=warm,
        optimizer=ADAM,
        scheduler={"name": name, **SCHEDULES[name]},
    )
    optimizer = torch.optim.Adam(Linear().parameters(), lr=0.05)
    schedule = torchs(name, optimizer)
    first = optimizer.param_groups[0]["lr"]

    history = run(settings)

    assert [row["lr"] for row in history[:warm]] == [first * x for x in (0.25, 0.5, 0.75)][:warm]
    for row in history[warm:]:
        assert row["lr"] == optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step(*[row["validation_loss"]] * (name == "ReduceLROnPlateau"))
    assert len({row["lr"] for row in history[warm:]}) > 1


@pytest.mark.parametrize("mode", ["min", "max"])
def test_reduce_on_plateau_gets_the_validation_metrics_of_each_epoch(mode: str) -> None:
    """Validation clips have wrong labels, so validation does not improve."""
    scheduler = {"name": "ReduceLROnPlateau", "mode": mode, "patience": 1, "factor": 0.5}
    optimizer = torch.optim.Adam(Linear().parameters(), lr=0.05)
    schedule = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min" if mode == "min" else "max", patience=1, factor=0.5
    )
    watched = {"min": "validation_loss", "max": "validation_accuracy"}[mode]
    wrong = HELD[0], (HELD[1] + torch.arange(31) % 2) % 3

    history = run(
        TrainingSettings(epochs=10, optimizer=ADAM, scheduler=scheduler),
        validation=lambda: batches(wrong, torch.arange(31), 8),
    )

    for row in history:
        assert row["lr"] == optimizer.param_groups[0]["lr"]
        schedule.step(row[watched])
    assert history[-1]["lr"] < 0.05


@pytest.mark.parametrize("pct_start", [0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.9])
def test_one_cycle_works_with_any_number_of_epochs(pct_start: float) -> None:
    """Torch divides by zero if the rise ends at its first step."""
    for epochs in range(1, 12):
        settings = TrainingSettings(
            epochs=epochs, optimizer=ADAM, scheduler={"name": "OneCycleLR", "pct_start": pct_start}
        )
        optimizer = make_optimizer(Linear(), settings)
        schedule = make_scheduler(optimizer, settings)
        seen = []
        for _ in range(epochs):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            step_scheduler(schedule, {})
        assert all(0 < rate <= 0.05 * (1 + 1e-9) for rate in seen), epochs
        # It ends above the least rate, which would be lost on the last epoch.
        assert seen[-1] > 0.05 / 25 / 1e4


def test_finetuning_has_a_constant_rate_and_no_mixup() -> None:
    model = Linear()
    settings = TrainingSettings(
        epochs=2, finetune={"epochs": 2, "lr": 3e-4}, augment={"mixup": 0.4}, warmup_epochs=1,
        scheduler={"name": "ExponentialLR", "gamma": 0.5}, optimizer=ADAM,
    )  # fmt: skip

    history = run(settings, model)

    assert [row["lr"] for row in history] == [0.025, 0.05, 3e-4, 3e-4]
    seen = iter(model.seen[True])
    for epoch in (1, 2, 3, 4):
        for batch in train_batches(epoch):
            assert next(seen).squeeze(1).equal(batch.log_mel) == (epoch > 2)
    assert list(seen) == []


def test_finetuning_still_augments() -> None:
    model = Linear()
    settings = TrainingSettings(epochs=1, finetune={"epochs": 1}, augment={"roll": True})

    run(settings, model)

    finetuned = model.seen[True][8:]
    for inputs, batch in zip(finetuned, train_batches(2), strict=True):
        assert not inputs.squeeze(1).equal(batch.log_mel)


# Which epoch, and how many


def row(accuracy: float, loss: float) -> Metrics:
    return {"validation_accuracy": accuracy, "validation_loss": loss, "validation_clips": 10}


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss() -> None:
    history = [row(0.5, 0.1), row(0.7, 0.9), row(0.7, 0.8), row(0.6, 0.2)]

    assert best_epoch(history) == 3
    assert selected_epoch(history, TrainingSettings()) == 3
    assert selected_epoch(history, TrainingSettings(checkpoint_policy="last")) == 4


def test_one_more_correct_clip_outweighs_any_loss() -> None:
    assert quality(row(0.6, 100.0)) > quality(row(0.5, 0.0))
    assert quality(row(0.5, 0.1)) > quality(row(0.5, 0.2)) > quality(row(0.4, 0.1))


def test_the_last_of_equal_epochs_is_selected() -> None:
    """As Ray Train keeps the last of equal checkpoints."""
    history = [row(0.6, 0.8), row(0.7, 0.8), row(0.7, 0.8), row(0.7, 0.8)]

    kept = [selected_epoch(history[:epoch], TrainingSettings()) for epoch in (1, 2, 3, 4)]

    assert kept == [1, 2, 3, 4]


def test_early_stopping_counts_the_epochs_since_the_best() -> None:
    settings = TrainingSettings(epochs=10, early_stopping=2, checkpoint_policy="last")
    history = [row(0.5, 1.0), row(0.4, 1.0), row(0.5, 0.9), row(0.5, 0.9), row(0.5, 0.95)]

    finished = [is_finished(history[:epochs], settings) for epochs in range(6)]

    assert finished == [False] * 5 + [True]
    assert not is_finished(history, TrainingSettings(epochs=6))
    assert is_finished(history, TrainingSettings(epochs=5))
    assert not is_finished(history, TrainingSettings(epochs=5, finetune={"epochs": 1}))


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_early_without_improvement(patience: int) -> None:
    """The weights do not change, so the first epoch is the best."""
    settings = TrainingSettings(epochs=10, early_stopping=patience, optimizer=FROZEN)

    assert len(run(settings)) == 1 + patience


def test_early_stopping_ends_the_main_epochs_and_fine_tuning_follows(tmp_path: Path) -> None:
    """Interruptions after every epoch do not change the result."""
    settings = TrainingSettings(
        epochs=30, early_stopping=2, finetune={"epochs": 3, "lr": 1e-4}, augment=AUGMENT,
        optimizer={"name": "Adam", "lr": 0.2}, scheduler={"name": "ExponentialLR", "gamma": 0.9},
    )  # fmt: skip
    model, averaged = models(settings)

    history = run(settings, model, crop_frames=4, averaged=averaged)
    other, _, other_history = train_cut_off_after_each_epoch(settings, str(tmp_path))

    main = len(history) - 3
    assert 3 <= main < 30
    assert best_epoch(history[:main]) == main - 2
    assert [row["lr"] for row in history[main:]] == [1e-4] * 3
    assert all(row["lr"] > 1e-4 for row in history[:main])
    assert without_seconds(other_history) == without_seconds(history)
    assert_same_state(other, model)


def test_fine_tuning_runs_all_its_epochs_without_improvement() -> None:
    settings = TrainingSettings(
        epochs=10, early_stopping=2, optimizer=FROZEN, finetune={"epochs": 5, "lr": 1e-30}
    )

    assert len(run(settings)) == 3 + 5


def test_the_log_shows_the_total_epochs_and_early_stopping() -> None:
    settings = TrainingSettings(epochs=10, early_stopping=2, finetune={"epochs": 2})
    accuracies = [0.5, 0.6, 0.4, 0.4, 0.7, 0.7]
    history = [
        {
            "epoch": epoch, "lr": 1e-3, "train_clips": 0, "validation_clips": 31,
            "validation_loss": 1.0, "validation_accuracy": accuracy, "seconds": 0.1,
        }
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]  # fmt: skip

    said = [line for end in range(1, 7) for line in epoch_lines(history[:end], settings)]

    assert [line.split("  lr")[0] for line in said] == [
        "epoch   1 of 12",
        "epoch   2 of 12",
        "epoch   3 of 12",
        "epoch   4 of 12",
        "early stopping: the best epoch is 2, fine-tuning for 2",
        "epoch   5 of 6",
        "epoch   6 of 6",
    ]
    assert is_finished(history, settings)
    # An end at the last epoch is not early.
    assert len(list(epoch_lines(history[:4], TrainingSettings(epochs=4, early_stopping=2)))) == 1


# A step


def trained(settings: TrainingSettings, **options: Any) -> Linear:
    torch.manual_seed(5)
    model = Linear()
    run(settings, model, **options)
    return model


@pytest.mark.parametrize("turns", [2, 3, 8, 20])
def test_gradient_accumulation_gives_the_same_weights(turns: int) -> None:
    """The last batch has four clips, fewer than eight steps and no multiple of three."""

    def weights(accumulate: int) -> Tensor:
        settings = TrainingSettings(
            epochs=2, gradient_accumulation_steps=accumulate, optimizer={"name": "SGD", "lr": 0.1},
            max_grad_norm=0.5, label_smoothing=0.1,
        )  # fmt: skip
        model = trained(settings, class_weights=torch.tensor([0.5, 1.0, 2.0]))
        largest = max(len(inputs) for inputs in model.seen[True])
        assert largest == math.ceil(8 / min(accumulate, 8))
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    torch.testing.assert_close(weights(turns), weights(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("turns", [1, 3])
def test_gradient_accumulation_does_not_change_the_metrics(turns: int) -> None:
    """A mean over micro-batches would give clips of the smaller one more weight."""
    torch.manual_seed(5)
    model = Linear()
    settings = TrainingSettings(epochs=1, gradient_accumulation_steps=turns, optimizer=FROZEN)

    (row,) = run(settings, model)

    with torch.no_grad():
        logits = model(TRAINING[0].unsqueeze(1))
    expected = nn.functional.cross_entropy(logits, TRAINING[1]).item()
    assert row["train_loss"] == pytest.approx(expected, rel=1e-6)
    assert row["train_accuracy"] == pytest.approx(
        (logits.argmax(1) == TRAINING[1]).float().mean().item()
    )


@pytest.mark.parametrize("turns", [1, 3])
def test_a_mixed_clip_counts_as_the_class_with_the_larger_share(turns: int) -> None:
    """The clip's own class has the smaller share in half of the mixtures."""
    target = torch.arange(60) % 3
    log_mel = nn.functional.one_hot(target, 4).float().unsqueeze(2).expand(-1, -1, 5)
    model = Linear()
    with torch.no_grad():
        # The logit of a class is the level of its band.
        model.layer.weight.copy_(torch.eye(4)[:3].repeat_interleave(5, dim=1))
        model.layer.bias.zero_()
    settings = TrainingSettings(
        epochs=1, gradient_accumulation_steps=turns, optimizer=FROZEN, augment={"mixup": 1}
    )

    (row,) = run(settings, model, lambda _: batches((log_mel, target), torch.arange(60), 8))

    assert row["train_accuracy"] == 1


@pytest.mark.parametrize("turns", [1, 4])
def test_a_clipped_gradient_bounds_the_step(turns: int) -> None:
    def length(clip: float | None) -> float:
        """Of the only step, at a rate of 1."""
        settings = TrainingSettings(
            epochs=1, max_grad_norm=clip, gradient_accumulation_steps=turns,
            optimizer={"name": "SGD", "lr": 1.0, "momentum": 0},
        )  # fmt: skip
        torch.manual_seed(5)
        before = nn.utils.parameters_to_vector(Linear().parameters())
        model = trained(settings, train=lambda _: batches(TRAINING, torch.arange(60), 60))
        step = nn.utils.parameters_to_vector(model.parameters()) - before
        return step.norm().item()

    free = length(None)
    assert free > 0.3
    assert length(0.1) == pytest.approx(0.1, rel=1e-3)
    assert length(100.0) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_label_smoothing_and_class_weights_affect_the_training_loss(
    smoothing: float, weights: list[float] | None
) -> None:
    """The expected loss is the weighted cross-entropy of smoothed targets, averaged over clips."""
    model = Linear()
    settings = TrainingSettings(epochs=1, optimizer=FROZEN, label_smoothing=smoothing)

    (row,) = run(
        settings, model, class_weights=torch.tensor(weights) if weights is not None else None
    )

    def by_hand(clips: tuple[Tensor, Tensor], smooth: float, weigh: list[float]) -> float:
        with torch.no_grad():
            logits = model(clips[0].unsqueeze(1)).double().numpy()
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        wanted = (1 - smooth) * np.eye(3)[clips[1].numpy()] + smooth / 3
        return float(-(wanted * np.array(weigh) * log_p).sum(1).mean())

    plain = [1.0] * 3
    expected = by_hand(TRAINING, smoothing, weights or plain)
    assert row["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert row["validation_loss"] == pytest.approx(by_hand(HELD, 0.0, plain), rel=1e-5)


@pytest.mark.parametrize("average", [0.5, 0.99])
def test_the_moving_average_of_the_weights_is_validated(average: float) -> None:
    """It moves by (1 + s) / (10 + s) at step s, until that reaches `ema_decay`."""
    torch.manual_seed(0)
    model = Linear()
    averaged = copy.deepcopy(model)
    mean = nn.utils.parameters_to_vector(model.parameters()).detach()
    steps: list[Tensor] = []
    hook = register_optimizer_step_post_hook(
        lambda *_: steps.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    )

    settings = TrainingSettings(epochs=3, ema_decay=average, optimizer=ADAM)
    history = run(settings, model, averaged=averaged)
    hook.remove()

    assert len(steps) == 24
    for step, weights in enumerate(steps, 1):
        share = min(average, (1 + step) / (10 + step))
        mean = share * mean + (1 - share) * weights
    actual = nn.utils.parameters_to_vector(averaged.parameters())
    torch.testing.assert_close(actual, mean, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(averaged(HELD[0].unsqueeze(1)), HELD[1]).item()
    assert history[-1]["validation_loss"] == pytest.approx(loss, rel=1e-6)
    assert model.seen[False] == []


def test_the_moving_average_includes_batch_norm_statistics() -> None:
    model = Pooled()
    averaged = copy.deepcopy(model)

    run(TrainingSettings(epochs=1, ema_decay=0.01), model, averaged=averaged)

    assert averaged.norm.num_batches_tracked.item() == 8
    torch.testing.assert_close(
        averaged.norm.running_mean, model.norm.running_mean, rtol=0.1, atol=0.01
    )


# What the model is given


def test_training_augments_and_validation_does_not() -> None:
    model = Linear()

    run(TrainingSettings(epochs=1, augment=AUGMENT), model)

    for inputs, batch in zip(model.seen[True], train_batches(1), strict=True):
        assert inputs.shape == batch.log_mel.unsqueeze(1).shape
        assert not inputs.squeeze(1).equal(batch.log_mel)
    for inputs, batch in zip(model.seen[False], validation_batches(), strict=True):
        assert inputs.squeeze(1).equal(batch.log_mel)


def test_clips_are_unchanged_without_augmentation() -> None:
    model = Linear()

    run(TrainingSettings(epochs=1), model)

    for inputs, batch in zip(model.seen[True], train_batches(1), strict=True):
        assert inputs.squeeze(1).equal(batch.log_mel)


def test_every_batch_is_normalised() -> None:
    model = Linear()
    normalise = Normalisation((0.5, 1.0, -1.0, 0.0), (2.0, 1.0, 0.5, 4.0))

    fit(
        model, train_batches, validation_batches, TrainingSettings(epochs=1), normalise,
        lambda _: None, classes=3,
    )  # fmt: skip

    for training, split in ((True, train_batches(1)), (False, validation_batches())):
        for inputs, batch in zip(model.seen[training], split, strict=True):
            assert inputs.equal(normalise(batch.log_mel))


@pytest.mark.parametrize(("frames", "width"), [(None, 5), (3, 3), (7, 5)])
def test_only_training_clips_are_cropped(frames: int | None, width: int) -> None:
    model = Pooled()

    run(TrainingSettings(epochs=2), model, crop_frames=frames)

    assert model.widths == {True: {width}, False: {5}}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_training_accepts_float16_log_mels(dtype: torch.dtype) -> None:
    def stored(epoch: int) -> list[Batch]:
        return [batch._replace(log_mel=batch.log_mel.to(dtype)) for batch in train_batches(epoch)]

    settings = TrainingSettings(epochs=1, augment=AUGMENT)
    expected = run(settings)[0]["train_loss"]

    assert run(settings, train=stored)[0]["train_loss"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("hardware", "close"),
    [
        (Hardware(channels_last=True), 1e-3),
        (Hardware(precision=torch.bfloat16), 0.05),
        (Hardware(precision=torch.bfloat16, channels_last=True), 0.05),
    ],
)
def test_hardware_options_train_nearly_the_same(hardware: Hardware, close: float) -> None:
    def history(hardware: Hardware | None) -> list[Metrics]:
        torch.manual_seed(0)
        model = Pooled()
        if hardware is not None and hardware.channels_last:
            model.to(memory_format=torch.channels_last)
        settings = TrainingSettings(epochs=6, optimizer={"name": "SGD", "lr": 0.05})
        return run(settings, model, hardware=hardware)

    plain, other = history(None), history(hardware)

    assert plain[-1]["train_loss"] < plain[0]["train_loss"] / 2
    for key in ("train_loss", "validation_loss"):
        assert [row[key] for row in other] == pytest.approx(
            [row[key] for row in plain], rel=close, abs=close
        )
    low = hardware.precision == torch.bfloat16
    assert (other[0]["train_loss"] != pytest.approx(plain[0]["train_loss"], rel=1e-5)) == low


# Losses that are no number


def test_an_infinite_loss_is_a_user_error_with_advice() -> None:
    settings = TrainingSettings(epochs=5, optimizer={"name": "SGD", "lr": 1e38})

    with pytest.raises(UserError, match=r"try a smaller training\.optimizer\.lr than 1e"):
        run(settings)


@pytest.mark.parametrize("bad", [0, 17, 31, 32, 45, 59])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_batch_with_an_infinite_loss_is_named_with_its_epoch(
    bad: int, value: float
) -> None:
    """Losses are checked some batches at a time; all after the first infinite one are infinite."""
    clips = data(120, 3)

    def poisoned(epoch: int) -> list[Batch]:
        order = torch.randperm(120, generator=torch.Generator().manual_seed(epoch))
        made = batches(clips, order, 2)
        if epoch == 2:
            made[bad].log_mel[0, 0, 0] = value
        return made

    settings = TrainingSettings(epochs=3)
    names = ", ".join(poisoned(2)[bad].clip_ids)

    with pytest.raises(UserError, match=rf"is nan in epoch 2, at the batch of the clips {names}:"):
        run(settings, train=poisoned)


def test_an_epoch_with_an_infinite_loss_is_not_reported() -> None:
    seen: list[TrainState] = []

    def poisoned(epoch: int) -> Iterator[Batch]:
        for batch in train_batches(epoch):
            yield batch if epoch < 2 else batch._replace(log_mel=batch.log_mel * math.nan)

    with pytest.raises(UserError):
        fit(
            Linear(), poisoned, validation_batches, TrainingSettings(epochs=3), IDENTITY,
            seen.append, classes=3,
        )  # fmt: skip

    assert [len(progress.history) for progress in seen] == [1]


def test_an_infinite_validation_loss_is_not_reported() -> None:
    """No training loss shows it, because no batch follows."""
    settings = TrainingSettings(
        epochs=1, optimizer={"name": "SGD", "lr": 1e38}, checkpoint_policy="last"
    )

    with pytest.raises(UserError, match=r"the validation loss is (nan|inf) in epoch 1.*smaller"):
        run(settings, train=lambda _: batches(TRAINING, torch.arange(60), 60))
