import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raysound.config import UserError
from raysound.scoring import Normalisation
from raysound.settings import TrainingSettings
from raysound.training import Metrics, fit, make_optimizer, make_scheduler, step_schedule

IDENTITY = Normalisation((0.0,) * 4, (1.0,) * 4)


class Linear(nn.Module):
    """The plainest classifier of (B, 1, 4, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 3)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits (B, 3)."""
        return self.layer(log_mel.flatten(1))


def data(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips whose class is the band that is loudest."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(clips) % 3
    log_mel = torch.randn(clips, 4, 5, generator=generator)
    log_mel[torch.arange(clips), target] += 2
    return log_mel, target


def run(settings: TrainingSettings, model: nn.Module | None = None) -> list[Metrics]:
    torch.manual_seed(settings.seed)
    model = model or Linear()
    log_mel, target = data(60, 1)
    held, held_target = data(31, 2)

    def train_batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        order = torch.randperm(60, generator=torch.Generator().manual_seed(epoch)).split(8)
        return [(log_mel[rows], target[rows]) for rows in order]

    history: list[Metrics] = []
    fit(
        model,
        train_batches,
        lambda: zip(held.split(8), held_target.split(8), strict=True),
        settings,
        IDENTITY,
        history.append,
    )
    return history


def test_loss_falls_and_accuracy_rises_over_every_clip() -> None:
    history = run(TrainingSettings(epochs=8, optimizer={"name": "Adam", "lr": 1e-2}))

    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["validation_accuracy"] > 0.9
    assert {row["train_clips"] for row in history} == {60}
    assert {row["validation_clips"] for row in history} == {31}


def test_the_same_seed_gives_the_same_history() -> None:
    def without_time(history: list[Metrics]) -> list[Metrics]:
        return [{key: row[key] for key in row if key != "seconds"} for row in history]

    assert without_time(run(TrainingSettings(epochs=3))) == without_time(
        run(TrainingSettings(epochs=3))
    )


def test_the_reported_loss_is_the_mean_over_clips_not_over_batches() -> None:
    """The last batch is smaller: a mean of batch means would weigh its clips more."""
    model = Linear()
    held, target = data(31, 2)
    frozen = TrainingSettings(epochs=1, optimizer={"name": "SGD", "lr": 1e-30})

    row = run(frozen, model)[0]

    with torch.no_grad():
        logits = model(held.unsqueeze(1))
    expected = nn.functional.cross_entropy(logits, target).item()
    assert row["validation_loss"] == pytest.approx(expected, rel=1e-6)
    accuracy = (logits.argmax(1) == target).float().mean().item()
    assert row["validation_accuracy"] == pytest.approx(accuracy)


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_try() -> None:
    settings = TrainingSettings(epochs=5, optimizer={"name": "SGD", "lr": 1e38})

    with pytest.raises(UserError, match=r"try a smaller training\.optimizer\.lr than 1e"):
        run(settings)


def test_a_split_without_batches_is_an_error() -> None:
    settings = TrainingSettings(epochs=1)

    with pytest.raises(RuntimeError, match="the validation split gave no batch"):
        fit(Linear(), lambda _: [data(6, 0)], lambda: [], settings, IDENTITY, print)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ({"name": "Adam", "lr": 3e-4}, torch.optim.Adam),
        ({"name": "AdamW", "weight_decay": 0.1}, torch.optim.AdamW),
        ({"name": "SGD", "lr": 0.1, "momentum": 0.5, "nesterov": True}, torch.optim.SGD),
    ],
)
def test_optimisers_are_torchs_own_with_the_settings_values(
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
        step_schedule(schedule, settings, loss, accuracy)
    return seen


def test_schedules_step_once_an_epoch() -> None:
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


def test_a_plateau_watches_the_metric_that_its_mode_belongs_to() -> None:
    """While the loss improves and the accuracy does not, only `max` lowers the rate."""
    losses, hits = [1.0, 0.8, 0.6, 0.4], [0.5] * 4

    def plateau(mode: str) -> list[float]:
        settings = {"name": "ReduceLROnPlateau", "mode": mode, "patience": 0, "min_lr": 2e-4}
        return rates(settings, losses, hits)

    assert plateau("min") == [1e-3] * 4
    assert plateau("max") == pytest.approx([1e-3, 1e-3, 2e-4, 2e-4])
    reverse = {"name": "ReduceLROnPlateau", "mode": "min", "patience": 0}
    assert rates(reverse, [0.5] * 4, [0.1, 0.2, 0.3, 0.4])[-1] < 1e-3
