"""Workers that share each batch train the very classifier that one alone would."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook

from raysound.settings.training import TrainingSettings
from raysound.training.inference import Normalisation
from raysound.training.loop import TrainState, fit
from raysound.training.step import Batch

NORMALISATION = Normalisation((0.5,) * 4, (2.0,) * 4)
CLIPS, HELD, BATCH, EPOCHS = 60, 31, 16, 3


class Small(nn.Module):
    """A classifier of (B, 1, 4, 5) with a hidden layer, and batch norm or not."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(20, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.last = nn.Linear(16, 3)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits (B, 3)."""
        return self.last(self.norm(self.first(log_mel.flatten(1))).relu())


def data(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips whose class is the band that is loudest, more or less."""
    target = torch.arange(clips) % 3
    log_mel = torch.randn(clips, 4, 5, generator=torch.Generator().manual_seed(seed))
    log_mel[torch.arange(clips), target] += 1
    return log_mel, target


def batches(clips: tuple[Tensor, Tensor], order: Tensor, rank: int, workers: int) -> Any:
    """A worker's share of each batch."""
    log_mel, target = clips
    for rows in order.split(BATCH):
        mine = rows[rank::workers]
        yield Batch(log_mel[mine], target[mine], [str(int(row)) for row in mine])


def train(rank: int, workers: int, norm: bool, settings: TrainingSettings) -> dict[str, Any]:
    """What a worker sees: its weights after each step, its history, its weights at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module = Small(norm)
    wrapped = DistributedDataParallel(model) if workers > 1 else model
    training, held = data(CLIPS, 1), data(HELD, 2)
    steps: list[Tensor] = []
    seen: list[TrainState] = []

    def train_batches(epoch: int) -> Iterator[Batch]:
        order = torch.randperm(CLIPS, generator=torch.Generator().manual_seed(epoch))
        return batches(training, order, rank, workers)

    hook = register_optimizer_step_post_hook(
        lambda *_: steps.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    )
    # One worker alone validates in batches of two workers' shares: the same sums.
    fit(
        wrapped, train_batches, lambda: batches(held, torch.arange(HELD), rank, workers), settings,
        NORMALISATION, seen.append, classes=3, class_weights=torch.tensor([0.5, 1.0, 2.0]),
    )  # fmt: skip
    hook.remove()
    return {"steps": torch.stack(steps), "history": seen[-1].history, "state": model.state_dict()}


def worker(rank: int, folder: str, norm: bool, settings: TrainingSettings) -> None:
    """One of two processes."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(train(rank, 2, norm, settings), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # An interpreter that ends while one of gloo's threads does aborts, now and then.
    os._exit(0)


def train_in_two(folder: Path, norm: bool, settings: TrainingSettings) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    spawn(worker, (str(folder), norm, settings), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_two_workers_make_the_steps_of_one(tmp_path: Path, accumulate: int) -> None:
    """Three micro-batches divide a worker's eight clips unevenly, and the last batch is smaller."""
    settings = TrainingSettings(
        epochs=EPOCHS, batch_size=BATCH, gradient_accumulation_steps=accumulate, max_grad_norm=0.5,
        label_smoothing=0.1, optimizer={"name": "SGD", "lr": 0.2},
    )  # fmt: skip

    alone = train(0, 1, False, settings.model_copy(update={"gradient_accumulation_steps": 1}))
    both = train_in_two(tmp_path, False, settings)

    assert len(alone["steps"]) == EPOCHS * 4
    way = (alone["steps"][1:] - alone["steps"][:-1]).abs().amax(dim=1)
    assert way.min() > 1e-2
    for one in both:
        torch.testing.assert_close(one["steps"], alone["steps"], rtol=0, atol=1e-4)
        for row, expected in zip(one["history"], alone["history"], strict=True):
            assert row["train_clips"] == expected["train_clips"] == CLIPS
            assert row["validation_clips"] == expected["validation_clips"] == HELD
            for split in ("train", "validation"):
                assert row[f"{split}_loss"] == pytest.approx(expected[f"{split}_loss"], abs=1e-4)
                assert row[f"{split}_accuracy"] == expected[f"{split}_accuracy"]
    assert torch.equal(both[0]["steps"], both[1]["steps"])


@pytest.mark.timeout(60)
def test_validation_uses_the_weights_and_statistics_of_rank_0(tmp_path: Path) -> None:
    """Each worker has its own batch norm statistics until validation."""
    settings = TrainingSettings(
        epochs=1, batch_size=BATCH, optimizer={"name": "SGD", "lr": 0.2}, checkpoint_policy="last"
    )

    both = train_in_two(tmp_path, True, settings)

    model = Small(norm=True)
    model.load_state_dict(both[0]["state"])
    model.eval()
    log_mel, target = data(HELD, 2)
    with torch.no_grad():
        logits = model(NORMALISATION(log_mel))
    loss = nn.functional.cross_entropy(logits, target).item()
    for one in both:
        assert one["history"][0]["validation_loss"] == pytest.approx(loss, rel=1e-5)
        assert one["state"]["norm.running_mean"].equal(both[0]["state"]["norm.running_mean"])
