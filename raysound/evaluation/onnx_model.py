"""ONNX models that compute embeddings from waveforms, run by onnxruntime."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from raysound import storage
from raysound.errors import UserError

# Limits of a batch, for example 13 windows of 10 s at 32 kHz; activations take some hundred MB.
BATCH_SAMPLES, BATCH_WINDOWS = 1 << 22, 64
# Maximum dimension of an embedding; its covariance matrix takes 128 MB.
MAX_SIZE = 4096
GPU_PROVIDER = "CUDAExecutionProvider"


class OnnxModel:
    """A model with checked inputs and outputs.

    Attributes:
        size: dimension of the embedding.
        batch_size: windows per run.
    """

    def __init__(self, name: str, model: bytes, clip_samples: int, on_gpu: bool = False) -> None:
        """Loads a model and runs it on noise.

        Args:
            name: of the embedding, for error messages.
            model: the content of the file.
            clip_samples: samples of a window.
            on_gpu: whether it runs on a GPU.

        Raises:
            UserError: the model can't be used, or onnxruntime is not installed.
        """
        self.where = f"evaluation.embeddings.{name}"
        runtime = import_onnxruntime(name)
        options = runtime.SessionOptions()
        # One thread, because one process per CPU runs, and for a fixed order of sums.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The arena keeps the memory of the largest batch, a gigabyte for CNN14.
        options.enable_cpu_mem_arena = False
        # Logs no errors, because onnxruntime also raises them.
        options.log_severity_level = 4
        # With TensorFloat-32, embeddings differ from those of a CPU.
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
        noise = np.random.default_rng(0).normal(0, 0.1, (min(2, self.batch_size), clip_samples))
        embedding = self.embed(noise.astype(np.float32))
        if not np.isfinite(embedding).all():
            raise UserError(f"{self.where}: the model's output for white noise is not finite")
        self.size = embedding.shape[1]
        if self.size > MAX_SIZE:
            raise UserError(
                f"{self.where}: the model's embeddings have {self.size} dimensions; the maximum "
                f"is {MAX_SIZE}"
            )

    def _check_inputs(self) -> None:
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(
                f"{self.where}: the model has {len(inputs)} inputs and {len(outputs)} outputs: "
                "it must have one input, waveforms, and one output, embeddings"
            )
        (model_input,) = inputs
        shape = model_input.shape
        if model_input.type != "tensor(float)":
            raise UserError(
                f"{self.where}: the model's input is {model_input.type}: it must be float32, "
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
        limit = max(1, min(BATCH_WINDOWS, BATCH_SAMPLES // self.clip_samples))
        self.batch_size = 1 if batch == 1 else limit
        self.input = model_input.name

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """Computes the embeddings of some windows, in batches.

        Args:
            waveforms: float32 `(n, clip_samples)`, full scale at 1, n at least 1.

        Returns:
            float32 `(n, size)`, the mean over frames, which may not be finite.

        Raises:
            UserError: the model fails, or its output is neither `(n, size)` nor
                `(n, frames, size)`.
        """
        embeddings = []
        for start in range(0, len(waveforms), self.batch_size):
            batch = waveforms[start : start + self.batch_size]
            try:
                (output,) = self.session.run(None, {self.input: batch})
            except Exception as error:
                raise UserError(
                    f"{self.where}: the model fails on waveforms of the shape "
                    f"{shape_text(batch.shape)}: {error_summary(error)}"
                ) from error
            embeddings.append(self._mean_of_frames(output, len(batch)))
        return np.concatenate(embeddings)

    def _mean_of_frames(self, output: Any, count: int) -> np.ndarray:
        shape = np.shape(output)
        is_valid = len(shape) in (2, 3) and shape[0] == count and 0 not in shape
        if not is_valid or shape[-1] != (self.size or shape[-1]):
            expected = self.size or "size"
            raise UserError(
                f"{self.where}: the model's output for {count} waveforms has the shape "
                f"{shape_text(shape)}: it must be ({count}, {expected}) or "
                f"({count}, frames, {expected})"
            )
        array = np.asarray(output)
        if array.ndim == 3:
            array = array.mean(axis=1, dtype=np.float64)
        return array.astype(np.float32)


def import_onnxruntime(name: str) -> Any:
    """The module onnxruntime. Raises UserError if it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"evaluation.embeddings.{name} needs onnxruntime: pip install 'raysound[onnx]'"
        ) from error
    return onnxruntime


def read_model(name: str, path: str) -> tuple[bytes, str]:
    """The content of a model's file and its SHA-256. Raises UserError if it can't be read."""
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
    """Loads a model once per process. Raises UserError if the file has changed."""
    model, content_sha256 = read_model(name, path)
    if content_sha256 != sha256:
        raise UserError(f"evaluation.embeddings.{name}.path: {path} changed while it was used")
    return OnnxModel(name, model, clip_samples, on_gpu)


def error_summary(error: Exception) -> str:
    """The first line of an exception's text."""
    return str(error).strip().partition("\n")[0]


def shape_text(shape: Any) -> str:
    """A shape as text; a dynamic size is given by its name."""
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
