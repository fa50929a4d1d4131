"""Running a PyTorch model on numpy arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from deeplabzoo.backends.torch.build import DeepLab
from deeplabzoo.backends.torch.weights import to_numpy
from deeplabzoo.core.graph import Node
from deeplabzoo.core.schedule import walk


def configure(device: str) -> None:
    """Make this process compute strictly: TF32 off, deterministic kernels.

    Call it in a process of its own (a worker), before the first operation.
    """
    if device == "gpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def devices() -> tuple[str, ...]:
    """Devices that work here: `cpu`, and `gpu` where CUDA has one."""
    return ("cpu", "gpu") if torch.cuda.is_available() else ("cpu",)


def device_name(device: str) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name() if device == "gpu" else "CPU"


def forward(model: nn.Module, x: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, N, C, H, W, for a preprocessed image batch N, C, H, W, cast to the model's dtype."""
    with torch.inference_mode():
        results = model(_image(model, x))
    if not isinstance(results, dict):
        results = {"out": results}
    return {name: to_numpy(value) for name, value in results.items()}


def trace(model: DeepLab, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value N, C, H, W of every node in the graph's order, each made when it is asked for."""

    def apply(node: Node, values: list[torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            made: torch.Tensor = model.get_submodule(node.name)(*values)
        return made

    for node, value in walk(model.graph, _image(model, x), apply):
        yield node.name, to_numpy(value)


def _image(model: nn.Module, x: np.ndarray) -> torch.Tensor:
    parameter = next(model.parameters())
    return torch.from_numpy(np.ascontiguousarray(x)).to(device=parameter.device, dtype=parameter.dtype)
