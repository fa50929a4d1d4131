"""What public implementations answered for seeded weights, against ours: every backend, and every control.

Tensors, image and answers come from `shared/goldens.py`; nothing of the public projects is needed here.
"""

from __future__ import annotations

import numpy as np
import pytest

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.weights_converter.convert import read_source
from deeplabzoo.zoo.presets import PRESETS

TORCHVISION = "torchvision_deeplabv3_resnet50"
TF = ("tf_mobilenetv2_os8", "tf_mobilenetv2_os8_even")
BOUND, LABELS = 2e-5, 0.9999


@pytest.fixture(scope="module")
def case(goldens):
    """(canonical model, image N, C, H, W, expected) of a golden case, made once."""
    made = {}

    def load(name):
        if name not in made:
            tensors, image, expected = goldens.load_case(name)
            if expected["case"]["input"]["layout"] == "NHWC":
                image = image.transpose(0, 3, 1, 2)
            made[name] = read_source(tensors).model, np.ascontiguousarray(image), expected
        return made[name]

    return load


def run(process, spec, weights, image, dtype="float32"):
    process.load(build_graph(spec), weights, dtype=dtype)
    return process.forward(image)


def test_torchvision(case, goldens, worker, backend):
    model, image, expected = case(TORCHVISION)
    outputs = run(worker(backend), model.spec, model.weights, image)
    error, labels = goldens.check(expected, outputs["out"])
    assert error <= BOUND
    assert labels >= LABELS
    assert goldens.check(expected, outputs["aux"], "aux")[0] <= BOUND


def test_torchvision_in_float64(case, goldens, worker, requested):
    if "torch" not in requested:
        pytest.skip("torch is not in DEEPLABZOO_TEST_BACKENDS")
    model, image, expected = case(TORCHVISION)
    assert "grid64" in expected
    outputs = run(worker("torch"), model.spec, model.weights, image, "float64")
    for output in ("out", "aux"):
        assert goldens.check(expected, outputs[output], output)[0] <= 1e-10
    assert goldens.check(expected, outputs["out"])[1] == 1


@pytest.mark.parametrize("name", TF)
def test_tensorflow(case, goldens, worker, backend, name):
    """Odd and even: only an even size shows on which side TF pads."""
    model, image, expected = case(name)
    assert model.spec.output_stride == 8
    error, labels = goldens.check(expected, run(worker(backend), model.spec, model.weights, image)["out"])
    assert error <= BOUND
    assert labels >= LABELS
    feature = model.spec.replace(output=model.spec.output.replace(size="feature", align_corners=False))
    low = run(worker(backend), feature, model.weights, image)["out"]
    assert goldens.check(expected, low, "low_res")[0] <= BOUND


def backbone(spec, **changes):
    return spec.replace(backbone=spec.backbone.replace(**changes))


def aspp(spec, **changes):
    return spec.replace(aspp=spec.aspp.replace(**changes))


SPEC_CONTROLS = {
    "rate 35 instead of 36": lambda spec: aspp(spec, rates=(12, 24, 35)),
    "full dilation in the first blocks": lambda spec: backbone(spec, first_block_dilation="full"),
    "align_corners flipped": lambda spec: spec.replace(output=spec.output.replace(align_corners=True)),
    "epsilon 1e-3": lambda spec: aspp(backbone(spec, epsilon=1e-3), epsilon=1e-3),
    "stride in the first 1x1": lambda spec: backbone(spec, stride_in="conv1"),
    "branches in another order": lambda spec: aspp(spec, order=("image_pooling", "conv1x1", "atrous")),
}


def transposed(weights):
    return {n: a.swapaxes(2, 3) if a.ndim == 4 else a for n, a in weights.items()}


def swapped(weights):
    other = {"running_mean": "running_var", "running_var": "running_mean"}
    return {n: np.abs(weights[".".join([*n.split(".")[:-1], other.get(n.split(".")[-1], n.split(".")[-1])])])
            if n.endswith(("running_mean", "running_var")) else a for n, a in weights.items()}  # fmt: skip


def shifted(weights):
    return {n: np.roll(a, 1, axis=0) if n.startswith("classifier.") else a for n, a in weights.items()}


WEIGHT_CONTROLS = {"transposed kernels": transposed, "mean and variance swapped": swapped, "classes shifted": shifted}


MORE = {"stride in the first 1x1", "branches in another order"}


@pytest.mark.parametrize(
    "control",
    [pytest.param(c, marks=pytest.mark.slow) if c in MORE else c for c in (*SPEC_CONTROLS, *WEIGHT_CONTROLS)],
)
def test_controls(case, goldens, worker, requested, control):
    """Each mistake a converter can make without an error shows in the comparison."""
    model, image, expected = case(TORCHVISION)
    spec = model.spec.replace(aux=None)
    weights = {n: a for n, a in model.weights.items() if not n.startswith("aux")}
    if control in SPEC_CONTROLS:
        spec = SPEC_CONTROLS[control](spec)
    else:
        weights = WEIGHT_CONTROLS[control](weights)
    error, labels = goldens.check(expected, run(worker(requested[0]), spec, weights, image)["out"])
    assert np.isnan(error) or error > 1e-3  # a swapped variance overflows
    assert labels < LABELS


def test_padding_control(case, goldens, worker, requested):
    """Symmetric padding passes at the odd size and is caught at the even one."""
    for name, caught in zip(TF, (False, True), strict=True):
        model, image, expected = case(name)
        spec = backbone(model.spec, padding="symmetric")
        error, _ = goldens.check(expected, run(worker(requested[0]), spec, model.weights, image)["out"])
        assert (error > 1e-3) == caught


def test_bonlime(goldens, worker, requested):
    """TF's network, resized with half-pixel centres; its names are TF's, flattened."""
    tensors, image, expected = goldens.load_case("bonlime_mobilenetv2")
    assert len(tensors) == 272
    tf = goldens.load_case(TF[0])[0]
    spec = read_source(tf).model.spec
    half_pixel = PRESETS["v3_mobilenet_v2.bonlime"].make()
    flat = {shape_name(n): n for n in tf}
    model = read_source(
        {flat[shape_name(n)]: a.reshape(tf[flat[shape_name(n)]].shape) for n, a in tensors.items()}
    ).model
    image = image.transpose(0, 3, 1, 2)
    for chosen, right in ((half_pixel, True), (spec, False)):
        error, _ = goldens.check(expected, run(worker(requested[0]), chosen, model.weights, image)["out"])
        assert (error <= BOUND) == right
        assert right or error > 1e-3


def shape_name(name):
    """One spelling of TF's and bonlime's names."""
    for theirs, ours in (("MobilenetV2/", ""), ("BatchNorm", "BN"), ("weights", "kernel"), ("biases", "bias")):
        name = name.replace(theirs, ours)
    return name.replace("/depthwise_kernel", "/kernel").replace("/", "_")
