"""Well-known PyTorch repositories: VainF, jfzhang95, bubbliiiing, kazuto1011.

Source: VainF/DeepLabV3Plus-Pytorch, jfzhang95/pytorch-deeplab-xception, bubbliiiing/deeplabv3-plus-pytorch and
kazuto1011/deeplab-pytorch (all MIT).
"""

from __future__ import annotations

from functools import partial

from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.inference.preprocessing import CAFFE, IMAGENET, UNIT
from deeplabzoo.zoo.presets.base import PLAIN_DECODER, Preset, Table

_TORCH_NORM = {"epsilon": 1e-5, "momentum": 0.9}


def vainf(arch: str, backbone: str, num_classes: int = 21, *, output_stride: int = 16) -> ArchSpec:
    """The spec of VainF's class: [low level, ASPP] joined before one plain 3x3; MobileNetV2 pads before it expands."""
    tables: dict[str, Table] = {
        "mobilenet_v2": {"padding": "before_expand", "stem_padding": "none", "epsilon": 1e-5, "momentum": 0.99},
        "xception": {"momentum": 0.99},
    }
    decoder: Table = {**PLAIN_DECODER, "convs": 1, "order": ["low_level", "aspp"]}
    if backbone == "mobilenet_v2":
        decoder["low_level"] = "stage2"
    return make_spec(
        arch,
        backbone={"name": backbone, **tables.get(backbone, {"momentum": 0.99})},
        output_stride=output_stride,
        num_classes=num_classes,
        aspp={"branch": "plain", "dropout": 0.1, "post_conv": "plain" if arch == "v3" else "none"},
        decoder=decoder if arch == "v3plus" else None,
    )


def jfzhang95(backbone: str, num_classes: int = 21, *, output_stride: int = 16) -> ArchSpec:
    """The spec of jfzhang95's class: align_corners in every resize, dropout after both decoder convolutions."""
    tables: dict[str, Table] = {
        "resnet101": {"first_block_dilation": "full", "multi_grid": [1, 2, 4]},
        "xception65": {
            "shortcut": "relu",
            "exit_activation": "before_each",
            "exit_dilated": False,
            **_TORCH_NORM,
        },
        "mobilenet_v2": {"padding": "before_expand", "first_block_dilation": "previous_stage", **_TORCH_NORM},
    }
    taps = {"resnet101": "stage1", "xception65": "entry.block2.relu1", "mobilenet_v2": "stage2"}
    return _align_corners(
        {"name": backbone, **tables[backbone]},
        num_classes,
        output_stride,
        {"dropout": 0.5},
        {"low_level": taps[backbone], "dropout": [0.5, 0.1]},
    )


def bubbliiiing(backbone: str, num_classes: int = 21, *, output_stride: int = 16) -> ArchSpec:
    """The spec of bubbliiiing's class: biased heads, align_corners in every resize."""
    tables: dict[str, Table] = {
        "xception65": {"shortcut": "relu_identity", "exit_stride": 1, "epsilon": 1e-5, "momentum": 0.9997},
        "mobilenet_v2": {"padding": "symmetric", **_TORCH_NORM},
    }
    low_level = {"mobilenet_v2": "stage2", "xception65": "entry.block2.sep2"}[backbone]
    return _align_corners(
        {"name": backbone, **tables[backbone]},
        num_classes,
        output_stride,
        {"bias": True, "pool_bias": True, "dropout": 0.0},
        {"low_level": low_level, "bias": True, "dropout": [0.5, 0.1]},
    )


def kazuto(arch: str, num_classes: int = 21, *, output_stride: int | None = None) -> ArchSpec:
    """The spec of kazuto1011's classes on ResNet-101 in Caffe's style: the stride in the first 1x1, a ceil pooling."""
    stride = output_stride or (8 if arch in ("v1", "v2") else 16)
    common = {"name": "resnet101", "stride_in": "conv1", "first_block_dilation": "full", "pool_ceil": True}
    if arch in ("v1", "v2"):
        return make_spec(
            arch,
            backbone={**common, "momentum": 0.999},
            output_stride=stride,
            num_classes=num_classes,
            output={"size": "feature"},
        )
    # Its factories give 0.9997 to PyTorch, where momentum is the share of the NEW statistic.
    norm = {"momentum": 0.0003}
    return make_spec(
        arch,
        backbone={**common, "multi_grid": [1, 2, 4], **norm},
        output_stride=stride,
        num_classes=num_classes,
        aspp={"branch": "plain", "dropout": 0.0, "post_conv": "none", **norm},
        decoder={**PLAIN_DECODER, **norm} if arch == "v3plus" else None,
        output={"size": "feature"} if arch == "v3" else {},
    )


def _align_corners(backbone: Table, num_classes: int, output_stride: int, aspp: Table, decoder: Table) -> ArchSpec:
    return make_spec(
        "v3plus",
        backbone=backbone,
        output_stride=output_stride,
        num_classes=num_classes,
        aspp={"branch": "plain", **aspp},
        decoder={**PLAIN_DECODER, "align_corners": True, **decoder},
        output={"align_corners": True},
    )


_VAINF, _JFZHANG95 = "VainF/DeepLabV3Plus-Pytorch", "jfzhang95/pytorch-deeplab-xception"
_BUBBLIIIING, _KAZUTO = "bubbliiiing/deeplabv3-plus-pytorch", "kazuto1011/deeplab-pytorch"
PRESETS = (
    *(
        Preset(
            f"{arch}_{backbone}.vainf",
            f"{_VAINF} {arch} on {backbone}",
            partial(vainf, arch, backbone),
            IMAGENET,
        )
        for arch in ("v3", "v3plus")
        for backbone in ("resnet50", "resnet101", "mobilenet_v2")
    ),
    *(
        Preset(
            f"{arch}_xception.vainf",
            f"{_VAINF} {arch} on the classic Xception",
            partial(vainf, arch, "xception"),
            IMAGENET,
        )
        for arch in ("v3", "v3plus")
    ),
    *(
        Preset(
            f"v3plus_{backbone}.jfzhang95",
            f"{_JFZHANG95} on {backbone}",
            partial(jfzhang95, backbone),
            IMAGENET,
        )
        for backbone in ("resnet101", "xception65", "mobilenet_v2")
    ),
    *(
        Preset(
            f"v3plus_{backbone}.bubbliiiing",
            f"{_BUBBLIIIING} on {backbone}",
            partial(bubbliiiing, backbone),
            UNIT,
        )
        for backbone in ("xception65", "mobilenet_v2")
    ),
    *(
        Preset(
            f"{arch}_resnet101.kazuto",
            f"{_KAZUTO} DeepLab {arch}",
            partial(kazuto, arch, classes),
            CAFFE,
        )
        for arch, classes in (("v1", 91), ("v2", 21), ("v3", 21), ("v3plus", 21))
    ),
)
