"""Running a Paddle model on numpy arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import paddle
from paddle import nn

from deeplabzoo.backends.paddle.build import DeepLab
from deeplabzoo.core.graph import Node
from deeplabzoo.core.schedule import walk


def configure(device: str) -> None:
    """Make this process compute strictly on `device`: TF32 off, deterministic kernels.

    Call it in a process of its own (a worker), before the first operation. Does nothing for a device that is not here.
    """
    if device not in devices():
        return
    if device == "gpu":
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # NVIDIA's own switch, read by cuBLAS and cuDNN when they start
        paddle.set_flags({"FLAGS_cudnn_deterministic": True})
    paddle.set_device(device)


def devices() -> tuple[str, ...]:
    """Devices that work here: `cpu`, and `gpu` where Paddle has CUDA and finds one."""
    if paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0:
        return ("cpu", "gpu")
    return ("cpu",)


def device_name(device: str) -> str:
    """What the device calls itself."""
    return str(paddle.device.cuda.get_device_name()) if device == "gpu" else "CPU"


def forward(model: nn.Layer, x: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, N, C, H, W, for a preprocessed image batch N, C, H, W, cast to the model's dtype."""
    with paddle.no_grad():
        results = model(_image(model, x))
    if not isinstance(results, dict):
        results = {"out": results}
    return {name: value.numpy() for name, value in results.items()}


def trace(model: DeepLab, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value N, C, H, W of every node in the graph's order, each made when it is asked for."""
    layers = dict(model.named_sublayers())

    def apply(node: Node, values: list[paddle.Tensor]) -> paddle.Tensor:
        with paddle.no_grad():
            return layers[node.name](*values)

    for node, value in walk(model.graph, _image(model, x), apply):
        yield node.name, value.numpy()


def _image(model: nn.Layer, x: np.ndarray) -> paddle.Tensor:
    parameter = model.parameters()[0]
    return paddle.to_tensor(np.ascontiguousarray(x), dtype=parameter.dtype, place=parameter.place)
