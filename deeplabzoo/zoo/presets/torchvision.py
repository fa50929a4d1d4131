"""torchvision: `deeplabv3_resnet50`, `deeplabv3_resnet101` and `deeplabv3_mobilenet_v3_large`.

Source: pytorch/vision, torchvision/models/segmentation/deeplabv3.py (BSD-3-Clause).
"""

from __future__ import annotations

from functools import partial

from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.inference.preprocessing import TORCHVISION
from deeplabzoo.zoo.presets.base import Preset


def template(backbone: str, num_classes: int, *, aux: bool, channels: tuple[int, int, int] = (3, 256, 256)) -> ArchSpec:
    """The spec of torchvision's class: rates 12, 24, 36 at any stride, stride in the 3x3, previous dilation kept.

    Args:
        backbone: `resnet50`, `resnet101` (stride 8) or `mobilenet_v3_large` (stride 16).
        num_classes: of both heads.
        aux: whether the auxiliary head is there.
        channels: of the image, of the ASPP, and of the auxiliary head's 3x3 (0 for the published number).
    """
    in_channels, aspp, hidden = channels
    mobile = backbone == "mobilenet_v3_large"
    return make_spec(
        "v3",
        # torchvision gives its MobileNetV3 an epsilon of 1e-3, which PyTorch adds as a double.
        backbone={"name": backbone, "exact_epsilon": True} if mobile else backbone,
        output_stride=16 if mobile else 8,
        num_classes=num_classes,
        in_channels=in_channels,
        rates=(12, 24, 36),
        aspp={"channels": aspp},
        aux={"channels": (10 if mobile else hidden) or 256} if aux else None,
    )


def _presets(backbone: str) -> tuple[Preset, Preset]:
    source = f"torchvision deeplabv3_{backbone}"
    name = f"v3_{backbone}.torchvision"
    return (
        Preset(name, f"{source} with its auxiliary head", partial(template, backbone, 21, aux=True), TORCHVISION),
        Preset(f"{name}_no_aux", source, partial(template, backbone, 21, aux=False), TORCHVISION),
    )


PRESETS = (*_presets("resnet50"), *_presets("resnet101"), *_presets("mobilenet_v3_large"))
