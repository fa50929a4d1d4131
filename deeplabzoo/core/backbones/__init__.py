"""Backbones: one file a family, each with its options (a `BackboneSpec`) and the function that adds its nodes.

`BACKBONES` maps the names a user may say to their families; a new family is one file and its line here.
"""

from __future__ import annotations

from deeplabzoo.core.backbones.base import BackboneSpec, Features
from deeplabzoo.core.backbones.mobilenet_v2 import MobileNetV2
from deeplabzoo.core.backbones.resnet import ResNet

__all__ = ["BACKBONES", "BackboneSpec", "Features", "MobileNetV2", "ResNet"]

FAMILIES: tuple[type[BackboneSpec], ...] = (ResNet, MobileNetV2)
BACKBONES: dict[str, type[BackboneSpec]] = {name: family for family in FAMILIES for name in family.NAMES}
