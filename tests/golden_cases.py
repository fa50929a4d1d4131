"""The golden cases as a checkpoint of their project would come: by foreign name, through the layout, to canonical."""

from __future__ import annotations

import numpy as np

from deeplabzoo.weights_converter.convert import Source, read_source
from deeplabzoo.weights_converter.layouts.base import hollow

LAYOUT = {
    "torchvision_deeplabv3_resnet50": "torchvision",
    "smp_deeplabv3plus_resnet50_os16": "smp",
    "paddleseg_deeplabv3p_resnet50_vd_os8": "paddleseg",
    "tf_mobilenetv2_os8": "tensorflow",
    "tf_mobilenetv2_os8_even": "tensorflow",
    "tf_xception65_os16": "tensorflow",
    "kerashub_deeplab_v3_plus_resnet50": "kerashub",
    "bonlime_mobilenetv2": "bonlime",
    "vainf_deeplabv3plus_resnet50_os16": "vainf",
    "mmseg_deeplabv3plus_r50-d8": "mmseg",
    "hf_mobilenet_v2": "hf",
    "kazuto_deeplabv2_resnet101": "kazuto",
    "jfzhang95_deeplabv3plus_resnet101_os16": "jfzhang95",
}
"""Every public golden case, and the layout that its names must show."""

FAST = ("torchvision_deeplabv3_resnet50", "hf_mobilenet_v2", "tf_xception65_os16", "kazuto_deeplabv2_resnet101",
        "tf_mobilenetv2_os8", "tf_mobilenetv2_os8_even", "bonlime_mobilenetv2")  # fmt: skip
"""One a family of backbones; the others are heavy copies of a ResNet."""


def hollow_case(goldens, name: str) -> dict[str, np.ndarray]:
    """Names, shapes and dtypes of a case without any values."""
    listed = goldens.read_case(name)["tensors"]
    return {key: hollow(tuple(shape)).astype(dtype) for key, shape, dtype, *_ in listed}


def load(goldens, name: str) -> tuple[Source, dict[str, np.ndarray], np.ndarray, dict]:
    """What was read, the foreign tensors, the image N, C, H, W, and what the project's own class answered."""
    tensors, image, expected = goldens.load_case(name)
    if expected["case"]["input"]["layout"] == "NHWC":
        image = image.transpose(0, 3, 1, 2)
    return read_source(tensors), tensors, np.ascontiguousarray(image), expected
