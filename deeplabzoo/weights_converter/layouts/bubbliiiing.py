"""bubbliiiing/deeplabv3-plus-pytorch: v3+ on MobileNetV2 and aligned Xception, every convolution of the head biased.

Source: bubbliiiing/deeplabv3-plus-pytorch, nets (MIT), names as in its `state_dict()`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from deeplabzoo.core.backbones import MobileNetV2
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.aligned_xception import BLOCK, LAST, block_name
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import FLAT_PLACES, mobilenet_v2
from deeplabzoo.zoo.presets import pytorch

_PARTS = {
    r"depthwise\.conv": "depthwise",
    r"depthwise\.bn": "bn1",
    r"pointwise\.conv": "pointwise",
    r"pointwise\.bn": "bn2",
}


def _last(theirs: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"backbone.conv{int(match[1]) + 2}.{theirs}"


def _sep(theirs: str) -> Callable[[re.Match[str]], str]:
    return block_name(lambda _, match: f"sepconv{match[3]}.{theirs}")


_XCEPTION: tuple[Rule, ...] = (
    (r"backbone\.stem\.(conv|bn)(\d)", r"backbone.\1\2"),
    *((rf"{LAST}\.{ours}", _last(theirs)) for ours, theirs in _PARTS.items()),
    (rf"{BLOCK}\.shortcut\.conv", block_name(lambda *_: "skip")),
    (rf"{BLOCK}\.shortcut\.bn", block_name(lambda *_: "skipbn")),
    *((rf"{BLOCK}\.sep(\d)\.{ours}", _sep(theirs)) for ours, theirs in _PARTS.items()),
)
_HEAD: tuple[Rule, ...] = (
    *units(r"aspp\.branch(\d)", r"aspp.branch{+\1}", ".0", ".1"),
    *units(r"aspp\.image_pooling", "aspp.branch5", "_conv", "_bn"),
    *units(r"aspp\.fusion", "aspp.conv_cat", ".0", ".1"),
    *units(r"decoder\.low_level", "shortcut_conv", ".0", ".1"),
    *units(r"decoder\.conv1", "cat_conv", ".0", ".1"),
    *units(r"decoder\.conv2", "cat_conv", ".4", ".5"),
    (r"classifier\.conv", "cls_conv"),
)


class BubbliiiingLayout(TableLayout):
    """Tensor names of bubbliiiing's repository."""

    name = "bubbliiiing"
    title = "bubbliiiing/deeplabv3-plus-pytorch"
    writes = ("torch", "safetensors", "npz")
    presets = tuple(preset for preset in pytorch.PRESETS if preset.name.endswith(".bubbliiiing"))
    marks = (("aspp.branch5_conv.weight", "cls_conv.weight"),)
    moves = (Move(r"(backbone\.block\d+\.)skip"),)

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone."""
        if isinstance(spec.backbone, MobileNetV2):
            return (*mobilenet_v2("backbone.features.{}".format, FLAT_PLACES), *_HEAD)
        return (*_XCEPTION, *_HEAD)
