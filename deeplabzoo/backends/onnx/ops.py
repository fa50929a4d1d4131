"""The ONNX nodes of each op, of opset 18; every runtime's own operators, no custom one.

Values are named like the nodes of our graph that make them, so that a trace needs no table. What an op needs inside has
its name and a `/` before a word of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from deeplabzoo.core import ops

OPSET = 18
"""The first whose `Pad` and `Resize` can speak of height and width alone."""

_PLANE = np.array([2, 3], np.int64)
_SIMPLE = {"relu": "Relu", "sigmoid": "Sigmoid"}


class Layer:
    """The nodes of one op, in order.

    Constants are nodes as well: initialisers are the parameters of the network and nothing else.

    Args:
        name: of the op's node, and of the value that it makes.
        dtype: numpy's element type of values.
    """

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, np.dtype(dtype)
        self.nodes: list[NodeProto] = []

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node; the value it makes is the op's own, or, with a `name`, one inside."""
        made = f"{self.name}/{name}" if name else self.name
        self.nodes.append(helper.make_node(kind, list(inputs), [made], name=made, **attributes))
        return made

    def constant(self, name: str, value: Any, *, integer: bool = False) -> str:
        """Add a constant of the values' type, or of whole numbers."""
        made = f"{self.name}/{name}"
        tensor = numpy_helper.from_array(np.asarray(value, np.int64 if integer else self.dtype))
        self.nodes.append(helper.make_node("Constant", [], [made], name=made, value=tensor))
        return made

    def parameter(self, suffix: str) -> str:
        """Name of a parameter of the op, an initialiser of the model."""
        return f"{self.name}.{suffix}"


def make_layer(op: ops.Op, *, name: str, inputs: Sequence[str], dtype: str) -> Layer:
    """The nodes that make `name` out of `inputs`.

    Raises:
        TypeError: an op that no backend should meet (`Input`).
    """
    layer, x = Layer(name, dtype), inputs[0] if inputs else ""
    match op:
        case ops.Conv2d():
            _conv(layer, op, x)
        case ops.BatchNorm():
            _batch_norm(layer, op, x)
        case ops.Activation(function="softmax"):
            layer.add("Softmax", x, axis=1)
        case ops.Activation(function="relu6"):
            layer.add("Clip", x, layer.constant("zero", 0), layer.constant("six", 6))
        case ops.Activation(function="hard_sigmoid"):
            _hard_sigmoid(layer, x, "")
        case ops.Activation(function="hard_swish"):
            layer.add("Mul", x, _hard_sigmoid(layer, x, "gate"))
        case ops.Activation():
            layer.add(_SIMPLE[op.function], x)
        case ops.MaxPool():
            _max_pool(layer, op, x)
        case ops.AvgPool():
            _avg_pool(layer, op, x)
        case ops.GlobalAvgPool():
            layer.add("GlobalAveragePool", x)
        case ops.Add():
            for number, other in enumerate(inputs[1:], 2):
                x = layer.add("Add", x, other, name="" if number == len(inputs) else f"first{number}")
        case ops.Multiply():
            layer.add("Mul", *inputs)
        case ops.Concat():
            layer.add("Concat", *inputs, axis=1)
        case ops.Resize():
            mode = "align_corners" if op.align_corners else "half_pixel"
            target = layer.add("Shape", inputs[1], name="target", start=2, end=4)
            layer.add("Resize", x, "", "", target, axes=[2, 3], mode="linear", coordinate_transformation_mode=mode)
        case ops.Dropout():
            layer.add("Identity", x)
        case ops.Argmax():
            layer.add("ArgMax", x, axis=1, keepdims=1)
        case _:
            raise TypeError(f"no ONNX node for op {op.kind!r}")
    return layer


def _conv(layer: Layer, op: ops.Conv2d, x: str) -> None:
    inputs = [layer.parameter("weight"), *([layer.parameter("bias")] if op.bias else [])]
    attributes: dict[str, Any] = {
        "kernel_shape": [op.kernel] * 2,
        "strides": [op.stride] * 2,
        "dilations": [op.dilation] * 2,
        "group": op.groups,
    }
    reach = op.dilation * (op.kernel - 1)
    if (sides := _sides(op.padding, reach, op.stride)) is not None:
        attributes["pads"] = _begins_and_ends(sides)
    elif op.dilation == 1 and reach >= op.stride - 1:
        attributes["auto_pad"] = "SAME_UPPER"  # onnxruntime refuses it with a dilation
    else:
        x = _padded_as_same(layer, x, reach, op.stride, 0)
    layer.add("Conv", x, *inputs, **attributes)


def _batch_norm(layer: Layer, op: ops.BatchNorm, x: str) -> None:
    variance = layer.parameter("running_var")
    stored = ops.float32_exact(op.epsilon)
    if layer.dtype == np.float64 and stored != op.epsilon:
        # The attribute is a float32 by ONNX's own definition; the rest of an exact double goes to the variance.
        variance = layer.add("Add", variance, layer.constant("rest", op.epsilon - stored), name="variance")
    others = (layer.parameter(suffix) for suffix in ("weight", "bias", "running_mean"))
    layer.add("BatchNormalization", x, *others, variance, epsilon=stored, momentum=op.momentum)


def _hard_sigmoid(layer: Layer, x: str, name: str) -> str:
    """ONNX has one of its own, whose sixth is a float32 attribute: 1e-9 off in float64."""
    six = layer.constant("six", 6)
    moved = layer.add("Add", x, layer.constant("three", 3), name="moved")
    cut = layer.add("Clip", moved, layer.constant("zero", 0), six, name="cut")
    return layer.add("Div", cut, six, name=name)


