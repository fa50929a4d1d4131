"""Cases that every backend is put to: random inputs of single ops, and a small graph that has all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from deeplabzoo.core import ops, reference
from deeplabzoo.core.graph import Graph, GraphBuilder
from deeplabzoo.errors import GraphError

EXACT = 1e-14
"""Largest error of one op in float64, relative to its largest value; a few roundings make 1e-16."""

PADDINGS = ((0, 0, 0, 0), (1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 0, 1), (1, 0, 2, 1), (2, 2, 2, 2))
"""None, even, even on one axis, uneven, uneven with more than half of some windows, wide."""

Case = tuple[ops.Op, list[np.ndarray], dict[str, np.ndarray]]
"""An op, its inputs N, C, H, W and its parameters by suffix."""


def pooling_cases(sizes: Sequence[int]) -> Iterator[Case]:
    """Every kernel, stride and padding with every way to round and to count."""
    for kernel, stride, padding, ceil_mode in itertools.product((1, 2, 3, 5), (1, 2, 3), PADDINGS, (False, True)):
        if max(padding) >= kernel:  # windows of nothing but padding
            continue
        common: Any = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        for op in (
            ops.MaxPool(**common),
            ops.AvgPool(**common, count_padding=False),
            ops.AvgPool(**common, count_padding=True),
        ):
            for size in sizes:
                yield from _case(op, (2, 3, size, size + 3))
    for ceil_mode, size in itertools.product((False, True), sizes):
        yield from _case(ops.MaxPool(kernel=3, stride=2, padding="same", ceil_mode=ceil_mode), (2, 3, size, size + 3))


def convolution_cases(sizes: Sequence[int]) -> Iterator[Case]:
    """Strides, dilations, groups and paddings that no DeepLab here combines."""
    for kernel, stride, dilation, groups, padding in (
        (3, 2, 1, 1, "same"),
        (3, 2, 2, 4, "same"),
        (3, 3, 4, 1, "same"),
        (2, 4, 2, 1, "same"),
        (3, 1, 3, 4, "same"),
        (2, 1, 3, 1, "same"),
        (3, 1, 1, 2, (1, 1, 1, 1)),
        (3, 2, 2, 1, (0, 1, 2, 3)),
        (3, 3, 2, 1, (3, 1, 2, 0)),
    ):
        op = ops.Conv2d(
            in_channels=4,
            out_channels=8,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            groups=groups,
            padding=padding,  # type: ignore[arg-type]
            bias=True,
        )
        for size in sizes:
            yield from _case(op, (2, 4, size, size + 3))


def pointwise_cases() -> Iterator[Case]:
    """Activations around their bends, sums of two to four, gates, concatenation."""
    shape = (2, 5, 7, 9)
    for function in ("relu", "relu6", "hard_sigmoid", "hard_swish", "sigmoid", "softmax"):
        op = ops.op_from_attributes("activation", {"function": function})
        yield from _case(op, shape, scale=4)
        yield op, [np.array([-40, -3, -0.0, 0.0, 3, 6, 40, 2.5]).reshape(2, 1, 2, 2)], {}
    for count in (2, 3, 4):
        yield from _case(ops.Add(), *[shape] * count, scale=4)
    # 0.5 from the first to the last; from the last, or in pairs, it is 0.
    yield ops.Add(), [np.full((1, 1, 1, 2), value) for value in (1e16, 1.0, -1e16, 0.5)], {}
    yield from _case(ops.Multiply(), shape, (2, 5, 1, 1))
    yield from _case(ops.Multiply(), (2, 5, 1, 1), (2, 5, 1, 1))
    yield from _case(ops.Concat(), shape, (2, 2, 7, 9), (2, 1, 7, 9))
    yield from _case(ops.GlobalAvgPool(), shape)


def resize_cases(sizes: Sequence[int]) -> Iterator[Case]:
    """Up, down, from and to one point, square and not."""
    for align_corners, size, other in itertools.product((False, True), sizes, ((1, 1), (1, 7), (5, 4), (29, 31))):
        for shapes in ((*other, size, size + 3), (size, size + 3, *other)):
            yield from _case(ops.Resize(align_corners=align_corners), (2, 3, *shapes[:2]), (2, 3, *shapes[2:]))


def judge(cases: Iterator[Case], call: Callable[[ops.Op, list[np.ndarray], dict[str, np.ndarray]], np.ndarray]) -> int:
    """Compare what `call` makes of each case with the referee; the number of cases."""
    count = 0
    for op, values, parameters in cases:
        truth, found = reference.evaluate(op, values, parameters), call(op, values, parameters)
        title = f"{op} of {', '.join(str(value.shape) for value in values)}"
        assert found.dtype == truth.dtype, title
        assert found.shape == truth.shape, f"{title}: made {found.shape}, expected {truth.shape}"
        error = np.abs(found - truth).max() / np.abs(truth).max()
        assert error <= EXACT, f"{title}: error {error:.1e}, expected at most {EXACT:.0e}"
        count += 1
    return count


def every_op(*, labels: bool = False) -> Graph:
    """All ops in the places where networks have them; the output shows the image's size, `aux` a quarter of it."""
    builder = GraphBuilder()
    image = builder.input(3)
    x = builder.conv("stem.conv", image, 8, 3, stride=2, padding="same")
    x = builder.batch_norm("stem.bn", x, epsilon=1e-3, momentum=0.9)
    x = builder.activation("stem.swish", x, "hard_swish")
    with builder.scope("block"):  # MobileNetV3's gate, ResNet-vd's shortcut
        main = builder.conv("conv", x, 8, 3, stride=2, groups=8)
        gate = builder.apply("gate.pool", ops.GlobalAvgPool(), main)
        gate = builder.activation("gate.relu", builder.conv("gate.reduce", gate, 4, bias=True), "relu")
        gate = builder.activation("gate.scale", builder.conv("gate.expand", gate, 8, bias=True), "hard_sigmoid")
        main = builder.apply("gated", ops.Multiply(), main, gate)
        shortcut = builder.apply("shortcut.pool", ops.AvgPool(kernel=2, stride=2, ceil_mode=True), x)
        shortcut = builder.conv("shortcut.conv", shortcut, 8)
        x = builder.activation("relu", builder.apply("join", ops.Add(), main, shortcut), "relu6")
    low = x
    sides = (1, 1, 1, 1)
    with builder.scope("pools"):  # Caffe's, with and without rounding up; uneven ones; one that the stock layers have
        x = builder.apply("top", ops.MaxPool(kernel=3, stride=2, padding=sides, ceil_mode=True), x)
        x = builder.apply("counted", ops.AvgPool(kernel=3, stride=1, padding=sides, count_padding=True), x)
        x = builder.apply("plain", ops.AvgPool(kernel=3, stride=1, padding=sides), x)
        x = builder.apply("uneven", ops.AvgPool(kernel=2, stride=1, padding=(0, 1, 0, 1), count_padding=True), x)
        rounded = ops.AvgPool(kernel=2, stride=2, padding=sides, ceil_mode=True, count_padding=True)
        x = builder.apply("rounded", rounded, x)
    with builder.scope("heads"):  # DeepLab v2's sum of four
        rates = [builder.conv(f"rate{rate}", x, 5, 3, dilation=rate, bias=True) for rate in (1, 2, 3, 4)]
        total = builder.apply("total", ops.Add(), *rates)
        pooled = builder.apply("pool", ops.GlobalAvgPool(), x)
        gate = builder.activation("sigmoid", builder.conv("gate", pooled, 5), "sigmoid")
        total = builder.apply("gated", ops.Multiply(), total, gate)
        total = builder.apply("dropout", ops.Dropout(rate=0.1), total)
    up = builder.apply("decoder.resize", ops.Resize(align_corners=True), total, low)
    joined = builder.apply("decoder.concat", ops.Concat(), up, low)
    y = builder.conv("decoder.conv", joined, 5, 3, bias=True)
    out = builder.apply("output.resize", ops.Resize(align_corners=False), y, image)
    last = ops.Argmax() if labels else ops.Activation(function="softmax")
    return builder.finish({"out": builder.apply("output.last", last, out), "aux": y})


def _case(op: ops.Op, *shapes: tuple[int, ...], scale: float = 1.0) -> Iterator[Case]:
    """The op on normal numbers that are mostly negative, unless the shapes don't fit it."""
    try:
        op.infer(shapes)  # type: ignore[arg-type]
    except GraphError:  # the window is larger than the map
        return
    random = np.random.default_rng(len(shapes) + shapes[0][2])
    values = [scale * (random.standard_normal(shape) - 1) for shape in shapes]
    yield op, values, {suffix: random.standard_normal(shape) for suffix, shape in op.parameters().items()}
