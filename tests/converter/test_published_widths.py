"""MobileNetV2 at other widths than 1, against channel counts of TensorFlow's own files and rules."""

import numpy as np
import pytest

import deeplabzoo as dz
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.weights_converter.layouts import LAYOUTS
from deeplabzoo.zoo.presets.tensorflow import template

PROJECTIONS = {
    0.5: (16, 8, 12, 16, 32, 48, 80, 160),  # as in TensorFlow's published deeplabv3_257_mv_gpu.tflite
    1.0: (32, 16, 24, 32, 64, 96, 160, 320),
    1.4: (45, 22, 34, 45, 90, 134, 224, 448),  # no rounding to multiples of 8 at widths other than 1
}


def counts(spec):
    shapes = build_graph(spec).parameters()
    names = ["backbone.stem.conv.weight", *(f"backbone.stage{n}.block1.project.conv.weight" for n in range(1, 8))]
    return tuple(shapes[name][0] for name in names)


@pytest.mark.parametrize("width", PROJECTIONS)
def test_channels_follow_research_deeplab(width):
    assert counts(template(width=width)) == PROJECTIONS[width]


def test_expansions_are_multiples_of_eight_as_in_slim():
    shapes = build_graph(template(width=1.4)).parameters()
    assert shapes["backbone.stage2.block2.expand.conv.weight"][0] == 208  # 6 * 34 = 204


def test_the_default_divisor_rounds_to_multiples_of_eight():
    assert counts(dz.spec("v3", backbone="mobilenet_v2", width=0.5)) == (16, 8, 16, 16, 32, 48, 80, 160)


@pytest.mark.parametrize("width", PROJECTIONS)
@pytest.mark.parametrize("classes", [19, 21])
def test_tensorflow_tensors_of_any_width_are_read(width, classes):
    spec = template(width=width, num_classes=classes)
    shapes = build_graph(spec).parameters()
    foreign = {}
    for entry in LAYOUTS["tensorflow"].entries(spec, "safetensors"):
        if entry.canonical:
            foreign[entry.foreign] = entry.transform.inverse(np.zeros(shapes[entry.canonical], np.float32))
        elif entry.spare:
            foreign[entry.foreign] = entry.spare()
    read = dz.convert(foreign).source
    assert read.model.spec == spec
    assert read.layout == "tensorflow"
