"""Every preset computes the same in every backend, forward, in float64 and in float32, with every tap at work.

Channels are divided by eight; one preset an architecture is judged whole (`slow`). `benchmarks/presets.py` prints the
table of all of them.
"""

from __future__ import annotations

import numpy as np
import pytest

from deeplabzoo.backends import resolve
from deeplabzoo.core import reference
from deeplabzoo.core.analysis import all_taps_live, smallest_live_size
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.training import Training, trainable
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.parity.cases import REFEREE, case_of, default_cases
from deeplabzoo.parity.compare import BOUNDS, GRADIENT_BOUNDS, TRAINING_BOUNDS, error
from deeplabzoo.parity.judge import judge
from deeplabzoo.parity.run import LESSON_BATCH
from deeplabzoo.zoo.presets import PRESETS

QUICK = (
    "v1_vgg16",
    "v2_vgg16",
    "v2_resnet101.kazuto",
    "v3_resnet50.cascade",
    "v3_resnet50.conv4",
    "v3_resnet18.mmseg",
    "v3_mobilenet_v3_large.torchvision",
    "v3plus_resnet50.paddleseg",
    "v3plus_resnet50.tf_beta",
    "v3plus_resnet50.kerashub",
    "v3plus_xception41.paddleseg",
    "v3plus_xception65.jfzhang95",
    "v3plus_xception.vainf",
    "v3plus_mobilenet_v2.vainf",
    "v3plus_mobilenet_v2.ryanccc",
)
"""One for every part that another lacks."""
WHOLE = ("v1_vgg16", "v2_resnet101.kazuto", "v3_resnet50.torchvision", "v3plus_xception65.tf")


def check(spec, worker, backends):
    """All pairs and the referee in float64, each backend in float32; some case has every tap of every kernel live."""
    graph = build_graph(spec)
    weights = seeded_weights(graph, 11, statistics="lively")
    cases = default_cases(spec)
    assert any(all_taps_live(graph, case.height, case.width) for case in cases)
    for dtype in ("float64", "float32"):
        rows = judge(graph, weights, cases, [(worker(name), dtype) for name in backends], dtype=dtype)
        assert {row.first for row in rows} >= set(backends)
        over = [row for row in rows if not row.error <= BOUNDS[dtype]]
        assert not over, over


@pytest.fixture(scope="session")
def named(requested):
    """Full names of the backends (`keras/tensorflow`)."""
    return tuple(resolve(name).name for name in requested)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PRESETS])
def test_presets(worker, named, name):
    check(PRESETS[name].make().narrowed(8), worker, named)


def small_case(spec, batch, least=32):
    """An odd image, not square, on which every tap is live."""
    side = smallest_live_size(build_graph(spec), least)
    case = case_of(build_graph(spec), batch, side, side + 32)
    assert case.live
    return case


ONE_AN_ARCHITECTURE = (
    "v1_vgg16",
    "v2_resnet101.kazuto",
    "v3_resnet50.cascade",
    "v3_mobilenet_v3_large.torchvision",
    "v3plus_xception65.tf",
    "v3plus_mobilenet_v2.vainf",
)
QUICKLY = ("v1_vgg16", "v3_mobilenet_v3_large.torchvision", "v3plus_mobilenet_v2.vainf")
MARKED = [name if name in QUICKLY else pytest.param(name, marks=pytest.mark.slow) for name in ONE_AN_ARCHITECTURE]


@pytest.mark.parametrize("name", MARKED)
def test_the_outside_referee(worker, named, name):
    """`onnx.reference` in float64, every backend and our own referee agree."""
    spec = PRESETS[name].make().narrowed(8).with_small_rates()
    graph = build_graph(spec)
    weights = seeded_weights(graph, 3, statistics="lively")
    computing = [(worker(side), "float64") for side in (*named, "onnx")]
    rows = judge(graph, weights, [small_case(spec, 1)], computing)
    assert {(row.first, row.second) for row in rows} >= {(side, "onnx") for side in named} | {("onnx", REFEREE)}
    assert max(row.error for row in rows) <= BOUNDS["float64"]


@pytest.mark.parametrize("name", MARKED)
def test_gradients(worker, named, name):
    """Of every parameter and of the image, in evaluation mode."""
    spec = PRESETS[name].make().narrowed(8).with_small_rates()
    graph = build_graph(spec)
    weights = seeded_weights(graph, 3, statistics="lively")
    for dtype in ("float64", "float32"):
        computing = [(worker(side), dtype) for side in named]
        rows = judge(graph, weights, [small_case(spec, 2)], computing, dtype=dtype, checks=["gradients"])
        assert {row.name for row in rows} == {"loss", "input", *filter(trainable, graph.parameters())}
        assert max(row.error for row in rows) <= GRADIENT_BOUNDS[dtype]


@pytest.mark.parametrize(
    "training",
    [Training(), Training(batch_norm="frozen", steps=3), Training(dropout="seeded", steps=3)],
    ids=["batch", "frozen", "dropout"],
)
@pytest.mark.parametrize("name", MARKED)
def test_training_steps(worker, named, name, training):
    """Loss, parameters and running statistics after the first step and the last."""
    spec = PRESETS[name].make().narrowed(8).with_small_rates()
    graph = build_graph(spec)
    weights = seeded_weights(graph, 3, statistics="lively")
    case = small_case(spec, LESSON_BATCH)
    computing = [(worker(side), "float64") for side in named]
    rows = judge(graph, weights, [case], computing, checks=["training"], training=training)
    assert {row.step for row in rows} == {1, training.steps}
    assert {row.name for row in rows} == {"loss", "update", *graph.parameters()}
    assert max(row.error for row in rows) <= TRAINING_BOUNDS["float64"]


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole_presets(worker, named, name):
    check(PRESETS[name].make(), worker, named)


def test_the_judge_sees_another_reading(worker, requested):
    """Negative control: weights of one reading in the graph of another."""
    spec = PRESETS["v3plus_xception65.jfzhang95"].make().narrowed(8)
    other = spec.replace(backbone=spec.backbone.replace(shortcut="raw"))
    graph = build_graph(spec)
    weights = seeded_weights(graph, 11, statistics="lively")
    image = np.random.default_rng(0).standard_normal((1, 3, 97, 129))
    process = worker(requested[0])
    process.load(build_graph(other), weights, dtype="float64")
    assert error(process.forward(image)["out"], reference.forward(graph, weights, image)["out"]) > 1e-3
