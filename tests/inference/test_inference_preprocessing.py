"""Preprocessing against values worked out by hand, and the way back to the photo."""

import json
import tomllib

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplabzoo.core.interpolation import interpolation_matrix
from deeplabzoo.errors import DataError, ImageError, SpecError
from deeplabzoo.inference import (
    CAFFE,
    IMAGENET,
    PADDLESEG,
    RAW,
    TF_DEEPLAB,
    TF_RESNET,
    TORCHVISION,
    UNIT,
    Placement,
    Preprocessing,
    place,
    predict_labels,
    prepare,
    preprocessing,
    restore_labels,
)

PLAIN = Preprocessing(scale=1, mean=(0, 0, 0), std=(1, 1, 1))
NOISE = np.random.default_rng(0)


def photo(height, width):
    return NOISE.integers(0, 256, (height, width, 3), np.uint8)


def test_tf_range():
    image = np.array([[[0, 51, 255]]], np.uint8)
    x, placement = prepare(image, TF_DEEPLAB)
    assert x.dtype == np.float32
    assert x.shape == (1, 3, 513, 513)
    assert placement == Placement((1, 1), (1, 1), (513, 513))
    np.testing.assert_allclose(x[0, :, 0, 0], [-1, -0.6, 1], atol=1e-7)
    # the padding is the mean pixel, which the network sees as zero
    assert np.abs(x[0, :, 1:, :]).max() == 0
    assert np.abs(x[0, :, :, 1:]).max() == 0


def test_imagenet_normalisation():
    x, _ = prepare(np.array([[[255, 0, 128]]], np.uint8), IMAGENET)
    # (1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225
    np.testing.assert_allclose(x[0, :, 0, 0], [2.2489083, -2.0357143, 0.42649237], rtol=1e-6)


def test_bgr_means_are_in_bgr_order():
    caffe = PLAIN.replace(channel_order="bgr", mean=(104, 117, 123), pad_to=2, pad_value=(104, 117, 123))
    x, _ = prepare(np.array([[[10, 20, 30]]], np.uint8), caffe)
    assert x[0, :, 0, 0].tolist() == [30 - 104, 20 - 117, 10 - 123]
    assert x[0, :, 1, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("pre", "size", "resized", "padded"),
    [
        (TF_DEEPLAB, (400, 500), (400, 500), (513, 513)),  # never enlarged
        (TF_DEEPLAB, (513, 513), (513, 513), (513, 513)),
        (TF_DEEPLAB, (1026, 2052), (256, 513), (513, 513)),  # 256.5 rounded down
        (TF_DEEPLAB, (1, 5000), (1, 513), (513, 513)),  # at least a pixel
        (TORCHVISION, (480, 640), (520, 693), (520, 693)),  # 693.33 rounded down
        (TORCHVISION, (1040, 520), (1040, 520), (1040, 520)),
        (TORCHVISION, (1, 1), (520, 520), (520, 520)),
        (IMAGENET, (37, 4001), (37, 4001), (37, 4001)),
        (IMAGENET.replace(pad_to=100), (37, 4001), (37, 4001), (100, 4001)),
    ],
)
def test_sizes(pre, size, resized, padded):
    assert place(*size, pre) == Placement(size, resized, padded)


def test_antialias_averages():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, ::4] = 200  # every fourth column
    averaged, _ = prepare(image, PLAIN.replace(resize="longest", size=2))
    picked, _ = prepare(image, PLAIN.replace(resize="longest", size=2, antialias=False))
    # Triangle of half width 4 about columns 1.5 and 5.5 (pixel centres at .5): weights (8 - 2|d|) of columns 0 and 4
    first = 200 * (2.5 + 1.5) / (2.5 + 3.5 + 3.5 + 2.5 + 1.5 + 0.5)
    assert np.abs(averaged[0, 0, 0, 0] - first) <= 1
    # Half-pixel centres: the new columns read halfway between columns 1 and 2, and 5 and 6: all zero
    assert picked.max() == 0


def test_no_antialias_by_hand():
    row = np.repeat(np.array([[[0], [40], [80], [120]]], np.uint8), 3, axis=2)
    x, _ = prepare(row, PLAIN.replace(resize="longest", size=3, antialias=False))
    # centres (i + 0.5) * 4 / 3 - 0.5 = 1/6, 1.5, 17/6
    np.testing.assert_allclose(x[0, 0, 0], [40 / 6, 60, 120 - 40 / 6], rtol=1e-6)


