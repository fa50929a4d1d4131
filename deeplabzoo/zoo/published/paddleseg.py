"""PaddleSeg's DeepLabV3 and DeepLabV3P on ResNet_vd at stride 8.

Addresses and figures (mIoU of one scale without flips): PaddlePaddle/PaddleSeg, `configs/deeplabv3/README.md` and
`configs/deeplabv3p/README.md`. Photos of Pascal VOC are padded to 512 pixels (`configs/_base_/pascal_voc12.yml`).
"""

from __future__ import annotations

from deeplabzoo.inference.preprocessing import PADDLESEG
from deeplabzoo.zoo.published.base import Published


def _published(preset: str, dataset: str, file: str, miou: float, *, tag: str = "") -> Published:
    voc = dataset == "voc"
    page = "deeplabv3" if preset.startswith("v3_") else "deeplabv3p"
    folder = "pascal_voc12" if voc else "cityscapes"
    return Published(
        name=f"{preset}_{dataset}{tag}",
        preset=preset,
        num_classes=21 if voc else 19,
        url=f"https://bj.bcebos.com/paddleseg/dygraph/{folder}/{page}_{file}/model.pdparams",
        layout="paddleseg",
        dataset=dataset,
        licence="Apache-2.0",
        miou=miou,
        judged="VOC 2012 val" if voc else "Cityscapes val",
        preprocessing=PADDLESEG.replace(pad_to=512) if voc else None,
        source=f"https://github.com/PaddlePaddle/PaddleSeg/blob/develop/configs/{page}/README.md",
    )


_CITY, _VOC = "os8_cityscapes_1024x512_80k", "os8_voc12aug_512x512_40k"

PUBLISHED = (
    _published("v3_resnet50.paddleseg", "cityscapes", f"resnet50_{_CITY}", 79.90),
    _published("v3_resnet101.paddleseg", "cityscapes", f"resnet101_{_CITY}", 80.85),
    _published("v3_resnet50.paddleseg", "voc", f"resnet50_{_VOC}", 79.76),
    _published("v3_resnet101.paddleseg", "voc", f"resnet101_{_VOC}", 80.62),
    _published("v3plus_resnet50.paddleseg", "cityscapes", f"resnet50_{_CITY}", 80.36),
    _published("v3plus_resnet50.paddleseg", "cityscapes", f"resnet50_{_CITY}_rmiloss", 81.18, tag="_rmi"),
    _published("v3plus_resnet101.paddleseg", "cityscapes", f"resnet101_{_CITY}", 81.10),
    _published("v3plus_resnet101.paddleseg_769", "cityscapes", "resnet101_os8_cityscapes_769x769_80k", 81.53),
    _published("v3plus_resnet50.paddleseg", "voc", f"resnet50_{_VOC}", 80.66),
    _published("v3plus_resnet101.paddleseg", "voc", f"resnet101_{_VOC}", 80.60),
)
