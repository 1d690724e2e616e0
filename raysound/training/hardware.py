"""Chooses precision and memory format from the settings and the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raysound.errors import UserError
from raysound.settings.compute import ComputeSettings
from raysound.settings.training import TrainingSettings
from raysound.training.inference import describe_shortage
from raysound.training.step import Hardware


def hardware_for(device: torch.device, compute: ComputeSettings) -> Hardware:
    """The Hardware options of the settings; `auto` is what is fastest on the device."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.backends.cuda.matmul.allow_tf32 = compute.tf32
        torch.backends.cudnn.allow_tf32 = compute.tf32
        torch.backends.cudnn.benchmark = True
    # Emulated bfloat16 is slower than float32.
    has_bfloat16 = (
        torch.cuda.is_bf16_supported(including_emulation=False) if is_gpu else cpu_has_bfloat16()
    )
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    precision = dtypes.get(compute.precision, torch.bfloat16 if has_bfloat16 else torch.float32)
    switch = compute.channels_last
    return Hardware(
        precision=precision,
        channels_last=is_gpu or precision == torch.bfloat16 if switch == "auto" else switch,
        compile=compute.compile,
    )


def cpu_has_bfloat16() -> bool:
    """True if the CPU has bfloat16 instructions that oneDNN uses, which are those of x86."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def resolve_switch(switch: bool | str, device: torch.device) -> bool:
    """The value of a switch; `auto` is True on a GPU."""
    return device.type == "cuda" if isinstance(switch, str) else switch


@contextmanager
def explain_out_of_memory(settings: TrainingSettings) -> Iterator[None]:
    """Turns a GPU's OutOfMemoryError into a UserError, so that the training is not retried."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"a GPU has too little memory for training.batch_size {settings.batch_size} in "
            f"{settings.gradient_accumulation_steps} steps: raise "
            f"training.gradient_accumulation_steps, or add workers ({describe_shortage(error)})"
        ) from error