def test_enlarging_is_the_same_with_and_without_antialias():
    image = photo(5, 7)
    smooth, _ = prepare(image, PLAIN.replace(resize="shortest", size=13))
    exact, _ = prepare(image, PLAIN.replace(resize="shortest", size=13, antialias=False))
    assert smooth.shape == exact.shape == (1, 3, 13, 18)
    assert np.abs(smooth - exact).max() <= 1.01  # Pillow rounds to whole pixels, twice


def test_a_strip_is_not_blown_up():
    with pytest.raises(ImageError, match="520 x 2600000"):
        prepare(np.zeros((1, 5000, 3), np.uint8), TORCHVISION)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_photo_is_refused(image):
    with pytest.raises(ImageError, match="read_image"):
        prepare(image, IMAGENET)


@pytest.mark.parametrize(
    "pre", [TF_DEEPLAB, TORCHVISION, CAFFE, TF_RESNET, PLAIN.replace(channel_order="bgr", pad_to=9)]
)
def test_plain_data_both_ways(pre):
    assert Preprocessing.from_dict(pre.to_dict()) == pre
    assert Preprocessing.from_dict(json.loads(json.dumps(pre.to_dict()))) == pre
    assert Preprocessing.from_dict(tomllib.loads(tomli_w.dumps(pre.to_dict()))) == pre
    assert hash(Preprocessing.from_dict(pre.to_dict())) == hash(pre)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scael": 1.0}, ["unknown field scael", "did you mean 'scale'?"]),
        ({"mean": [0.5, 0.5]}, ["mean", "(0.5, 0.5)", "3 numbers"]),
        ({"mean": 0.5}, ["mean", "0.5", "3 numbers"]),
        ({"std": [1.0, 0.0, 1.0]}, ["std", "0.0", "> 0"]),
        ({"std": [1.0, float("nan"), 1.0]}, ["std", "nan"]),
        ({"scale": 0.0}, ["scale", "0.0", "> 0"]),
        ({"scale": "1/255"}, ["scale", "1/255"]),
        ({"channel_order": "grb"}, ["channel_order", "grb", "rgb, bgr"]),
        ({"resize": "longst", "size": 5}, ["resize", "none, longest, shortest", "did you mean 'longest'?"]),
        ({"resize": "longest"}, ["size", "None", "at least 1"]),
        ({"resize": "shortest", "size": 0}, ["size", "0", "at least 1"]),
        ({"size": 513}, ["size", "513", "resize = 'none'"]),
        ({"pad_to": 2.5}, ["pad_to", "2.5"]),
        ({"pad_value": [1.0]}, ["pad_value", "3 numbers"]),
        ({"antialias": 1}, ["antialias", "true or false"]),
    ],
)
def test_wrong_fields_are_named(change, words):
    with pytest.raises(SpecError) as caught:
        Preprocessing.from_dict({**IMAGENET.to_dict(), **change})
    for word in words:
        assert word in str(caught.value), caught.value


def test_missing_field_is_named():
    with pytest.raises(SpecError, match="std is missing"):
        Preprocessing.from_dict({"scale": 1, "mean": [0, 0, 0]})


def as_logits(labels, classes):
    return np.moveaxis(np.eye(classes, dtype=np.float32)[labels], -1, 0)[None]


@pytest.mark.parametrize("size", [(1, 1), (7, 10), (64, 33), (257, 300), (513, 513)])
def test_labels_come_back_where_nothing_is_resized(size):
    labels = NOISE.integers(0, 5, size)
    placement = place(*size, TF_DEEPLAB)
    logits = np.full((1, 5, 513, 513), 9, np.float32)  # the padding shouts another class
    logits[..., : size[0], : size[1]] = as_logits(labels, 5)
    restored = restore_labels(logits, placement)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, labels)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(
    ("size", "pre", "stride"),
    [
        ((300, 431), TF_DEEPLAB, 1),
        ((300, 431), TF_DEEPLAB, 8),
        ((800, 617), TF_DEEPLAB, 1),
        ((800, 617), TF_DEEPLAB, 8),
        ((31, 64), TORCHVISION, 16),
        ((1, 1), TF_DEEPLAB, 8),
        ((290, 258), IMAGENET, 4),
    ],
)
def test_squares_and_one_matrix_equal_two_plain_resizes(size, pre, stride, dtype, align_corners):
    placement = place(*size, pre)
    tall, wide = (-(-side // stride) for side in placement.padded)
    logits = NOISE.normal(size=(1, 4, tall, wide)).astype(dtype)
    full = logits[0].astype(np.float64)
    for axis in range(2):
        matrix = interpolation_matrix(full.shape[axis + 1], placement.padded[axis], align_corners=align_corners)
        full = np.moveaxis(np.tensordot(matrix, full, (1, axis + 1)), 0, axis + 1)
    full = full[:, : placement.resized[0], : placement.resized[1]]
    for axis in range(2):
        matrix = interpolation_matrix(full.shape[axis + 1], size[axis], align_corners=False)
        full = np.moveaxis(np.tensordot(matrix, full, (1, axis + 1)), 0, axis + 1)
    restored = restore_labels(logits, placement, align_corners=align_corners)
    assert restored.shape == size
    ranked = np.sort(full, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(restored[clear], full.argmax(axis=0)[clear])


def test_align_corners_matters():
    logits = NOISE.normal(size=(1, 4, 9, 9)).astype(np.float32)
    placement = place(65, 65, IMAGENET)
    assert (restore_labels(logits, placement) != restore_labels(logits, placement, align_corners=True)).any()


def test_the_photo_is_found_in_its_own_place():
    """A network that tells dark from bright, on a photo that is shrunk and padded: the edge stays where it was."""
    image = np.zeros((1026, 700, 3), np.uint8)
    image[300:, 200:] = 255

    def forward(x):
        return np.concatenate([-x[:, :1], x[:, :1]], axis=1)

    labels = predict_labels(forward, image, TF_DEEPLAB)
    truth = image[:, :, 0] // 255
    assert labels.shape == truth.shape
    assert (labels != truth).mean() < 0.002
    rows, columns = np.nonzero(labels != truth)
    assert np.minimum(np.abs(rows - 300), np.abs(columns - 200)).max() <= 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 2, 8]), st.integers(1, 70), st.integers(1, 99))
