"""Canonical weights to and from a Paddle model: only the running statistics have another name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle
from paddle import nn

from deeplabzoo.core.weights import check_weights

_CANONICAL = {"_mean": "running_mean", "_variance": "running_var"}


def load_weights(model: nn.Layer, weights: Mapping[str, np.ndarray]) -> None:
    """Copy canonical arrays into the model, cast to its dtype, on its device.

    Raises:
        WeightsError: a tensor that is missing, unexpected or of the wrong shape.
    """
    check_weights(model.graph, weights)
    for name, tensor in model.state_dict().items():
        array = np.asarray(weights[_canonical(name)])
        tensor.set_value(paddle.to_tensor(array, dtype=tensor.dtype, place=tensor.place))


def read_weights(model: nn.Layer) -> dict[str, np.ndarray]:
    """Canonical arrays of a model, on the CPU, in the model's own dtype."""
    return {_canonical(name): tensor.numpy() for name, tensor in model.state_dict().items()}


def _canonical(name: str) -> str:
    node, _, suffix = name.rpartition(".")
    return f"{node}.{_CANONICAL.get(suffix, suffix)}"
