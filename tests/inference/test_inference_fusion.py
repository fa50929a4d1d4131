"""Fusion of views, with networks made of numpy whose answers are known."""

import tracemalloc
import weakref

import numpy as np
import pytest

from deeplabzoo.core.interpolation import interpolation_matrix
from deeplabzoo.errors import DataError
from deeplabzoo.inference import (
    IMAGENET,
    TF_DEEPLAB,
    TORCHVISION,
    InferenceOptions,
    predict_labels,
    predict_probabilities,
    prepare,
    restore_labels,
)
from deeplabzoo.inference.fusion import softmax
from deeplabzoo.inference.views import scaled_size

NOISE = np.random.default_rng(0)
SCALES = (0.5, 0.75, 1.0, 1.5)


def photo(height, width):
    return NOISE.integers(0, 256, (height, width, 3), np.uint8)


def edges(height, width):
    """A bright block on a dark photo, and its labels."""
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 3 :, width // 4 : -max(1, width // 5)] = 255
    return image, image[:, :, 0] // 255


def bright(stride, align_corners):
    """A network that tells dark from bright, on a map smaller by its stride."""

    def forward(x):
        light = x[:, :1]
        if align_corners:
            light = light[:, :, ::stride, ::stride]
        else:  # the mean of each cell, whose centre is where half-pixel centres expect it
            light = cells(x.shape[2], stride).T @ light @ cells(x.shape[3], stride)
        return np.concatenate([-light, light], axis=1)

    return forward