def test_any_size_keeps_its_shape(height, width, stride, size, pad):
    pre = IMAGENET.replace(resize="longest", size=size, pad_to=pad)

    def forward(x):
        return x[:, :2, ::stride, ::stride]

    assert predict_labels(forward, np.zeros((height, width, 3), np.uint8), pre).shape == (height, width)


def test_many_classes_need_more_than_a_byte():
    logits = np.zeros((1, 300, 2, 2), np.float32)
    logits[0, 299] = 1
    restored = restore_labels(logits, place(2, 2, IMAGENET))
    assert restored.dtype == np.uint16
    assert (restored == 299).all()


def test_a_large_photo_takes_little_memory():
    import tracemalloc

    placement = place(3000, 2000, TF_DEEPLAB)
    logits = NOISE.normal(size=(1, 21, 65, 65)).astype(np.float32)
    tracemalloc.start()
    try:
        restore_labels(logits, placement)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6 < 4 * 21 * 3000 * 2000


@pytest.mark.parametrize("shape", [(21, 9, 9), (2, 21, 9, 9), (1, 0, 9, 9), (1, 21, 0, 9)])
def test_other_logits_are_refused(shape):
    with pytest.raises(DataError, match=r"expected \(1, K, h, w\), a map a class"):
        restore_labels(np.zeros(shape, np.float32), place(9, 9, IMAGENET))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_refused(bad):
    logits = np.zeros((1, 2, 9, 9), np.float32)
    logits[0, 1, 3, 3] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        restore_labels(logits, place(9, 9, IMAGENET))


def test_a_single_logit_stands_against_zero():
    logits = np.array([[[[-1, 2], [3, -4]]]], np.float32)
    assert restore_labels(logits, place(2, 2, IMAGENET)).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("pre", "pixel", "expected"),
    [
        (CAFFE, (200, 100, 50), (50 - 104.008, 100 - 116.669, 200 - 122.675)),
        (TF_RESNET, (200, 100, 50), (200 - 123.15, 100 - 115.90, 50 - 103.06)),
        (PADDLESEG, (255, 0, 51), (1, -1, -0.6)),
        (UNIT, (255, 0, 51), (1, 0, 0.2)),
        (RAW, (255, 0, 51), (255, 0, 51)),
    ],
)
def test_other_published_preprocessings(pre, pixel, expected):
    x, _ = prepare(np.array([[pixel]], np.uint8), pre)
    np.testing.assert_allclose(x[0, :, 0, 0], expected, rtol=1e-6, atol=1e-6)
    padded, _ = prepare(np.array([[pixel]], np.uint8), pre.replace(pad_to=600))
    if pre in (CAFFE, TF_RESNET):  # the mean pixel, which the network sees as zero
        assert np.abs(padded[0, :, 1:, 1:]).max() < 1e-6


def test_presets_say_their_source():
    assert preprocessing.TF_DEEPLAB.scale == 2 / 255
    assert (TORCHVISION.size, TORCHVISION.resize, TORCHVISION.antialias) == (520, "shortest", True)
    assert (TORCHVISION.mean, TORCHVISION.std) == (IMAGENET.mean, IMAGENET.std)
