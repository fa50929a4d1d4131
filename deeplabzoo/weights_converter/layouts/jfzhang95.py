"""jfzhang95/pytorch-deeplab-xception: v3+ on ResNet-101, aligned Xception and MobileNetV2.

Source: jfzhang95/pytorch-deeplab-xception, modeling (MIT), names as in the `state_dict` of its checkpoints. Its
MobileNetV2 keeps three lists of the same modules, so its files hold every tensor of that backbone twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from deeplabzoo.core.backbones import MobileNetV2, ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.aligned_xception import BLOCK, LAST, block_name
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import FLAT_PLACES, mobilenet_v2, resnet
from deeplabzoo.zoo.presets import pytorch

_LOW = 4


def _rep(number: int, unit: int) -> int:
    """Place of a separable convolution in `rep`; the first two blocks start without a ReLU."""
    return 3 * unit - (3 if number < 3 else 2)


def _xception() -> tuple[Rule, ...]:
    last = {
        "depthwise.conv": "conv{}.conv1",
        "depthwise.bn": "conv{}.bn",
        "pointwise.conv": "conv{}.pointwise",
        "pointwise.bn": "bn{}",
    }

    def after(form: str) -> Rule:
        def name(match: re.Match[str]) -> str:
            return "backbone." + last[form].format(int(match[1]) + 2)

        return rf"{LAST}\.{re.escape(form)}", name

    return (
        (r"backbone\.stem\.(conv|bn)(\d)", r"backbone.\1\2"),
        *(after(form) for form in last),
        (rf"{BLOCK}\.shortcut\.conv", block_name(lambda _, match: "skip")),
        (rf"{BLOCK}\.shortcut\.bn", block_name(lambda _, match: "skipbn")),
        (rf"{BLOCK}\.sep(\d)\.depthwise\.conv", block_name(lambda n, m: f"rep.{_rep(n, int(m[3]))}.conv1")),
        (rf"{BLOCK}\.sep(\d)\.depthwise\.bn", block_name(lambda n, m: f"rep.{_rep(n, int(m[3]))}.bn")),
        (rf"{BLOCK}\.sep(\d)\.pointwise\.conv", block_name(lambda n, m: f"rep.{_rep(n, int(m[3]))}.pointwise")),
        (rf"{BLOCK}\.sep(\d)\.pointwise\.bn", block_name(lambda n, m: f"rep.{_rep(n, int(m[3])) + 1}")),
    )


_HEAD: tuple[Rule, ...] = (
    *units(r"aspp\.branch(\d)", r"aspp.aspp{+\1}", ".atrous_conv", ".bn"),
    *units(r"aspp\.image_pooling", "aspp.global_avg_pool", ".1", ".2"),
    *units(r"aspp\.fusion", "aspp", ".conv1", ".bn1"),
    *units(r"decoder\.low_level", "decoder", ".conv1", ".bn1"),
    *units(r"decoder\.conv1", "decoder.last_conv", ".0", ".1"),
    *units(r"decoder\.conv2", "decoder.last_conv", ".4", ".5"),
    (r"classifier\.conv", "decoder.last_conv.8"),
)


class Jfzhang95Layout(TableLayout):
    """Tensor names of jfzhang95's repository."""

    name = "jfzhang95"
    title = "jfzhang95/pytorch-deeplab-xception"
    writes = ("torch", "safetensors", "npz")
    presets = tuple(preset for preset in pytorch.PRESETS if preset.name.endswith(".jfzhang95"))
    marks = (("aspp.aspp1.atrous_conv.weight", "decoder.last_conv.8.weight"),)
    moves = (Move(r"(backbone\.block\d+\.)skip"),)

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone."""
        if isinstance(spec.backbone, ResNet):
            backbone = resnet()
        elif isinstance(spec.backbone, MobileNetV2):
            backbone = mobilenet_v2("backbone.features.{}".format, FLAT_PLACES)
        else:
            backbone = _xception()
        return (*backbone, *_HEAD)

    def doubles(self, foreign: str) -> Iterable[str]:
        """The slices of MobileNetV2's list keep the numbers of the whole."""
        if match := re.match(r"backbone\.features\.(\d+)\.", foreign):
            part = "low" if int(match[1]) < _LOW else "high"
            return (foreign.replace("features", f"{part}_level_features", 1),)
        return ()

    def classes(self, count: int) -> tuple[str, ...]:
        """VOC or Cityscapes."""
        from deeplabzoo.inference.classes import CITYSCAPES_CLASSES

        return CITYSCAPES_CLASSES if count == len(CITYSCAPES_CLASSES) else super().classes(count)
