"""Pascal VOC's classes and colours, and labels drawn with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deeplabzoo.errors import DataError, ImageError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
"""The 21 classes of Pascal VOC 2012 in the order of their labels (VOC2012 devkit, section 2)."""

VOID = 255
"""Label of the pixels that nobody is judged on: borders of objects and parts too hard to mark."""


def _voc_palette() -> npt.NDArray[np.uint8]:
    """The devkit's rule (VOClabelcolormap.m): bits 0, 1, 2 of the label are bit 7 of R, G, B; bits 3 to 5 bit 6; ..."""
    label = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for triple in range(3):
        for channel in range(3):
            bit = label >> (3 * triple + channel) & 1
            palette[:, channel] |= (bit << (7 - triple)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


PALETTE = _voc_palette()
"""uint8 [256, 3], read-only: the RGB colour of each label. All differ; void (255) is the off-white (224, 224, 192)."""


def check_photo(image: npt.NDArray[Any]) -> None:
    """Raise `ImageError` unless `image` is a photo as `read_image` gives it: uint8 [H, W, 3] with at least a pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"photo of dtype {image.dtype} and shape {image.shape}: expected uint8 of shape (H, W, 3), RGB; "
            f"read_image gives it"
        )


def check_labels(what: str, labels: npt.NDArray[Any]) -> None:
    """Raise `DataError` unless `labels` are whole numbers of shape (H, W) with at least a pixel."""
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{what} of dtype {labels.dtype} and shape {labels.shape}: expected whole numbers of shape (H, W), a label "
            f"a pixel; take the arg-max over the classes first"
        )


def check_drawable(labels: npt.NDArray[Any]) -> None:
    """Raise `DataError` unless `labels` are labels of shape (H, W) from 0 to 255, which is what the palette colours."""
    check_labels("labels", labels)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 255:
        raise DataError(
            f"labels from {low} to {high}: expected 0 to 255, the range of the palette; map the classes to it"
        )


def colourise(labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """Draw labels in Pascal VOC's colours.

    Args:
        labels: whole numbers [H, W] from 0 to 255; 255 (void) is drawn off-white.

    Returns:
        uint8 array [H, W, 3], RGB.

    Raises:
        DataError: `labels` has another shape, type or range.
    """
    check_drawable(labels)
    return np.take(PALETTE, labels, axis=0)


def overlay(
    image: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]], opacity: float = 0.6
) -> npt.NDArray[np.uint8]:
    """Lay the colours of labels over a photo. Background (label 0) is black, so that all but the objects is dimmed.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: whole numbers [H, W] from 0 to 255.
        opacity: share of the label's colour, from 0 (the photo alone) to 1 (the colour alone).

    Returns:
        uint8 array [H, W, 3], rounded to nearest.

    Raises:
        DataError: labels that do not fit the photo or have no colour, or an opacity outside 0 to 1.
    """
    if image.dtype != np.uint8 or image.shape != (*labels.shape, 3):
        raise DataError(
            f"photo of dtype {image.dtype} and shape {image.shape} with labels of shape {labels.shape}: expected a "
            f"uint8 photo [H, W, 3] and labels [H, W] of one size; restore the labels to the photo's size"
        )
    if not 0 <= opacity <= 1:
        raise DataError(f"opacity = {opacity!r}: expected a number from 0 to 1")
    mixed = image.astype(np.float32) * (1 - opacity) + colourise(labels).astype(np.float32) * opacity
    return (mixed + 0.5).astype(np.uint8)
