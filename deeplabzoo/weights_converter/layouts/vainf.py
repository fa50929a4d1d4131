"""VainF/DeepLabV3Plus-Pytorch: v3 and v3+ on ResNet, MobileNetV2 and the classic Xception.

Source: VainF/DeepLabV3Plus-Pytorch, network/_deeplab.py, utils.py and backbone (MIT), names as in `state_dict()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from deeplabzoo.core.backbones import MobileNetV2, ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import TORCHVISION_PLACES, mobilenet_v2, resnet
from deeplabzoo.zoo.presets import pytorch

_LOW = 4
"""Features 0 to 3 of MobileNetV2 are the low-level ones; the others keep their numbers."""


def _features(number: int) -> str:
    return f"backbone.{'low' if number < _LOW else 'high'}_level_features.{number}"


def _xception() -> tuple[Rule, ...]:
    """A block is a list `rep`: ReLU (but in the first block), separable convolution, batch norm, and so on."""
    rules: list[Rule] = [
        (r"backbone\.stem\.(conv|bn)(\d)", r"backbone.\1\2"),
        (r"backbone\.(block\d+)\.shortcut\.conv", r"backbone.\1.skip"),
        (r"backbone\.(block\d+)\.shortcut\.bn", r"backbone.\1.skipbn"),
    ]
    for n in (1, 2, 3):
        for block, place in ((r"block1", 3 * n - 3), (r"block\d+", 3 * n - 2)):
            rules += [
                (rf"backbone\.({block})\.sep{n}\.depthwise", rf"backbone.\1.rep.{place}.conv1"),
                (rf"backbone\.({block})\.sep{n}\.pointwise", rf"backbone.\1.rep.{place}.pointwise"),
                (rf"backbone\.({block})\.bn{n}", rf"backbone.\1.rep.{place + 1}"),
            ]
    for n in (1, 2):  # the convolutions after the last block are its conv3 and conv4, the second without batch norm
        rules += [
            (rf"backbone\.exit\.sep{n}\.depthwise", f"backbone.conv{n + 2}.conv1"),
            (rf"backbone\.exit\.sep{n}\.pointwise", f"backbone.conv{n + 2}.pointwise"),
        ]
    return (*rules, (r"backbone\.exit\.bn", "backbone.bn3"))


_ASPP = {"v3": "classifier.classifier.0", "v3plus": "classifier.aspp"}


def _head(arch: str) -> tuple[Rule, ...]:
    """`--separable_conv` puts a list `body` of depthwise and pointwise in the place of each 3x3."""
    aspp = _ASPP[arch]
    return (
        *units(r"aspp\.branch(\d)", rf"{aspp}.convs.\1", ".0", ".1"),
        (r"aspp\.branch(\d)\.depthwise\.conv", rf"{aspp}.convs.\1.0.body.0"),
        *units(r"aspp\.branch(\d)\.pointwise", rf"{aspp}.convs.\1", ".0.body.1", ".1"),
        *units(r"aspp\.image_pooling", f"{aspp}.convs.4", ".1", ".2"),
        *units(r"aspp\.fusion", f"{aspp}.project", ".0", ".1"),
        *units(r"aspp\.post", "classifier.classifier", ".1", ".2"),
        (r"aspp\.post\.depthwise\.conv", "classifier.classifier.1.body.0"),
        *units(r"aspp\.post\.pointwise", "classifier.classifier", ".1.body.1", ".2"),
        *units(r"decoder\.low_level", "classifier.project", ".0", ".1"),
        *units(r"decoder\.conv1", "classifier.classifier", ".0", ".1"),
        (r"decoder\.conv1\.depthwise\.conv", "classifier.classifier.0.body.0"),
        *units(r"decoder\.conv1\.pointwise", "classifier.classifier", ".0.body.1", ".1"),
        (r"classifier\.conv", "classifier.classifier.4" if arch == "v3" else "classifier.classifier.3"),
    )


def _separable(arch: str, backbone: str) -> ArchSpec:
    """`--separable_conv`: every 3x3 of the head separable, nothing between its two convolutions."""
    spec = pytorch.vainf(arch, backbone)
    aspp = spec.required_aspp
    if spec.decoder is None:
        return spec.replace(aspp=aspp.replace(branch="separable", post_conv="separable"))
    return spec.replace(aspp=aspp.replace(branch="separable"), decoder=spec.decoder.replace(conv="separable"))


class VainFLayout(TableLayout):
    """Tensor names of VainF's repository."""

    name = "vainf"
    title = "VainF/DeepLabV3Plus-Pytorch"
    writes = ("torch", "safetensors", "npz")
    presets = tuple(preset for preset in pytorch.PRESETS if preset.name.endswith(".vainf"))
    others = tuple(
        partial(_separable, arch, backbone)
        for arch in ("v3", "v3plus")
        for backbone in ("resnet50", "resnet101", "mobilenet_v2", "xception")
    )
    marks = (
        ("classifier.classifier.0.convs.0.0.weight", "classifier.classifier.4.weight"),
        ("classifier.aspp.convs.0.0.weight", "classifier.project.0.weight"),
    )
    moves = (Move(r"(backbone\.block\d+\.)skip"), Move(r"(classifier\.)project\."))

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone and architecture."""
        if isinstance(spec.backbone, ResNet):
            backbone = resnet()
        elif isinstance(spec.backbone, MobileNetV2):
            backbone = mobilenet_v2(_features, TORCHVISION_PLACES)
        else:
            backbone = _xception()
        return (*backbone, *_head(spec.arch))

    def classes(self, count: int) -> tuple[str, ...]:
        """VOC or Cityscapes."""
        from deeplabzoo.inference.classes import CITYSCAPES_CLASSES

        return CITYSCAPES_CLASSES if count == len(CITYSCAPES_CLASSES) else super().classes(count)
