"""The referee's way back: the gradient of every op in numpy, written to be read beside the op docstrings.

`core.reference` computes the values; this file says what a change of each input and parameter does to the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplabzoo.core import ops
from deeplabzoo.core.interpolation import interpolation_matrix
from deeplabzoo.errors import GraphError

Array = np.ndarray[Any, Any]
Gradients = tuple[list[Array], dict[str, Array]]
"""Of the loss, by every input in order and by every parameter by suffix."""

_CHANNELS = (0, 2, 3)
"""Axes over which a number a channel is summed."""


def backward(
    op: ops.Op, values: Sequence[Array], made: Array, gradient: Array, parameters: dict[str, Array]
) -> Gradients:
    """Gradients of the loss by inputs and parameters of an op in evaluation mode.

    Args:
        op: the op.
        values: its inputs N, C, H, W.
        made: its output.
        gradient: of the loss by its output.
        parameters: by suffix.

    Raises:
        GraphError: an op without a gradient (`argmax`).
    """
    x = values[0]
    match op:
        case ops.Dropout():
            return [gradient], {}
        case ops.Conv2d():
            return _conv2d(op, x, gradient, parameters)
        case ops.BatchNorm():
            spread = _per_channel(np.sqrt(parameters["running_var"] + op.epsilon))
            normal = (x - _per_channel(parameters["running_mean"])) / spread
            return [gradient * _per_channel(parameters["weight"]) / spread], _affine(normal, gradient)
        case ops.Activation(function="softmax"):
            return [made * (gradient - (gradient * made).sum(axis=1, keepdims=True))], {}
        case ops.Activation():
            return [gradient * _slope(op.function, x)], {}
        case ops.MaxPool():
            return [_max_pool(op, x, made, gradient)], {}
        case ops.AvgPool():
            return [_avg_pool(op, x, gradient)], {}
        case ops.GlobalAvgPool():
            return [np.broadcast_to(gradient / (x.shape[2] * x.shape[3]), x.shape)], {}
        case ops.Add():
            return [gradient] * len(values), {}
        case ops.Multiply():
            return [gradient * values[1], (gradient * x).sum(axis=(2, 3), keepdims=True)], {}
        case ops.Concat():
            ends = np.cumsum([value.shape[1] for value in values])[:-1]
            return list(np.split(gradient, ends, axis=1)), {}
        case ops.Resize():
            (_, _, h, w), (_, _, target_h, target_w) = x.shape, values[1].shape
            rows = interpolation_matrix(h, target_h, align_corners=op.align_corners).astype(x.dtype)
            columns = interpolation_matrix(w, target_w, align_corners=op.align_corners).astype(x.dtype)
            # The second input lends its size alone.
            return [rows.T @ gradient @ columns, np.zeros_like(values[1])], {}
    raise GraphError(f"op {op.kind} has no gradient: expected a network that returns logits")


def batch_norm_of_batch(op: ops.BatchNorm, x: Array, parameters: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Training mode: the normalised batch, scaled and shifted, and the moved running statistics by suffix.

    Raises:
        GraphError: one value a channel, of which no variance can be told.
    """
    count = x.size // x.shape[1]
    if count < 2:
        raise GraphError(
            f"batch norm of {op.channels} channels in training mode received one value a channel (shape "
            f"{'x'.join(map(str, x.shape))}), expected at least two: use a batch of 2 or more, or frozen batch norm"
        )
    mean, variance = x.mean(axis=_CHANNELS), x.var(axis=_CHANNELS)
    y = (x - _per_channel(mean)) / _per_channel(np.sqrt(variance + op.epsilon))
    kept = op.momentum
    moved = {
        "running_mean": kept * parameters["running_mean"] + (1 - kept) * mean,
        "running_var": kept * parameters["running_var"] + (1 - kept) * variance * count / (count - 1),
    }
    return y * _per_channel(parameters["weight"]) + _per_channel(parameters["bias"]), moved


def batch_norm_of_batch_backward(
    op: ops.BatchNorm, x: Array, gradient: Array, parameters: dict[str, Array]
) -> Gradients:
    """Gradients of `batch_norm_of_batch` (Ioffe and Szegedy 2015, section 3): mean and variance move with the batch."""
    mean, variance = x.mean(axis=_CHANNELS, keepdims=True), x.var(axis=_CHANNELS, keepdims=True)
    spread = np.sqrt(variance + op.epsilon)
    normal = (x - mean) / spread
    by_normal = gradient * _per_channel(parameters["weight"])
    common = by_normal.mean(axis=_CHANNELS, keepdims=True)
    along = (by_normal * normal).mean(axis=_CHANNELS, keepdims=True)
    return [(by_normal - common - normal * along) / spread], _affine(normal, gradient)


_Place = tuple[slice, ...]
"""Where a tap of a window reads."""


def _per_channel(values: Array) -> Array:
    return values[:, None, None]


def _affine(normal: Array, gradient: Array) -> dict[str, Array]:
    return {"weight": (gradient * normal).sum(axis=_CHANNELS), "bias": gradient.sum(axis=_CHANNELS)}


