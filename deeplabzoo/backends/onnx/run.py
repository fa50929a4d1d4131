"""Running an ONNX model on numpy arrays: onnxruntime, and onnx.reference in float64, which onnxruntime can't convolve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from deeplabzoo.backends.onnx.build import graph_of, single_node
from deeplabzoo.core.graph import Node
from deeplabzoo.core.schedule import walk
from deeplabzoo.errors import BackendError

_CUDA = "CUDAExecutionProvider"
_settings: dict[str, Any] = {"device": "cpu"}


def configure(device: str) -> None:
    """Make this process compute strictly: TF32 off.

    Call it in a process of its own (a worker), before the first operation.
    """
    _settings["device"] = device


def devices() -> tuple[str, ...]:
    """Devices that work here: `cpu`, and `gpu` where onnxruntime is a build with CUDA."""
    return ("cpu", "gpu") if _CUDA in onnxruntime.get_available_providers() else ("cpu",)


def device_name(device: str) -> str:
    """What the device calls itself."""
    return "CUDA" if device == "gpu" else "CPU"


class Prepared:
    """A model made ready to run, so that the work is done once for many images.

    Args:
        model: what to run; later changes to it are not seen.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        self.outputs = [output.name for output in model.graph.output]
        self._run: Any
        if model.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE:
            self._run = ReferenceEvaluator(model)
        else:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            providers: list[Any] = ["CPUExecutionProvider"]
            if _settings["device"] == "gpu":
                providers.insert(0, (_CUDA, {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}))
            self._run = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)

    def run(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name."""
        return dict(zip(self.outputs, self._run.run(self.outputs, values), strict=True))


def trace(model: ModelProto | Prepared, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value N, C, H, W of every node in the graph's order, each made when it is asked for.

    Each node of our graph runs as a model of its own, so that no more is in memory than the network needs.

    Raises:
        BackendError: the model was not built by this package.
    """
    whole = model.model if isinstance(model, Prepared) else model
    graph = graph_of(whole)
    if graph is None:
        raise BackendError("the ONNX model holds no graph of ours: expected one that deeplabzoo built; build it anew")
    kind = whole.graph.input[0].type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    parameters = {tensor.name: tensor for tensor in whole.graph.initializer}

    def apply(node: Node, values: list[np.ndarray]) -> np.ndarray:
        part = single_node(node, values, [parameters[name] for name in node.parameters()], str(dtype))
        names = [value.name for value in part.graph.input]
        return Prepared(part).run(dict(zip(names, values, strict=True)))[node.name]

    for node, value in walk(graph, np.ascontiguousarray(x, dtype), apply):
        yield node.name, value


def prepare(model: ModelProto) -> Prepared:
    """What `forward` runs many times faster than the model itself."""
    return Prepared(model)


def forward(model: ModelProto | Prepared, x: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, N, C, H, W, for a preprocessed image batch N, C, H, W, cast to the model's dtype."""
    ready = model if isinstance(model, Prepared) else Prepared(model)
    return ready.run({"input": np.ascontiguousarray(x, ready.dtype)})
