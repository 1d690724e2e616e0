"""The section `compute`: what of the machine or cluster is used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    StrictBool,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from raysound.settings.fields import (
    LEAST_SHARE,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveInt,
    Section,
)


class ComputeSettings(Section):
    """What of the machine or cluster is used; no result depends on it, but for float rounding.

    `workers: [2, 8]` trains with as many as the cluster has room for, while it grows and shrinks.
    `auto` is what helps: bfloat16 and channels_last where the GPU or the CPU computes bfloat16
    itself, float32 elsewhere; on a GPU also pinned memory, two batches prefetched, and batch norm
    over all workers' clips.

    A cluster that grows by itself is given `node_timeout_minutes` minutes to bring the nodes that a
    training wants; 0 wants them there. Training workers run on nodes with the `labels`, close
    together (PACK) or apart (SPREAD); tasks run wherever a CPU is free.
    """

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Training workers, or the least and the most: [2, 8]."""
    use_gpu: Literal[True, False, "auto"] = "auto"
    """Whether workers get a GPU each."""
    cpus_per_worker: Number | None = Field(None, ge=LEAST_SHARE)
    """CPUs of a training worker."""
    num_cpus: PositiveInt | None = None
    """CPUs of the Ray that is started on this machine; all by default."""
    node_timeout_minutes: NonNegativeFloat = 0
    """Minutes to wait for nodes of a cluster that grows."""
    labels: dict[str, str] = {}
    """Ray labels of the nodes that train."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement strategy of the workers."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of training and scoring; auto takes bfloat16 where the device computes it natively."""
    channels_last: Literal[True, False, "auto"] = "auto"
    """Memory format of convolutions."""
    compile: StrictBool = False
    """Uses torch.compile."""
    tf32: StrictBool = True
    """Allows TensorFloat-32 on GPUs."""
    pin_memory: Literal[True, False, "auto"] = "auto"
    """Copies batches to the GPU from pinned memory."""
    prefetch_batches: NonNegativeInt | Literal["auto"] = "auto"
    """Batches prepared ahead."""
    sync_batch_norm: Literal[True, False, "auto"] = "auto"
    """Batch norm over the clips of all workers."""
    shard_clips: PositiveInt | Literal["auto"] = "auto"
    """Clips of a shard."""

    @field_validator("workers", mode="wrap")
    @classmethod
    def _is_a_number_or_a_range(
        cls, value: Any, validated: ValidatorFunctionWrapHandler
    ) -> int | tuple[int, int]:
        try:
            workers: int | tuple[int, int] = validated(value)
        except ValidationError:
            # One line for both of the types that it may have.
            raise ValueError("write a number from 1, or the least and the most, [2, 8]") from None
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError(f"[{workers[0]}, {workers[1]}] begins with the larger number")
        return workers

    @property
    def workers_range(self) -> tuple[int, int]:
        """The least and the most workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
