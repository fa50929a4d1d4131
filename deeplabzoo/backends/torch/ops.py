"""One PyTorch layer for each op; stock layers wherever PyTorch has the op's exact meaning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplabzoo.core import ops


def make_layer(op: ops.Op) -> nn.Module:
    """The native layer of an op; it takes the op's inputs in order.

    Raises:
        TypeError: an op that no backend should meet (`Input`).
    """
    match op:
        case ops.Conv2d():
            return _conv(op)
        case ops.BatchNorm():
            return nn.BatchNorm2d(op.channels, eps=op.epsilon, momentum=1 - op.momentum)
        case ops.Activation(function="relu"):
            return nn.ReLU()
        case ops.Activation(function="relu6"):
            return nn.ReLU6()
        case ops.Activation(function="softmax"):
            return nn.Softmax(dim=1)
        case ops.Activation(function="hard_sigmoid"):
            return Hardsigmoid()
        case ops.Activation(function="hard_swish"):
            return nn.Hardswish()
        case ops.Activation(function="sigmoid"):
            return nn.Sigmoid()
        case ops.MaxPool():
            return _max_pool(op)
        case ops.AvgPool():
            return _avg_pool(op)
        case ops.GlobalAvgPool():
            return nn.AdaptiveAvgPool2d(1)
        case ops.Add():
            return Add()
        case ops.Multiply():
            return Multiply()
        case ops.Concat():
            return Concat()
        case ops.Resize():
            return Resize(op.align_corners)
        case ops.Dropout():
            return nn.Dropout2d(op.rate) if op.channelwise else nn.Dropout(op.rate)
        case ops.Argmax():
            return Argmax()
    raise TypeError(f"no PyTorch layer for op {op.kind!r}")


class Hardsigmoid(nn.Hardsigmoid):
    """PyTorch's own; in float64 written out, because the gradient of PyTorch's kernel is that of a float32 1/6."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each value."""
        return functional.relu6(x + 3) / 6 if x.dtype == torch.float64 else super().forward(x)


class Add(nn.Module):
    """Sum of tensors N, C, H, W from the first to the last."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Add."""
        total, *others = parts
        for part in others:
            total = total + part
        return total


class Multiply(nn.Module):
    """A tensor N, C, H, W times a gate N, C, 1, 1."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Multiply."""
        return x * gate


class Concat(nn.Module):
    """Tensors N, C, H, W one after another along C."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Concatenate."""
        return torch.cat(parts, dim=1)


class Argmax(nn.Module):
    """Index of the largest channel, int64 N, 1, H, W."""

    def forward(self, x: Tensor) -> Tensor:
        """Argmax over the channels."""
        return x.argmax(dim=1, keepdim=True)


class Resize(nn.Module):
    """Bilinear resize of the first input to the height and width of the second."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Resize."""
        if x.shape[-2:] == (1, 1):  # constant under every convention, and PyTorch's kernel is slow at this
            return x.expand(-1, -1, target.shape[-2], target.shape[-1])
        size = (target.shape[-2], target.shape[-1])
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"align_corners={self.align_corners}"


class SameConv2d(nn.Conv2d):
    """A strided convolution with TensorFlow's `same` padding, which depends on the size of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then convolve."""
        padding = _same(x, self.kernel_size[0], self.stride[0], self.dilation[0])
        return super().forward(functional.pad(x, padding))


class PaddedConv2d(nn.Conv2d):
    """A convolution whose explicit padding differs between the sides."""

    def __init__(self, *arguments: int, sides: tuple[int, int, int, int], **options: bool | int) -> None:
        super().__init__(*arguments, **options)
        self.sides = sides

    def forward(self, x: Tensor) -> Tensor:
        """Pad (left, right, top, bottom), then convolve."""
        return super().forward(functional.pad(x, self.sides))


class PaddedMaxPool2d(nn.MaxPool2d):
    """Max pooling with padding that PyTorch's own layer can't express: `same`, uneven, or beyond half the window.

    Also with sizes rounded up: PyTorch's own layer would be right, but `torch.export` would tie it to one size.
    """

    def __init__(self, op: ops.MaxPool) -> None:
        super().__init__(op.kernel, op.stride)
        self.sides, self.rounds_up = op.padding, op.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """Pad with minus infinity, then pool."""
        kernel, stride = int(self.kernel_size), int(self.stride)
        if self.sides == "same":
            padding = _same(x, kernel, stride, 1)
        else:
            padding = _reach(x, self.sides, kernel, stride) if self.rounds_up else _left_right_top_bottom(self.sides)
        return super().forward(functional.pad(x, padding, value=float("-inf")))

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, sides={self.sides}, rounds_up={self.rounds_up}"


