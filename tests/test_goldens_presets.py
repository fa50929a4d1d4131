"""Presets of projects whose tensor names no layout reads yet, against what the projects' own classes answered."""

from __future__ import annotations

import numpy as np
import pytest
from golden_names import CASES, canonical

from deeplabzoo.core.architectures import build_graph

BOUND, LABELS = 2e-5, 0.9999
FAST = ("hf_mobilenet_v2", "tf_xception65_os16", "kazuto_deeplabv2_resnet101")
"""One a family of backbones; the others are heavy copies of a ResNet."""
MARKED = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.fixture(scope="module")
def case(goldens):
    made = {}

    def load(name):
        if name not in made:
            made.clear()  # one network of some hundred megabytes at a time
            tensors, image, expected = goldens.load_case(name)
            spec, weights = canonical(name, expected["case"], tensors)
            if expected["case"]["input"]["layout"] == "NHWC":
                image = image.transpose(0, 3, 1, 2)
            made[name] = spec, weights, np.ascontiguousarray(image), expected
        return made[name]

    return load


def run(process, spec, weights, image):
    process.load(build_graph(spec), weights, dtype="float32")
    return process.forward(image)


@pytest.mark.parametrize("name", MARKED)
def test_presets(case, goldens, worker, backend, name):
    spec, weights, image, expected = case(name)
    outputs = run(worker(backend), spec, weights, image)
    error, labels = goldens.check(expected, outputs["out"])
    assert error <= BOUND
    assert labels >= LABELS


def test_tf_xception_before_its_last_resize(case, goldens, worker, requested):
    spec, weights, image, expected = case("tf_xception65_os16")
    feature = spec.replace(output=spec.output.replace(size="feature", align_corners=False))
    low = run(worker(requested[0]), feature, weights, image)["out"]
    assert goldens.check(expected, low, "low_res")[0] <= BOUND


@pytest.mark.slow
def test_mmseg_heads(case, goldens, worker, requested):
    """Both heads before the resize that mmseg does outside of them."""
    spec, weights, image, expected = case("mmseg_deeplabv3plus_r50-d8")
    outputs = run(worker(requested[0]), spec.replace(output=spec.output.replace(size="feature")), weights, image)
    assert goldens.check(expected, outputs["out"], "decode_head")[0] <= BOUND
    assert goldens.check(expected, outputs["aux"], "auxiliary_head")[0] <= BOUND


def backbone(**changes):
    return lambda spec: spec.replace(backbone=spec.backbone.replace(**changes))


CONTROLS = {
    "pooling rounded down": ("kazuto_deeplabv2_resnet101", backbone(pool_ceil=False)),
    "stride in the 3x3": ("kazuto_deeplabv2_resnet101", backbone(stride_in="conv2")),
    "one rate of the sum": (
        "kazuto_deeplabv2_resnet101",
        lambda s: s.replace(head=s.head.replace(rates=(6, 12, 18, 23))),
    ),
    "shortcut after its ReLU": ("tf_xception65_os16", backbone(shortcut="relu")),
    "no ReLU inside the exit": ("tf_xception65_os16", backbone(exit_activation="before_each")),
    "tap after its ReLU": (
        "tf_xception65_os16",
        lambda s: s.replace(decoder=s.decoder.replace(low_level="entry.block2.relu3")),
    ),
    "exit not dilated": ("tf_xception65_os16", backbone(exit_stride=1)),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_controls(case, goldens, worker, requested, control):
    """Other readings with the same tensors are told apart."""
    name, change = CONTROLS[control]
    spec, weights, image, expected = case(name)
    try:
        outputs = run(worker(requested[0]), change(spec), weights, image)["out"]
        error, _ = goldens.check(expected, outputs)
    except (IndexError, ValueError):  # another size, which is as good
        assert control == "pooling rounded down"
        return
    assert error > 1e-3
