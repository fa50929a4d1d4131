"""Each difference between public implementations (layouts.md, section 0) is another value, graph and result.

The pairs that matter most have equal tensor names and shapes: no checkpoint tells them apart, only the spec does.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from helpers import image

from deeplabzoo.core import reference
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.parity.compare import error

MOBILE = {"name": "mobilenet_v2", "width": 0.35}
HEAD = {"channels": 16}
DECODER = {"channels": 16, "low_level_channels": 8}


def v3(backbone, **options):
    aspp = {**HEAD, "rates": (1, 2, 3), **options.pop("aspp", {})}
    return make_spec("v3", backbone=backbone, num_classes=3, aspp=aspp, **options)


def plus(**options):
    aspp = {**HEAD, "rates": (1, 2, 3), **options.pop("aspp", {})}
    decoder = {**DECODER, **options.pop("decoder", {})}
    return make_spec("v3plus", backbone=MOBILE, num_classes=3, aspp=aspp, decoder=decoder, **options)


def resnet(**options):
    stride = options.pop("output_stride", 16)
    top = {key: options.pop(key) for key in ("aux", "output") if key in options}
    return v3({"name": "resnet50", **options}, output_stride=stride, **top)


def mobile(**options):
    return v3({**MOBILE, **options}, output_stride=8)


# What: two specs that differ in it alone; whether tensor names and shapes are the same.
SILENT = {
    "0.1 first block of a dilated stage": (resnet(), resnet(first_block_dilation="full")),
    "0.1 first block, mobilenet_v2": (mobile(), mobile(first_block_dilation="full")),
    "0.1 only the first block (mmseg)": (mobile(), mobile(first_block_dilation="first_only")),
    "0.1 only the first block or all (mmseg, smp)": (
        mobile(first_block_dilation="full"),
        mobile(first_block_dilation="first_only"),
    ),
    "0.1 multi-grid": (resnet(), resnet(multi_grid=(1, 2, 4))),
    "0.1 multi-grid multiplies or replaces": (
        resnet(first_block_dilation="full", multi_grid=(1, 2, 4)),
        resnet(first_block_dilation="full", multi_grid=(1, 2, 4), multi_grid_mode="replace"),
    ),
    "0.1 stride in the 3x3 or the first 1x1 (Caffe)": (resnet(), resnet(stride_in="conv1")),
    "0.1 stride in the last unit (TF slim)": (resnet(), resnet(stride_in="last_unit")),
    "0.1 no dilation at all (KerasHub)": (resnet(), resnet(output_stride=32)),
    "8.1 pooling rounds up": (resnet(), resnet(pool_ceil=True)),
    "11 padding of strided convolutions, resnet": (resnet(), resnet(padding="same")),
    "11 padding of strided convolutions, mobilenet_v2": (mobile(), mobile(padding="symmetric")),
    "0.2 order of the branches": (plus(), plus(aspp={"order": ("image_pooling", "conv1x1", "atrous")})),
    "0.2 rates": (plus(), plus(aspp={"rates": (1, 2, 4)})),
    "0.2 ReLU between depthwise and pointwise": (plus(), plus(aspp={"branch": "separable_bn"})),
    "0.3 ReLU between depthwise and pointwise": (plus(), plus(decoder={"conv": "separable_bn"})),
    "0.3 order of the concatenation": (
        plus(decoder={"low_level_channels": 16}),
        plus(decoder={"low_level_channels": 16, "order": ("low_level", "aspp")}),
    ),
    "0.4 resize to the low level": (plus(), plus(decoder={"align_corners": True})),
    "0.4 resize to the image": (plus(), plus(output={"align_corners": True})),
    "0.4 no resize to the image": (plus(), plus(output={"size": "feature"})),
    "0.4 what is returned: probabilities": (plus(), plus(output={"values": "probabilities"})),
    "0.4 what is returned: labels": (plus(), plus(output={"values": "labels"})),
    "0.5 epsilon of the backbone": (resnet(), resnet(epsilon=1e-3)),
    "0.5 epsilon of the ASPP": (plus(), plus(aspp={"epsilon": 1e-3})),
    "0.5 epsilon of the decoder": (plus(), plus(decoder={"epsilon": 1e-3})),
}
# The same, but the tensors differ as well.
TOLD = {
    "0.2 plain or separable branches": (plus(), plus(aspp={"branch": "plain"})),
    "0.2 batch norm between depthwise and pointwise": (plus(), plus(aspp={"branch": "separable"})),
    "0.2 bias beside the batch norm": (plus(), plus(aspp={"bias": True})),
    "0.2 bias after the image pooling": (plus(), plus(aspp={"pool_bias": True})),
    "0.2 kernel of the fusion (mmseg)": (plus(), plus(aspp={"fusion_kernel": 3})),
    "0.2 3x3 after the fusion (torchvision)": (plus(), plus(aspp={"post_conv": "plain"})),
    "0.2 separable 3x3 after the fusion (smp)": (plus(), plus(aspp={"post_conv": "separable"})),
    "0.2 no atrous branches (TF mobilenet_v2)": (
        plus(),
        plus(aspp={"order": ("image_pooling", "conv1x1"), "rates": ()}),
    ),
    "0.3 low-level point": (plus(), plus(decoder={"low_level": "stage2"})),
    "0.3 width of the projection": (plus(), plus(decoder={"low_level_channels": 12})),
    "0.3 number of convolutions": (plus(), plus(decoder={"convs": 1})),
    "0.3 plain or separable convolutions": (plus(), plus(decoder={"conv": "plain"})),
    "0.3 kernel (KerasHub)": (plus(decoder={"conv": "plain"}), plus(decoder={"conv": "plain", "kernel": 1})),
    "0.3 bias beside the batch norm": (plus(), plus(decoder={"bias": True})),
    "5 classifier without bias (KerasHub)": (plus(), plus(classifier={"bias": False})),
}
# These change training alone.
TRAINING = {
    "0.2 dropout": (plus(), plus(aspp={"dropout": 0.5})),
    "0.2 whole channels dropped": (plus(), plus(aspp={"dropout_channels": True})),
    "0.3 dropout in the decoder": (plus(), plus(decoder={"dropout": (0.5, 0.1)})),
    "4 momentum": (plus(), plus(aspp={"momentum": 0.9997})),
}


WEIGHTS: dict[str, np.ndarray] = {}
"""The last weights made; each depends on its name and shape alone."""


@cache
def outputs(spec: ArchSpec) -> dict[str, np.ndarray]:
    graph = build_graph(spec)
    if graph.parameters().keys() - WEIGHTS.keys() or any(
        WEIGHTS[name].shape != shape for name, shape in graph.parameters().items()
    ):
        WEIGHTS.update(seeded_weights(graph, 0, statistics="lively"))
    weights = {name: WEIGHTS[name] for name in graph.parameters()}
    return reference.forward(graph, weights, image(1, 3, 48, 64), dtype="float32")


def check(first: ArchSpec, second: ArchSpec) -> None:
    assert first != second
    assert build_graph(first).digest() != build_graph(second).digest()


@pytest.mark.parametrize(("first", "second"), SILENT.values(), ids=SILENT)
def test_differences_that_no_tensor_tells(request, first, second):
    check(first, second)
    assert build_graph(first).parameters() == build_graph(second).parameters()
    a, b = outputs(first)["out"], outputs(second)["out"]
    # An epsilon moves a result by little more than itself; everything else by a lot.
    least = 1e-4 if "epsilon" in request.node.name else 1e-3
    assert a.shape != b.shape or error(b, a) > least


@pytest.mark.parametrize(("first", "second"), TOLD.values(), ids=TOLD)
def test_differences_that_the_tensors_tell(first, second):
    check(first, second)
    assert build_graph(first).parameters() != build_graph(second).parameters()
    assert error(outputs(second)["out"], outputs(first)["out"]) > 1e-3


@pytest.mark.parametrize(("first", "second"), TRAINING.values(), ids=TRAINING)
def test_differences_in_training(first, second):
    check(first, second)
    assert build_graph(first).parameters() == build_graph(second).parameters()
    np.testing.assert_array_equal(outputs(second)["out"], outputs(first)["out"])


def test_auxiliary_head():
    plain, aux = resnet(), resnet(aux={"channels": 8})
    check(plain, aux)
    assert list(outputs(aux)) == ["out", "aux"]
    assert outputs(aux)["aux"].shape == outputs(aux)["out"].shape
    np.testing.assert_array_equal(outputs(aux)["out"], outputs(plain)["out"])
    elsewhere = resnet(aux={"channels": 8, "tap": "stage2"})
    assert error(outputs(elsewhere)["aux"], outputs(aux)["aux"]) > 1e-3


def test_output_contract():
    logits = outputs(plus())["out"]
    probabilities = outputs(plus(output={"values": "probabilities"}))["out"]
    labels = outputs(plus(output={"values": "labels"}))["out"]
    feature = outputs(plus(output={"size": "feature"}))["out"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert logits.shape == probabilities.shape == (1, 3, 48, 64)
    np.testing.assert_array_equal(labels[:, 0], logits.argmax(axis=1))
    np.testing.assert_array_equal(labels[:, 0], probabilities.argmax(axis=1))
    assert feature.shape == (1, 3, 12, 16)


def test_resizing_features_is_resizing_logits():
    """A 1x1 and a resize commute, so KerasHub's order is another graph (more work) with the same result."""
    first, second = plus(), plus(output={"resize": "features"})
    check(first, second)
    assert error(outputs(second)["out"], outputs(first)["out"]) < 1e-5
