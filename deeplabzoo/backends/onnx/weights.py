"""Canonical weights to and from an ONNX model: its initialisers have the canonical names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from deeplabzoo.backends.onnx.build import graph_of
from deeplabzoo.core.weights import check_weights
from deeplabzoo.errors import BackendError


def load_weights(model: ModelProto, weights: Mapping[str, np.ndarray]) -> None:
    """Copy canonical arrays into the model's initialisers, cast to their type.

    Raises:
        WeightsError: a tensor that is missing, unexpected or of the wrong shape.
        BackendError: the model was not built by this package.
    """
    graph = graph_of(model)
    if graph is None:
        raise BackendError("the ONNX model holds no graph of ours: expected one that deeplabzoo built; build it anew")
    check_weights(graph, weights)
    parameters = graph.parameters().keys()
    for tensor in model.graph.initializer:
        if tensor.name in parameters:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.raw_data = np.ascontiguousarray(weights[tensor.name], dtype).tobytes()


def read_weights(model: ModelProto) -> dict[str, np.ndarray]:
    """Canonical arrays of a model, in its own dtype."""
    graph = graph_of(model)
    names = graph.parameters().keys() if graph else ()
    return {t.name: np.array(numpy_helper.to_array(t)) for t in model.graph.initializer if t.name in names}
