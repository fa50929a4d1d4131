"""Colours of labels."""

import numpy as np
import pytest

from deeplabzoo.errors import DataError
from deeplabzoo.inference import PALETTE, VOC_CLASSES, VOID, colourise, find_pairs, overlay, read_mask


def test_the_devkits_colours():
    # from the list that the devkit's VOClabelcolormap prints
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 17: (128, 64, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    for label, colour in known.items():
        assert tuple(PALETTE[label]) == colour
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == 256
    assert not PALETTE.flags.writeable


def test_classes():
    assert len(VOC_CLASSES) == len(set(VOC_CLASSES)) == 21
    assert (VOC_CLASSES[0], VOC_CLASSES[15], VOC_CLASSES[17]) == ("background", "person", "sheep")


def test_the_photos_masks_carry_this_palette(photos):
    from PIL import Image

    for pair in find_pairs(photos):
        with Image.open(pair.mask_path) as mask:
            assert bytes(mask.palette.palette)[: 21 * 3] == PALETTE[:21].tobytes()
        assert VOID in read_mask(pair.mask_path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_colourise(dtype):
    drawn = colourise(np.array([[0, 15], [255, 7]], dtype))
    assert drawn.dtype == np.uint8
    assert drawn.tolist() == [[[0, 0, 0], [192, 128, 128]], [[224, 224, 192], [128, 128, 128]]]


@pytest.mark.parametrize(
    "labels",
    [np.zeros((2, 2)), np.zeros((1, 2, 2), int), np.zeros((0, 2), int), np.array([[256]]), np.array([[-1]])],
)
def test_what_is_no_labels_is_refused(labels):
    with pytest.raises(DataError, match="labels"):
        colourise(labels)


def test_overlay():
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 15, 255]])
    assert overlay(image, labels, 0).tolist() == image.tolist()
    assert overlay(image, labels, 1).tolist() == colourise(labels).tolist()
    # halfway, rounded to nearest: (100 + 192) / 2 = 146, (100 + 128) / 2 = 114
    assert overlay(image, labels, 0.5).tolist() == [[[50] * 3, [146, 114, 114], [162, 162, 146]]]
    assert image.min() == 100


def test_overlay_refuses_what_does_not_fit():
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(DataError, match="one size"):
        overlay(image, np.zeros((3, 2), int))
    with pytest.raises(DataError, match="uint8"):
        overlay(image.astype(float), np.zeros((2, 3), int))
    with pytest.raises(DataError, match=r"opacity = 1\.5"):
        overlay(image, np.zeros((2, 3), int), 1.5)
