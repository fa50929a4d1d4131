"""How photos are prepared for a network, as plain data, and what published networks expect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from deeplabzoo.core.fields import Section, check_bool, check_choice, check_int, check_number
from deeplabzoo.errors import SpecError


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

RAW = Preprocessing(scale=1, mean=(0.0,) * 3, std=(1.0,) * 3)
"""Pixels from 0 to 255 as they are: KerasHub's `deeplab_v3_plus_resnet50_pascalvoc`.

Source: the preset's `image_converter.json`, which has neither scale nor offset. It also resizes to 512 x 512 by the
nearest pixel; here the photo keeps its size.
"""

UNIT = RAW.replace(scale=1 / 255)
"""Pixels to [0, 1]: bubbliiiing/deeplabv3-plus-pytorch (`utils/utils.py`, `preprocess_input`).

It also fits the photo into 512 x 512 with grey bars; here the photo keeps its size.
"""

PADDLESEG = UNIT.replace(mean=(0.5,) * 3, std=(0.5,) * 3)
"""PaddleSeg's published DeepLabs: pixels to [-1, 1].

Source: PaddleSeg, `paddleseg/transforms/transforms.py` (`Normalize`, mean and std 0.5 by default).
"""

_CAFFE_MEAN = (104.008, 116.669, 122.675)

CAFFE = Preprocessing(scale=1, mean=_CAFFE_MEAN, std=(1.0,) * 3, channel_order="bgr", pad_value=_CAFFE_MEAN)
"""Caffe's DeepLab v1 and v2, and kazuto1011/deeplab-pytorch: BGR minus the mean pixel; padding is the mean pixel.

Source: `mean_value` of the published prototxt files; kazuto1011/deeplab-pytorch, `configs/voc12.yaml`.
"""

_RESNET_MEAN = (123.15, 115.90, 103.06)

TF_RESNET = TF_DEEPLAB.replace(scale=1, mean=_RESNET_MEAN, pad_value=_RESNET_MEAN)
"""TensorFlow's DeepLab on plain ResNet v1 (not the `beta` variants): RGB minus the mean pixel, no scaling.

Source: tensorflow/models, research/deeplab, `core/feature_extractor.py` (`_preprocess_subtract_imagenet_mean`).
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
