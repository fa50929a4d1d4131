"""tensorflow/models research/deeplab and the ports of its weights: bonlime's Keras files, Hugging Face's.

Addresses, sizes and figures: research/deeplab/g3doc/model_zoo.md; bonlime/keras-deeplab-v3-plus, `model.py`; the
repository google/deeplabv3_mobilenet_v2_1.0_513 on huggingface.co. TensorFlow's server has no other scheme than http
in that table; whoever changes a file on the way is found out by the digest pinned on first use, not before.
"""

from __future__ import annotations

from deeplabzoo.inference.preprocessing import TF_DEEPLAB, Preprocessing
from deeplabzoo.zoo.published.base import Published

_CLASSES = {"voc": 21, "cityscapes": 19, "ade20k": 151}
_WHOLE = TF_DEEPLAB.replace(resize="none", size=None, pad_to=None)
"""Cityscapes is evaluated at its own size (research/deeplab/g3doc/cityscapes.md)."""


def _preprocessing(dataset: str) -> Preprocessing | None:
    return _WHOLE if dataset == "cityscapes" else None


def _tf(preset: str, tag: str, dataset: str, file: str, megabytes: float, miou: float, judged: str) -> Published:
    return Published(
        name=f"{preset}_{tag}",
        preset=preset,
        num_classes=_CLASSES[dataset],
        url=f"http://download.tensorflow.org/models/{file}.tar.gz",
        layout="tensorflow",
        dataset=dataset,
        published_megabytes=megabytes,
        licence="Apache-2.0",
        miou=miou,
        judged=judged,
        preprocessing=_preprocessing(dataset),
        source="https://github.com/tensorflow/models/blob/master/research/deeplab/g3doc/model_zoo.md",
    )


def _bonlime(preset: str, dataset: str, release: str, file: str) -> Published:
    return Published(
        name=f"{preset}_{dataset}",
        preset=preset,
        num_classes=_CLASSES[dataset],
        url=f"https://github.com/bonlime/keras-deeplab-v3-plus/releases/download/{release}/{file}.h5",
        layout="bonlime",
        dataset=dataset,
        licence="MIT",
        preprocessing=_preprocessing(dataset),
        source="https://github.com/bonlime/keras-deeplab-v3-plus/blob/master/model.py",
    )


_SMALL, _HALF, _XCEPTION = "v3_mobilenet_v2.tf", "v3_mobilenet_v2.tf_dm05", "v3plus_xception65.tf"
_KERAS_X, _KERAS_M = "v3plus_xception65.bonlime", "v3_mobilenet_v2.bonlime"
_KERNELS = "tf_dim_ordering_tf_kernels"
_VOC_VAL, _VOC_TEST = "VOC 2012 val, stride 16", "VOC 2012 test, stride 8, scales and flips"
_CITY_VAL = "Cityscapes val, stride 16"

PUBLISHED = (
    _tf(_HALF, "voc_trainaug", "voc", "deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01", 7.6, 70.19, _VOC_VAL),
    _tf(
        _HALF,
        "voc_trainval",
        "voc",
        "deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01",
        7.6,
        71.83,
        "VOC 2012 test, stride 8",
    ),
    _tf(_SMALL, "voc_trainaug", "voc", "deeplabv3_mnv2_pascal_train_aug_2018_01_29", 23, 75.32, _VOC_VAL),
    _tf(_SMALL, "voc_trainval", "voc", "deeplabv3_mnv2_pascal_trainval_2018_01_29", 23, 80.25, _VOC_TEST),
    _tf(_SMALL, "cityscapes", "cityscapes", "deeplabv3_mnv2_cityscapes_train_2018_02_05", 23, 70.71, _CITY_VAL),
    _tf(
        "v3plus_mobilenet_v2.tf_ade20k",
        "train",
        "ade20k",
        "deeplabv3_mnv2_ade20k_train_2018_12_03",
        24.8,
        32.04,
        "ADE20K val, stride 16",
    ),
    _tf(_XCEPTION, "voc_trainaug", "voc", "deeplabv3_pascal_train_aug_2018_01_04", 439, 82.20, _VOC_VAL),
    _tf(_XCEPTION, "voc_trainval", "voc", "deeplabv3_pascal_trainval_2018_01_04", 439, 87.80, _VOC_TEST),
    _tf(_XCEPTION, "cityscapes", "cityscapes", "deeplabv3_cityscapes_train_2018_02_06", 439, 78.79, _CITY_VAL),
    _tf(
        _XCEPTION,
        "ade20k",
        "ade20k",
        "deeplabv3_xception_ade20k_train_2018_05_29",
        439,
        45.65,
        "ADE20K val, stride 8, scales and flips",
    ),
    _bonlime(_KERAS_X, "voc", "1.1", f"deeplabv3_xception_{_KERNELS}"),
    _bonlime(_KERAS_M, "voc", "1.1", f"deeplabv3_mobilenetv2_{_KERNELS}"),
    _bonlime(_KERAS_X, "cityscapes", "1.2", f"deeplabv3_xception_{_KERNELS}_cityscapes"),
    _bonlime(_KERAS_M, "cityscapes", "1.2", f"deeplabv3_mobilenetv2_{_KERNELS}_cityscapes"),
    Published(
        name="v3_mobilenet_v2.hf_voc",
        preset="v3_mobilenet_v2.hf",
        num_classes=21,
        url="https://huggingface.co/google/deeplabv3_mobilenet_v2_1.0_513/resolve/main/pytorch_model.bin",
        layout="hf",
        dataset="voc",
        published_megabytes=10.4,
        licence="other",
        source="https://huggingface.co/google/deeplabv3_mobilenet_v2_1.0_513",
    ),
)
