"""Weights that public projects publish, one module a project, as `zoo.presets` has their networks."""

from __future__ import annotations

from deeplabzoo.zoo.published import kerashub, mmseg, paddleseg, pytorch, tensorflow, torchvision
from deeplabzoo.zoo.published.base import Published

__all__ = ["PUBLISHED", "Published"]

PUBLISHED: dict[str, Published] = {
    weights.name: weights
    for module in (torchvision, tensorflow, paddleseg, kerashub, mmseg, pytorch)
    for weights in module.PUBLISHED
}
