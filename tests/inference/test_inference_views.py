"""Options, sizes of scales, and windows over one axis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplabzoo.errors import ImageError, SpecError
from deeplabzoo.inference import IMAGENET, TF_DEEPLAB, InferenceOptions, Plane, Preprocessing, place, plane, prepare
from deeplabzoo.inference.views import axis_windows, lay_windows, scaled_size

NOISE = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("scale", "align_corners", "expected"),
    [
        # scale_dimension of research/deeplab: int((513 - 1) * scale + 1)
        (0.5, True, (257, 193)),
        (0.75, True, (385, 289)),
        (1.25, True, (641, 481)),
        (1.75, True, (897, 673)),
        (0.5, False, (256, 192)),  # 256.5 to the even neighbour
        (1.25, False, (641, 481)),
        (0.05, False, (26, 19)),
    ],
)
def test_sizes_of_scales(scale, align_corners, expected):
    assert scaled_size((513, 385), scale, align_corners=align_corners) == expected


def test_a_scale_leaves_at_least_a_point():
    assert scaled_size((1, 5), 0.05, align_corners=False) == (1, 1)
    assert scaled_size((1, 5), 0.05, align_corners=True) == (1, 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scales": ()}, r"scales = \(\): expected at least one number"),
        ({"scales": [0.5, 0.5]}, r"scales = \(0\.5, 0\.5\): .* none twice"),
        ({"scales": [1, 1.0]}, "none twice"),
        ({"scales": [0]}, r"scales = \(0,\)"),
        ({"scales": [-1.0]}, "from 0.05 to 8"),
        ({"scales": [float("nan")]}, "nan"),
        ({"scales": [8.1]}, "from 0.05 to 8"),
        ({"scales": ["1"]}, "expected at least one number"),
        ({"scales": 1.0}, r"scales = 1\.0"),
        ({"flip": 1}, "flip = 1: expected true or false"),
        ({"fusion": "meen"}, "did you mean 'mean'"),
        ({"window": 0}, "window = 0: expected a whole number of at least 1"),
        ({"window": 2.5}, r"window = 2\.5"),
        ({"overlap": 1.0}, r"overlap = 1\.0: expected a number >= 0 and < 1"),
        ({"overlap": -0.1}, r"overlap = -0\.1"),
    ],
)
def test_wrong_options_are_named(change, match):
    with pytest.raises(SpecError, match=match) as caught:
        InferenceOptions.from_dict(change)
    assert "\n" not in str(caught.value)


def test_the_bounds_are_legal():
    assert InferenceOptions(scales=(0.05, 8)).scales == (0.05, 8)
    assert InferenceOptions(overlap=0).overlap == 0


@pytest.mark.parametrize(
    ("length", "side", "overlap", "starts"),
    [
        (10, 10, 0.5, [0]),
        (9, 10, 0.5, [0]),
        (20, 10, 0, [0, 10]),
        (25, 10, 0, [0, 10, 15]),  # the last one moved back
        (20, 10, 0.5, [0, 5, 10]),
        (513, 257, 1 / 3, [0, 171, 256]),
    ],
)
def test_windows(length, side, overlap, starts):
    spans = lay_windows(length, side, overlap)
    assert [span.start for span in spans] == starts
    assert {span.stop - span.start for span in spans} == {min(side, length)}
    assert spans[-1].stop == length


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 120),
    st.integers(1, 60),
    st.floats(0, 0.9),
    st.floats(0.05, 4),
    st.booleans(),
    st.sampled_from(["none", "longest", "shortest"]),
)
def test_every_pixel_has_windows_whose_weights_sum_to_one(original, pad, side, overlap, scale, align_corners, resize):
    pre = IMAGENET.replace(resize=resize, size=None if resize == "none" else 37, pad_to=pad)
    placement = place(original, original, pre)
    scaled = scaled_size(placement.padded, scale, align_corners=align_corners)[0]
    spans = lay_windows(scaled, side, overlap)
    windows = axis_windows(placement, 0, scaled, spans, align_corners=align_corners)
    total = np.zeros(original)
    for window in windows:
        assert window.last - window.first == len(window.shares) > 0
        assert (window.shares > 0).all()
        total[window.first : window.last] += window.shares
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_the_ramp_by_hand():
    """Windows of 4 that share 2 points: distances from the edge 0.5, 1.5, 2.5, 3.5 over a ramp of 2."""
    placement = place(6, 6, IMAGENET)
    first, second = axis_windows(placement, 0, 6, lay_windows(6, 4, 0.5), align_corners=False)
    np.testing.assert_allclose(first.shares, [1, 1, 0.75, 0.25])
    np.testing.assert_allclose(second.shares, [0.25, 0.75, 1, 1])
    assert (second.first, second.last) == (2, 6)


def test_padding_needs_no_window():
    placement = place(100, 100, TF_DEEPLAB)
    assert len(axis_windows(placement, 0, 513, lay_windows(513, 129, 0), align_corners=True)) == 1


PRE = Preprocessing(scale=0.5, mean=(1, 2, 3), std=(1, 2, 4), channel_order="bgr", pad_to=300, pad_value=(9, 99, 199))


@pytest.mark.parametrize(
    "change", [{}, {"resize": "longest", "size": 190}, {"resize": "shortest", "size": 290, "antialias": False}]
)
def test_windows_of_the_plane_are_parts_of_it(change):
    image = NOISE.integers(0, 256, (280, 233, 3), np.uint8)
    whole, placement = prepare(image, PRE.replace(**change))
    assert whole.shape[2:] == placement.padded
    parts = Plane(image, PRE.replace(**change))
    for rows, columns in (
        (slice(0, 64), slice(5, 70)),
        (slice(180, 300), slice(200, 300)),
        (slice(299, 300), slice(0, 1)),
    ):
        np.testing.assert_array_equal(parts.cut(rows, columns), whole[:, :, rows, columns])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scale", [0.05, 0.5, 0.7, 1.3, 2])
def test_windows_of_a_scaled_plane(scale, align_corners):
    from deeplabzoo.core.interpolation import interpolation_matrix

    image = NOISE.integers(0, 256, (280, 233, 3), np.uint8)
    whole, placement = prepare(image, PRE)
    size = scaled_size(placement.padded, scale, align_corners=align_corners)
    down, across = (
        interpolation_matrix(source, target, align_corners=align_corners)
        for source, target in zip(placement.padded, size, strict=True)
    )
    expected = down @ whole.astype(np.float64) @ across.T
    rows, columns = slice(size[0] // 3, size[0]), slice(0, size[1] // 2 + 1)
    made = Plane(image, PRE).cut(rows, columns, size, align_corners=align_corners)
    np.testing.assert_allclose(made, expected[:, :, rows, columns], atol=1e-4)  # `whole` is rounded to float32


def test_a_piece_is_never_too_large(monkeypatch):
    monkeypatch.setattr(plane, "MOST_PIXELS", 1000)
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(
        ImageError,
        match=r"40 x 40 .* at most 1000 pixels at once; crop it, or, where it is not resized, have it labelled in windows",
    ):
        prepare(image, IMAGENET)
    assert Plane(image, IMAGENET).cut(slice(8, 40), slice(0, 31)).shape == (1, 3, 32, 31)
