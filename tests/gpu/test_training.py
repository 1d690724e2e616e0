"""Training on a GPU: precision, memory formats, transfer of batches, lack of memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raysound.distributed.extraction.extract import extract_corpus
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.runs import split_clips
from raysound.distributed.training.trainer import (
    classifier_metadata,
    make_loop_config,
    train_classifier,
)
from raysound.distributed.training.training_data import load_training_data
from raysound.distributed.training.worker import train_alone
from raysound.errors import UserError
from raysound.models import build
from raysound.settings.compute import ComputeSettings
from raysound.settings.schema import Config
from raysound.settings.training import TrainingSettings
from raysound.training.batches import DeviceTransfer, Rows, prefetch, row_batches
from raysound.training.hardware import hardware_for
from raysound.training.history import read_history
from raysound.training.inference import Normalisation
from raysound.training.loop import fit
from raysound.training.step import Batch, Hardware

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("torch_flags")]


def history_of(
    tree: dict[str, Any], run: Path, device: torch.device, **compute: Any
) -> list[dict[str, Any]]:
    """What a training in this process reports, an epoch each."""
    config = Config.model_validate(tree | {"compute": compute})
    folder = finished_features("real", config)
    training_data = load_training_data(folder, split_clips(config, folder))
    job = make_loop_config(
        config, training_data, classifier_metadata(config, training_data), str(run), threads=1
    )
    train_alone(job, device, training_data.datasets(job))
    return read_history(str(run / "history.jsonl"))


@pytest.mark.parametrize("model", ["cnn", pytest.param("resnetish18", marks=pytest.mark.gpu)])
def test_bfloat16_and_float32_training_agree(
    model: str, tree: dict[str, Any], tmp_path: Path, device: torch.device
) -> None:
    """The first epoch's loss to 0.05 nats; the last recognises at least eight of nine clips.

    In one memory layout, for dropout draws its mask in that.
    """
    tree = tree | {"model": {"name": model}}
    histories = [
        history_of(tree, tmp_path / precision, device, precision=precision, channels_last=False)
        for precision in ("float32", "bfloat16")
    ]

    full, low = ([row["train_loss"] for row in history] for history in histories)
    assert low[0] == pytest.approx(full[0], abs=0.05)
    assert low != full, "else both had the same precision"
    assert all(history[-1]["validation_accuracy"] > 0.85 for history in histories)


@pytest.mark.parametrize("model", ["cnn", "resnetish18"])
def test_with_channels_last_every_convolution_gives_maps_in_that_layout(
    model: str, device: torch.device
) -> None:
    """This includes the first one, whose input has one channel and fits both layouts."""
    classifier = build(model, 3).to(device).to(memory_format=torch.channels_last)
    layouts = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layouts.append(output.is_contiguous(memory_format=torch.channels_last))

    convolutions = [part for part in classifier.modules() if isinstance(part, nn.Conv2d)]
    for part in convolutions:
        part.register_forward_hook(note)
    batch = Batch(torch.randn(4, 24, 51, device=device), torch.arange(4, device=device) % 3, [])

    fit(
        classifier, lambda epoch: iter([batch]), None,
        TrainingSettings(epochs=1, checkpoint_policy="last"),
        Normalisation((0.0,) * 24, (1.0,) * 24),
        lambda progress: None, classes=3, hardware=Hardware(torch.bfloat16, channels_last=True),
    )  # fmt: skip

    assert layouts == [True] * len(convolutions)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("kept", [True, False])
def test_batches_hold_the_same_rows_by_every_transfer(
    kept: bool, ahead: int, device: torch.device
) -> None:
    """They come from pinned memory, from a thread, or from data on the GPU."""
    rng = np.random.default_rng(0)
    rows = Rows(
        rng.normal(size=(50, 24, 51)).astype(np.float32),
        rng.integers(0, 3, 50),
        np.array([f"clip-{number}" for number in range(50)], dtype=object),
    )
    order = rng.permutation(50)
    transfer = DeviceTransfer(device, pin=device.type == "cuda", ahead=ahead)
    lying = torch.tensor(rows.log_mel, device=device) if kept else None

    came = row_batches(rows, 8, order, 0, 1, transfer, lying)
    # All of them, before one is looked at: none may be overwritten by a later one.
    batches = list(prefetch(came, ahead))

    assert [batch.log_mel.device.type for batch in batches] == [device.type] * 7
    np.testing.assert_array_equal(
        torch.cat([batch.log_mel for batch in batches]).cpu(), rows.log_mel[order]
    )
    np.testing.assert_array_equal(
        torch.cat([batch.target for batch in batches]).cpu(), rows.target[order]
    )
    assert [name for batch in batches for name in batch.clip_ids] == [*rows.clip_id[order]]


@pytest.mark.parametrize("tf32", [True, False])
def test_both_tf32_interfaces_of_torch_agree(tf32: bool) -> None:
    """torch.compile reads the new one, and torch raises if both were mixed."""
    hardware_for(torch.device("cuda"), ComputeSettings(tf32=tf32))

    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is tf32
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [True, False])
def test_products_are_rounded_as_tf32_says(tf32: bool, device: torch.device) -> None:
    """TensorFloat-32 has 10 bits of fraction: errors near 3e-4; float32 stays below 1e-5."""
    hardware_for(device, ComputeSettings(tf32=tf32))
    torch.manual_seed(0)
    left, right = torch.randn(2, 1024, 1024, device=device)
    maps, kernel = torch.randn(8, 64, 32, 32, device=device), torch.randn(64, 64, 3, 3).to(device)

    product, exact = left @ right, left.double() @ right.double()
    convolved = nn.functional.conv2d(maps, kernel)
    exact_maps = nn.functional.conv2d(maps.double(), kernel.double())

    error = float((product - exact).norm() / exact.norm())
    assert (error > 1e-4) is tf32
    # Of convolutions cuDNN chooses the fastest, which need not be the coarse one.
    error = float((convolved - exact_maps).norm() / exact_maps.norm())
    assert error < (1e-2 if tf32 else 1e-4)


@pytest.mark.gpu
def test_gpu_out_of_memory_is_a_user_error_whose_advice_works(
    tree: dict[str, Any], tmp_path: Path, device: torch.device
) -> None:
    """All clips in one batch need some 8 GB, and only 4 GB of the GPU is free."""
    left = 4 << 30
    free, _ = torch.cuda.mem_get_info(device)
    if free < left:
        pytest.skip("less than 4 GB of the GPU is free")
    tree = tree | {
        "output": str(tmp_path),
        "features": tree["features"] | {"hop_length": 1},
        "model": {"name": "resnetish18"},
        "compute": {"precision": "float32", "use_gpu": True},
    }
    short = Config.model_validate(
        tree | {"training": {"epochs": 1, "batch_size": 64, "checkpoint_policy": "last"}}
    )
    extract_corpus("real", short)
    taken = torch.empty(free - left, dtype=torch.uint8, device=device)

    with pytest.raises(UserError) as caught:
        train_classifier(short)

    assert str(caught.value).startswith(
        "a GPU has too little memory for training.batch_size 64 in 1 steps: raise "
        "training.gradient_accumulation_steps, or add workers (CUDA out of memory. Tried to "
        "allocate "
    )
    assert len(str(caught.value).splitlines()) == 1
    turns = short.training.model_copy(update={"gradient_accumulation_steps": 64})
    run = train_classifier(short.model_copy(update={"training": turns}))
    assert [row["epoch"] for row in read_history(f"{run}/history.jsonl")] == [1]
    del taken
    torch.cuda.empty_cache()


@pytest.mark.gpu
def test_a_compiled_training_agrees_and_takes_batches_of_another_size(
    tree: dict[str, Any], tmp_path: Path, device: torch.device
) -> None:
    """The last batch of an epoch is smaller, and only the first epoch compiles for it."""
    tree = tree | {
        "model": {"name": "resnetish18"},
        "training": {"epochs": 3, "batch_size": 20, "checkpoint_policy": "last"},
    }
    exact = {"precision": "float32", "tf32": False}
    eager = history_of(tree, tmp_path / "eager", device, **exact)
    torch._dynamo.utils.counters.clear()
    compiled = history_of(tree, tmp_path / "compiled", device, compile=True, **exact)

    assert eager[0]["train_clips"] % 20, "else there is no smaller batch"
    assert compiled[0]["train_loss"] == pytest.approx(eager[0]["train_loss"], rel=0.02)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
