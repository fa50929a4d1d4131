"""Weights that well-known PyTorch repositories publish as GitHub releases: kazuto1011 and bubbliiiing.

Addresses and figures: kazuto1011/deeplab-pytorch, `README.md` and `hubconf.py` (without CRF); bubbliiiing's
deeplabv3-plus-pytorch, `README.md`.
"""

from __future__ import annotations

from deeplabzoo.zoo.published.base import Published

_KAZUTO = "https://github.com/kazuto1011/deeplab-pytorch"
_BUBBLIIIING = "https://github.com/bubbliiiing/deeplabv3-plus-pytorch"


def _kazuto(dataset: str, num_classes: int, file: str, miou: float, judged: str) -> Published:
    return Published(
        name=f"v2_resnet101.kazuto_{dataset}",
        preset="v2_resnet101.kazuto",
        num_classes=num_classes,
        url=f"{_KAZUTO}/releases/download/v1.0/deeplabv2_resnet101_msc-{file}.pth",
        layout="kazuto",
        dataset=dataset,
        licence="MIT",
        miou=miou,
        judged=f"{judged}, largest logit of scales 0.5, 0.75, 1",
        source=_KAZUTO,
    )


def _bubbliiiing(backbone: str, file: str, miou: float) -> Published:
    return Published(
        name=f"v3plus_{backbone}.bubbliiiing_voc",
        preset=f"v3plus_{backbone}.bubbliiiing",
        num_classes=21,
        url=f"{_BUBBLIIIING}/releases/download/v1.0/{file}.pth",
        layout="bubbliiiing",
        dataset="voc",
        licence="MIT",
        miou=miou,
        judged="VOC 2012 val at 512x512",
        source=_BUBBLIIIING,
    )


PUBLISHED = (
    _kazuto("voc", 21, "vocaug-20000", 76.65, "VOC 2012 val"),
    _kazuto("coco_stuff10k", 182, "cocostuff10k-20000", 34.8, "COCO-Stuff 10k val"),
    _kazuto("coco_stuff164k", 182, "cocostuff164k-100000", 39.1, "COCO-Stuff 164k val"),
    _bubbliiiing("mobilenet_v2", "deeplab_mobilenetv2", 72.59),
    _bubbliiiing("xception65", "deeplab_xception", 76.95),
)