def _slope(function: str, x: Array) -> Array:
    """The derivative; at a kink that of the flat side, as in every framework."""
    match function:
        case "relu":
            return (x > 0).astype(x.dtype)
        case "relu6":
            return ((x > 0) & (x < 6)).astype(x.dtype)
        case "hard_sigmoid":
            return np.asarray(((x > -3) & (x < 3)) / 6, x.dtype)
        case "hard_swish":
            return np.asarray(np.where(x <= -3, 0, np.where(x >= 3, 1, (2 * x + 3) / 6)), x.dtype)
        case "sigmoid":
            y = 1 / (1 + np.exp(-x))
            return np.asarray(y * (1 - y))
    raise TypeError(f"no derivative for the function {function!r}")


def _conv2d(op: ops.Conv2d, x: Array, gradient: Array, parameters: dict[str, Array]) -> Gradients:
    n, out_c, out_h, out_w = gradient.shape
    top, bottom, left, right = ops.resolve_padding(op.padding, x.shape[2:], op.kernel, op.stride, op.dilation)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    weight, groups = parameters["weight"], op.groups
    by_x, by_weight = np.zeros_like(padded), np.zeros_like(weight)
    grouped = gradient.reshape(n, groups, out_c // groups, out_h * out_w)
    for u in range(op.kernel):
        for v in range(op.kernel):
            place = (
                slice(None), slice(None),
                slice(u * op.dilation, u * op.dilation + (out_h - 1) * op.stride + 1, op.stride),
                slice(v * op.dilation, v * op.dilation + (out_w - 1) * op.stride + 1, op.stride),
            )  # fmt: skip
            tap = padded[place]
            if op.depthwise and op.out_channels == op.in_channels:
                by_x[place] += gradient * _per_channel(weight[:, 0, u, v])
                by_weight[:, 0, u, v] = (gradient * tap).sum(axis=_CHANNELS)
                continue
            kernels = weight[:, :, u, v].reshape(groups, out_c // groups, -1)
            by_x[place] += (kernels.swapaxes(1, 2) @ grouped).reshape(tap.shape)
            taps = tap.reshape(n, groups, -1, out_h * out_w)
            by_weight[:, :, u, v] = (grouped @ taps.swapaxes(2, 3)).sum(axis=0).reshape(weight.shape[:2])
    height, width = x.shape[2:]
    by_parameter = {"weight": by_weight}
    if op.bias:
        by_parameter["bias"] = gradient.sum(axis=_CHANNELS)
    return [by_x[:, :, top : top + height, left : left + width]], by_parameter


def _windows(op: ops.MaxPool | ops.AvgPool, x: Array) -> tuple[tuple[int, ...], list[_Place]]:
    """Shape of the input with its padding and what may hang over, and where each tap of the window reads in it."""
    _, _, out_h, out_w = op.infer([x.shape])
    top, bottom, left, right = ops.resolve_padding(op.padding, x.shape[2:], op.kernel, op.stride, 1)
    shape = (*x.shape[:2], x.shape[2] + top + bottom + op.stride, x.shape[3] + left + right + op.stride)
    places: list[_Place] = [
        (
            slice(None), slice(None),
            slice(u, u + (out_h - 1) * op.stride + 1, op.stride),
            slice(v, v + (out_w - 1) * op.stride + 1, op.stride),
        )
        for u in range(op.kernel)
        for v in range(op.kernel)
    ]  # fmt: skip
    return shape, places


def _inside(op: ops.MaxPool | ops.AvgPool, x: Array) -> tuple[slice, ...]:
    """Where `x` itself lies in the padded input."""
    top, _, left, _ = ops.resolve_padding(op.padding, x.shape[2:], op.kernel, op.stride, 1)
    return (slice(None), slice(None), slice(top, top + x.shape[2]), slice(left, left + x.shape[3]))


def _max_pool(op: ops.MaxPool, x: Array, made: Array, gradient: Array) -> Array:
    shape, places = _windows(op, x)
    padded, by_padded = np.full(shape, -np.inf, x.dtype), np.zeros(shape, x.dtype)
    padded[_inside(op, x)] = x
    given = np.zeros(made.shape, bool)
    for place in places:  # the first largest value of a window takes it all
        here = (padded[place] == made) & ~given
        by_padded[place] += gradient * here
        given |= here
    return np.asarray(by_padded[_inside(op, x)])


def _avg_pool(op: ops.AvgPool, x: Array, gradient: Array) -> Array:
    shape, places = _windows(op, x)
    counted = np.zeros((1, 1, *shape[2:]), x.dtype)
    if op.count_padding:
        top, bottom, left, right = op.padding
        counted[:, :, : x.shape[2] + top + bottom, : x.shape[3] + left + right] = 1
    counted[_inside(op, x)] = 1
    shares = gradient / np.add.reduce([counted[place] for place in places])
    by_padded = np.zeros(shape, x.dtype)
    for place in places:
        by_padded[place] += shares
    return np.asarray(by_padded[_inside(op, x)])
