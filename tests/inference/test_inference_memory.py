"""Estimates of memory, against counts by hand."""

import math

import pytest

from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.core.ops import Add
from deeplabzoo.errors import ImageError
from deeplabzoo.inference import memory
from deeplabzoo.inference.memory import SAFETY, available_bytes, peak_bytes, too_large, window_that_fits


def graph(channels=8):
    """Input, two convolutions in a row, a sum over a skip."""
    builder = GraphBuilder()
    x = builder.input(3)
    first = builder.conv("first", x, channels, 3)
    second = builder.conv("second", first, channels, 3)
    third = builder.conv("third", second, channels, 3)
    return builder.finish({"out": builder.apply("sum", Add(), first, third)})


def test_a_count_by_hand():
    # At the sum there are first (held for the skip), third and the sum itself: 3 maps of 8 channels; at third as many.
    assert peak_bytes(graph(), 10, 20) == 3 * 8 * 200 * 4 * SAFETY
    assert peak_bytes(graph(), 20, 10) == peak_bytes(graph(), 10, 20)


def test_what_nobody_reads_any_more_is_not_counted():
    builder = GraphBuilder()
    x = builder.input(3)
    for number in range(9):
        x = builder.conv(f"conv{number}", x, 8)
    assert peak_bytes(builder.finish({"out": x}), 10, 10) == 2 * 8 * 100 * 4 * SAFETY


def test_available():
    assert 1e6 < available_bytes() < 1e15


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_largest_window_that_fits(stride):
    network = graph()
    for limit in (peak_bytes(network, 257, 257), peak_bytes(network, 600, 600), peak_bytes(network, 900, 901)):
        side = window_that_fits(network, stride, limit)
        assert side % stride == 1
        assert peak_bytes(network, side, side) <= limit < peak_bytes(network, side + stride, side + stride)
    assert window_that_fits(network, stride, math.inf) == 1025
    with pytest.raises(
        ImageError, match=r"1.0 MB of memory .* about 25.4 MB for a window of 257 x 257: expected at least"
    ):
        window_that_fits(network, stride, 1e6)


def test_reasons():
    network = graph()
    needed = peak_bytes(network, 300, 200)
    assert too_large(network, (300, 200), needed) == ""
    assert "an input of 300 x 200 pixels needs about 23.0 MB in one piece, and 5.0 MB are there" in too_large(
        network, (300, 200), 5e6
    )


def test_the_operating_system_is_asked(monkeypatch):
    import types

    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=123))
    assert available_bytes() == 123
