"""From a photo to a network's input, and from its logits back to labels of the photo's own size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deeplabzoo.core.fields import Section, check_bool, check_choice, check_int, check_number
from deeplabzoo.core.interpolation import interpolation_matrix
from deeplabzoo.errors import DataError, ImageError, SpecError
from deeplabzoo.inference.colours import check_photo

Forward = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]]
"""A network: float32 [N, C, H, W] to logits [N, K, h, w]."""

_TILE = 256
"""Side of the squares in which labels are made, so that the logits of a large photo are never there all at once."""

_MOST_PIXELS = 1 << 27
"""Pixels of the largest network input made (1.6 GB of float32). Beyond it lies no photo but a strip like 10 x 10000,
which a rule on the shortest side blows up."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Section):
    """What is done to a photo before a network sees it: resize, pad, normalise.

    The input of channel c is `(pixel * scale - mean[c]) / std[c]`. `mean`, `std` and `pad_value` are in the order of
    the network's channels, which is what Caffe-born means in BGR order expect.

    Attributes:
        scale: what a pixel (0 to 255) is multiplied by.
        mean: what is taken off then, one number a channel.
        std: what that is divided by, one number a channel.
        channel_order: `rgb`, or `bgr` (networks born in Caffe).
        resize: `none` keeps the photo's size; `longest` shrinks a photo, and never enlarges it, until its longest side
            is `size`; `shortest` shrinks or enlarges until its shortest side is `size`. The other side keeps the
            proportions, rounded down, at least 1.
        size: the side that `resize` aims at; none with `resize = "none"`.
        antialias: whether shrinking averages over all pixels that a new pixel covers (Pillow's bilinear filter, which
            rounds to whole pixel values) or reads the nearest two on each axis (half-pixel centres, not rounded).
        pad_to: pad at the bottom and on the right to at least this height and width; none pads nothing.
        pad_value: the padding, as pixel values (0 to 255), one number a channel; usually the mean pixel.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize: Literal["none", "longest", "shortest"] = "none"
    size: int | None = None
    antialias: bool = True
    pad_to: int | None = None
    pad_value: tuple[float, ...] = (127.5, 127.5, 127.5)

    def validate(self) -> None:
        """Check every field."""
        check_number("preprocessing.scale", self.scale, 0, math.inf, open_low=True)
        _check_channels("preprocessing.mean", self.mean, -math.inf, math.inf)
        _check_channels("preprocessing.std", self.std, 0, math.inf)
        _check_channels("preprocessing.pad_value", self.pad_value, -math.inf, math.inf)
        check_choice("preprocessing.channel_order", self.channel_order, ("rgb", "bgr"))
        check_choice("preprocessing.resize", self.resize, ("none", "longest", "shortest"))
        check_bool("preprocessing.antialias", self.antialias)
        if self.pad_to is not None:
            check_int("preprocessing.pad_to", self.pad_to)
        if self.resize != "none":
            check_int("preprocessing.size", self.size)
        elif self.size is not None:
            raise SpecError(
                f"preprocessing.size = {self.size!r}: expected no size with resize = 'none'; leave it out, or set "
                f"resize to longest or shortest"
            )


def _check_channels(field: str, value: object, low: float, high: float) -> None:
    """`value` must be three finite numbers in (low, high)."""
    if not isinstance(value, tuple) or len(value) != 3:
        raise SpecError(f"{field} = {value!r}: expected 3 numbers, one a channel")
    for number in value:
        check_number(field, number, low, high, open_low=True)


TF_DEEPLAB = Preprocessing(
    scale=2 / 255, mean=(1.0,) * 3, std=(1.0,) * 3, resize="longest", size=513, pad_to=513, pad_value=(127.5,) * 3
)
"""TensorFlow's DeepLab on Pascal VOC: pixels to [-1, 1], padded to 513 x 513 with the mean pixel.

Source: tensorflow/models, research/deeplab: `core/feature_extractor.py` (`_preprocess_zero_mean_unit_range`),
`input_preprocess.py` (padding) and `deeplab_demo.ipynb` (longest side 513; it enlarges small photos too, which the
evaluation does not).
"""

IMAGENET = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""ImageNet's mean and deviation as PyTorch's model zoos use them; the photo keeps its size."""

TORCHVISION = IMAGENET.replace(resize="shortest", size=520)
"""torchvision's segmentation models: shortest side 520, bilinear with antialiasing.

Source: pytorch/vision, `torchvision/transforms/_presets.py` (`SemanticSegmentation`, `resize_size=520`).
"""


