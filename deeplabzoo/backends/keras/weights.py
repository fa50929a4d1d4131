"""Canonical weights to and from a Keras model: other names for the same variables, kernels transposed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from deeplabzoo.core import ops
from deeplabzoo.core.training import trainable
from deeplabzoo.core.weights import check_weights
from deeplabzoo.weights_converter.keras_paths import from_keras, keras_layer_name, to_keras

_VARIABLES = {
    ops.Conv2d: {"weight": "kernel", "bias": "bias"},
    ops.BatchNorm: {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
}
"""Attributes of the layers by canonical suffix."""


def load_weights(model: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Copy canonical arrays into the model, cast to its dtype, on its device.

    Raises:
        WeightsError: a tensor that is missing, unexpected or of the wrong shape.
    """
    check_weights(model.graph, weights)
    for name, op, suffix, variable in _variables(model):
        variable.assign(to_keras(op, suffix, np.asarray(weights[name])))


def read_weights(model: Any) -> dict[str, np.ndarray]:
    """Canonical arrays of a model in the model's own dtypes, copied (Keras counts no batches)."""
    return {
        name: np.array(from_keras(op, suffix, keras.ops.convert_to_numpy(variable)))
        for name, op, suffix, variable in _variables(model)
    }


def trainable_variables(model: Any) -> Iterator[tuple[str, ops.Op, str, Any]]:
    """Canonical name, op, suffix and variable of every parameter that learns, in canonical order."""
    return (found for found in _variables(model) if trainable(found[0]))


def _variables(model: Any) -> Iterator[tuple[str, ops.Op, str, Any]]:
    """Canonical name, op, suffix and variable of every parameter, in canonical order."""
    for node in model.graph.nodes:
        for suffix in node.op.parameters():
            layer = model.get_layer(keras_layer_name(node.name))
            yield f"{node.name}.{suffix}", node.op, suffix, getattr(layer, _VARIABLES[type(node.op)][suffix])
