"""From photo to labels and back: preprocessing, colours, scores, data folders and pictures, in numpy and Pillow alone.

A network comes in as a callable `forward(x) -> logits` on arrays [N, C, H, W]; nothing here knows a framework. The
public names are looked up when they are used, because converters need the presets of `preprocessing` without Pillow.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "colours": ("PALETTE", "VOC_CLASSES", "VOID", "colourise", "overlay"),
    "datasets": ("Pair", "Pairs", "find_pairs"),
    "images": ("read_image", "read_mask"),
    "metrics": ("Scores", "agreement", "confusion"),
    "pictures": ("contact_sheet", "panel", "write_labels", "write_png"),
    "preprocessing": (
        "IMAGENET",
        "TF_DEEPLAB",
        "TORCHVISION",
        "Forward",
        "Placement",
        "Preprocessing",
        "place",
        "predict_labels",
        "prepare",
        "restore_labels",
    ),
    "scenes": ("draw_scene",),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'deeplabzoo.inference' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deeplabzoo.inference.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_WHERE)
