"""PaddleSeg 2.8: `DeepLabV3` and `DeepLabV3P` on ResNet_vd and Xception.

Source: PaddlePaddle/PaddleSeg, paddleseg/models/deeplab.py, layers/layer_libs.py and backbones (Apache-2.0), names as
in their `state_dict()`; "piontwise" is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from deeplabzoo.core.backbones import ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.rules import Rule, TableLayout, units
from deeplabzoo.zoo.presets import paddleseg

_UNIT = ("._conv", "._batch_norm")
_BLOCK = r"backbone\.stage(\d)\.block(\d+)"
_RESNET: tuple[Rule, ...] = (
    (r"backbone\.stem\.conv(\d)", r"backbone.conv1_\1._conv"),
    (r"backbone\.stem\.bn(\d)", r"backbone.conv1_\1._batch_norm"),
    *units(rf"{_BLOCK}\.shortcut", r"backbone.bb_{\1}_{\2}.short", *_UNIT),
    (rf"{_BLOCK}\.conv(\d)", r"backbone.bb_{\1}_{\2}.conv{\3}._conv"),
    (rf"{_BLOCK}\.bn(\d)", r"backbone.bb_{\1}_{\2}.conv{\3}._batch_norm"),
)
_HEAD: tuple[Rule, ...] = (
    *units(r"aspp\.branch(\d)\.depthwise", r"head.aspp.aspp_blocks.\1.depthwise_conv", *_UNIT),
    *units(r"aspp\.branch(\d)\.pointwise", r"head.aspp.aspp_blocks.\1.piontwise_conv", *_UNIT),
    *units(r"aspp\.branch(\d)", r"head.aspp.aspp_blocks.\1", *_UNIT),
    *units(r"aspp\.image_pooling", "head.aspp.global_avg_pool.1", *_UNIT),
    *units(r"aspp\.fusion", "head.aspp.conv_bn_relu", *_UNIT),
    *units(r"decoder\.low_level", "head.decoder.conv_bn_relu1", *_UNIT),
    *units(r"decoder\.conv(\d)\.depthwise", r"head.decoder.conv_bn_relu{+\1}.depthwise_conv", *_UNIT),
    *units(r"decoder\.conv(\d)\.pointwise", r"head.decoder.conv_bn_relu{+\1}.piontwise_conv", *_UNIT),
)


def _xception(name: str) -> tuple[Rule, ...]:
    """Separable convolutions are `_conv1` (depthwise) and `_conv2` (pointwise) with their batch norms."""
    scope = f"backbone.xception_{name.removeprefix('xception')}"
    rules: list[Rule] = [(r"backbone\.stem\.(conv|bn)(\d)", r"backbone._conv\2._\1")]
    for ours, theirs in (
        (r"backbone\.(entry|middle)\.block(\d+)", rf"{scope}/\1_flow/block\2"),
        (r"backbone\.(exit)\.block(\d+)", r"backbone._\1_flow_\2"),
    ):
        rules += [
            (rf"{ours}\.shortcut\.(conv|bn)", rf"{theirs}._short._\3"),
            (rf"{ours}\.sep(\d)\.depthwise\.(conv|bn)", rf"{theirs}._conv\3._\g<4>1"),
            (rf"{ours}\.sep(\d)\.pointwise\.(conv|bn)", rf"{theirs}._conv\3._\g<4>2"),
        ]
    return tuple(rules)


class PaddleSegLayout(TableLayout):
    """Tensor names of PaddleSeg."""

    name = "paddleseg"
    title = "PaddleSeg DeepLabV3 and DeepLabV3P"
    writes = ("paddle", "safetensors", "npz")
    presets = paddleseg.PRESETS
    # Not Xception-71: theirs takes a stride of 2 in all five entry blocks, so that its last map has stride 64.
    others = tuple(partial(paddleseg.template, "v3", backbone) for backbone in ("xception41", "xception65"))
    marks = (("head.aspp.aspp_blocks.0._conv.weight", "head.aspp.conv_bn_relu._conv.weight"),)
    spelling = "paddle"
    # The configuration says which.
    free = (*TableLayout.free, "output.align_corners", "decoder.align_corners", "backbone.multi_grid")

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone and architecture."""
        backbone = _RESNET if isinstance(spec.backbone, ResNet) else _xception(spec.backbone.name)
        scores = "head.cls" if spec.arch == "v3" else "head.decoder.conv"
        return (*backbone, *_HEAD, (r"classifier\.conv", scores))

    def classes(self, count: int) -> tuple[str, ...]:
        """VOC or Cityscapes."""
        from deeplabzoo.inference.classes import CITYSCAPES_CLASSES

        return CITYSCAPES_CLASSES if count == len(CITYSCAPES_CLASSES) else super().classes(count)
