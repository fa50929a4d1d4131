"""Costs and sight of graphs, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from deeplabzoo.core import ops
from deeplabzoo.core.analysis import (
    all_taps_live,
    live_taps,
    multiply_adds,
    parameter_count,
    receptive_field,
    smallest_live_size,
)
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.core.spec import make_spec
from deeplabzoo.parity.cases import default_cases
from deeplabzoo.zoo.models import PRESETS
from deeplabzoo.zoo.presets import torchvision


def atrous(rate, stride=1):
    """A strided 1x1, then a 3x3 of a rate."""
    builder = GraphBuilder()
    x = builder.conv("a.conv", builder.input(3), 4, 1, stride=stride)
    return builder.finish({"out": builder.conv("b.conv", x, 8, 3, dilation=rate)})


def test_live_taps():
    (dead,) = live_taps(atrous(12), 4, 4)  # a 4x4 map and rate 12: a 1x1 convolution
    assert (dead.node, dead.dilation, dead.live, dead.total) == ("b.conv", 12, 1, 9)
    assert not all_taps_live(atrous(12), 4, 4)
    assert not all_taps_live(atrous(12), 12, 13)
    assert live_taps(atrous(12), 12, 13)[0].live == 3
    assert all_taps_live(atrous(12), 13, 13)
    assert live_taps(atrous(1), 1, 1) == []  # not dilated, nothing to say


def test_live_taps_at_stride_8():
    """Rate 36 at stride 8 takes 289 px."""
    graph = build_graph(torchvision.template("resnet50", 21, aux=False))
    assert all_taps_live(graph, 289, 289)
    assert not all_taps_live(graph, 288, 288)
    assert smallest_live_size(graph, 8) == 289
    assert smallest_live_size(graph, 32) == 289
    dead = [taps.node for taps in live_taps(graph, 257, 257) if taps.live < taps.total]
    assert dead == ["aspp.branch3.conv"]


@pytest.mark.parametrize("arch", ["v3", "v3plus"])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "mobilenet_v2"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_default_parity_cases_make_every_tap_work(arch, backbone, stride):
    spec = make_spec(arch, backbone=backbone, output_stride=stride)
    cases = default_cases(spec)
    assert any(case.live for case in cases)
    assert {(case.height % 2, case.width % 2) for case in cases} == {(0, 0), (1, 1)}
    for case in cases:
        assert case.height != case.width
        assert case.batch == 2
        assert case.live == all_taps_live(build_graph(spec), case.height, case.width)


@pytest.mark.parametrize("preset", PRESETS)
def test_default_parity_cases_of_presets(preset):
    assert any(case.live for case in default_cases(PRESETS[preset].make()))


def test_multiply_adds():
    graph = atrous(2, stride=2)
    # 10x13 -> 5x7 points: 3 * 4 products in the 1x1, 4 * 8 * 9 in the 3x3, padding counted.
    assert multiply_adds(graph, 10, 13) == 35 * (3 * 4 + 4 * 8 * 9)
    assert multiply_adds(graph, 10, 13, "b.") == 35 * 4 * 8 * 9
    builder = GraphBuilder()
    x = builder.conv("d", builder.input(6), 6, 3, groups=6)
    assert multiply_adds(builder.finish({"out": x}), 5, 5) == 25 * 6 * 9


def test_parameter_count():
    builder = GraphBuilder()
    x = builder.conv("a.conv", builder.input(3), 4, 3, bias=True)
    x = builder.batch_norm("a.bn", x, epsilon=1e-5, momentum=0.9)
    graph = builder.finish({"out": builder.conv("b", x, 2)})
    assert parameter_count(graph) == (4 * 3 * 9 + 4) + 2 * 4 + 4 * 2
    assert parameter_count(graph, "a.") == 4 * 3 * 9 + 4 + 8


def test_receptive_field():
    builder = GraphBuilder()
    image = builder.input(3)
    a = builder.conv("a", image, 4, 7, stride=2)  # 7
    b = builder.apply("b", ops.MaxPool(kernel=3, stride=2, padding=(1, 1, 1, 1)), a)  # 7 + 2 * 2
    c = builder.conv("c", b, 4, 3, dilation=2)  # 11 + 2 * 2 * 4
    d = builder.apply("d", ops.Add(), b, c)
    e = builder.apply("e", ops.Resize(align_corners=False), d, image)  # one point more on the grid of step 4
    f = builder.conv("f", e, 4, 3)  # back at step 1
    graph = builder.finish({"out": f})
    assert [receptive_field(graph, n) for n in ("a", "b", "c", "d", "e", "f")] == [7, 11, 27, 27, 31, 33]


def test_receptive_field_of_resnet50():
    """483 px as usually given (Araujo et al. 2019) with the stride in the 1x1, 427 with the stride in the 3x3."""
    for stride_in, field in (("conv1", 483), ("conv2", 427)):
        graph = build_graph(make_spec("v3", output_stride=32, stride_in=stride_in))
        assert receptive_field(graph, "backbone.stage4.block3.relu") == field
