"""The arithmetic that a device computes fastest, by `compute` or by what the device offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raysound.errors import UserError
from raysound.settings.compute import ComputeSettings
from raysound.settings.training import TrainingSettings
from raysound.training.inference import out_of_memory
from raysound.training.step import Hardware


def hardware_for(device: torch.device, compute: ComputeSettings) -> Hardware:
    """What `compute` says of the arithmetic; `auto` is what helps on the device."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.backends.cuda.matmul.allow_tf32 = compute.tf32
        torch.backends.cudnn.allow_tf32 = compute.tf32
        torch.backends.cudnn.benchmark = True
    # Where it is only emulated, it is slower than float32.
    low = torch.cuda.is_bf16_supported(including_emulation=False) if is_gpu else cpu_has_bfloat16()
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    precision = named.get(compute.precision, torch.bfloat16 if low else torch.float32)
    switch = compute.channels_last
    return Hardware(
        precision=precision,
        channels_last=is_gpu or precision == torch.bfloat16 if switch == "auto" else switch,
        compile=compute.compile,
    )


def cpu_has_bfloat16() -> bool:
    """True where the CPU has instructions for bfloat16; oneDNN uses those of x86."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def decided(switch: bool | str, device: torch.device) -> bool:
    """A switch's position; `auto` is on where the device is a GPU."""
    return device.type == "cuda" if isinstance(switch, str) else switch


@contextmanager
def explain_out_of_memory(settings: TrainingSettings) -> Iterator[None]:
    """Says what can be done where a GPU's memory is too small; tried again it would be the same."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"a GPU has too little memory for training.batch_size {settings.batch_size} in "
            f"{settings.gradient_accumulation_steps} turns: raise "
            f"training.gradient_accumulation_steps, or add workers ({out_of_memory(error)})"
        ) from error
