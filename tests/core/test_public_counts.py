"""The spec can say the public models: their parameter counts come out to the last one."""

from __future__ import annotations

import math

import pytest

from deeplabzoo.core.analysis import parameter_count
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.weights_converter.layouts import tensorflow, torchvision

VAINF_HEAD = {"aspp": {"branch": "plain"}, "decoder": {"conv": "plain", "convs": 1, "order": ["low_level", "aspp"]}}
SMP_HEAD = {"aspp": {"branch": "separable", "post_conv": "separable"}, "decoder": {"conv": "separable", "convs": 1}}
PLAIN_HEAD = {"aspp": {"branch": "plain"}, "decoder": {"conv": "plain"}}
MMSEG = {
    "branch": "separable_bn_relu",
    "fusion_kernel": 3,
    "channels": 512,
    "order": ["image_pooling", "conv1x1", "atrous"],
}
PUBLIC_COUNTS = {
    "torchvision v3 R50": (torchvision.template("resnet50", 21, aux=False), 39_638_869),
    "torchvision v3 R50 aux": (torchvision.template("resnet50", 21, aux=True), 42_004_074),
    "torchvision v3 R101": (torchvision.template("resnet101", 21, aux=False), 58_630_997),
    "torchvision v3 R101 aux": (torchvision.template("resnet101", 21, aux=True), 60_996_202),
    "TF v3 MNV2": (tensorflow.template(), 2_113_557),
    "VainF v3 MNV2": (make_spec("v3", backbone="mobilenet_v2"), 5_113_877),
    "VainF v3+ R50": (make_spec("v3plus", **VAINF_HEAD), 39_761_845),
    "smp v3+ R50": (make_spec("v3plus", **SMP_HEAD), 26_682_725),
    "smp v3+ R101": (make_spec("v3plus", backbone="resnet101", **SMP_HEAD), 45_674_853),
    "smp v3 R50": (make_spec("v3", output_stride=8), 39_638_869),
    "VainF v3+ R101": (make_spec("v3plus", backbone="resnet101", **VAINF_HEAD), 58_753_973),
    "VainF v3+ MNV2": (make_spec("v3plus", backbone="mobilenet_v2", low_level="stage2", **VAINF_HEAD), 5_225_717),
    "kazuto v3 R101": (make_spec("v3", backbone="resnet101", aspp={"post_conv": "none"}), 58_040_661),
    "kazuto v3+ R101": (make_spec("v3plus", backbone="resnet101", **PLAIN_HEAD), 59_344_309),
    "jfzhang95 v3+ MNV2": (make_spec("v3plus", backbone="mobilenet_v2", low_level="stage2", **PLAIN_HEAD), 5_816_053),
    "bubbliiiing v3+ MNV2": (
        make_spec(
            "v3plus",
            backbone="mobilenet_v2",
            aspp={"branch": "plain", "bias": True, "pool_bias": True},
            decoder={"low_level": "stage2", "conv": "plain", "bias": True},
        ),
        5_818_149,
    ),
    "KerasHub v3+ R50": (
        make_spec(
            "v3plus",
            output_stride=32,
            aspp={"branch": "plain"},
            decoder={"conv": "plain", "convs": 1, "kernel": 1},
            classifier={"bias": False},
        ),
        39_139_232,
    ),
    "mmseg v3+ MNV2": (
        make_spec(
            "v3plus",
            backbone="mobilenet_v2",
            num_classes=19,
            aux=True,
            aspp=MMSEG,
            decoder={"low_level": "stage2", "channels": 512},
        ),
        15_244_374,
    ),
    "mmseg v3 R50b": (
        make_spec("v3", num_classes=19, aux=True, aspp={**MMSEG, "branch": "plain", "post_conv": "none"}),
        68_093_798,
    ),
    "mmseg v3 MNV2": (
        make_spec(
            "v3",
            backbone="mobilenet_v2",
            num_classes=19,
            aux=True,
            aspp={**MMSEG, "branch": "plain", "post_conv": "none"},
        ),
        18_602_022,
    ),
}


@pytest.mark.parametrize(("spec", "count"), PUBLIC_COUNTS.values(), ids=PUBLIC_COUNTS)
def test_parameter_counts_of_public_models(spec, count):
    """Measured on the public implementations: layouts.md, sections 1, 2, 4, 7 and 9."""
    assert parameter_count(build_graph(spec)) == count


def test_values_of_the_tf_checkpoint():
    shapes = build_graph(tensorflow.template()).parameters()
    assert sum(math.prod(shape) for shape in shapes.values()) == 2_146_645
    assert len(shapes) == 272
