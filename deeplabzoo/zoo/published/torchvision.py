"""torchvision: `torchvision/models/segmentation/deeplabv3.py`, weights `COCO_WITH_VOC_LABELS_V1`.

The digits in a file's name are those of its SHA-256 (`torch.hub` checks them). Figures are from the weights' own
`meta`: COCO's validation photos, judged on the classes that Pascal VOC has too.
"""

from __future__ import annotations

from deeplabzoo.zoo.published.base import Published


def _published(backbone: str, file: str, digest: str, megabytes: float, miou: float) -> Published:
    return Published(
        name=f"v3_{backbone}.torchvision_coco",
        preset=f"v3_{backbone}.torchvision",
        num_classes=21,
        url=f"https://download.pytorch.org/models/{file}-{digest}.pth",
        layout="torchvision",
        dataset="voc",
        digest=digest,
        published_megabytes=megabytes,
        licence="BSD-3-Clause",
        miou=miou,
        judged="COCO val2017 with VOC's labels",
        source="https://github.com/pytorch/vision/blob/main/torchvision/models/segmentation/deeplabv3.py",
    )


PUBLISHED = (
    _published("resnet50", "deeplabv3_resnet50_coco", "cd0a2569", 160.5, 66.4),
    _published("resnet101", "deeplabv3_resnet101_coco", "586e9e4e", 233.2, 67.4),
    _published("mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fc3c493d", 42.3, 60.3),
)
