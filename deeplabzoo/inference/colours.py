"""Labels drawn in the colours of their data set, and the checks of photos and labels that all of inference shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deeplabzoo.errors import DataError, ImageError
from deeplabzoo.inference.classes import VOC_CLASSES as VOC_CLASSES
from deeplabzoo.inference.label_sets import PALETTE, Palette


def check_photo(image: npt.NDArray[Any]) -> None:
    """Raise `ImageError` unless `image` is a photo as `read_image` gives it: uint8 [H, W, 3] with at least a pixel."""
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"photo of type {type(image).__name__}: expected a uint8 array (H, W, 3), RGB; read_image gives it"
        )
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
    """Raise `DataError` unless `labels` are labels of shape (H, W) from 0 to 255, which is what a palette colours."""
    check_labels("labels", labels)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 255:
        raise DataError(
            f"labels from {low} to {high}: expected 0 to 255, the range of the palette; map the classes to it"
        )


def check_palette(palette: npt.NDArray[Any]) -> None:
    """Raise `DataError` unless `palette` is uint8 [256, 3]."""
    if palette.dtype != np.uint8 or palette.shape != (256, 3):
        raise DataError(
            f"palette of dtype {palette.dtype} and shape {palette.shape}: expected uint8 of shape (256, 3), an RGB "
            f"colour a label; a LabelSet holds one"
        )


def colourise(labels: npt.NDArray[np.integer[Any]], palette: Palette = PALETTE) -> npt.NDArray[np.uint8]:
    """Draw labels in colours.

    Args:
        labels: whole numbers [H, W] from 0 to 255.
        palette: uint8 [256, 3], the colour of each label; Pascal VOC's by default, which draws void (255) off-white.

    Returns:
        uint8 array [H, W, 3], RGB.

    Raises:
        DataError: `labels` has another shape, type or range, or `palette` is none.
    """
    check_drawable(labels)
    check_palette(palette)
    return np.take(palette, labels, axis=0)


def overlay(
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer[Any]],
    opacity: float = 0.6,
    *,
    palette: Palette = PALETTE,
) -> npt.NDArray[np.uint8]:
    """Lay the colours of labels over a photo.

    Pascal VOC's background (label 0) is black, so that all but the objects is dimmed; in Cityscapes and ADE20K label 0
    is a class like the others, with a colour.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: whole numbers [H, W] from 0 to 255.
        opacity: share of the label's colour, from 0 (the photo alone) to 1 (the colour alone).
        palette: uint8 [256, 3], the colour of each label.

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
    mixed = image.astype(np.float32) * (1 - opacity) + colourise(labels, palette).astype(np.float32) * opacity
    return (mixed + 0.5).astype(np.uint8)
