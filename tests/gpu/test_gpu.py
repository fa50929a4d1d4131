"""Strict float32, float16 and bfloat16 on a device against the float64 truth of the referee on the CPU.

Run by `make test-gpu`. Every parametrised backend is told of: judged, or skipped with the reason.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from device_common import BACKENDS, DEVICE, installed, needed

from deeplabzoo.backends import resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.training import Training
from deeplabzoo.errors import BackendError
from deeplabzoo.zoo.models import named_spec

pytestmark = pytest.mark.gpu

WHOLE = ("v1_vgg16", "v3_resnet50.torchvision", "v3_mobilenet_v3_large", "v3plus_mobilenet_v2", "v3plus_xception65.tf")
IN_HALF = ("v3_resnet50.torchvision", "v3plus_mobilenet_v2")
LEARNING = ("v1_vgg16", "v3_resnet50.torchvision", "v3plus_mobilenet_v2", "v3plus_xception65.tf")
FAULTY = "v3plus_mobilenet_v2"


def transposed(exam):
    """The exam for a worker with one kernel transposed."""
    name = "backbone.stem.conv.weight"
    turned = {**exam.weights, name: exam.weights[name].swapaxes(2, 3)}
    return dataclasses.replace(exam, other=(exam.graph, turned))


def at_another_rate(exam):
    """The exam for a worker whose second atrous branch has the rate of the third."""
    nodes = [
        dataclasses.replace(node, op=dataclasses.replace(node.op, dilation=3, padding=(3, 3, 3, 3)))
        if node.name == "aspp.branch2.depthwise.conv"
        else node
        for node in exam.graph.nodes
    ]
    assert [node.op.dilation for node in exam.graph.nodes if node.name == "aspp.branch2.depthwise.conv"] == [2]
    return dataclasses.replace(exam, other=(Graph(tuple(nodes), exam.graph.outputs), exam.weights))


def learning(worker):
    """A worker that can learn, or a skip."""
    if not worker.backend.flags.GRADIENTS:
        pytest.skip(f"{worker.backend.name}: an exported model has no gradients")
    return worker


def able(worker, dtype):
    """A worker that computes in a dtype, or a skip."""
    if dtype not in worker.backend.flags.DTYPES:
        pytest.skip(f"{worker.backend.name} builds no {dtype}: it takes part in float64")
    return worker


@pytest.mark.parametrize("preset", WHOLE)
def test_float32_forward(on_device, ask, judged, preset):
    rows = judged(on_device, "float32", *ask(preset, 1, "forward"))
    assert all(row.passed for row in rows)
    assert max(row.error for row in rows) > 1e-9  # computed in float32, and not somewhere else


@pytest.mark.parametrize("preset", LEARNING)
def test_float32_gradients(on_device, ask, judged, preset):
    assert all(row.passed for row in judged(learning(on_device), "float32", *ask(preset, 8, "gradients")))


@pytest.mark.parametrize("preset", LEARNING)
def test_one_and_ten_training_steps_in_float32(on_device, ask, judged, preset):
    rows = judged(learning(on_device), "float32", *ask(preset, 8, "training"))
    assert {row.step for row in rows} == {1, 10}
    assert all(row.passed for row in rows)


@pytest.mark.parametrize("preset", IN_HALF)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_forward(on_device, ask, judged, preset, dtype):
    rows = judged(able(on_device, dtype), dtype, *ask(preset, 1, "forward"))
    assert all(row.passed for row in rows)
    assert max(row.error for row in rows) > 1e-5  # computed in half, and not somewhere else


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_two_forward_passes_give_the_same_bits(on_device, ask, dtype):
    exam, _ = ask(FAULTY, 1, "forward")
    first, second = (outputs(able(on_device, dtype), exam, dtype) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, outputs(on_device, transposed(exam), dtype))


def outputs(worker, exam, dtype):
    """Of the first input, from a model made anew."""
    worker.load(*(exam.other or (exam.graph, exam.weights)), dtype=dtype)
    return worker.forward(exam.images[0])["out"]


def test_gradients_give_the_same_bits_twice(on_device, ask):
    exam, _ = ask(FAULTY, 8, "gradients")
    found = []
    for _ in range(2):
        learning(on_device).load(exam.graph, exam.weights, dtype="float32")
        found.append(on_device.gradients(exam.images[0], exam.labels[0]))
    (loss, first), (again, second) = found
    assert loss == again
    assert [name for name in first if not np.array_equal(first[name], second[name])] == []


@pytest.mark.parametrize("fault", [transposed, at_another_rate])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_fault_shows_in_the_forward_pass(on_device, ask, judged, dtype, fault):
    exam, truth = ask(FAULTY, 8, "forward")
    rows = judged(able(on_device, dtype), dtype, fault(exam), truth)
    assert not any(row.passed for row in rows if row.case.live)


@pytest.mark.parametrize("fault", [transposed, at_another_rate])
def test_a_fault_shows_in_gradients(on_device, ask, judged, fault):
    exam, truth = ask(FAULTY, 8, "gradients")
    assert not all(row.passed for row in judged(learning(on_device), "float32", fault(exam), truth))


def test_another_learning_rate_shows_after_training_steps(on_device, ask, judged):
    exam, truth = ask(FAULTY, 8, "training")
    wrong = dataclasses.replace(exam, training=Training(learning_rate=1e-2))
    assert not all(row.passed for row in judged(learning(on_device), "float32", wrong, truth))


@pytest.mark.parametrize("name", BACKENDS)
def test_every_build_takes_part_in_float64_on_the_cpu(ask, judged, name):
    """As those do that have no build for the device."""
    exam, truth = ask(FAULTY, 8, "forward")
    with Worker(installed(name)) as worker:
        assert all(row.passed for row in judged(worker, "float64", exam, truth))
        assert not any(row.passed for row in judged(worker, "float64", at_another_rate(exam), truth))


def test_a_parity_run_on_the_device():
    """Whoever has the device on it in float32, the others on the CPU in float64: one verdict, every check."""
    names = [name for name in BACKENDS if not resolve(name).missing()]
    spec = named_spec(FAULTY).narrowed(8).with_small_rates()
    checks = ("forward", "gradients", "training")
    if not names:
        pytest.skip("no backend is installed")
    parity = needed("deeplabzoo.parity.run").parity
    try:
        report = parity(spec, backends=names, dtype="float32", device=DEVICE, sizes=[(65, 97)], checks=checks)
    except BackendError as failure:
        pytest.skip(str(failure))
    print("\n".join(report.lines()))
    assert report.passed
    assert len(report.sides) == len(names)
    for side in report.sides:
        there = side.device == DEVICE
        assert side.dtype == ("float32" if there else "float64")
        assert there or side.name.endswith("(float64, cpu)")
    assert any(side.device == DEVICE for side in report.sides)
    assert report.graph_digest == build_graph(spec).digest()
