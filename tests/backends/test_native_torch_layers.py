"""Layers of the PyTorch backend, each for itself."""

from __future__ import annotations

import functools

import op_cases
import pytest
from torch_common import asked_for, torch  # noqa: F401

from deeplabzoo.backends.torch.ops import _same, make_layer
from deeplabzoo.core import ops
from deeplabzoo.core.ops import same_padding


def computed(op, values, parameters):
    """What the op's layer makes of the values, in float64."""
    layer = make_layer(op).double()
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()})
    with torch.no_grad():
        return layer(*map(torch.from_numpy, values)).numpy()


@pytest.mark.parametrize(
    ("cases", "number"),
    [
        (functools.partial(op_cases.pooling_cases, range(3, 14)), 2300),
        (functools.partial(op_cases.convolution_cases, range(3, 14)), 79),
        (functools.partial(op_cases.resize_cases, range(3, 14)), 176),
        (op_cases.pointwise_cases, 20),
    ],
    ids=["pooling", "convolution", "resize", "pointwise"],
)
def test_layers_mean_what_their_ops_say(cases, number):
    assert op_cases.judge(cases(), computed) >= number


def test_stock_layers():
    """Where PyTorch's own layer means the same it is taken; of those with rounded sizes exports would be tied to one."""
    sides = (1, 1, 1, 1)
    for op, stock in {
        ops.MaxPool(kernel=3, stride=2, padding=sides): torch.nn.MaxPool2d,
        ops.AvgPool(kernel=3, stride=1, padding=sides, count_padding=True): torch.nn.AvgPool2d,
        ops.AvgPool(kernel=3, stride=1, padding=(1, 1, 0, 0), ceil_mode=True): torch.nn.AvgPool2d,
        ops.Activation(function="hard_swish"): torch.nn.Hardswish,
        ops.Activation(function="sigmoid"): torch.nn.Sigmoid,
    }.items():
        assert type(make_layer(op)) is stock, op
    # PyTorch's hard sigmoid has a float32 constant in its float64 gradient: ours is a kind of it, so tools know it.
    assert isinstance(make_layer(ops.Activation(function="hard_sigmoid")), torch.nn.Hardsigmoid)
    for op in (ops.MaxPool(kernel=3, stride=2, ceil_mode=True), ops.AvgPool(kernel=2, stride=2, ceil_mode=True)):
        assert isinstance(make_layer(op), torch.nn.MaxPool2d | torch.nn.AvgPool2d)
        assert "sides=(0, 0, 0, 0), rounds_up=True" in repr(make_layer(op))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pooling_in_half_precision(dtype):
    images = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    for sides in ((1, 1, 1, 1), (0, 1, 1, 0)):
        for counted in (False, True):
            layer = make_layer(ops.AvgPool(kernel=3, stride=2, padding=sides, ceil_mode=True, count_padding=counted))
            made = layer(images.to(dtype))
            assert made.dtype == dtype
            torch.testing.assert_close(made.float(), layer(images), rtol=0, atol=2e-2)


def test_rounded_pooling_is_exported_for_every_size():
    """PyTorch's own `ceil_mode` would refuse: its shape rule asks whether the size is even."""
    sides = (1, 1, 1, 1)
    layers = torch.nn.ModuleList(
        make_layer(op)
        for op in (
            ops.AvgPool(kernel=2, stride=2, ceil_mode=True),
            ops.AvgPool(kernel=3, stride=2, padding=(0, 2, 1, 0), ceil_mode=True, count_padding=True),
            ops.MaxPool(kernel=3, stride=2, padding=sides, ceil_mode=True),
            ops.MaxPool(kernel=2, stride=2, padding=sides, ceil_mode=True),
        )
    )

    class All(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, images):
            return [layer(images) for layer in self.layers]

    free = {2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    program = torch.export.export(All(), (torch.zeros(1, 2, 16, 24),), dynamic_shapes=(free,)).module()
    for height, width in ((8, 9), (10, 11), (13, 12), (14, 15)):
        images = torch.randn(1, 2, height, width)
        for made, layer in zip(program(images), layers, strict=True):
            torch.testing.assert_close(made, layer(images))


@pytest.mark.parametrize("stride", [1, 2, 3, 9])
def test_same_padding_is_the_specification(stride):
    """The rule is written anew for symbolic sizes: every size of a range against the definition."""
    for size in range(1, 40):
        for kernel in (1, 2, 3, 7):
            for dilation in (1, 2, 4):
                sides = _same(torch.empty(1, 1, 5, size), kernel, stride, dilation)
                assert sides[:2] == same_padding(size, kernel, stride, dilation)
                assert sides[2:] == same_padding(5, kernel, stride, dilation)
