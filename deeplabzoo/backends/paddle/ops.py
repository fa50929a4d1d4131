"""One Paddle layer for each op; stock layers wherever Paddle has the op's exact meaning.

The layers run in dynamic mode, under `paddle.jit.to_static` and in exported programs, where a size is an integer or,
if it is left free, an integer tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from deeplabzoo.core import ops


def make_layer(op: ops.Op) -> nn.Layer:
    """The native layer of an op; it takes the op's inputs in order.

    Raises:
        TypeError: an op that no backend should meet (`Input`).
    """
    match op:
        case ops.Conv2d():
            return _conv(op)
        case ops.BatchNorm():
            return BatchNorm2D(op.channels, momentum=op.momentum, epsilon=op.epsilon)
        case ops.Activation(function="relu"):
            return nn.ReLU()
        case ops.Activation(function="relu6"):
            return nn.ReLU6()
        case ops.Activation(function="softmax"):
            return nn.Softmax(axis=1)
        case ops.Activation(function="sigmoid"):
            return nn.Sigmoid()
        case ops.Activation(function="hard_sigmoid"):
            return Hardsigmoid()
        case ops.Activation(function="hard_swish"):
            return nn.Hardswish()
        case ops.MaxPool():
            return _max_pool(op)
        case ops.AvgPool():
            return _avg_pool(op)
        case ops.GlobalAvgPool():
            return GlobalAvgPool()
        case ops.Add():
            return Add()
        case ops.Multiply():
            return Multiply()
        case ops.Concat():
            return Concat()
        case ops.Resize():
            return Resize(op.align_corners)
        case ops.Dropout():
            return nn.Dropout2D(op.rate) if op.channelwise else nn.Dropout(op.rate, mode="upscale_in_train")
        case ops.Argmax():
            return Argmax()
    raise TypeError(f"no Paddle layer for op {op.kind!r}")


class Add(nn.Layer):
    """Sum of tensors N, C, H, W from the first to the last."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Add."""
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


class Multiply(nn.Layer):
    """A tensor N, C, H, W times a gate N, C, 1, 1."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Multiply."""
        return x * gate


class GlobalAvgPool(nn.Layer):
    """Mean over height and width; the gradient of Paddle's own layer divides by a float32, which is 6e-8 off."""

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        return paddle.mean(x, axis=[2, 3], keepdim=True)


class Hardsigmoid(nn.Layer):
    """relu6(x + 3) / 6; the slope of Paddle's own layer is 0.1666667, which is 1e-7 off in float64."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each value."""
        # By a tensor: an exported program turns division by a number into multiplication by a float32.
        return functional.relu6(x + 3) / paddle.full([], 6, dtype=x.dtype)


class Concat(nn.Layer):
    """Tensors N, C, H, W one after another along C."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Concatenate."""
        return paddle.concat(parts, axis=1)


class Argmax(nn.Layer):
    """Index of the largest channel, int64 N, 1, H, W."""

    def forward(self, x: Tensor) -> Tensor:
        """Argmax over the channels."""
        return paddle.argmax(x, axis=1, keepdim=True)