def cells(side, stride):
    """Matrix [side, cells] that averages over cells of equal size, in parts of pixels where `stride` does not divide."""
    count = -(-side // stride)
    bounds = np.linspace(0, side, count + 1)
    pixels = np.arange(side)[:, None]
    share = np.clip(np.minimum(pixels + 1, bounds[1:]) - np.maximum(pixels, bounds[:-1]), 0, 1)
    return (share / share.sum(axis=0)).astype(np.float32)


def lopsided(x):
    """Three classes from neighbours on one side: a network that mirroring changes."""
    shifted = np.roll(x, 3, axis=3)
    return np.stack([x[:, 0] * 2, shifted[:, 1] * 2, x[:, 2] - shifted[:, 0]], axis=1)[..., ::4, ::4]


MODES = {
    "single": {},
    "scales": {"scales": SCALES},
    "flip": {"flip": True},
    "scales, flip": {"scales": SCALES, "flip": True},
    "max": {"scales": (0.5, 0.75, 1), "fusion": "max"},
    "windows": {"window": 65},
    "windows without overlap": {"window": 49, "overlap": 0},
    "windows, scales, flip": {"window": 65, "scales": (0.75, 1.25), "flip": True, "overlap": 0.6},
    "windows, max": {"window": 65, "scales": (0.5, 1), "fusion": "max"},
}


PREPROCESSINGS = pytest.mark.parametrize(
    "pre",
    [IMAGENET, TF_DEEPLAB.replace(size=257, pad_to=257), TORCHVISION.replace(size=170)],
    ids=["as it is", "padded", "resized"],
)


@pytest.mark.parametrize("align_corners", [False, True])
@PREPROCESSINGS
@pytest.mark.parametrize("mode", MODES)
def test_the_photo_is_found_in_its_own_place(mode, pre, align_corners):
    image, truth = edges(141, 191)
    options = InferenceOptions.from_dict(MODES[mode])
    labels = predict_labels(bright(4, align_corners), image, pre, align_corners=align_corners, options=options)
    assert labels.shape == truth.shape
    wrong = labels != truth
    assert wrong.mean() < 0.03
    rows, columns = np.nonzero(wrong)
    borders = np.minimum(np.abs(rows - 141 // 3), np.minimum(np.abs(columns - 191 // 4), np.abs(columns - 153)))
    assert borders.size == 0 or borders.max() <= 6  # a cell of the map at the smallest scale is 8 pixels wide


def test_the_wrong_rule_is_seen():
    """A slope of brightness is cut where it crosses the mean; a map laid by the other rule is off by 7 columns."""
    image = np.repeat(np.repeat(np.linspace(0, 200, 1025).round().astype(np.uint8)[None, :, None], 9, 0), 3, 2)
    pre = IMAGENET.replace(scale=1, mean=(150, 150, 150))
    truth = np.arange(1025) > 768
    own, other = (
        (predict_labels(bright(32, True), image, pre, align_corners=rule) != truth).mean() for rule in (True, False)
    )
    assert own < 0.003 < 0.006 < other


def resized(logits, size, align_corners):
    down, across = (
        interpolation_matrix(source, target, align_corners=align_corners)
        for source, target in zip(logits.shape[1:], size, strict=True)
    )
    return down @ logits.astype(np.float64) @ across.T


def by_hand(forward, image, pre, align_corners, scales, flip, fusion):
    """Whole matrices, whole maps, no tile: what the fusion means."""
    x, placement = prepare(image, pre)
    views = []
    for scale in scales:
        size = scaled_size(placement.padded, scale, align_corners=align_corners)
        scaled = resized(x[0], size, align_corners)[None].astype(np.float32)
        for mirrored in (False, True)[: 1 + flip]:
            logits = np.asarray(forward(scaled[..., ::-1] if mirrored else scaled))[0]
            logits = logits[..., ::-1] if mirrored else logits
            plane = resized(logits, placement.padded, align_corners)
            plane = plane[:, : placement.resized[0], : placement.resized[1]]
            views.append(resized(plane, placement.original, False))
    if fusion == "max":
        return softmax(np.max(views, axis=0))
    return np.mean([softmax(view) for view in views], axis=0)


@pytest.mark.parametrize("align_corners", [False, True])
@PREPROCESSINGS
@pytest.mark.parametrize("mode", ["single", "scales", "flip", "scales, flip", "max"])
def test_fusion_by_hand(mode, pre, align_corners):
    image = photo(140, 267)
    options = InferenceOptions.from_dict(MODES[mode])
    made = predict_probabilities(lopsided, image, pre, align_corners=align_corners, options=options)
    expected = by_hand(lopsided, image, pre, align_corners, options.scales, options.flip, options.fusion)
    assert made.dtype == np.float32
    assert made.shape == (3, 140, 267)
    np.testing.assert_allclose(made, expected, atol=2e-4)
    np.testing.assert_allclose(made.sum(axis=0), 1, atol=1e-5)
    labels = predict_labels(lopsided, image, pre, align_corners=align_corners, options=options)
    np.testing.assert_array_equal(labels, made.argmax(axis=0))


def test_modes_differ():
    """Otherwise the comparisons above would prove nothing."""
    image = photo(70, 90)
    made = [
        predict_probabilities(lopsided, image, IMAGENET, options=InferenceOptions.from_dict(options))
        for options in (
            {},
            {"flip": True},
            {"scales": (0.5, 1)},
            {"scales": (0.5, 1), "fusion": "max"},
            {"window": 33},
            {"window": 33, "overlap": 0},
            {"window": 33, "flip": True, "fusion": "max"},
        )
    ]
    for number, one in enumerate(made):
        assert all(np.abs(one - other).max() > 0.01 for other in made[:number]), number


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_mirrored_photos_have_mirrored_answers(fusion):
    """With flips any network treats left and right alike; without them this one does not."""
    image = photo(65, 90)
    plain, mirrored = (
        [
            predict_probabilities(lopsided, one, IMAGENET, options=InferenceOptions(flip=flip, fusion=fusion))
            for flip in (False, True)
        ]
        for one in (image, image[:, ::-1].copy())
    )
    np.testing.assert_allclose(plain[1], mirrored[1][..., ::-1], atol=1e-5)
    assert np.abs(plain[0] - mirrored[0][..., ::-1]).max() > 0.1


def test_flipping_a_symmetric_network_changes_nothing():
    image = photo(65, 97)
    whole, flipped = (
        predict_probabilities(bright(8, True), image, IMAGENET, align_corners=True, options=InferenceOptions(flip=flip))
        for flip in (False, True)
    )
    np.testing.assert_allclose(whole, flipped, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["single", "scales, flip", "max"])
def test_a_window_over_everything_is_the_whole_photo(mode, align_corners):
    image = photo(120, 131)
    given = MODES[mode]
    whole, windowed = (
        predict_probabilities(
            lopsided,
            image,
            TF_DEEPLAB,
            align_corners=align_corners,
            options=InferenceOptions.from_dict({**given, "window": window}),
        )
        for window in (None, 2000)
    )
    np.testing.assert_array_equal(whole, windowed)


@pytest.mark.parametrize("fusion", ["mean", "max"])
@pytest.mark.parametrize(("window", "overlap"), [(33, 0), (33, 1 / 3), (17, 0.5), (49, 0.9)])
def test_windows_of_a_network_without_context_blend_into_the_whole(window, overlap, fusion):
    """Each window says the same of a pixel, so that only place and weights could go wrong."""

    def pointwise(x):
        return np.concatenate([x, -x[:, :1]], axis=1)

    image = photo(100, 90)
    whole = predict_probabilities(pointwise, image, IMAGENET)
    options = InferenceOptions(window=window, overlap=overlap, fusion=fusion)
    np.testing.assert_allclose(predict_probabilities(pointwise, image, IMAGENET, options=options), whole, atol=1e-6)


def test_a_window_sees_nothing_but_itself():
    seen = []

    def forward(x):
        seen.append(x)
        return x[:, :2]

    image = photo(50, 80)
    x, _ = prepare(image, IMAGENET)
    predict_labels(forward, image, IMAGENET, options=InferenceOptions(window=40, overlap=0.5))
    assert [one.shape for one in seen] == [(1, 3, 40, 40)] * 6  # rows from 0 and 10, columns from 0, 20 and 40
    for one, (top, left) in zip(seen, [(t, c) for t in (0, 10) for c in (0, 20, 40)], strict=True):
        np.testing.assert_array_equal(one, x[:, :, top : top + 40, left : left + 40])


def test_overlaps_fade_from_one_window_to_the_next():
    """Windows that disagree altogether: the answer goes from one to the other along the ramp."""
    calls = []

    def forward(x):
        calls.append(x)
        sign = 1 if len(calls) == 1 else -1
        return np.full((1, 2, *x.shape[2:]), 50, np.float32) * np.array([sign, -sign]).reshape(1, 2, 1, 1)

    made = predict_probabilities(forward, photo(4, 6), IMAGENET, options=InferenceOptions(window=4, overlap=0.5))
    np.testing.assert_allclose(made[0], np.tile([1, 1, 0.75, 0.25, 0, 0], (4, 1)), atol=1e-6)


def test_only_rows_of_windows_are_alive():
    """A tall photo: of 60 windows those are kept that lie on one row of squares."""
    living, most, calls = 0, 0, 0

    def forward(x):
        nonlocal living, most, calls
        logits = np.zeros((1, 2, 8, 8), np.float32)
        living, calls = living + 1, calls + 1
        most = max(most, living)
        weakref.finalize(logits, gone)
        return logits

    def gone():
        nonlocal living
        living -= 1

    predict_labels(forward, photo(1900, 150), IMAGENET, options=InferenceOptions(window=100, overlap=0.3))
    assert calls == 54
    assert most <= 12  # squares of 256 rows touch at most 5 rows of 2 windows, and one more pair is being made
    assert living == 0


def test_a_large_photo_is_never_there_as_floats():
    image = np.zeros((3000, 2500, 3), np.uint8)

    def forward(x):
        return np.zeros((1, 5, x.shape[2] // 8, x.shape[3] // 8), np.float32)

    tracemalloc.start()
    try:
        predict_labels(forward, image, IMAGENET, options=InferenceOptions(window=513))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6 < 4 * image.size  # the labels take 7.5 MB of it


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"flip": True}, {"scales": (0.5, 1)}])
@pytest.mark.parametrize(
    ("answer", "match"), [(np.zeros((2, 9, 9)), "a map a class"), (np.full((1, 2, 1, 1), np.nan), "NaN or infinity")]
)
def test_broken_answers_are_refused(options, answer, match):
    with pytest.raises(DataError, match=match):
        predict_labels(lambda x: answer, photo(9, 9), IMAGENET, options=InferenceOptions.from_dict(options))


def test_restoring_is_a_single_view():
    image = photo(100, 131)
    x, placement = prepare(image, TF_DEEPLAB)
    np.testing.assert_array_equal(
        restore_labels(lopsided(x), placement, align_corners=True),
        predict_labels(lopsided, image, TF_DEEPLAB, align_corners=True),
    )