def _max_pool(layer: Layer, op: ops.MaxPool, x: str) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [op.kernel] * 2, "strides": [op.stride] * 2}
    sides = _sides(op.padding, op.kernel - 1, op.stride)
    if sides is None:
        x = _padded_as_same(layer, x, op.kernel - 1, op.stride, -np.inf)
    elif op.ceil_mode and op.padding != "same" and op.stride > 1:
        x = _cut_to_windows(layer, _padded(layer, x, sides, -np.inf, op.stride), op, sides, x)
    elif len(set(sides)) == 1 and sides[0] < op.kernel:  # onnxruntime refuses more, onnx.reference mixes up the sides
        attributes["pads"] = _begins_and_ends(sides)
    else:
        x = _padded(layer, x, sides, -np.inf)
    layer.add("MaxPool", x, **attributes)


def _avg_pool(layer: Layer, op: ops.AvgPool, x: str) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [op.kernel] * 2, "strides": [op.stride] * 2}
    sides, rounds_up = op.padding, op.ceil_mode and op.stride > 1
    if not rounds_up and (op.count_padding or not any(sides)):
        x = _padded(layer, x, sides, 0) if any(sides) else x
        layer.add("AveragePool", x, **attributes)
        return
    # The mean over all points of a window, divided by the share of them that counts.
    size = layer.add("Shape", x, name="plane", start=2, end=4)
    shape = layer.add("Concat", layer.constant("one_map", [1, 1], integer=True), size, name="map", axis=0)
    one = numpy_helper.from_array(np.ones(1, layer.dtype))
    counted = _padded(
        layer,
        layer.add("ConstantOfShape", shape, name="ones", value=one),
        sides,
        float(op.count_padding),
        name="border",
    )
    beyond = op.stride if rounds_up else 0
    whole = _padded(layer, x, sides, 0, beyond)
    if rounds_up:
        counted = _padded(layer, counted, (0, 0, 0, 0), 0, beyond, name="beyond")
        counted = _cut_to_windows(layer, counted, op, sides, x, name="counted")
        whole = _cut_to_windows(layer, whole, op, sides, x)
    mean = layer.add("AveragePool", whole, name="mean", **attributes)
    layer.add("Div", mean, layer.add("AveragePool", counted, name="share", **attributes))


def _sides(padding: ops.Padding, reach: int, stride: int) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right), or none where they depend on the size of the input."""
    if padding != "same":
        return padding
    if stride > 1 and reach > 0:
        return None
    return (reach // 2, reach - reach // 2) * 2


def _begins_and_ends(sides: tuple[int, int, int, int]) -> list[int]:
    top, bottom, left, right = sides
    return [top, left, bottom, right]


def _padded(
    layer: Layer, x: str, sides: tuple[int, int, int, int], value: float, beyond: int = 0, *, name: str = "padded"
) -> str:
    """`x` with `value` around it, and at the bottom and the right so many more."""
    top, bottom, left, right = sides
    pads = layer.constant(f"{name}_pads", [top, left, bottom + beyond, right + beyond], integer=True)
    plane = layer.constant(f"{name}_axes", _PLANE, integer=True)
    return layer.add("Pad", x, pads, layer.constant(f"{name}_value", value), plane, name=name)


def _padded_as_same(layer: Layer, x: str, reach: int, stride: int, value: float) -> str:
    """`core.ops.same_padding` as nodes, for height and width at once."""
    size = layer.add("Shape", x, name="size", start=2, end=4)
    one, step = layer.constant("one", 1, integer=True), layer.constant("stride", stride, integer=True)
    rest = layer.add("Mod", layer.add("Sub", size, one, name="last"), step, name="rest")
    needed = layer.add("Sub", layer.constant("reach", reach, integer=True), rest, name="needed")
    total = layer.add("Max", needed, layer.constant("none", 0, integer=True), name="total")
    before = layer.add("Div", total, layer.constant("two", 2, integer=True), name="before")
    pads = layer.add("Concat", before, layer.add("Sub", total, before, name="after"), name="pads", axis=0)
    plane = layer.constant("axes", _PLANE, integer=True)
    return layer.add("Pad", x, pads, layer.constant("value", value), plane, name="padded")


def _cut_to_windows(
    layer: Layer,
    padded: str,
    op: ops.MaxPool | ops.AvgPool,
    sides: tuple[int, int, int, int],
    x: str,
    *,
    name: str = "cut",
) -> str:
    """`padded` as far as the windows of `ceil_mode` reach: sizes rounded down are then those rounded up.

    ONNX has a `ceil_mode`, but runtimes differ in what a last window does that lies in the padding alone.
    """

    def whole(word: str, value: Any) -> str:
        return layer.constant(f"{name}_{word}", value, integer=True)

    top, bottom, left, right = sides
    size = layer.add("Shape", x, name=f"{name}_size", start=2, end=4)
    stride = whole("stride", op.stride)
    # Windows: ceil((size + before + after - kernel) / stride) + 1, but none that starts beyond the leading padding.
    spans = np.array([top + bottom, left + right]) - op.kernel + op.stride - 1
    span = layer.add("Add", size, whole("spans", spans), name=f"{name}_span")
    steps = layer.add("Div", span, stride, name=f"{name}_steps")
    starts = layer.add("Add", size, whole("starts", np.array([top, left]) - 1), name=f"{name}_start")
    last = layer.add("Min", steps, layer.add("Div", starts, stride, name=f"{name}_latest"), name=f"{name}_last")
    reach = layer.add("Mul", last, stride, name=f"{name}_reach")
    ends = layer.add("Add", reach, whole("kernel", op.kernel), name=f"{name}_ends")
    return layer.add("Slice", padded, whole("begin", [0, 0]), ends, whole("axes", _PLANE), name=name)
