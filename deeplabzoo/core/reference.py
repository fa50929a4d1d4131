"""The referee: runs a graph in numpy, written to be read beside the op docstrings, not to be fast.

Every backend is judged against it, not against another backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from deeplabzoo.core import ops
from deeplabzoo.core.graph import Graph, Node
from deeplabzoo.core.interpolation import interpolation_matrix
from deeplabzoo.core.schedule import walk
from deeplabzoo.core.weights import Weights, check_weights

Array = np.ndarray[Any, Any]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * (np.clip(x + 3, 0, 6) / 6),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def forward(graph: Graph, weights: Weights, image: Array, *, dtype: str = "float64") -> dict[str, Array]:
    """Outputs by name, N, C, H, W, for an image batch N, C, H, W, in inference mode.

    Raises:
        WeightsError: weights that do not fit.
        GraphError: an image that does not fit.
    """
    wanted = {node for _, node in graph.outputs}
    results = {name: value for name, value in trace(graph, weights, image, dtype=dtype) if name in wanted}
    return {name: results[node] for name, node in graph.outputs}


def trace(graph: Graph, weights: Weights, image: Array, *, dtype: str = "float64") -> Iterator[tuple[str, Array]]:
    """Name and value of every node in the graph's order; arguments and errors as for `forward`."""
    check_weights(graph, weights)
    graph.shapes(image.shape[2], image.shape[3], image.shape[0])

    def apply(node: Node, values: list[Array]) -> Array:
        suffixes = node.op.parameters()
        parameters = {suffix: np.asarray(weights[f"{node.name}.{suffix}"]).astype(dtype) for suffix in suffixes}
        return np.asarray(evaluate(node.op, values, parameters))

    values = walk(graph, image.astype(dtype), apply)
    while True:
        with np.errstate(all="ignore"):  # of what is not finite the values themselves tell
            node, value = next(values, (None, None))
        if node is None or value is None:
            return
        yield node.name, value


def evaluate(op: ops.Op, values: Sequence[Array], parameters: dict[str, Array]) -> Any:
    """One op on arrays N, C, H, W, as its docstring says; parameters by suffix."""
    x = values[0]
    match op:
        case ops.Input() | ops.Dropout():
            return x
        case ops.Conv2d():
            return _conv2d(op, x, parameters)
        case ops.BatchNorm():
            scale = parameters["weight"] / np.sqrt(parameters["running_var"] + op.epsilon)
            shift = parameters["bias"] - parameters["running_mean"] * scale
            return x * _per_channel(scale) + _per_channel(shift)
        case ops.Activation(function="softmax"):
            e = np.exp(x - x.max(axis=1, keepdims=True))
            return e / e.sum(axis=1, keepdims=True)
        case ops.Activation():
            return _ACTIVATIONS[op.function](x)
        case ops.MaxPool():
            return np.maximum.reduce(_windows(op, x, -np.inf, -np.inf))
        case ops.AvgPool():
            return _avg_pool(op, x)
        case ops.GlobalAvgPool():
            return x.mean(axis=(2, 3), keepdims=True)
        case ops.Add():
            return sum(values[1:], x)
        case ops.Multiply():
            return x * values[1]
        case ops.Concat():
            return np.concatenate(values, axis=1)
        case ops.Resize():
            (_, _, h, w), (_, _, target_h, target_w) = x.shape, values[1].shape
            rows = interpolation_matrix(h, target_h, align_corners=op.align_corners).astype(x.dtype)
            columns = interpolation_matrix(w, target_w, align_corners=op.align_corners).astype(x.dtype)
            return rows @ x @ columns.T
        case ops.Argmax():
            return x.argmax(axis=1)[:, None]
    raise TypeError(f"no reference for op {op.kind!r}")


def _per_channel(values: Array) -> Array:
    return values[:, None, None]


def _conv2d(op: ops.Conv2d, x: Array, parameters: dict[str, Array]) -> Array:
    n, out_c, out_h, out_w = op.infer([x.shape])
    top, bottom, left, right = ops.resolve_padding(op.padding, x.shape[2:], op.kernel, op.stride, op.dilation)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    weight, groups = parameters["weight"], op.groups
    y = np.zeros((n, out_c, out_h, out_w), x.dtype)
    for u in range(op.kernel):  # one matrix product a tap: little memory, and the taps stand as in the formula
        for v in range(op.kernel):
            tap = x[:, :, u * op.dilation :: op.stride, v * op.dilation :: op.stride][:, :, :out_h, :out_w]
            if op.depthwise and op.out_channels == op.in_channels:
                y += tap * _per_channel(weight[:, 0, u, v])
                continue
            grouped = tap.reshape(n, groups, -1, out_h * out_w)
            kernels = weight[:, :, u, v].reshape(groups, out_c // groups, -1)
            y += (kernels @ grouped).reshape(y.shape)
    return y + _per_channel(parameters["bias"]) if op.bias else y


def _windows(op: ops.MaxPool | ops.AvgPool, x: Array, border: float, beyond: float) -> list[Array]:
    """What each tap of the window reads, N, C, out_h, out_w: padding holds `border`, what hangs over it `beyond`."""
    _, _, out_h, out_w = op.infer([x.shape])
    top, bottom, left, right = ops.resolve_padding(op.padding, x.shape[2:], op.kernel, op.stride, 1)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=border)
    # With ceil_mode the last window may hang over the padded border by less than a stride.
    x = np.pad(x, ((0, 0), (0, 0), (0, op.stride), (0, op.stride)), constant_values=beyond)
    return [
        x[:, :, u :: op.stride, v :: op.stride][:, :, :out_h, :out_w]
        for u in range(op.kernel)
        for v in range(op.kernel)
    ]


def _avg_pool(op: ops.AvgPool, x: Array) -> Array:
    counted = np.ones((1, 1, *x.shape[2:]), x.dtype)
    count = np.add.reduce(_windows(op, counted, float(op.count_padding), 0.0))
    return np.asarray(np.add.reduce(_windows(op, x, 0.0, 0.0)) / count)
