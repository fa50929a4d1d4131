"""From photo to labels and back: preprocessing, colours, scores, data folders and pictures, in numpy and Pillow alone.

A network comes in as a callable `forward(x) -> logits` on arrays [N, C, H, W]; nothing here knows a framework. The
public names are looked up when they are used, because converters need the presets of `preprocessing` without Pillow.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "classes": ("ADE20K_CLASSES", "CITYSCAPES_CLASSES", "PASCAL_CONTEXT_CLASSES", "VOC_CLASSES"),
    "colours": ("colourise", "overlay"),
    "crf": ("CRF", "CRF_PRESETS"),
    "datasets": ("Pair", "Pairs", "find_pairs"),
    "fusion": ("predict_labels", "predict_probabilities", "restore_labels"),
    "images": ("read_image", "read_mask"),
    "label_sets": ("LABEL_SETS", "PALETTE", "PALETTES", "VOID", "LabelSet", "known_label_set", "label_set"),
    "metrics": ("Scores", "agreement", "confusion"),
    "pictures": ("contact_sheet", "legend", "panel", "write_labels", "write_png"),
    "plane": ("Plane", "prepare"),
    "preprocessing": (
        "CAFFE",
        "IMAGENET",
        "PADDLESEG",
        "RAW",
        "TF_DEEPLAB",
        "TF_RESNET",
        "TORCHVISION",
        "UNIT",
        "Placement",
        "Preprocessing",
        "place",
    ),
    "scenes": ("draw_scene",),
    "views": ("Forward", "InferenceOptions"),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'deeplabzoo.inference' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deeplabzoo.inference.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_WHERE)
