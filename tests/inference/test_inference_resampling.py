"""Bands of resizes against the whole matrices."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplabzoo.core.interpolation import interpolation_matrix
from deeplabzoo.inference.resampling import Resize, band


def dense(made, source):
    matrix = np.zeros((len(made.weights), source))
    matrix[:, made.index] = made.weights
    return matrix


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("source", "target"), [(65, 513), (513, 65), (1, 9), (9, 1), (1, 1), (7, 7), (1250, 10_000), (10_000, 513)]
)
def test_one_resize(source, target, align_corners):
    whole = interpolation_matrix(source, target, align_corners=align_corners)
    resize = Resize.plain(source, target, align_corners=align_corners)
    for start, stop in ((0, target), (target // 3, target // 3 + 1), (max(0, target - 256), target)):
        made = band(np.arange(start, stop), resize)
        assert len(made.index) <= 2 * (stop - start)
        np.testing.assert_allclose(dense(made, source), whole[start:stop], rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_chain_is_the_product_of_its_matrices(data):
    sides = data.draw(st.lists(st.integers(1, 60), min_size=2, max_size=4))
    rules = [data.draw(st.booleans()) for _ in sides[1:]]
    steps = [(*pair, rule) for pair, rule in zip(zip(sides[1:], sides[:-1], strict=True), rules, strict=True)]
    start = data.draw(st.integers(0, sides[0] - 1))
    stop = data.draw(st.integers(start + 1, sides[0]))
    whole = np.eye(sides[0])
    for source, target, rule in steps:
        whole = whole @ interpolation_matrix(source, target, align_corners=rule)
    made = band(np.arange(start, stop), *(Resize.plain(a, b, align_corners=rule) for a, b, rule in steps))
    np.testing.assert_allclose(dense(made, sides[-1]), whole[start:stop], rtol=0, atol=1e-12)
    assert (np.diff(made.index) > 0).all()
    np.testing.assert_allclose(made.weights.sum(axis=1), 1, atol=1e-12)


def test_the_rule_matters():
    half, corners = (dense(band(np.arange(65), Resize.plain(9, 65, align_corners=rule)), 9) for rule in (False, True))
    assert np.abs(half - corners).max() > 0.1


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_window_reads_its_own_part(align_corners):
    """A map of 5 points on 33 of 97: the window's own resize, shifted, and its edge points beyond it."""
    resize = Resize(5, 97, align_corners, 97, 32, 33)
    inside = interpolation_matrix(5, 33, align_corners=align_corners)
    made = dense(band(np.arange(20, 80), resize), 5)
    np.testing.assert_allclose(made[12:45], inside, rtol=0, atol=1e-12)
    assert (made[:12] == inside[0]).all()
    assert (made[45:] == inside[-1]).all()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scaled", [49, 97, 193])
def test_a_window_over_all_is_the_plain_resize(scaled, align_corners):
    """At whatever scale: from the map straight to the plane, as TensorFlow does it."""
    made = dense(band(np.arange(97), Resize(13, 97, align_corners, scaled, 0, scaled)), 13)
    np.testing.assert_allclose(made, interpolation_matrix(13, 97, align_corners=align_corners), rtol=0, atol=1e-12)


def test_a_large_photo_costs_no_more_than_a_band():
    tracemalloc.start()
    try:
        band(
            np.arange(9_000, 9_256),
            Resize.plain(9_000, 10_000, align_corners=False),
            Resize.plain(1_125, 9_000, align_corners=False),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3e6 < 8 * 10_000 * 1_125
