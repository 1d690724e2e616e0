"""An ONNX model from waveforms to embeddings, run by onnxruntime."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from raysound import storage
from raysound.errors import UserError

# Of a batch at the most: 13 windows of 10 s at 32 kHz. What a model holds of them takes some
# hundred MB.
BATCH_SAMPLES, BATCH_WINDOWS = 1 << 22, 64
# Numbers of an embedding: a covariance matrix of so many takes 128 MB.
LARGEST_SIZE = 4096
GPU_PROVIDER = "CUDAExecutionProvider"


class OnnxModel:
    """A model whose input and output were checked.

    Attributes:
        size: numbers of an embedding.
    """

    def __init__(self, name: str, model: bytes, clip_samples: int, on_gpu: bool = False) -> None:
        """Loads a model and tries it on noise.

        Args:
            name: of the embedding, for error texts.
            model: the content of the file.
            clip_samples: of a window.
            on_gpu: whether it runs on a GPU.

        Raises:
            UserError: no model that can be used, or onnxruntime is not installed.
        """
        self.where = f"evaluation.embeddings.{name}"
        runtime = import_onnxruntime(name)
        options = runtime.SessionOptions()
        # One thread: as many processes as CPUs run at a time, and sums have one order.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The arena would keep the memory of the largest batch: a gigabyte with CNN14.
        options.enable_cpu_mem_arena = False
        # Errors are raised as well.
        options.log_severity_level = 4
        # TensorFloat-32 would give other embeddings than a CPU.
        gpu = [(GPU_PROVIDER, {"use_tf32": "0"})] if on_gpu else []
        providers = [*gpu, "CPUExecutionProvider"]
        try:
            self.session = runtime.InferenceSession(model, options, providers=providers)
        except Exception as error:
            why = error_summary(error)
            if "external" in why.lower():
                why += " (the file must hold the weights: export with external_data=False)"
            raise UserError(f"{self.where}: onnxruntime can't load the model: {why}") from error
        self.clip_samples = clip_samples
        self._check_inputs()
        self.size = 0
        noise = np.random.default_rng(0).normal(0, 0.1, (min(2, self.most), clip_samples))
        found = self.embed(noise.astype(np.float32))
        if not np.isfinite(found).all():
            raise UserError(f"{self.where}: the model's output for white noise is not finite")
        self.size = found.shape[1]
        if self.size > LARGEST_SIZE:
            raise UserError(
                f"{self.where}: the model's embeddings have {self.size} numbers: more than the "
                f"{LARGEST_SIZE} that distances are computed of"
            )

    def _check_inputs(self) -> None:
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(
                f"{self.where}: the model has {len(inputs)} inputs and {len(outputs)} outputs: "
                "it must have one input, waveforms, and one output, embeddings"
            )
        (given,) = inputs
        shape = given.shape
        if given.type != "tensor(float)":
            raise UserError(
                f"{self.where}: the model's input is {given.type}: it must be float32, "
                "tensor(float)"
            )
        if len(shape) != 2:
            raise UserError(
                f"{self.where}: the model's input has the shape {shape_text(shape)}: it must be "
                "(batch, samples)"
            )
        batch, samples = shape
        if isinstance(batch, int) and batch != 1:
            raise UserError(
                f"{self.where}: the model takes batches of {batch} waveforms only: export it with "
                "a dynamic batch size, or one of 1"
            )
        if isinstance(samples, int) and samples != self.clip_samples:
            raise UserError(
                f"{self.where}: the model takes {samples} samples, but sample_rate × clip_length "
                f"are {self.clip_samples}"
            )
        fitting = max(1, min(BATCH_WINDOWS, BATCH_SAMPLES // self.clip_samples))
        self.most = 1 if batch == 1 else fitting
        self.input = given.name

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """Embeddings of some windows, in batches of a fixed size.

        Args:
            waveforms: float32 `(n, clip_samples)`, full scale at 1, n at least 1.

        Returns:
            float32 `(n, size)`; frames are averaged. A number may be not finite.

        Raises:
            UserError: the model fails, or its output is neither `(n, size)` nor
                `(n, frames, size)`.
        """
        found = []
        for start in range(0, len(waveforms), self.most):
            batch = waveforms[start : start + self.most]
            try:
                (output,) = self.session.run(None, {self.input: batch})
            except Exception as error:
                raise UserError(
                    f"{self.where}: the model fails on waveforms of the shape "
                    f"{shape_text(batch.shape)}: {error_summary(error)}"
                ) from error
            found.append(self._mean_of_frames(output, len(batch)))
        return np.concatenate(found)

    def _mean_of_frames(self, output: Any, count: int) -> np.ndarray:
        shape = np.shape(output)
        is_right = len(shape) in (2, 3) and shape[0] == count and 0 not in shape
        if not is_right or shape[-1] != (self.size or shape[-1]):
            wanted = self.size or "size"
            raise UserError(
                f"{self.where}: the model's output for {count} waveforms has the shape "
                f"{shape_text(shape)}: it must be ({count}, {wanted}) or "
                f"({count}, frames, {wanted})"
            )
        array = np.asarray(output)
        if array.ndim == 3:
            array = array.mean(axis=1, dtype=np.float64)
        return array.astype(np.float32)


def import_onnxruntime(name: str) -> Any:
    """The module onnxruntime. Raises UserError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"evaluation.embeddings.{name} needs onnxruntime: pip install 'raysound[onnx]'"
        ) from error
    return onnxruntime


def read_model(name: str, path: str) -> tuple[bytes, str]:
    """The content of a model's file and its SHA-256. Raises UserError where there is none."""
    try:
        model = storage.read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"evaluation.embeddings.{name}.path: there is no file {path}") from None
    except OSError as error:
        raise UserError(
            f"evaluation.embeddings.{name}.path: {path} can't be read: {error.strerror or error}"
        ) from error
    return model, hashlib.sha256(model).hexdigest()


@lru_cache(maxsize=1)
def load_onnx_model(
    name: str, path: str, sha256: str, clip_samples: int, on_gpu: bool
) -> OnnxModel:
    """A model, loaded once a process and content. Raises UserError for a file that has changed."""
    model, found = read_model(name, path)
    if found != sha256:
        raise UserError(f"evaluation.embeddings.{name}.path: {path} changed while it was used")
    return OnnxModel(name, model, clip_samples, on_gpu)


def error_summary(error: Exception) -> str:
    """What an exception says, without what follows its first line."""
    return str(error).strip().partition("\n")[0]


def shape_text(shape: Any) -> str:
    """A shape as text; a size that is not fixed by its name."""
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