class Resize(nn.Layer):
    """Bilinear resize of the first input to the height and width of the second.

    Two matrix products, because `paddle.nn.functional.interpolate` computes its coordinates in float32 whatever goes
    in, which leaves 2e-6 of error in float64. A source of one point is spread exactly: its matrix holds ones.
    """

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Resize."""
        rows = interpolation_matrix(x.shape[2], target.shape[2], self.align_corners).astype(x.dtype)
        columns = interpolation_matrix(x.shape[3], target.shape[3], self.align_corners).astype(x.dtype)
        return paddle.matmul(rows, paddle.matmul(x, columns, transpose_y=True))

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"align_corners={self.align_corners}"


class BatchNorm2D(nn.BatchNorm2D):
    """Paddle's batch norm, but the running variance follows the unbiased estimate as in the other frameworks.

    `momentum` is Paddle's own: the share of the old statistic that is kept. Paddle stores epsilon as a float32; where
    it is none, what is missing is added to the variance, in evaluation: a batch's own variance is out of reach.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Raises:
            ValueError: one value a channel in training mode, of which no variance can be told.
        """
        missing_epsilon = self._epsilon - ops.float32_exact(self._epsilon)
        if not self.training or self._use_global_stats:
            if not missing_epsilon or x.dtype != paddle.float64:
                return super().forward(x)
            return functional.batch_norm(
                x,
                self._mean,
                self._variance + missing_epsilon,
                self.weight,
                self.bias,
                epsilon=self._epsilon,
                data_format=self._data_format,
            )
        count = x.shape[0] * x.shape[2] * x.shape[3]
        if isinstance(count, int) and count == 1:
            raise ValueError(
                f"batch norm of {self._num_features} channels in training mode received one value a channel (shape "
                f"{list(x.shape)}), expected at least two: use a batch of 2 or more, or put this layer in eval()"
            )
        # Paddle's kernel updates a copy with the biased variance b: copy = m * old + (1 - m) * b. The unbiased one is
        # b + b / (count - 1), so (copy - m * old) / (count - 1) is missing.
        variance = self._variance.clone()
        y = functional.batch_norm(
            x,
            self._mean,
            variance,
            self.weight,
            self.bias,
            training=True,
            momentum=self._momentum,
            epsilon=self._epsilon,
            data_format=self._data_format,
        )
        with paddle.no_grad():
            missing = (variance - self._momentum * self._variance) / (count - 1)
            paddle.assign(variance + missing, self._variance)
        return y


class SameConv2D(nn.Conv2D):
    """A strided, dilated convolution with TensorFlow's `same` padding; Paddle's own SAME would drop the dilation."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then convolve."""
        kernel, stride, dilation = self._kernel_size[0], self._stride[0], self._dilation[0]
        top, bottom = _same(x.shape[2], kernel, stride, dilation)
        left, right = _same(x.shape[3], kernel, stride, dilation)
        return super().forward(functional.pad(x, [left, right, top, bottom]))


class CeilMaxPool2D(nn.MaxPool2D):
    """Max pooling that rounds its size up and leaves out a last window that holds nothing but padding.

    Paddle keeps that window; it can only exist where stride and closing padding exceed the kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool, then cut."""
        return _cut(super().forward(x), x, self.padding, self.stride)


class CeilAvgPool2D(nn.AvgPool2D):
    """Average pooling that rounds its size up and leaves out the windows that `CeilMaxPool2D` leaves out."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool, then cut."""
        return _cut(super().forward(x), x, self.padding, self.stride)


