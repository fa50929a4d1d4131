"""The op vocabulary: what every node means, independent of any framework.

The docstring of an op is its specification. Tensors are N, C, H, W; convolution kernels are O, I / groups, kH, kW.
A backend may store and run in another layout, never with another meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from deeplabzoo.errors import GraphError, unknown

Shape = tuple[int, int, int, int]
"""N, C, H, W."""

Padding = Literal["same"] | tuple[int, int, int, int]
"""`"same"` (TensorFlow's rule, dependent on the input's size) or explicit (top, bottom, left, right)."""


def float32_exact(value: float) -> float:
    """`value` rounded to the nearest float32: some frameworks store epsilon and momentum so, and all must agree."""
    return float(np.float32(value))


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's `SAME` rule for one axis: (before, after), the odd pixel after.

    The output has ceil(size / stride) points; the total padding is max((out - 1) * stride + dilation * (kernel - 1)
    + 1 - size, 0).
    """
    out = -(-size // stride)
    total = max((out - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def resolve_padding(
    padding: Padding, size: tuple[int, int], kernel: int, stride: int, dilation: int
) -> tuple[int, ...]:
    """Explicit (top, bottom, left, right) of `padding` for an input of `size` (height, width)."""
    if padding == "same":
        return (*same_padding(size[0], kernel, stride, dilation), *same_padding(size[1], kernel, stride, dilation))
    return padding


_MANY = 2**20
_FUNCTIONS = ("relu", "relu6", "hard_sigmoid", "hard_swish", "sigmoid", "softmax")
_COUNTS = ("channels", "in_channels", "out_channels", "kernel", "stride", "dilation", "groups")
_FLAGS = ("bias", "ceil_mode", "count_padding", "align_corners", "channelwise")
_SHARES = ("epsilon", "momentum", "rate")


def _wrong(name: str, value: object, kind: str) -> str | None:
    """What an attribute should be, where it is not."""
    if name in _COUNTS and (type(value) is not int or value < 1):
        return "a whole number of at least 1"
    if name in _FLAGS and not isinstance(value, bool):
        return "true or false"
    if name in _SHARES and (type(value) not in (int, float) or not 0 <= value <= 1):  # type: ignore[operator]
        return "a number from 0 to 1"
    if name == "function" and value not in _FUNCTIONS:
        return f"one of {', '.join(_FUNCTIONS)}"
    if name == "padding" and not (value == "same" and kind != "avg_pool"):
        sides = isinstance(value, tuple) and len(value) == 4 and all(type(v) is int and v >= 0 for v in value)
        return None if sides else "four whole numbers of at least 0" + ("" if kind == "avg_pool" else ", or 'same'")
    return None


@dataclass(frozen=True, kw_only=True)
class Op:
    """Base of all ops: plain frozen attributes, the shapes of its parameters, its output shape."""

    kind: ClassVar[str]
    arity: ClassVar[tuple[int, int]] = (1, 1)
    """Least and most inputs."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (why := _wrong(field.name, getattr(self, field.name), self.kind)) is not None:
                raise GraphError(f"op {self.kind}: {field.name} = {getattr(self, field.name)!r}, expected {why}")

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the canonical tensors by suffix (`weight`, `bias`, ...), in canonical order."""
        return {}

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """Output shape for input shapes; `GraphError` where they do not fit."""
        return shapes[0]

    def attributes(self) -> dict[str, Any]:
        """The attributes as plain data."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True, kw_only=True)
class Input(Op):
    """The preprocessed image, N, `channels`, H, W with free N, H and W."""

    kind: ClassVar[str] = "input"
    arity: ClassVar[tuple[int, int]] = (0, 0)
    channels: int

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of the image itself."""
        if shapes[0][1] != self.channels:
            raise GraphError(f"the image has {shapes[0][1]} channels, the graph expects {self.channels}")
        return shapes[0]


@dataclass(frozen=True, kw_only=True)
class Conv2d(Op):
    """Cross-correlation with zero padding.

    y[n, o, i, j] = bias[o] + sum over c, u, v of weight[o, c, u, v] * x[n, g * I + c, i * s + u * d - top, ...], with
    I = in_channels / groups and g the group of o. Output size: ceil(size / stride) for `same`, else
    floor((size + before + after - dilation * (kernel - 1) - 1) / stride) + 1. `groups == in_channels` is a depthwise
    convolution. Kernels are square, as in all DeepLabs.
    """

    kind: ClassVar[str] = "conv2d"
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    padding: Padding = (0, 0, 0, 0)
    groups: int = 1
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise GraphError(
                f"op conv2d: groups = {self.groups}, expected a divisor of {self.in_channels} and {self.out_channels}"
            )

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """`weight` (O, I / groups, k, k) and, where there is one, `bias` (O)."""
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)
        }
        if self.bias:
            shapes["bias"] = (self.out_channels,)
        return shapes

    @property
    def depthwise(self) -> bool:
        """Whether each input channel has kernels of its own."""
        return self.groups == self.in_channels and self.groups > 1

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """N, out_channels and the sizes above."""
        n, c, h, w = shapes[0]
        if c != self.in_channels:
            raise GraphError(f"the convolution reads {self.in_channels} channels, received {c}")
        return (n, self.out_channels, *_window_sizes(self, (h, w), ceil_mode=False))


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Op):
    """Batch normalisation over N, H, W: (x - mean) / sqrt(var + epsilon) * weight + bias.

    Inference takes the running statistics; training the biased batch statistics, and updates
    running = momentum * running + (1 - momentum) * batch, with the unbiased variance (N / (N - 1)), as PyTorch does
    and TensorFlow's fused kernel did. Training with one value a channel is an error raised before the step. Momentum
    is the share of the OLD statistic that is kept. It is float32-representable, and so is epsilon unless a spec asks
    for the exact double.
    """

    kind: ClassVar[str] = "batch_norm"
    channels: int
    epsilon: float
    momentum: float

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of the input."""
        if shapes[0][1] != self.channels:
            raise GraphError(f"the batch norm has {self.channels} channels, received {shapes[0][1]}")
        return shapes[0]

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """`weight`, `bias`, `running_mean`, `running_var`, each (channels)."""
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (self.channels,))


@dataclass(frozen=True, kw_only=True)
class Activation(Op):
    """Pointwise functions, and `softmax` over the channels.

    `relu` max(x, 0), `relu6` min(max(x, 0), 6), `hard_sigmoid` relu6(x + 3) / 6, `hard_swish` x * hard_sigmoid(x)
    (MobileNetV3, section 5.2), `sigmoid` 1 / (1 + exp(-x)).
    """

    kind: ClassVar[str] = "activation"
    function: Literal["relu", "relu6", "hard_sigmoid", "hard_swish", "sigmoid", "softmax"]


@dataclass(frozen=True, kw_only=True)
class MaxPool(Op):
    """Maximum over square windows; padding counts as minus infinity.

    With `ceil_mode` the output size is rounded up, and a last window that would start beyond the input and its leading
    padding is left out (PyTorch's and Caffe's rule); with padding `same` it is ceil(size / stride).
    """

    kind: ClassVar[str] = "max_pool"
    kernel: int
    stride: int
    padding: Padding = (0, 0, 0, 0)
    ceil_mode: bool = False

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """N, C and the sizes above."""
        n, c, h, w = shapes[0]
        return (n, c, *_window_sizes(self, (h, w), ceil_mode=self.ceil_mode))


@dataclass(frozen=True, kw_only=True)
class AvgPool(Op):
    """Mean over square windows with zero padding.

    `ceil_mode` as in `MaxPool`. With `count_padding` a window divides by its area inside the padded map (Caffe, and
    PyTorch's default), else by the number of its real points (Paddle's default); what `ceil_mode` lets hang over the
    padded map is never counted.
    """

    kind: ClassVar[str] = "avg_pool"
    kernel: int
    stride: int
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceil_mode: bool = False
    count_padding: bool = False

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """N, C and the sizes above."""
        n, c, h, w = shapes[0]
        return (n, c, *_window_sizes(self, (h, w), ceil_mode=self.ceil_mode))


@dataclass(frozen=True, kw_only=True)
class GlobalAvgPool(Op):
    """Mean over height and width, N, C, 1, 1."""

    kind: ClassVar[str] = "global_avg_pool"

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """N, C, 1, 1."""
        return (*shapes[0][:2], 1, 1)


@dataclass(frozen=True, kw_only=True)
class Add(Op):
    """Sum of two or more tensors of equal shape, from the first to the last."""

    kind: ClassVar[str] = "add"
    arity: ClassVar[tuple[int, int]] = (2, _MANY)

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """The common shape."""
        if len(set(shapes)) != 1:
            raise GraphError(f"the sum needs equal shapes, received {', '.join(map(str, shapes))}")
        return shapes[0]


@dataclass(frozen=True, kw_only=True)
class Multiply(Op):
    """The first input times the second, N, C, 1, 1: a gate of one number a channel (squeeze and excite)."""

    kind: ClassVar[str] = "multiply"
    arity: ClassVar[tuple[int, int]] = (2, 2)

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """The first shape."""
        if shapes[1] != (*shapes[0][:2], 1, 1):
            raise GraphError(f"a gate of shape {shapes[1]} does not fit {shapes[0]}: expected one number a channel")
        return shapes[0]


@dataclass(frozen=True, kw_only=True)
class Concat(Op):
    """The inputs one after another along the channels, in the order of the inputs."""

    kind: ClassVar[str] = "concat"
    arity: ClassVar[tuple[int, int]] = (1, _MANY)

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """The channels added up."""
        if len({(s[0], *s[2:]) for s in shapes}) != 1:
            raise GraphError(f"concatenation needs equal sizes, received {', '.join(map(str, shapes))}")
        return (shapes[0][0], sum(s[1] for s in shapes), *shapes[0][2:])


@dataclass(frozen=True, kw_only=True)
class Resize(Op):
    """Bilinear resampling of the first input to the height and width of the second.

    The formula is that of `core.interpolation.interpolation_matrix`; no antialiasing.
    """

    kind: ClassVar[str] = "resize"
    arity: ClassVar[tuple[int, int]] = (2, 2)
    align_corners: bool

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """N, C of the first input, H, W of the second."""
        return (*shapes[0][:2], *shapes[1][2:])


@dataclass(frozen=True, kw_only=True)
class Dropout(Op):
    """In training each value (or whole channel) is zeroed with probability `rate`, the others divided by 1 - rate.

    Identity in inference.
    """

    kind: ClassVar[str] = "dropout"
    rate: float
    channelwise: bool = False


@dataclass(frozen=True, kw_only=True)
class Argmax(Op):
    """Index of the largest channel (the lowest where equal), int64 N, 1, H, W."""

    kind: ClassVar[str] = "argmax"

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """N, 1, H, W."""
        return (shapes[0][0], 1, *shapes[0][2:])


OPS: dict[str, type[Op]] = {
    op.kind: op
    for op in (
        Input,
        Conv2d,
        BatchNorm,
        Activation,
        MaxPool,
        AvgPool,
        GlobalAvgPool,
        Add,
        Multiply,
        Concat,
        Resize,
        Dropout,
        Argmax,
    )
}


def op_from_attributes(kind: str, attributes: dict[str, Any]) -> Op:
    """The inverse of `Op.attributes`, taking lists for tuples as JSON gives them.

    Raises:
        GraphError: unknown kind or attributes.
    """
    if not isinstance(kind, str) or kind not in OPS:
        raise GraphError(unknown("op", kind, OPS))
    try:
        return OPS[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()})
    except TypeError as error:
        raise GraphError(f"op {kind}: {error}") from None


def _window_sizes(op: Conv2d | MaxPool | AvgPool, size: tuple[int, int], *, ceil_mode: bool) -> tuple[int, int]:
    dilation = op.dilation if isinstance(op, Conv2d) else 1
    if op.padding == "same":
        return -(-size[0] // op.stride), -(-size[1] // op.stride)
    sizes = []
    for n, before, after in ((size[0], *op.padding[:2]), (size[1], *op.padding[2:])):
        span = n + before + after - dilation * (op.kernel - 1) - 1
        out = (-(-span // op.stride) if ceil_mode else span // op.stride) + 1
        if ceil_mode and (out - 1) * op.stride >= n + before:
            out -= 1
        if span < 0 or out < 1:
            raise GraphError(f"an input of {size[0]}x{size[1]} is too small for a window of {op.kernel}x{op.kernel}")
        sizes.append(out)
    return sizes[0], sizes[1]
