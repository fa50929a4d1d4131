"""The main promise: one spec, the same numbers in every framework, judged by a referee that shares no code with them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import LIVE_RATES, image, lively, small_spec

import deeplabzoo
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core import reference, training
from deeplabzoo.core.analysis import all_taps_live, live_taps
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, GraphError, SpecError, WeightsError, WorkerError
from deeplabzoo.parity import cases, compare, judge
from deeplabzoo.parity.compare import BOUNDS, error, label_agreement
from deeplabzoo.weights_converter.convert import write_model

SIZES = ((65, 97), (64, 80))
"""Odd and even, neither square; the batch is 2."""

MATRIX = list(itertools.product(("v3", "v3plus"), ("resnet50", "mobilenet_v2"), (8, 16)))


def matrix_spec(arch, backbone, stride):
    """The real backbone; a narrower head, because a referee in numpy is slow (`test_default_rates` has the real one)."""
    head = {"aspp": {"channels": 48}}
    if arch == "v3plus":
        head["decoder"] = {"channels": 48}
    return make_spec(arch, backbone=backbone, output_stride=stride, rates=LIVE_RATES[stride], **head)


@pytest.mark.parametrize("entry", MATRIX, ids=["-".join(map(str, entry)) for entry in MATRIX])
def test_matrix_inputs_make_every_tap_work(entry):
    graph = build_graph(matrix_spec(*entry))
    dilated = {taps.node for taps in live_taps(graph, *SIZES[0])}
    # Rate 1 is no dilation; the backbone's own atrous blocks count too.
    assert sum(node.startswith("aspp") for node in dilated) == (3 if entry[2] == 8 else 2)
    assert any(node.startswith("backbone") for node in dilated)
    assert all(all_taps_live(graph, *size) for size in SIZES)


@pytest.mark.parametrize("entry", MATRIX, ids=["-".join(map(str, entry)) for entry in MATRIX])
def test_matrix(worker, requested, entry):
    """Float64: every pair of backends and the referee; float32: each backend against the float64 truth."""
    graph = build_graph(matrix_spec(*entry))
    weights = seeded_weights(graph, 0, statistics="lively")
    images = [image(2, 3, *size, seed=n) for n, size in enumerate(SIZES)]
    truths = [reference.forward(graph, weights, x)["out"] for x in images]
    assert [t.shape for t in truths] == [(2, 21, *size) for size in SIZES]
    found = {"numpy": truths}
    for name in requested:
        process = worker(name)
        process.load(graph, weights, dtype="float64")
        found[name] = [process.forward(x)["out"] for x in images]
        assert all(y.dtype == np.float64 for y in found[name])
        process.load(graph, weights, dtype="float32")
        for x, truth in zip(images, truths, strict=True):
            y = process.forward(x)["out"]
            assert y.dtype == np.float32
            # Rounded somewhere to float32, and not more: the bound itself is met by computing.
            assert 1e-9 < error(y, truth) <= BOUNDS["float32"], name
    for first, second in itertools.combinations(found, 2):
        for a, b in zip(found[first], found[second], strict=True):
            assert error(a, b) <= BOUNDS["float64"], (first, second)


VARIANTS = {
    "everything else, ResNet": make_spec(
        "v3plus",
        backbone={"name": "resnet50", "stride_in": "last_unit", "padding": "same", "pool_ceil": True,
                  "first_block_dilation": "full", "multi_grid": (1, 2, 1)},
        rates=(1, 2, 3),
        num_classes=3,
        aspp={"channels": 32, "branch": "separable_bn", "bias": True, "pool_bias": True, "fusion_kernel": 3,
              "order": ("image_pooling", "conv1x1", "atrous"), "post_conv": "separable", "epsilon": 1e-3},
        decoder={"order": ("low_level", "aspp"), "conv": "plain", "align_corners": True, "bias": True, "channels": 24,
                 "dropout": (0.5, 0.1)},
        aux={"channels": 8},
        output={"align_corners": True},
    ),
    "Caffe's stride and pooling": make_spec(
        "v3", stride_in="conv1", backbone={"name": "resnet50", "pool_ceil": True}, output_stride=32, num_classes=2,
        rates=(1,), aspp={"channels": 8},
    ),
    "mobilenet_v2, symmetric": small_spec(
        backbone={"name": "mobilenet_v2", "width": 0.35, "padding": "symmetric", "first_block_dilation": "first_only"},
        decoder={"low_level": "stage2.block2.expand", "conv": "separable", "kernel": 1},
        classifier={"bias": False}, output={"resize": "features"}, aux={"channels": 8}, in_channels=4,
    ),
    "probabilities": small_spec("v3", output={"values": "probabilities"}),
    "feature map, no atrous branches": small_spec("v3", aspp={"order": ("image_pooling", "conv1x1")},
                                                  output={"size": "feature"}),
    "one branch alone": small_spec("v3", aspp={"order": ("conv1x1",)}, num_classes=1),
}  # fmt: skip


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
def test_variants(worker, backend, spec):
    """What the matrix does not reach: every other choice of the spec, in float64 against the referee."""
    model = lively(spec)
    process = worker(backend)
    process.load(model.graph, model.weights, dtype="float64")
    for size in ((65, 81), (64, 96)):
        x = image(2, spec.in_channels, *size)
        truth = reference.forward(model.graph, model.weights, x)
        made = process.forward(x)
        assert list(made) == list(truth)
        for output, values in truth.items():
            assert error(made[output], values) <= BOUNDS["float64"]


def test_labels(worker, backend):
    """A network that returns labels returns the argmax, as whole numbers."""
    model = lively(small_spec("v3", output={"values": "labels"}))
    process = worker(backend)
    process.load(model.graph, model.weights, dtype="float64")
    x = image(1, 3, 64, 81)
    made = process.forward(x)["out"]
    assert np.issubdtype(made.dtype, np.integer)
    np.testing.assert_array_equal(made, reference.forward(model.graph, model.weights, x)["out"])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 1), (33, 32)])
def test_small_images(worker, backend, size):
    model = lively(small_spec())
    process = worker(backend)
    process.load(model.graph, model.weights, dtype="float64")
    for batch in (1, 3):
        x = image(batch, 3, *size)
        truth = reference.forward(model.graph, model.weights, x)["out"]
        assert error(process.forward(x)["out"], truth) <= BOUNDS["float64"]


def test_run(backend):
    """`deeplabzoo.run` on a canonical model: one array, or a dict where there is an auxiliary output."""
    model = lively(small_spec())
    x = image(2, 3, 33, 49)
    truth = reference.forward(model.graph, model.weights, x)["out"]
    y = deeplabzoo.run(model, x, backend=backend, dtype="float64")
    assert error(y, truth) <= BOUNDS["float64"]
    both = deeplabzoo.run(lively(small_spec(aux={"channels": 8})), x.astype("f4"), backend=backend)
    assert list(both) == ["out", "aux"]
    for wrong, kind, message in (
        (image(1, 4, 33, 33), WeightsError, "images of 4 channels: expected 3"),
        (x[0], WeightsError, "expected N x C x H x W"),
        (np.full((1, 3, 8, 8), "a"), WeightsError, "expected real numbers"),
    ):
        with pytest.raises(kind, match=message):
            deeplabzoo.run(model, wrong, backend=backend)


class TestComparator:
    """The comparator fails where it should."""

    truth = image(1, 3, 5, 5)

    def test_equal(self):
        assert error(self.truth, self.truth) == 0
        assert label_agreement(self.truth, self.truth) == 1

    def test_scale(self):
        off = self.truth.copy()
        off[0, 1, 2, 3] += 1e-6
        assert error(off, self.truth) == pytest.approx(1e-6 / np.abs(self.truth).max())
        assert error(self.truth + 1, self.truth) > BOUNDS["float32"]

    def test_not_finite(self):
        for value in (np.nan, np.inf, -np.inf):
            off = self.truth.copy()
            off[0, 0, 0, 0] = value
            assert error(off, self.truth) == float("inf")
            assert error(self.truth, off) == float("inf")

    def test_nothing_to_judge(self):
        with pytest.raises(WeightsError, match="zero everywhere"):
            error(self.truth, np.zeros_like(self.truth))
        with pytest.raises(WeightsError, match="can't be compared"):
            error(self.truth, self.truth[:, :2])

    def test_float32_is_judged_in_float64(self):
        assert error(self.truth.astype("f4"), self.truth) > 0

    def test_labels(self):
        assert label_agreement(np.roll(self.truth, 1, axis=1), self.truth) == 0
        off = self.truth.copy()
        off[0, :, 0, 0] = -off[0, :, 0, 0]
        assert label_agreement(off, self.truth) == pytest.approx(24 / 25)


def test_parity_report(backend):
    report = deeplabzoo.parity(small_spec(aux={"channels": 8}), backends=[backend], sizes=[(33, 49), (64, 96)])
    assert report.passed
    assert [(str(row.case), row.name, row.second) for row in report.rows] == [
        (case, output, cases.REFEREE) for case in ("2x33x49", "2x64x96") for output in ("out", "aux")
    ]
    assert [row.case.live for row in report.rows] == [False, False, True, True]
    assert report.to_dict()["passed"]
    assert report.sides[0].versions["python"]
    assert not deeplabzoo.parity(small_spec(), backends=[backend], sizes=[(33, 33)], bound=1e-30).passed
    assert cases.dead_taps(build_graph(small_spec()), cases.Case(1, 33, 33, False))


def test_a_nudged_weight_fails(requested, monkeypatch):
    """One backend with one weight of 1.5 million moved by a thousandth: the run fails and says which."""
    loaded = Worker.load

    def nudged(self, graph, weights, **options):
        if self.backend.name.startswith(requested[-1]):
            weights = {n: np.array(a) for n, a in weights.items()}
            weights["aspp.branch2.depthwise.conv.weight"][3, 0, 0, 2] += 1e-3
        loaded(self, graph, weights, **options)

    monkeypatch.setattr(Worker, "load", nudged)
    report = deeplabzoo.parity(small_spec(), backends=requested, sizes=[(64, 96)])
    assert not report.passed
    for row in report.rows:
        guilty = any(name.startswith(requested[-1]) for name in (row.first, row.second))
        assert row.passed != guilty


def test_parity_refuses():
    for options, kind, message in (
        ({"dtype": "float8"}, BackendError, "expected one of float64, float32, float16, bfloat16"),
        ({"dtype": "float64", "device": "gpu"}, BackendError, "--dtype float32"),
        ({"backends": []}, BackendError, "at least one"),
        ({"backends": ["torsch"]}, BackendError, "did you mean 'torch'"),
        ({"output_stride": 4}, SpecError, "8, 16, 32"),
        ({"sizes": [(0, 5)]}, GraphError, "at least 1x1"),
        ({"output": {"values": "labels"}}, BackendError, "has no values to compare"),
    ):
        with pytest.raises(kind, match=message):
            deeplabzoo.parity("v3", backbone="mobilenet_v2", **{"backends": ["torch"], **options})


def test_bounds_are_those_of_the_design():
    assert compare.BOUNDS == {"float64": 1e-11, "float32": 2e-5, "float16": 2e-2, "bfloat16": 1.2e-1}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("entry", MATRIX, ids=["-".join(map(str, entry)) for entry in MATRIX])
def test_default_rates(requested, entry, dtype):
    """The rates of the papers, on an input large enough that every tap works."""
    arch, backbone, stride = entry
    report = deeplabzoo.parity(arch, backbone=backbone, output_stride=stride, backends=requested, dtype=dtype)
    assert report.passed, report.worst
    assert any(row.case.live for row in report.rows)


@pytest.mark.slow
def test_resnet101(requested):
    assert deeplabzoo.parity("v3_resnet101.torchvision", backends=requested, sizes=[(97, 129), (96, 64)]).passed


def test_what_nobody_judged_is_no_pass():
    """A check that no side can do, a dtype that no side has."""
    report = deeplabzoo.parity(small_spec(), backends=["onnx"], sizes=[(64, 96)], checks=["forward", "gradients"])
    assert not report.passed
    assert report.not_judged == ("gradients",)
    assert "gradients: nobody was judged in float64 on cpu" in report.lines()
    with pytest.raises(BackendError, match="dtype bfloat16: none of paddle, onnx computes in it"):
        deeplabzoo.parity(small_spec(), backends=["paddle", "onnx"], dtype="bfloat16")


def test_an_interpreter_by_a_short_name():
    """`keras` is `keras/tensorflow`, here as everywhere."""
    report = deeplabzoo.parity(small_spec(), backends=["keras"], sizes=[(33, 33)], pythons={"keras": "/bin/false"})
    assert not report.passed
    assert "/bin/false" in report.failures["keras/tensorflow"]
    with pytest.raises(BackendError, match="was given two interpreters"):
        deeplabzoo.parity(small_spec(), backends=["keras"], pythons={"keras": "/a", "keras/tensorflow": "/b"})


def test_inputs_are_given_once():
    with pytest.raises(GraphError, match="input 2x64x96 was given twice"):
        deeplabzoo.parity(small_spec(), backends=["onnx"], sizes=[(64, 96), (64, 96)])


def test_words_where_lists_belong():
    with pytest.raises(BackendError, match=r"backends = 'torch': expected a list of names, such as \['torch'\]"):
        deeplabzoo.parity(small_spec(), backends="torch")
    with pytest.raises(BackendError, match=r"checks = 'forward': expected a list of names"):
        deeplabzoo.parity(small_spec(), backends=["onnx"], checks="forward")


def test_against_tensors_that_have_no_spec(tmp_path):
    """As a training script saves them: what no tensor tells is that of the model they are judged against."""
    model = lively(make_spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3), output_stride=8).narrowed(8))
    write_model(model, tmp_path / "model.pth")
    (tmp_path / "model.pth").rename(tmp_path / "bare.pth")
    run = {"weights": model, "backends": ["onnx"], "sizes": [(33, 49)], "trace": True}
    report = deeplabzoo.parity(against=tmp_path / "bare.pth", **run)
    assert report.passed
    note = f"bare.pth has no spec with it: what no tensor tells is as in {model.spec.title}"
    assert report.notes == (note,)
    assert f"note: {note}" in report.lines()
    assert "bare.pth, against " in report.model
    assert deeplabzoo.parity(against=model.weights, **run).passed
    write_model(lively(small_spec(aux={"channels": 8})), tmp_path / "other.pth")
    (tmp_path / "other.pth").rename(tmp_path / "bare.pth")
    with pytest.raises(GraphError, match=r"they differ at .*; of bare\.pth is assumed, because no tensor tells: "):
        deeplabzoo.parity(against=tmp_path / "bare.pth", **run)


def test_models_that_can_not_be_compared():
    plain, more = lively(small_spec()), lively(small_spec(aux={"channels": 8}))
    for one, other in ((plain, more), (more, plain)):
        with pytest.raises(GraphError, match=r"can't be judged against .*: output aux is"):
            deeplabzoo.parity(weights=one, against=other, backends=["onnx"])
    wider = lively(small_spec(aspp={"channels": 24}))
    with pytest.raises(GraphError, match=r"aspp\.branch0\.conv\.weight is"):
        deeplabzoo.parity(weights=plain, against=wider, backends=["torch"], checks=["gradients"])


def test_a_failing_side_keeps_the_others(tmp_path):
    """One line for it, the results of the rest, and no pass."""
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    report = deeplabzoo.parity(
        small_spec(), backends=["onnx", "paddle"], sizes=[(33, 33)], pythons={"paddle": str(hangs)}, time_limit=20
    )
    assert not report.passed
    assert list(report.failures) == ["paddle"]
    assert "gave no answer" in report.failures["paddle"]
    assert [(row.first, row.passed) for row in report.rows] == [("onnx", True)]


def test_training_that_does_not_move_is_found():
    """No step at all, and twice the rate, in float32 as well."""
    graph = build_graph(small_spec())
    weights = seeded_weights(graph, 0, statistics="lively")
    for dtype in ("float64", "float32"):
        start = {name: array.astype(dtype) for name, array in weights.items()}
        truth = {name: array.astype("f8") - 1e-5 * np.sign(array) for name, array in weights.items()}
        assert compare.update_error(start, truth, weights) == pytest.approx(1, abs=0.05)
        twice = {name: (2 * truth[name] - weights[name]).astype(dtype) for name in truth}
        assert compare.update_error(twice, truth, weights) > 0.5
        right = {name: array.astype(dtype) for name, array in truth.items()}
        assert compare.update_error(right, truth, weights) < compare.TRAINING_BOUNDS[dtype]


class Partial:
    """A worker that answers as the referee does, but for what `left_out` drops."""

    def __init__(self, left_out):
        self.left_out = left_out
        self.backend = SimpleNamespace(name="partial", flags=SimpleNamespace(GRADIENTS=True))

    def load(self, graph, weights, *, dtype):
        self.graph, self.weights = graph, weights

    def forward(self, x):
        return self.without("forward", reference.forward(self.graph, self.weights, x))

    def gradients(self, x, labels):
        loss, found, _ = training.gradients(self.graph, self.weights, x, labels)
        return loss, self.without("gradients", found)

    def train(self, x, labels, settings, keep):
        steps = list(training.train(self.graph, self.weights, x, labels, settings))
        for loss, now in steps[:-1] if "last" in self.left_out else steps:
            yield loss, self.without("training", now)

    def without(self, check, found):
        found = {name: array for name, array in found.items() if (check, name) != self.left_out}
        if check == "forward" and self.left_out == ("shape", "out"):
            found["out"] = found["out"][:, :, 1:]
        elif check == "forward" and self.left_out == ("strange", "other"):
            found["other"] = found["out"]
        return found


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        ((), None),
        (("forward", "aux"), "partial gave no aux among its outputs"),
        (("gradients", "input"), "partial gave no input among its gradients"),
        (("gradients", "classifier.conv.bias"), "partial gave no classifier.conv.bias among its gradients"),
        (("training", "classifier.conv.bias"), "partial gave no classifier.conv.bias among its weights after step 1"),
        (("training", "last"), "partial gave no step 2 among its training"),
        (("shape", "out"), r"partial gave out of shape \(2, 5, 32, 49\) among its outputs"),
        (("strange", "other"), r"partial gave other of shape \(2, 5, 33, 49\) among its outputs"),
    ],
)
def test_what_a_backend_leaves_out_is_no_pass(left_out, told):
    graph = build_graph(small_spec(aux={"channels": 8}))
    case = cases.case_of(graph, 2, 33, 49)
    exam = judge.make_exam(
        graph,
        seeded_weights(graph, 0, statistics="lively"),
        [case],
        checks=("forward", "gradients", "training"),
        training=training.Training(steps=2),
    )
    answers = judge.Answers()
    if told is None:
        judge.answers_of_worker(exam, Partial(left_out), "float64", answers)
        assert [*answers.trained] == [1, 2]
        return
    with pytest.raises(WorkerError, match=f"{told}, expected .*: it runs another network"):
        judge.answers_of_worker(exam, Partial(left_out), "float64", answers)