class PaddedAvgPool2d(nn.AvgPool2d):
    """Average pooling with uneven padding, padding beyond half the window, or sizes rounded up; see `PaddedMaxPool2d`."""

    def __init__(self, op: ops.AvgPool) -> None:
        super().__init__(op.kernel, op.stride)
        self.sides, self.rounds_up, self.count_padding = op.padding, op.ceil_mode, op.count_padding

    def forward(self, x: Tensor) -> Tensor:
        """Pad with zeros, then divide the mean of each window by the share of it that counts."""
        given = _left_right_top_bottom(self.sides)
        whole = _reach(x, self.sides, int(self.kernel_size), int(self.stride)) if self.rounds_up else given
        y = super().forward(functional.pad(x, whole))
        if self.count_padding and not self.rounds_up:
            return y
        counted = functional.pad(x.new_ones((1, 1, x.shape[-2], x.shape[-1])), given, value=float(self.count_padding))
        beyond = [side - own for side, own in zip(whole, given, strict=True)]
        return y / super().forward(functional.pad(counted, beyond))

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, sides={self.sides}, rounds_up={self.rounds_up}, "
            f"count_padding={self.count_padding}"
        )


def _conv(op: ops.Conv2d) -> nn.Module:
    arguments = (op.in_channels, op.out_channels, op.kernel, op.stride)
    options = {"dilation": op.dilation, "groups": op.groups, "bias": op.bias}
    if op.padding == "same":
        return SameConv2d(*arguments, 0, **options)
    top, bottom, left, right = op.padding
    if top == bottom and left == right:
        return nn.Conv2d(*arguments, padding=(top, left), **options)
    return PaddedConv2d(*arguments, sides=_left_right_top_bottom(op.padding), **options)


def _max_pool(op: ops.MaxPool) -> nn.Module:
    if op.padding != "same" and _stock_pooling(op, op.padding):
        return nn.MaxPool2d(op.kernel, op.stride, _two_sides(op.padding))
    return PaddedMaxPool2d(op)


def _avg_pool(op: ops.AvgPool) -> nn.Module:
    if _stock_pooling(op, op.padding):
        return nn.AvgPool2d(op.kernel, op.stride, _two_sides(op.padding), count_include_pad=op.count_padding)
    return PaddedAvgPool2d(op)


def _stock_pooling(op: ops.MaxPool | ops.AvgPool, sides: tuple[int, int, int, int]) -> bool:
    """Whether PyTorch's own pooling layer means the same."""
    top, bottom, left, right = sides
    even = top == bottom and left == right and max(top, left) <= op.kernel // 2
    return even and (op.stride == 1 or not op.ceil_mode)


def _two_sides(padding: tuple[int, int, int, int]) -> int | tuple[int, int]:
    """(vertical, horizontal), or one number where they are equal, as people write it."""
    top, _, left, _ = padding
    return top if top == left else (top, left)


def _reach(x: Tensor, sides: tuple[int, int, int, int], kernel: int, stride: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) with which sizes rounded down are those of `ceil_mode`; negative cuts off."""
    top, bottom, left, right = sides
    reached: list[int] = []
    for size, before, after in ((x.shape[-1], left, right), (x.shape[-2], top, bottom)):
        windows = (size + before + after - kernel + stride - 1) // stride + 1
        if stride + after > kernel:  # the last one might start beyond the input and its leading padding
            windows = torch.sym_min(windows, (size + before + stride - 1) // stride)
        reached += [before, (windows - 1) * stride + kernel - size - before]
    return reached[0], reached[1], reached[2], reached[3]


def _left_right_top_bottom(padding: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    top, bottom, left, right = padding
    return left, right, top, bottom


def _same(x: Tensor, kernel: int, stride: int, dilation: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of `core.ops.same_padding`, written so that symbolic sizes stay short expressions."""
    reach = dilation * (kernel - 1)
    sides: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = reach - (size - 1) % stride
        if reach < stride - 1:  # a window shorter than the stride: some sizes need none
            total = torch.sym_max(total, 0)
        sides += [total // 2, total - total // 2]
    return sides[0], sides[1], sides[2], sides[3]
