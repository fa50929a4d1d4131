"""KerasHub 0.32: `deeplab_v3_plus_resnet50_pascalvoc`.

Stride 32 and no dilation in the backbone, rates 6, 12, 18 there all the same, a decoder without any 3x3, the features
resized before a classifier without bias. Source: keras-team/keras-hub, keras_hub/src/models/deeplab_v3 (Apache-2.0).
"""

from __future__ import annotations

from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.inference.preprocessing import RAW
from deeplabzoo.zoo.presets.base import PLAIN_DECODER, Preset

_NORM = {"epsilon": 1e-3, "momentum": 0.99}


def template(num_classes: int = 21) -> ArchSpec:
    """The spec of the preset; batch norms of the head have Keras' epsilon, those of the backbone 1e-5."""
    return make_spec(
        "v3plus",
        backbone="resnet50",
        output_stride=32,
        num_classes=num_classes,
        rates=(6, 12, 18),
        aspp={"branch": "plain", "dropout": 0.0, **_NORM},
        decoder={**PLAIN_DECODER, "convs": 1, "kernel": 1, **_NORM},
        classifier={"bias": False},
        output={"resize": "features"},
    )


PRESETS = (Preset("v3plus_resnet50.kerashub", "KerasHub deeplab_v3_plus_resnet50_pascalvoc", template, RAW),)
