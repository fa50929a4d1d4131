"""Running an ONNX model on numpy arrays: onnxruntime, and onnx.reference in float64, which onnxruntime can't convolve."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

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

    def forward(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name."""
        made = self._run.run(self.outputs, {"input": np.ascontiguousarray(x, self.dtype)})
        return dict(zip(self.outputs, made, strict=True))


def prepare(model: ModelProto) -> Prepared:
    """What `forward` runs many times faster than the model itself."""
    return Prepared(model)


def forward(model: ModelProto | Prepared, x: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, N, C, H, W, for a preprocessed image batch N, C, H, W, cast to the model's dtype."""
    return (model if isinstance(model, Prepared) else Prepared(model)).forward(x)
