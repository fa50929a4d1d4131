"""MMSegmentation's DeepLabV3 and DeepLabV3+ on Cityscapes, Pascal VOC (augmented) and ADE20K.

Addresses and figures (mIoU of one scale without flips): open-mmlab/mmsegmentation 1.2.2, `metafile.yaml` in
`configs/deeplabv3`, `configs/deeplabv3plus` and `configs/mobilenet_v2`. A file's name ends in the first digits of its
SHA-256 (`tools/model_converters/publish_model.py`). Photos of VOC and ADE20K are brought to a shorter side of 512
pixels (`configs/_base_/datasets`).
"""

from __future__ import annotations

from deeplabzoo.inference.preprocessing import IMAGENET
from deeplabzoo.zoo.published.base import Published

_URL = "https://download.openmmlab.com/mmsegmentation/v0.5"
_PAGE = "https://github.com/open-mmlab/mmsegmentation/blob/v1.2.2/configs"
_PRESETS = {
    "r18-d8": "resnet18.mmseg",
    "r50-d8": "resnet50.mmseg",
    "r101-d8": "resnet101.mmseg",
    "r101-d8_fp16": "resnet101.mmseg",
    "r50b-d8": "resnet50.mmseg_b",
    "r101b-d8": "resnet101.mmseg_b",
    "r101-d16-mg124": "resnet101.mmseg_d16_mg124",
    "m-v2-d8": "mobilenet_v2.mmseg",
}
_DATASETS = {
    "cityscapes": ("cityscapes", 19, "512x1024", "Cityscapes val"),
    "voc": ("voc12aug", 21, "512x512", "VOC 2012 val"),
    "ade20k": ("ade20k", 150, "512x512", "ADE20K val"),
}
"""The data set's name in a file's name, its classes, the crop of the training, and where the figure is from."""

_TABLE = (
    ("v3", "r50-d8", "cityscapes", "40k", "20200605_022449-acadc2f8", 79.09),
    ("v3", "r101-d8", "cityscapes", "40k", "20200605_012241-7fd3f799", 77.12),
    ("v3", "r18-d8", "cityscapes", "80k", "20201225_021506-23dffbe2", 76.7),
    ("v3", "r50-d8", "cityscapes", "80k", "20200606_113404-b92cfdd4", 79.32),
    ("v3", "r101-d8", "cityscapes", "80k", "20200606_113503-9e428899", 80.2),
    ("v3", "r101-d8_fp16", "cityscapes", "80k", "20200717_230920-774d9cec", 80.48),
    ("v3", "r101-d16-mg124", "cityscapes", "40k", "20200908_005644-67b0c992", 76.71),
    ("v3", "r101-d16-mg124", "cityscapes", "80k", "20200908_005644-57bb8425", 78.36),
    ("v3", "r50b-d8", "cityscapes", "80k", "20201225_155148-ec368954", 79.63),
    ("v3", "r101b-d8", "cityscapes", "80k", "20201226_171821-8fd49503", 80.01),
    ("v3", "r50-d8", "ade20k", "80k", "20200614_185028-0bb3f844", 42.42),
    ("v3", "r101-d8", "ade20k", "80k", "20200615_021256-d89c7fa4", 44.08),
    ("v3", "r50-d8", "ade20k", "160k", "20200615_123227-5d0ee427", 42.66),
    ("v3", "r101-d8", "ade20k", "160k", "20200615_105816-b1f72b3b", 45.0),
    ("v3", "r50-d8", "voc", "20k", "20200617_010906-596905ef", 76.17),
    ("v3", "r101-d8", "voc", "20k", "20200617_010932-8d13832f", 78.7),
    ("v3", "r50-d8", "voc", "40k", "20200613_161546-2ae96e7e", 77.68),
    ("v3", "r101-d8", "voc", "40k", "20200613_161432-0017d784", 77.92),
    ("v3plus", "r50-d8", "cityscapes", "40k", "20200605_094610-d222ffcd", 79.61),
    ("v3plus", "r101-d8", "cityscapes", "40k", "20200605_094614-3769eecf", 80.21),
    ("v3plus", "r18-d8", "cityscapes", "80k", "20201226_080942-cff257fe", 76.89),
    ("v3plus", "r50-d8", "cityscapes", "80k", "20200606_114049-f9fb496d", 80.09),
    ("v3plus", "r101-d8", "cityscapes", "80k", "20200606_114143-068fcfe9", 80.97),
    ("v3plus", "r101-d8_fp16", "cityscapes", "80k", "20200717_230920-f1104f4b", 80.46),
    ("v3plus", "r101-d16-mg124", "cityscapes", "40k", "20200908_005644-cf9ce186", 79.09),
    ("v3plus", "r101-d16-mg124", "cityscapes", "80k", "20200908_005644-ee6158e0", 79.9),
    ("v3plus", "r50-d8", "ade20k", "80k", "20200614_185028-bf1400d8", 42.72),
    ("v3plus", "r101-d8", "ade20k", "80k", "20200615_014139-d5730af7", 44.6),
    ("v3plus", "r50-d8", "ade20k", "160k", "20200615_124504-6135c7e0", 43.95),
    ("v3plus", "r101-d8", "ade20k", "160k", "20200615_123232-38ed86bb", 45.47),
    ("v3plus", "r50-d8", "voc", "20k", "20200617_102323-aad58ef1", 75.93),
    ("v3plus", "r101-d8", "voc", "20k", "20200617_102345-c7ff3d56", 77.22),
    ("v3plus", "r50-d8", "voc", "40k", "20200613_161759-e1b43aa9", 76.81),
    ("v3plus", "r101-d8", "voc", "40k", "20200613_205333-faf03387", 78.62),
    ("v3", "m-v2-d8", "cityscapes", "80k", "20200825_124836-bef03590", 73.84),
    ("v3plus", "m-v2-d8", "cityscapes", "80k", "20200825_124836-d256dd4b", 75.2),
    ("v3", "m-v2-d8", "ade20k", "160k", "20200825_223255-63986343", 34.08),
    ("v3plus", "m-v2-d8", "ade20k", "160k", "20200825_223255-465a01d4", 34.02),
)
"""Architecture, backbone in the project's words, data set, steps of training, date and digest, mIoU."""


def _published(arch: str, backbone: str, dataset: str, steps: str, stamp: str, miou: float) -> Published:
    project = "deeplabv3" if arch == "v3" else "deeplabv3plus"
    folder = "mobilenet_v2" if backbone == "m-v2-d8" else project
    short, num_classes, crop, judged = _DATASETS[dataset]
    file = f"{project}_{backbone}_{crop}_{steps}_{short}"
    preset = f"{arch}_{_PRESETS[backbone]}"
    return Published(
        name=f"{preset}_{dataset}_{steps}" + ("_fp16" if backbone.endswith("_fp16") else ""),
        preset=preset,
        num_classes=num_classes,
        url=f"{_URL}/{folder}/{file}/{file}_{stamp}.pth",
        layout="mmseg",
        dataset=dataset,
        digest=stamp.rsplit("-", 1)[1],
        licence="Apache-2.0",
        miou=miou,
        judged=judged,
        preprocessing=None if dataset == "cityscapes" else IMAGENET.replace(resize="shortest", size=512),
        source=f"{_PAGE}/{folder}",
    )


PUBLISHED = tuple(_published(*row) for row in _TABLE)
