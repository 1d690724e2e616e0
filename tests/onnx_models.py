"""ONNX models that tests make."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KERNEL, STRIDE = 64, 32
Shape = Sequence[int | str]


def convolution(size: int) -> np.ndarray:
    """Random filters, `(size, 1, KERNEL)`."""
    rng = np.random.default_rng(size)
    return rng.normal(0, 0.2, (size, 1, KERNEL)).astype(np.float32)


def write_model(
    path: Path,
    size: int = 6,
    shape: Shape = ("batch", "samples"),
    output: str = "frames",
    after: str = "Abs",
) -> Path:
    """A model that convolves a waveform, takes a function of the result, and returns frames.

    Args:
        path: to write to.
        size: of an embedding.
        shape: of the input.
        output: `frames` for `(batch, frames, size)`, `mean` for `(batch, size)`, `flat` for
            `(batch,)`.
        after: operator after the convolution.
    """
    # A model whose input has channels takes it as it is.
    signal = "channel" if len(shape) == 2 else "waveform"
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = [
        helper.make_node("Unsqueeze", ["waveform", "axis"], ["channel"]),
        helper.make_node("Conv", [signal, "filters"], ["convolved"], strides=[STRIDE]),
        helper.make_node(after, ["convolved"], ["positive"]),
        helper.make_node("Transpose", ["positive"], ["frames"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["frames", "axis"], ["mean"], keepdims=0),
        helper.make_node("ReduceMean", ["mean", "axis"], ["flat"], keepdims=0),
    ]
    kept = {"frames": 4, "mean": 5, "flat": 6}[output]
    graph = helper.make_graph(
        nodes[:kept],
        "test",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [axis, numpy_helper.from_array(convolution(size), "filters")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


def embedded(windows: np.ndarray, size: int = 6) -> np.ndarray:
    """What `write_model`'s model makes of `(n, samples)`, by numpy in float64: `(n, size)`."""
    framed = np.lib.stride_tricks.sliding_window_view(windows.astype(np.float64), KERNEL, axis=1)
    frames = np.abs(framed[:, ::STRIDE] @ convolution(size)[:, 0].T.astype(np.float64))
    return frames.mean(axis=1)
