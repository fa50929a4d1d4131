"""MobileNetV2's width multiplier from channel counts."""

from __future__ import annotations

from collections.abc import Mapping

from deeplabzoo.core.backbones import MobileNetV2
from deeplabzoo.errors import LayoutError

_ROUND = (1.0, 1.4, 1.3, 0.75, 0.5, 0.35, 0.25)
_PAPER = {"stem": 32, "1": 16, "2": 24, "3": 32, "4": 64, "5": 96, "6": 160, "7": 320}


def find_width(channels: Mapping[str, int], first: int = 8) -> tuple[float, int]:
    """The multiplier and the divisor whose rounding gives these output channels.

    Args:
        channels: output channels of canonical kernels, `backbone.stem.conv.weight` and
            `backbone.stageN.block1.project.conv.weight`.
        first: the divisor to try first.

    Returns:
        A published multiplier where one fits, else the first of 0.05, 0.06 ... 4.00 that does; with the first
        divisor of `first`, 8 and 1 that fits.

    Raises:
        LayoutError: none fits.
    """
    wanted = [(_PAPER[name.split(".")[1].removeprefix("stage")], count) for name, count in channels.items()]
    for divisor in dict.fromkeys((first, 8, 1)):
        for width in (*_ROUND, *(hundredths / 100 for hundredths in range(5, 401))):
            backbone = MobileNetV2(name="mobilenet_v2", width=width, depth_divisor=divisor)
            if all(backbone.scaled(paper) == count for paper, count in wanted):
                return width, divisor
    raise LayoutError(f"no width multiplier of MobileNetV2 gives the channels {sorted(channels.values())}")
