"""The section `compute`: the resources that a job uses."""

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
    MIN_RESOURCE_SHARE,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveInt,
    Section,
)


class ComputeSettings(Section):
    """The resources of the machine or cluster that a job uses.

    Results do not depend on them, except for float rounding.

    `workers: [2, 8]` trains with 2 to 8 workers: the number follows the capacity of the cluster.
    `auto` selects the faster option: bfloat16 and channels_last if the GPU or the CPU computes
    bfloat16 natively, float32 otherwise; on a GPU also pinned memory, two prefetched batches, and
    batch norm over the clips of all workers.

    An autoscaling cluster has `node_timeout_minutes` minutes to start the nodes that a training
    requests; with 0 the nodes must exist. Training workers run on nodes with the `labels`, close
    together (PACK) or apart (SPREAD); tasks run on any node with a free CPU.
    """

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Number of training workers, or its minimum and maximum: [2, 8]."""
    use_gpu: Literal[True, False, "auto"] = "auto"
    """Gives each training worker a GPU."""
    cpus_per_worker: Number | None = Field(None, ge=MIN_RESOURCE_SHARE)
    """CPUs per training worker."""
    num_cpus: PositiveInt | None = None
    """CPUs of a Ray instance that is started on this machine; all by default."""
    node_timeout_minutes: NonNegativeFloat = 0
    """Minutes to wait for nodes of an autoscaling cluster."""
    labels: dict[str, str] = {}
    """Ray labels of the nodes that training workers run on."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement strategy for the training workers."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of training and scoring; auto is bfloat16 if the device computes it natively."""
    channels_last: Literal[True, False, "auto"] = "auto"
    """Uses the channels-last memory format for convolutions."""
    compile: StrictBool = False
    """Uses torch.compile."""
    tf32: StrictBool = True
    """Allows TensorFloat-32 on GPUs."""
    pin_memory: Literal[True, False, "auto"] = "auto"
    """Copies batches to the GPU from pinned memory."""
    prefetch_batches: NonNegativeInt | Literal["auto"] = "auto"
    """Number of batches prepared in advance."""
    sync_batch_norm: Literal[True, False, "auto"] = "auto"
    """Computes batch norm over the clips of all workers."""
    shard_clips: PositiveInt | Literal["auto"] = "auto"
    """Clips per shard."""

    @field_validator("workers", mode="wrap")
    @classmethod
    def _is_a_number_or_a_range(
        cls, value: Any, validated: ValidatorFunctionWrapHandler
    ) -> int | tuple[int, int]:
        try:
            workers: int | tuple[int, int] = validated(value)
        except ValidationError:
            # One message instead of one per type.
            raise ValueError("write a number from 1, or minimum and maximum, [2, 8]") from None
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError(f"[{workers[0]}, {workers[1]}] begins with the larger number")
        return workers

    @property
    def workers_range(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
