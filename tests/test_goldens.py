"""What public implementations answered for seeded weights, against ours: every case, every backend, every control.

Tensors, image and answers come from `shared/goldens.py`; nothing of the public projects is needed here. The tensors go
through the project's layout, just as a checkpoint of it would.
"""

from __future__ import annotations

import golden_cases
import numpy as np
import pytest
from golden_cases import FAST, LAYOUT

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.training import Training

TORCHVISION = "torchvision_deeplabv3_resnet50"
TF = ("tf_mobilenetv2_os8", "tf_mobilenetv2_os8_even")
BOUND, LABELS = 2e-5, 0.9999
BOUND64 = {"paddleseg_deeplabv3p_resnet50_vd_os8": 5e-6}
"""float64: 1e-10, but PaddleSeg's own resize takes its coordinates in float32."""

MARKED = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUT]
IN_FLOAT64 = (
    TORCHVISION,
    "hf_mobilenet_v2",
    "kazuto_deeplabv2_resnet101",
    "smp_deeplabv3plus_resnet50_os16",
    "paddleseg_deeplabv3p_resnet50_vd_os8",
    "vainf_deeplabv3plus_resnet50_os16",
    "mmseg_deeplabv3plus_r50-d8",
    "jfzhang95_deeplabv3plus_resnet101_os16",
)
QUICK64 = ("hf_mobilenet_v2",)


@pytest.fixture(scope="module")
def case(goldens):
    """(canonical model, image N, C, H, W, expected) of a golden case; one network of some hundred megabytes at a time."""
    made = {}

    def load(name):
        if name not in made:
            made.clear()
            source, _, image, expected = golden_cases.load(goldens, name)
            made[name] = source.model, image, expected
        return made[name]

    return load


def run(process, spec, weights, image, dtype="float32"):
    process.load(build_graph(spec), dict(weights), dtype=dtype)
    return process.forward(image)


def at_feature(spec):
    """The logits before their last resize."""
    return spec.replace(output=spec.output.replace(size="feature", align_corners=False))


@pytest.mark.parametrize("name", MARKED)
def test_float32(case, goldens, worker, backend, name):
    """Every output the case holds."""
    model, image, expected = case(name)
    outputs = run(worker(backend), model.spec, model.weights, image)
    error, labels = goldens.check(expected, outputs["out"])
    assert error <= BOUND
    assert labels >= LABELS
    held = set(expected["case"]["outputs"]) - {expected["case"]["main"]}
    if "aux" in held:
        assert goldens.check(expected, outputs["aux"], "aux")[0] <= BOUND
    inner = {"low_res": "out", "decode_head": "out", "auxiliary_head": "aux"}
    assert held <= {*inner, "aux"}
    if held & set(inner):
        low = run(worker(backend), at_feature(model.spec), model.weights, image)
        for theirs in held & set(inner):
            assert goldens.check(expected, low[inner[theirs]], theirs)[0] <= BOUND


@pytest.mark.parametrize(
    "name", [name if name in QUICK64 else pytest.param(name, marks=pytest.mark.slow) for name in IN_FLOAT64]
)
def test_float64(case, goldens, worker, backend, name):
    model, image, expected = case(name)
    assert "grid64" in expected
    outputs = run(worker(backend), model.spec, model.weights, image, "float64")
    error, labels = goldens.check(expected, outputs["out"])
    assert error <= BOUND64.get(name, 1e-10)
    assert labels == 1
    if "aux" in expected["case"]["outputs"]:
        assert goldens.check(expected, outputs["aux"], "aux")[0] <= 1e-10


def test_float64_is_asked_of_every_case_that_holds_it(goldens):
    held = {name for name in LAYOUT if "grid64" in np.load(goldens.ROOT / name / "expected.npz").files}
    assert held == set(IN_FLOAT64)


WITH_GRADIENTS = {TORCHVISION: 1e-6, "paddleseg_deeplabv3p_resnet50_vd_os8": 1e-5}
"""Bounds; PaddleSeg's own resize takes its coordinates in float32."""


def gradient_errors(record, source, found):
    """Error of the loss, and of norm and sum of each gradient that the record holds, by its foreign name.

    A sum may be zero by cancellation: it is judged against the norm times the root of the size.
    """
    canonical = {row.foreign: row.canonical for row in source.ledger}
    errors = {"loss": abs(found["loss"] / record["loss"] - 1)}
    for name, (norm, total) in record["parameters"].items():
        gradient = found[canonical[name]]
        errors[f"norm of {name}"] = abs(np.linalg.norm(gradient) / norm - 1)
        errors[f"sum of {name}"] = abs(gradient.sum() - total) / (norm * gradient.size**0.5)
    return errors


@pytest.mark.parametrize(
    "name", [name if name == TORCHVISION else pytest.param(name, marks=pytest.mark.slow) for name in WITH_GRADIENTS]
)
def test_gradients(goldens, worker, backend, name):
    """Cross entropy of the main output over all pixels, in evaluation mode and float64."""
    source, _, image, expected = golden_cases.load(goldens, name)
    record, labels = expected["case"]["grad"], goldens.seeded_labels(expected["case"])
    spec, weights = source.model.spec, source.model.weights
    process = worker(backend)
    process.load(build_graph(spec), dict(weights), dtype="float64")
    evaluation = Training(steps=1, batch_norm="frozen", aux_weight=0)
    loss, found = process.gradients(image, labels, evaluation)
    errors = gradient_errors(record, source, {"loss": loss, **found})
    assert len(errors) == 13
    assert max(errors.values()) <= WITH_GRADIENTS[name], errors
    if backend == "torch":  # negative control
        loss, found = process.gradients(1.01 * image, labels, evaluation)
        assert max(gradient_errors(record, source, {"loss": loss, **found}).values()) > 1e-3


