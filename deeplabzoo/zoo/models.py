"""Named models: presets of the spec, and published weights with their provenance.

A preset's name is `arch_backbone`, with a tag where it follows one public implementation exactly. Published weights
add the data they were trained on.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deeplabzoo.core.spec import ARCHITECTURES, ArchSpec, make_spec
from deeplabzoo.errors import SpecError, unknown
from deeplabzoo.zoo.presets import PRESETS, Preset

__all__ = ["PRESETS", "PUBLISHED", "Preset", "Published", "changed", "list_models", "named_spec"]


@dataclass(frozen=True)
class Published:
    """Weights that a project publishes.

    Attributes:
        name: preset name and training data.
        preset: the preset they fit.
        url: official address.
        layout: layout of their tensors.
        digest: leading hexadecimal digits of the file's SHA-256 where the project publishes them, else empty.
        megabytes: size of the download.
        licence: SPDX name.
        dataset: what they were trained on and judged on.
        miou: published mIoU in per cent, on `dataset`.
        source: page that publishes them.
    """

    name: str
    preset: str
    url: str
    layout: str
    digest: str
    megabytes: float
    licence: str
    dataset: str
    miou: float
    source: str


_TV = "pytorch.org/vision, DeepLabV3 weights COCO_WITH_VOC_LABELS_V1"
_TF = "tensorflow/models, research/deeplab/g3doc/model_zoo.md"
_TF_URL = "http://download.tensorflow.org/models/"

PUBLISHED: dict[str, Published] = {
    weights.name: weights
    for weights in (
        Published(
            "v3_resnet50.torchvision_coco",
            "v3_resnet50.torchvision",
            "https://download.pytorch.org/models/deeplabv3_resnet50_coco-cd0a2569.pth",
            "torchvision",
            "cd0a2569",
            160.5,
            "BSD-3-Clause",
            "COCO val2017 with VOC labels",
            66.4,
            _TV,
        ),
        Published(
            "v3_resnet101.torchvision_coco",
            "v3_resnet101.torchvision",
            "https://download.pytorch.org/models/deeplabv3_resnet101_coco-586e9e4e.pth",
            "torchvision",
            "586e9e4e",
            233.2,
            "BSD-3-Clause",
            "COCO val2017 with VOC labels",
            67.4,
            _TV,
        ),
        Published(
            "v3_mobilenet_v2.tf_voc_trainaug",
            "v3_mobilenet_v2.tf",
            f"{_TF_URL}deeplabv3_mnv2_pascal_train_aug_2018_01_29.tar.gz",
            "tensorflow",
            "",
            23.0,
            "Apache-2.0",
            "VOC 2012 val, stride 16",
            75.32,
            _TF,
        ),
        Published(
            "v3_mobilenet_v2.tf_voc_trainval",
            "v3_mobilenet_v2.tf",
            f"{_TF_URL}deeplabv3_mnv2_pascal_trainval_2018_01_29.tar.gz",
            "tensorflow",
            "",
            23.0,
            "Apache-2.0",
            "VOC 2012 test, stride 8, scales and flips",
            80.25,
            _TF,
        ),
        Published(
            "v3_mobilenet_v2.tf_dm05_voc_trainval",
            "v3_mobilenet_v2.tf_dm05",
            f"{_TF_URL}deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01.tar.gz",
            "tensorflow",
            "",
            5.8,
            "Apache-2.0",
            "VOC 2012 test, stride 8",
            71.83,
            _TF,
        ),
    )
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of presets and published weights that match a shell pattern, or contain it where it has no wildcard."""
    names = [*PRESETS, *PUBLISHED]
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern.lower()))


def named_spec(name: str | ArchSpec, **options: Any) -> ArchSpec:
    """The spec of an architecture (`v3plus`) or a preset (`v3_resnet50.torchvision`), with other options.

    Args:
        name: architecture, preset, or a spec.
        **options: as for `core.spec.make_spec`; a spec or a preset with a tag takes `num_classes` and `output_stride`.

    Raises:
        SpecError: an unknown name or a wrong option.
    """
    if isinstance(name, ArchSpec):
        return changed(name, options)
    if name in ARCHITECTURES:
        return make_spec(name, **options)
    if name not in PRESETS:
        raise SpecError(unknown("model", name, [*ARCHITECTURES, *PRESETS]))
    if "." not in name:
        arch, backbone = name.split("_", 1)
        return make_spec(arch, **{"backbone": backbone, **options})
    return changed(PRESETS[name].make(), options)


def changed(spec: ArchSpec, options: Mapping[str, Any]) -> ArchSpec:
    """A finished spec with another number of classes or output stride; anything else must be said in the spec itself.

    Raises:
        SpecError: another option, or a value that is wrong.
    """
    left = dict(options)
    if (classes := left.pop("num_classes", None)) is not None:
        spec = spec.replace(num_classes=classes)
    if (stride := left.pop("output_stride", None)) is not None and stride != spec.output_stride:
        spec = spec.at_output_stride(stride)
    for name in ("arch", "backbone"):
        if (value := left.pop(name, None)) is not None:
            own = spec.arch if name == "arch" else spec.backbone.name
            if value != own:
                raise SpecError(f"{name} = {value!r} was asked for, but this model has {name} = {own!r}; leave it out")
    if left:
        raise SpecError(f"{', '.join(left)} can't be changed in a finished spec: write it into a spec file (--spec)")
    return spec
