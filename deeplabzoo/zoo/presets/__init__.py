"""Named architectures: the papers', and each public project's, one module a project."""

from __future__ import annotations

from deeplabzoo.zoo.presets import kerashub, mmseg, paddleseg, papers, pytorch, smp, tensorflow, torchvision
from deeplabzoo.zoo.presets.base import Preset

__all__ = ["PRESETS", "Preset"]

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for module in (papers, torchvision, tensorflow, smp, mmseg, paddleseg, kerashub, pytorch)
    for preset in module.PRESETS
}
