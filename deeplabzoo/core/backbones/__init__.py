"""Backbones: one file a family, each with its options (a `BackboneSpec`) and the function that adds its nodes.

`BACKBONES` maps the names a user may say to their families; a new family is one file and its line here.
"""

from __future__ import annotations

from deeplabzoo.core.backbones.base import BackboneSpec, Features
from deeplabzoo.core.backbones.mobilenet_v2 import MobileNetV2
from deeplabzoo.core.backbones.mobilenet_v3 import MobileNetV3
from deeplabzoo.core.backbones.resnet import ResNet
from deeplabzoo.core.backbones.vgg import VGG
from deeplabzoo.core.backbones.xception import Xception
from deeplabzoo.core.backbones.xception_classic import ClassicXception

__all__ = [
    "BACKBONES",
    "VGG",
    "BackboneSpec",
    "ClassicXception",
    "Features",
    "MobileNetV2",
    "MobileNetV3",
    "ResNet",
    "Xception",
]

FAMILIES: tuple[type[BackboneSpec], ...] = (VGG, ResNet, Xception, ClassicXception, MobileNetV2, MobileNetV3)
BACKBONES: dict[str, type[BackboneSpec]] = {name: family for family in FAMILIES for name in family.NAMES}
