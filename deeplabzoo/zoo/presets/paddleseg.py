"""PaddleSeg 2.8: `DeepLabV3` and `DeepLabV3P` on ResNet_vd and Xception.

The heads' convolutions have a bias beside their batch norm, but the one of the image pooling; multi-grid multiplies
the full dilation of stage 4. Source: PaddlePaddle/PaddleSeg, paddleseg/models/deeplab.py and
backbones/{resnet_vd,xception_deeplab}.py (Apache-2.0).
"""

from __future__ import annotations

from functools import partial

from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.inference.preprocessing import PADDLESEG
from deeplabzoo.zoo.presets.base import Preset, Table


def template(
    arch: str, backbone: str, num_classes: int = 19, *, align_corners: bool = False, output_stride: int | None = None
) -> ArchSpec:
    """The spec of PaddleSeg's class.

    Args:
        arch: `v3` or `v3plus`.
        backbone: `resnet50`, `resnet101` (ResNet_vd, stride 8), `xception41` or `xception65` (stride 16).
        num_classes: of the logits.
        align_corners: of every resize; true in the configurations for crops of 769 pixels.
        output_stride: another stride than the published one.
    """
    xception = backbone.startswith("xception")
    output_stride = output_stride or (16 if xception else 8)
    table: Table = {"name": backbone, "momentum": 0.99} if xception else _vd(backbone)
    decoder = {
        "low_level": "entry.block1" if xception else "stage1",
        "conv": "separable_bn",
        "bias": True,
        "align_corners": align_corners,
    }
    return make_spec(
        arch,
        backbone=table,
        output_stride=output_stride,
        num_classes=num_classes,
        aspp={
            "branch": "plain" if arch == "v3" else "separable_bn",
            "bias": True,
            "dropout": 0.1,
            "post_conv": "none",
        },
        decoder=decoder if arch == "v3plus" else None,
        output={"align_corners": align_corners},
    )


def _vd(backbone: str) -> Table:
    return {
        "name": backbone,
        "stem": "v1c",
        "shortcut": "avg_pool",
        "first_block_dilation": "full",
        "multi_grid": [1, 2, 4],
    }


def _preset(arch: str, backbone: str) -> Preset:
    suffix = "" if backbone.startswith("xception") else "_vd"
    kind = "DeepLabV3" if arch == "v3" else "DeepLabV3P"
    return Preset(
        f"{arch}_{backbone}.paddleseg",
        f"PaddleSeg {kind} on {backbone}{suffix}",
        partial(template, arch, backbone),
        PADDLESEG,
    )


PRESETS = (
    *(_preset(arch, backbone) for arch in ("v3", "v3plus") for backbone in ("resnet50", "resnet101")),
    _preset("v3plus", "xception41"),
    _preset("v3plus", "xception65"),
    Preset(
        "v3plus_resnet101.paddleseg_769",
        "PaddleSeg DeepLabV3P on resnet101_vd, configuration for 769 pixels (align_corners)",
        partial(template, "v3plus", "resnet101", align_corners=True),
        PADDLESEG,
    ),
)