@dataclass(frozen=True)
class Placement:
    """Where a photo lies in a network's input; sizes are (height, width).

    Attributes:
        original: the photo's own size.
        resized: its size in the input, at the top left.
        padded: size of the input.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


def place(height: int, width: int, pre: Preprocessing) -> Placement:
    """Sizes of a photo of `height` x `width` on its way into a network."""
    resized = (height, width)
    if pre.size is not None:
        side = max(resized) if pre.resize == "longest" else min(resized)
        if pre.resize == "shortest" or side > pre.size:
            resized = (max(1, height * pre.size // side), max(1, width * pre.size // side))
    least = pre.pad_to or 1
    return Placement((height, width), resized, (max(resized[0], least), max(resized[1], least)))


def prepare(image: npt.NDArray[np.uint8], pre: Preprocessing) -> tuple[npt.NDArray[np.float32], Placement]:
    """Make a network's input from a photo.

    Args:
        image: uint8 [H, W, 3], RGB.
        pre: what the network expects.

    Returns:
        float32 array [1, 3, h, w], computed in float64 and rounded once, and the place of the photo in it.

    Raises:
        ImageError: `image` is no photo, or would become too large.
    """
    check_photo(image)
    placement = place(image.shape[0], image.shape[1], pre)
    if math.prod(placement.padded) > _MOST_PIXELS:
        (height, width), (tall, wide) = placement.original, placement.padded
        raise ImageError(
            f"photo of {height} x {width} would become {tall} x {wide} (resize = {pre.resize!r}): expected at most "
            f"{_MOST_PIXELS} pixels; crop it"
        )
    if placement.resized != placement.original and pre.antialias:
        tall, wide = placement.resized
        from PIL import Image  # here, so that converters can read the presets without Pillow

        image = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR))
    tall, wide = placement.resized
    x = np.empty((1, 3, *placement.padded), np.float32)
    for channel in range(3):
        # One channel at a time: float64 of a large photo takes much memory.
        pixels = image[:, :, channel if pre.channel_order == "rgb" else 2 - channel].astype(np.float64)
        if pixels.shape != placement.resized:
            down = interpolation_matrix(pixels.shape[0], tall, align_corners=False)
            across = interpolation_matrix(pixels.shape[1], wide, align_corners=False)
            pixels = down @ pixels @ across.T
        mean, std = pre.mean[channel], pre.std[channel]
        x[0, channel] = (pre.pad_value[channel] * pre.scale - mean) / std
        x[0, channel, :tall, :wide] = (pixels * pre.scale - mean) / std
    return x, placement


def restore_labels(
    logits: npt.NDArray[np.floating[Any]], placement: Placement, *, align_corners: bool = False
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Turn logits into labels of the photo's own size.

    Logits smaller (or larger) than the network's input are resized to it first; then the padding is cut off, and the
    rest is resized to the photo's size where that differs, bilinearly with half-pixel centres. Last comes the arg-max,
    of equals the first. Both resizes are linear, so they are done as one, in squares: the resized logits are never
    there all at once.

    Args:
        logits: floating [1, K, h, w], K at least 2.
        placement: where `prepare` put the photo.
        align_corners: rule of the resize from the logits' size to the input's, as in the network's own resizes.

    Returns:
        labels [H, W], uint8, or uint16 where there are more than 256 classes.

    Raises:
        DataError: logits of another shape, or that are not finite.
    """
    if logits.ndim != 4 or logits.shape[0] != 1 or logits.shape[1] < 2 or 0 in logits.shape:
        raise DataError(
            f"logits of shape {logits.shape}: expected (1, K, h, w) with at least 2 classes; give one photo at a time, "
            f"channels first"
        )
    if not np.isfinite(logits).all():
        raise DataError("logits hold NaN or infinity: expected finite numbers; check the weights and the float type")
    classes, tall, wide = logits.shape[1:]
    exact: np.dtype[np.floating[Any]] = np.dtype(np.float64 if logits.dtype == np.float64 else np.float32)
    down = _way_back(tall, 0, placement, align_corners)
    across = _way_back(wide, 1, placement, align_corners)
    labels = np.empty(placement.original, np.uint8 if classes <= 256 else np.uint16)
    for rows in _bands(placement.original[0]):
        read_rows, row_weights = _window(down, rows)
        for columns in _bands(placement.original[1]):
            read_columns, column_weights = _window(across, columns)
            block = logits[0, :, read_rows, read_columns].astype(exact, copy=False)
            if row_weights is not None:
                block = row_weights.astype(exact) @ block
            if column_weights is not None:
                block = block @ column_weights.T.astype(exact)
            labels[rows, columns] = block.argmax(axis=0)
    return labels


def predict_labels(
    forward: Forward, image: npt.NDArray[np.uint8], pre: Preprocessing, *, align_corners: bool = False
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Label every pixel of a photo.

    Args:
        forward: the network; float32 [1, 3, h, w] to logits [1, K, h', w'].
        image: uint8 [H, W, 3], RGB.
        pre: what the network expects.
        align_corners: see `restore_labels`.

    Returns:
        labels [H, W] of the photo's own size, as `restore_labels` gives them.

    Raises:
        ImageError: `image` is no photo.
        DataError: the network's answer is no logits.
    """
    x, placement = prepare(image, pre)
    return restore_labels(np.asarray(forward(x)), placement, align_corners=align_corners)


def _way_back(source: int, axis: int, placement: Placement, align_corners: bool) -> npt.NDArray[np.float64] | None:
    """Matrix [photo, logits] of one axis from the logits to the photo; None where pixels are taken as they are.

    The matrix may have fewer columns than the logits have points: the padding is what it does not read.
    """
    original, resized, padded = placement.original[axis], placement.resized[axis], placement.padded[axis]
    to_photo = None if resized == original else interpolation_matrix(resized, original, align_corners=False)
    if source == padded:
        return to_photo
    to_input = interpolation_matrix(source, padded, align_corners=align_corners)[:resized]
    return to_input if to_photo is None else to_photo @ to_input


def _bands(length: int) -> Iterator[slice]:
    return (slice(start, min(start + _TILE, length)) for start in range(0, length, _TILE))


def _window(matrix: npt.NDArray[np.float64] | None, band: slice) -> tuple[slice, npt.NDArray[np.float64] | None]:
    """The points that a band of the photo reads, and their weights [band, points]."""
    if matrix is None:
        return band, None
    read = np.flatnonzero(matrix[band].any(axis=0))
    window = slice(int(read[0]), int(read[-1]) + 1)
    return window, matrix[band, window]