class ExactAvgPool2D(nn.Layer):
    """A pooling whose float64 gradient is exact: Paddle's own divides by a float32, which only powers of two survive.

    `pool` is Paddle's own, which says the shape, and in other precisions everything.
    """

    def __init__(self, pool: nn.Layer, op: ops.AvgPool) -> None:
        super().__init__()
        self.pool, self.op = pool, op

    def forward(self, x: Tensor) -> Tensor:
        """Pool; in float64 by sums over windows and their counts."""
        if x.dtype != paddle.float64:
            return self.pool(x)
        ones = paddle.ones_like(x[:1, :1])
        with paddle.no_grad():
            counts = paddle.round(self._sums(ones) / self.pool(ones))
        return self._sums(x) / counts

    def _sums(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.op.padding
        shape = self.pool(x).shape
        beyond = self.op.stride  # what `ceil_mode` lets hang over
        padded = functional.pad(x, [left, right + beyond, top, bottom + beyond])
        kernel = paddle.ones([x.shape[1], 1, self.op.kernel, self.op.kernel], x.dtype)
        sums = functional.conv2d(padded, kernel, stride=self.op.stride, groups=x.shape[1])
        return sums[:, :, : shape[2], : shape[3]]


class PaddedAvgPool2D(nn.AvgPool2D):
    """Average pooling that counts padding which differs between the sides; Paddle would miscount it."""

    def __init__(self, op: ops.AvgPool) -> None:
        super().__init__(op.kernel, op.stride, ceil_mode=op.ceil_mode)
        self.sides = op.padding

    def forward(self, x: Tensor) -> Tensor:
        """Pad with zeros that the pool takes for real points, pool, then cut."""
        top, bottom, left, right = self.sides
        y = super().forward(functional.pad(x, [left, right, top, bottom]))
        return _cut(y, x, self.sides, self.stride) if self.ceil_mode else y


def interpolation_matrix(source: Any, target: Any, align_corners: bool) -> Tensor:
    """The matrix of `core.interpolation.interpolation_matrix` in tensor operations, for free sizes too; float64.

    Each row holds the hat function around the point that it reads, max(0, 1 - distance).
    """
    points = paddle.arange(source, dtype="float64")
    index = paddle.arange(target, dtype="float64")
    if align_corners:
        at = index * points[-1] / paddle.clip(index[-1], min=1.0)
    else:
        at = (index + 0.5) * (points[-1] + 1) / (index[-1] + 1) - 0.5
        at = paddle.minimum(paddle.clip(at, min=0.0), points[-1])
    return functional.relu(1 - paddle.abs(at.unsqueeze(1) - points))


def _conv(op: ops.Conv2d) -> nn.Layer:
    layer, padding = nn.Conv2D, op.padding
    if padding == "same" and op.stride == 1:
        before, after = ops.same_padding(1, op.kernel, 1, op.dilation)  # of every size the same
        padding = (before, after, before, after)
    elif padding == "same" and op.dilation > 1:
        layer, padding = SameConv2D, (0, 0, 0, 0)
    return layer(
        op.in_channels,
        op.out_channels,
        op.kernel,
        stride=op.stride,
        padding=_native_padding(padding),
        dilation=op.dilation,
        groups=op.groups,
        bias_attr=None if op.bias else False,
    )


def _max_pool(op: ops.MaxPool) -> nn.Layer:
    if op.padding == "same":  # already says the size; ceil_mode adds nothing
        return nn.MaxPool2D(op.kernel, op.stride, "SAME")
    if op.ceil_mode and op.stride + max(op.padding[1], op.padding[3]) > op.kernel:
        return CeilMaxPool2D(op.kernel, op.stride, list(op.padding), ceil_mode=True)
    return nn.MaxPool2D(op.kernel, op.stride, _native_padding(op.padding), ceil_mode=op.ceil_mode)


def _avg_pool(op: ops.AvgPool) -> nn.Layer:
    pool = _stock_avg_pool(op)
    # In a window of 2 the number of points is a power of two, at the border too.
    return pool if op.kernel in (1, 2) else ExactAvgPool2D(pool, op)


def _stock_avg_pool(op: ops.AvgPool) -> nn.Layer:
    if op.count_padding and len(set(op.padding)) > 1:
        return PaddedAvgPool2D(op)
    layer, padding = nn.AvgPool2D, _native_padding(op.padding)
    if op.ceil_mode and op.stride + max(op.padding[1], op.padding[3]) > op.kernel:
        layer, padding = CeilAvgPool2D, list(op.padding)
    return layer(op.kernel, op.stride, padding, ceil_mode=op.ceil_mode, exclusive=not op.count_padding)


def _cut(y: Tensor, x: Tensor, sides: Sequence[int], stride: int) -> Tensor:
    """`y` without last windows that would start beyond `x` and its leading padding."""
    top, _, left, _ = sides
    rows = (x.shape[2] + top + stride - 1) // stride
    columns = (x.shape[3] + left + stride - 1) // stride
    return y[:, :, :rows, :columns]


def _native_padding(padding: ops.Padding) -> str | int | list[int]:
    """One number for all sides where they are equal, as people write it, else [top, bottom, left, right]."""
    if padding == "same":
        return "SAME"
    return padding[0] if len(set(padding)) == 1 else list(padding)


def _same(size: Any, kernel: int, stride: int, dilation: int) -> tuple[Any, Any]:
    """(before, after) of `core.ops.same_padding`, for free sizes too."""
    if isinstance(size, int):
        return ops.same_padding(size, kernel, stride, dilation)
    total = paddle.clip(dilation * (kernel - 1) - (size - 1) % stride, min=0)
    return total // 2, total - total // 2
