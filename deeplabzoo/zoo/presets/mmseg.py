"""MMSegmentation 1.2: `deeplabv3` and `deeplabv3plus`.

Image pooling and 1x1 first, a 3x3 fusion, dropout of whole channels just before the classifier. Source:
open-mmlab/mmsegmentation, mmseg/models/decode_heads/{aspp_head,sep_aspp_head}.py and configs (Apache-2.0).
"""

from __future__ import annotations

from functools import partial

from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.inference.preprocessing import IMAGENET
from deeplabzoo.zoo.presets.base import Preset, Table

_BASIC = ("resnet18", "resnet34")


def template(arch: str, backbone: str, num_classes: int = 19, *, kind: str = "d8") -> ArchSpec:
    """The spec of mmseg's configurations, with the auxiliary head that all of them have.

    Args:
        arch: `v3` or `v3plus`.
        backbone: `resnet18`, `resnet34`, `resnet50`, `resnet101` or `mobilenet_v2`.
        num_classes: of both heads; 19 for Cityscapes.
        kind: `d8` (stride 8, ResNetV1c), `b-d8` (ResNet with a 7x7 stem, `r50b`), or `d16-mg124` (stride 16,
            multi-grid 1, 2, 4 in place of the dilation).
    """
    small, mobile = backbone in _BASIC, backbone == "mobilenet_v2"
    channels, hidden = (128, 64) if small else (512, 256)
    stride = 16 if kind == "d16-mg124" else 8
    aspp: Table = {
        "branch": "plain" if arch == "v3" else "separable_bn_relu",
        "order": ["image_pooling", "conv1x1", "atrous"],
        "channels": channels,
        "fusion_kernel": 3,
        "dropout": 0.1 if arch == "v3" else 0.0,
        "dropout_channels": True,
        "post_conv": "none",
    }
    decoder: Table = {
        "low_level": "stage2" if mobile else "stage1",
        "low_level_channels": 12 if small else 48,
        "channels": channels,
        "dropout": [0.0, 0.1],
        "dropout_channels": True,
    }
    return make_spec(
        arch,
        backbone=_mobilenet() if mobile else _resnet(backbone, kind),
        output_stride=stride,
        num_classes=num_classes,
        aspp=aspp,
        decoder=decoder if arch == "v3plus" else None,
        aux={"channels": hidden, "dropout": 0.1, "dropout_channels": True},
    )


def _resnet(name: str, kind: str) -> Table:
    table: Table = {"name": name, "stem": "7x7" if kind == "b-d8" else "v1c"}
    if name in _BASIC:
        table["basic_dilation"] = "conv1"
    if kind == "d16-mg124":
        table |= {"multi_grid": [1, 2, 4], "multi_grid_mode": "replace"}
    return table


def _mobilenet() -> Table:
    return {
        "name": "mobilenet_v2",
        "first_block_dilation": "first_only",
        "padding": "symmetric",
        "epsilon": 1e-5,
        "momentum": 0.9,
    }


_NAMES = {"resnet18": "r18", "resnet50": "r50", "resnet101": "r101", "mobilenet_v2": "m-v2"}


def _preset(arch: str, backbone: str, kind: str = "d8") -> Preset:
    tag = {"d8": "", "b-d8": "_b", "d16-mg124": "_d16_mg124"}[kind]
    short = _NAMES[backbone] + ("-" if not kind.startswith("b") else "") + kind
    project = "deeplabv3" if arch == "v3" else "deeplabv3plus"
    return Preset(
        f"{arch}_{backbone}.mmseg{tag}",
        f"mmsegmentation {project}_{short}",
        partial(template, arch, backbone, kind=kind),
        IMAGENET,
    )


PRESETS = (
    *(_preset(arch, backbone) for arch in ("v3", "v3plus") for backbone in _NAMES),
    _preset("v3", "resnet50", "b-d8"),
    _preset("v3", "resnet101", "b-d8"),
    _preset("v3", "resnet101", "d16-mg124"),
    _preset("v3plus", "resnet101", "d16-mg124"),
)
