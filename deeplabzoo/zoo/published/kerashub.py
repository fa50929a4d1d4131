"""KerasHub's preset `deeplab_v3_plus_resnet50_pascalvoc`, from its repository on huggingface.co.

The whole task's file is taken, not `model.weights.h5`, which lacks the classifier. mIoU as the preset's text has it.
"""

from __future__ import annotations

from deeplabzoo.zoo.published.base import Published

_REPOSITORY = "https://huggingface.co/keras/deeplab_v3_plus_resnet50_pascalvoc"

PUBLISHED = (
    Published(
        name="v3plus_resnet50.kerashub_voc",
        preset="v3plus_resnet50.kerashub",
        num_classes=21,
        url=f"{_REPOSITORY}/resolve/main/task.weights.h5",
        layout="kerashub",
        dataset="voc",
        published_megabytes=314,
        licence="Apache-2.0",
        miou=63.0,
        judged="VOC 2012 and SBD",
        source=_REPOSITORY,
    ),
)