def test_every_record_of_gradients_is_asked_for(goldens):
    assert {name for name in LAYOUT if "grad" in goldens.read_case(name)} == set(WITH_GRADIENTS)


def backbone(**changes):
    return lambda spec: spec.replace(backbone=spec.backbone.replace(**changes))


def aspp(**changes):
    return lambda spec: spec.replace(aspp=spec.aspp.replace(**changes))


def decoder(**changes):
    return lambda spec: spec.replace(decoder=spec.decoder.replace(**changes))


KAZUTO, XCEPTION = "kazuto_deeplabv2_resnet101", "tf_xception65_os16"
SPEC_CONTROLS = {
    "rate 35 instead of 36": (TORCHVISION, aspp(rates=(12, 24, 35))),
    "full dilation in the first blocks": (TORCHVISION, backbone(first_block_dilation="full")),
    "align_corners flipped": (TORCHVISION, lambda s: s.replace(output=s.output.replace(align_corners=True))),
    "epsilon 1e-3": (TORCHVISION, lambda s: aspp(epsilon=1e-3)(backbone(epsilon=1e-3)(s))),
    "stride in the first 1x1": (TORCHVISION, backbone(stride_in="conv1")),
    "branches in another order": (TORCHVISION, aspp(order=("image_pooling", "conv1x1", "atrous"))),
    "pooling rounded down": (KAZUTO, backbone(pool_ceil=False)),
    "stride in the 3x3": (KAZUTO, backbone(stride_in="conv2")),
    "one rate of the sum": (KAZUTO, lambda s: s.replace(head=s.head.replace(rates=(6, 12, 18, 23)))),
    "shortcut after its ReLU": (XCEPTION, backbone(shortcut="relu")),
    "no ReLU inside the exit": (XCEPTION, backbone(exit_activation="before_each")),
    "tap after its ReLU": (XCEPTION, decoder(low_level="entry.block2.relu3")),
    "exit not dilated": (XCEPTION, backbone(exit_stride=1)),
    "corners aligned": ("bonlime_mobilenetv2", lambda s: s.replace(output=s.output.replace(align_corners=True))),
}
MORE = {"stride in the first 1x1", "branches in another order"}


@pytest.mark.parametrize(
    "control", [pytest.param(c, marks=pytest.mark.slow) if c in MORE else c for c in SPEC_CONTROLS]
)
def test_spec_controls(case, goldens, worker, requested, control):
    """Other readings with the same tensors are told apart."""
    name, change = SPEC_CONTROLS[control]
    model, image, expected = case(name)
    spec = change(model.spec.replace(aux=None))
    weights = {n: a for n, a in model.weights.items() if not n.startswith("aux")}
    try:
        error, _ = goldens.check(expected, run(worker(requested[0]), spec, weights, image)["out"])
    except (IndexError, ValueError):  # another size, which is as good
        assert control == "pooling rounded down"
        return
    assert error > 1e-3


def transposed(weights):
    return {n: a.swapaxes(2, 3) if a.ndim == 4 else a for n, a in weights.items()}


def swapped(weights):
    other = {"running_mean": "running_var", "running_var": "running_mean"}
    return {n: np.abs(weights[".".join([*n.split(".")[:-1], other.get(n.split(".")[-1], n.split(".")[-1])])])
            if n.endswith(("running_mean", "running_var")) else a for n, a in weights.items()}  # fmt: skip


def shifted(weights):
    return {n: np.roll(a, 1, axis=0) if n.startswith("classifier.") else a for n, a in weights.items()}


@pytest.mark.parametrize("control", [transposed, swapped, shifted])
def test_weight_controls(case, goldens, worker, requested, control):
    """Each mistake a converter can make without an error shows in the comparison."""
    model, image, expected = case(TORCHVISION)
    weights = control({n: a for n, a in model.weights.items() if not n.startswith("aux")})
    error, labels = goldens.check(
        expected, run(worker(requested[0]), model.spec.replace(aux=None), weights, image)["out"]
    )
    assert np.isnan(error) or error > 1e-3  # a swapped variance overflows
    assert labels < LABELS


def test_padding_control(case, goldens, worker, requested):
    """Symmetric padding passes at the odd size and is caught at the even one."""
    for name, caught in zip(TF, (False, True), strict=True):
        model, image, expected = case(name)
        spec = backbone(padding="symmetric")(model.spec)
        error, _ = goldens.check(expected, run(worker(requested[0]), spec, model.weights, image)["out"])
        assert (error > 1e-3) == caught


def test_exact_epsilon_control(case, goldens, worker, requested):
    """An epsilon rounded to float32 is told from the double that PyTorch adds, and only in float64."""
    model, image, expected = case("hf_mobilenet_v2")
    rounded = backbone(exact_epsilon=False)(model.spec)
    outputs = run(worker(requested[0]), rounded, model.weights, image, "float64")["out"]
    assert 1e-10 < goldens.check(expected, outputs)[0] < 1e-8
