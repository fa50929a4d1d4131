"""Rules that several PyTorch projects share: they took their backbones from torchvision."""

from __future__ import annotations

import re
from collections.abc import Callable

from deeplabzoo.weights_converter.layouts.rules import Rule, units

MOBILENET_STARTS = (0, 1, 3, 6, 10, 13, 16)
"""Number of MobileNetV2 blocks before each of its seven stages."""


def block_number(match: re.Match[str]) -> int:
    """Number of a MobileNetV2 block, from 1, where groups 1 and 2 are our stage and block."""
    return MOBILENET_STARTS[int(match[1]) - 1] + int(match[2])


def resnet(prefix: str = "backbone.") -> tuple[Rule, ...]:
    """Torchvision's ResNet: `conv1`, `layer1.0.conv1`, `layer1.0.downsample.0`."""
    return (
        (r"backbone\.stem\.(conv|bn)", rf"{prefix}\g<1>1"),
        *resnet_stages(prefix),
    )


def resnet_stages(prefix: str = "backbone.", shortcut: tuple[int, int] = (0, 1)) -> tuple[Rule, ...]:
    """The stages alone, for other stems; `shortcut` are the indices of convolution and batch norm in `downsample`."""
    block = rf"{prefix}layer\1.{{\2}}"
    return (
        *units(r"backbone\.stage(\d)\.block(\d+)\.shortcut", f"{block}.downsample", *(f".{n}" for n in shortcut)),
        (r"backbone\.stage(\d)\.block(\d+)\.(conv|bn)(\d)", rf"{block}.\3\4"),
    )


def mobilenet_v2(features: Callable[[int], str], places: dict[tuple[str, bool], tuple[str, str]]) -> tuple[Rule, ...]:
    """MobileNetV2 as a list of features.

    Args:
        features: name of the module with a number: 0 is the stem, then the blocks.
        places: (part, whether the block expands) -> what follows `.conv` for convolution and batch norm.
    """

    def module(index: int) -> Callable[[re.Match[str]], str]:
        def name(match: re.Match[str]) -> str:
            number = block_number(match)
            return f"{features(number)}.conv{places[match[3], number > 1][index]}"

        return name

    part = r"backbone\.stage(\d)\.block(\d+)\.(expand|depthwise|project)"
    return (
        *units(r"backbone\.stem", features(0), ".0", ".1"),
        *units(r"backbone\.last", features(18), ".0", ".1"),
        (rf"{part}\.conv", module(0)),
        (rf"{part}\.bn", module(1)),
    )


TORCHVISION_PLACES = {
    ("expand", True): (".0.0", ".0.1"),
    ("depthwise", True): (".1.0", ".1.1"),
    ("project", True): (".2", ".3"),
    ("depthwise", False): (".0.0", ".0.1"),
    ("project", False): (".1", ".2"),
}
"""torchvision's `ConvBNReLU` is a module of its own in a block; so in smp and VainF."""

FLAT_PLACES = {
    ("expand", True): (".0", ".1"),
    ("depthwise", True): (".3", ".4"),
    ("project", True): (".6", ".7"),
    ("depthwise", False): (".0", ".1"),
    ("project", False): (".3", ".4"),
}
"""One flat list with the activations in it: tonylins/pytorch-mobilenet-v2, jfzhang95, bubbliiiing."""
