"""torchvision's `deeplabv3_resnet50`, `deeplabv3_resnet101` and `deeplabv3_mobilenet_v3_large`.

Source: torchvision/models/segmentation/deeplabv3.py and fcn.py (BSD-3-Clause), names as in their `state_dict()`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from deeplabzoo.core.backbones import ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.rules import Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import resnet
from deeplabzoo.zoo.presets import torchvision

_MOBILENET_STARTS = (0, 1, 3, 6, 10, 12)
"""Number of MobileNetV3-Large blocks before each of our six stages."""


def _mobilenet(part: str, inner: str) -> Callable[[re.Match[str]], str]:
    """Name in a block, where groups 1 and 2 of the match are our stage and block.

    The first block does not expand, so everything in it comes one place earlier; where there is no squeeze and
    excitation, the projection does.
    """

    def name(match: re.Match[str]) -> str:
        number = _MOBILENET_STARTS[int(match[1]) - 1] + int(match[2])
        squeezed = number in (4, 5, 6, 11, 12, 13, 14, 15)
        place = {"expand": 0, "depthwise": 1, "squeeze": 2, "project": 2 + squeezed}[part] - (number == 1)
        return f"backbone.{number}.block.{place}.{inner}{match[3] if part == 'squeeze' else ''}"

    return name


_BLOCK = r"backbone\.stage(\d)\.block(\d+)"
_MOBILENET: tuple[Rule, ...] = (
    *units(r"backbone\.stem", "backbone.0", ".0", ".1"),
    *units(r"backbone\.last", "backbone.16", ".0", ".1"),
    *(
        (rf"{_BLOCK}\.{part}\.{leaf}", _mobilenet(part, place))
        for part in ("expand", "depthwise", "project")
        for leaf, place in (("conv", "0"), ("bn", "1"))
    ),
    (rf"{_BLOCK}\.squeeze\.conv(\d)", _mobilenet("squeeze", "fc")),
)
HEAD: tuple[Rule, ...] = (
    *units(r"aspp\.branch(\d+)", r"classifier.0.convs.\1", ".0", ".1"),
    *units(r"aspp\.image_pooling", "classifier.0.convs.4", ".1", ".2"),
    *units(r"aspp\.fusion", "classifier.0.project", ".0", ".1"),
    (r"aspp\.post\.conv", "classifier.1"),
    (r"aspp\.post\.bn", "classifier.2"),
    (r"classifier\.conv", "classifier.4"),
)
_AUX: tuple[Rule, ...] = (
    *units(r"aux\.hidden", "aux_classifier", ".0", ".1"),
    (r"aux\.classifier", "aux_classifier.4"),
)


class TorchvisionLayout(TableLayout):
    """Tensor names of torchvision's DeepLab v3."""

    name = "torchvision"
    title = "torchvision deeplabv3"
    writes = ("torch", "safetensors", "npz")
    presets = torchvision.PRESETS
    marks = (("classifier.0.convs.0.0.weight", "classifier.4.weight"),)
    free = ()

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone."""
        return (*(resnet() if isinstance(spec.backbone, ResNet) else _MOBILENET), *HEAD, *_AUX)
