"""Canonical weights to and from a PyTorch model: the names are equal, so are the shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from deeplabzoo.core.weights import check_weights


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy canonical arrays into the model, cast to its dtype, on its device.

    Raises:
        WeightsError: a tensor that is missing, unexpected or of the wrong shape.
    """
    check_weights(model.graph, weights)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if name in weights:  # all but num_batches_tracked, which canonical weights need not have
                # A copy: the array may be a read-only map of a file, which PyTorch must not alias.
                tensor.copy_(torch.from_numpy(np.array(weights[name])))


def read_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Canonical arrays of a model, on the CPU, in the model's own dtypes (`num_batches_tracked` included; bfloat16 as float32)."""
    return {name: to_numpy(tensor) for name, tensor in model.state_dict().items()}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """An array on the CPU; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
