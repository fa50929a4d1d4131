"""Every preset of a public project has the parameters that were counted on the project's own class."""

from __future__ import annotations

import math

import pytest

from deeplabzoo.core.analysis import parameter_count
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.zoo.models import named_spec
from deeplabzoo.zoo.presets import PRESETS, pytorch, tensorflow
from deeplabzoo.zoo.presets.smp import template as smp

COUNTS = {
    # layouts.md, sections 8.2 and 8.3
    "v1_vgg16": 20_505_429,
    "v2_vgg16": 37_877_652,
    "v2_resnet101": 44_048_532,
    # section 1
    "v3_resnet50.torchvision": 42_004_074,
    "v3_resnet50.torchvision_no_aux": 39_638_869,
    "v3_resnet101.torchvision": 60_996_202,
    "v3_resnet101.torchvision_no_aux": 58_630_997,
    "v3_mobilenet_v3_large.torchvision": 11_029_328,
    "v3_mobilenet_v3_large.torchvision_no_aux": 11_025_477,
    # section 2
    "v3_resnet18.smp": 15_904_085,
    "v3_resnet34.smp": 26_012_245,
    "v3_resnet50.smp": 39_638_869,
    "v3_resnet101.smp": 58_630_997,
    "v3_mobilenet_v2.smp": 12_653_077,
    "v3_xception65.smp_timm": 53_998_149,
    "v3plus_resnet18.smp": 12_334_437,
    "v3plus_resnet34.smp": 22_442_597,
    "v3plus_resnet50.smp": 26_682_725,
    "v3plus_resnet101.smp": 45_674_853,
    "v3plus_mobilenet_v2.smp": 4_383_653,
    "v3plus_xception65.smp_timm": 41_042_005,
    "v3_resnet18.smp_timm": 15_904_085,
    "v3_resnet50.smp_timm": 39_638_869,
    "v3plus_resnet18.smp_timm": 12_334_437,
    "v3plus_resnet50.smp_timm": 26_682_725,
    # section 3
    "v3_resnet50.paddleseg": 39_068_531,
    "v3_resnet101.paddleseg": 58_060_659,
    "v3plus_resnet50.paddleseg": 26_723_395,
    "v3plus_resnet101.paddleseg": 45_715_523,
    "v3plus_resnet101.paddleseg_769": 45_715_523,
    "v3plus_xception41.paddleseg": 28_110_547,
    "v3plus_xception65.paddleseg": 41_057_299,
    # sections 4, 6 and 10; transformers has an unused 1x1 of 412,160 parameters beside it
    "v3_mobilenet_v2.tf": 2_113_557,
    "v3plus_xception65.tf": 41_055_413,
    "v3_mobilenet_v2.bonlime": 2_113_557,
    "v3plus_xception65.bonlime": 41_055_413,
    "v3_mobilenet_v2.hf": 2_525_717 - 412_160,
    # section 5
    "v3plus_resnet50.kerashub": 39_139_232,
    # section 7
    "v3_resnet50.vainf": 39_638_869,
    "v3_resnet101.vainf": 58_630_997,
    "v3_mobilenet_v2.vainf": 5_113_877,
    "v3plus_resnet50.vainf": 39_761_845,
    "v3plus_resnet101.vainf": 58_753_973,
    "v3plus_mobilenet_v2.vainf": 5_225_717,
    "v3plus_xception.vainf": 37_050_525,
    "v3plus_resnet101.jfzhang95": 59_344_309,
    "v3plus_xception65.jfzhang95": 54_705_317,
    "v3plus_mobilenet_v2.jfzhang95": 5_816_053,
    "v3plus_mobilenet_v2.bubbliiiing": 5_818_149,
    "v3plus_xception65.bubbliiiing": 54_713_557,
    # section 8.1
    "v1_resnet101.kazuto": 42_686_619,
    "v2_resnet101.kazuto": 44_048_532,
    "v3_resnet101.kazuto": 58_040_661,
    "v3plus_resnet101.kazuto": 59_344_309,
    # section 9
    "v3_resnet18.mmseg": 13_986_374,
    "v3_resnet50.mmseg": 68_113_030,
    "v3_resnet101.mmseg": 87_105_158,
    "v3_resnet50.mmseg_b": 68_093_798,
    "v3_mobilenet_v2.mmseg": 18_602_022,
    "v3plus_resnet18.mmseg": 12_468_962,
    "v3plus_resnet50.mmseg": 43_589_878,
    "v3plus_resnet101.mmseg": 62_582_006,
    "v3plus_mobilenet_v2.mmseg": 15_244_374,
}
"""Trainable parameters as measured on the public implementations, by preset."""

UNCOUNTED = {
    "tf_dm05", "tf_ade20k", "tf_beta", "ryanccc", "multi_grid", "cascade", "conv4", "copied_blocks", "mmseg_d16_mg124",
}  # fmt: skip
"""Tags of presets whose project's own class nobody counted for us."""
UNCOUNTED_NAMES = {
    "v3plus_xception41.tf",
    "v3plus_xception71.tf",
    "v3plus_resnet50.tf",
    "v3plus_resnet101.tf",
    "v3_resnet101.mmseg_b",
    "v3_xception.vainf",
}

VARIANTS = {
    "kazuto v2, COCO-Stuff": (pytorch.kazuto("v2", 182), 55_919_384),
    "mmseg v3+ R50, VOC": (named_spec("v3plus_resnet50.mmseg", num_classes=21), 43_591_418),
    "smp v3+ on a ResNet-18, stride 8": (smp("v3plus", "resnet18").at_output_stride(8), 12_334_437),
    "ResNetV1d of mmseg": (
        make_spec("v3", backbone={"name": "resnet50", "stem": "v1c", "shortcut": "avg_pool"}),
        39_658_101,
    ),
}


@pytest.mark.parametrize(("preset", "count"), COUNTS.items(), ids=COUNTS)
def test_parameter_counts_of_presets(preset, count):
    assert parameter_count(build_graph(PRESETS[preset].make())) == count


@pytest.mark.parametrize(("spec", "count"), VARIANTS.values(), ids=VARIANTS)
def test_parameter_counts_of_variants(spec, count):
    assert parameter_count(build_graph(spec)) == count


def test_every_public_preset_is_counted():
    public = {name for name in PRESETS if "." in name and name.split(".")[1] not in UNCOUNTED}
    assert public - UNCOUNTED_NAMES <= COUNTS.keys()
    assert not UNCOUNTED_NAMES & COUNTS.keys()


@pytest.mark.parametrize(
    ("spec", "tensors", "values"),
    [(tensorflow.template(), 272, 2_146_645), (tensorflow.xception(), 732, 41_258_213)],
    ids=["mobilenet_v2", "xception_65"],
)
def test_values_of_the_tf_checkpoints(spec, tensors, values):
    shapes = build_graph(spec).parameters()
    assert sum(math.prod(shape) for shape in shapes.values()) == values
    assert len(shapes) == tensors
