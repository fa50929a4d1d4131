"""Trace parity: every node of every backend, and the blame on the node that a fault was put into."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from faults import CASE, FAULTS, GRAPH, WEIGHTS, network
from helpers import image
from test_cli import call, fails

import deeplabzoo as dz
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core import reference
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import GraphError, WorkerError
from deeplabzoo.parity.cases import seeded_image
from deeplabzoo.parity.trace import NodeRow, first_jump, trace_sides
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model


def trace(backends, dtype="float64", other=None):
    """By workers of its own."""
    run, weights = other or (GRAPH, WEIGHTS)
    image = seeded_image(GRAPH, CASE, 0)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(name)) for name in backends]
        for worker in workers:
            worker.load(run, weights, dtype=dtype)
        sides = {worker.backend.name: worker.trace(image) for worker in workers}
        versions = {worker.backend.name: dict(worker.versions) for worker in workers}
        return trace_sides(GRAPH, WEIGHTS, (CASE, image), sides, dtype=dtype, run=run, versions=versions)


def test_a_side_that_ends_early_or_elsewhere():
    """One line, and the others go on."""
    image = seeded_image(GRAPH, CASE, 0)
    right = list(reference.trace(GRAPH, WEIGHTS, image))
    sides = {"short": iter(right[:5]), "other": iter(right[1:]), "right": iter(right)}
    found = trace_sides(GRAPH, WEIGHTS, (CASE, image), sides)
    assert not found.passed
    assert found.failures["short"] == f"the trace came to the end, expected {right[5][0]}: it runs another network"
    assert found.failures["other"].startswith(f"the trace came to {right[1][0]}, expected {right[0][0]}")
    assert found.blamed["right"] is None


def test_an_error_that_grows_slowly_is_no_pass():
    image = seeded_image(GRAPH, CASE, 0)
    values = [
        (name, value * (1 + 1e-15 * 5**place) if place < 20 else value * (1 + 1e-2))
        for place, (name, value) in enumerate(reference.trace(GRAPH, WEIGHTS, image))
    ]
    found = trace_sides(GRAPH, WEIGHTS, (CASE, image), {"it": iter(values)}, bound=0.1)
    assert found.passed
    found = trace_sides(GRAPH, WEIGHTS, (CASE, image), {"it": iter(values)})
    assert not found.passed


def test_every_node_of_every_backend(requested):
    found = trace((*requested, "onnx"))
    assert found.passed
    sides = {*found.versions}
    assert [row.node for row in found.rows][:: len(sides)] == [node.name for node in GRAPH.nodes]
    assert {row.side for row in found.rows} == sides
    assert max(row.error for row in found.rows) < 1e-13
    assert all(found.versions.values())
    data = json.loads(json.dumps(found.to_dict()))
    assert data["passed"]
    assert data["blamed"] == dict.fromkeys(sides)


def test_float32_is_judged_by_jumps(requested):
    """Rounding grows along the network; only a node that adds much more than it read is to blame."""
    assert trace(requested[:1], dtype="float32").passed
    node, make = FAULTS["a scale off"]
    found = trace(requested[:1], dtype="float32", other=make(node))
    assert next(iter(found.blamed.values())).node == node


def test_first_jump():
    def rows(errors):
        return [NodeRow(node.name, "", (), "x", errors.get(node.name, 1e-16), 0, 0, 0) for node in GRAPH.nodes]

    assert first_jump(GRAPH, rows({}), 1e-11) is None
    late = GRAPH.nodes[-1].name
    assert first_jump(GRAPH, rows({late: 1e-10}), 1e-11).node == late
    assert first_jump(GRAPH, rows({late: 1e-12}), 1e-11) is None
    grown = {node.name: 1e-12 * 1.1 ** min(place, 60) for place, node in enumerate(GRAPH.nodes)}
    assert first_jump(GRAPH, rows(grown), 1e-11) is None  # slowly, above the floor


def test_two_networks_of_other_nodes():
    other = build_graph(dz.spec("v3").narrowed(8))
    with pytest.raises(GraphError, match="they differ at"):
        trace(["onnx"], other=(other, seeded_weights(other, 0)))


def test_a_worker_in_the_middle_of_a_trace(worker):
    """It says so, and goes on once the trace was read; one who stops closes it without waiting."""
    process = worker("onnx")
    process.load(GRAPH, WEIGHTS, dtype="float64")
    x = image(1, 3, 65, 65)
    values = process.trace(x)
    next(values)
    with pytest.raises(WorkerError, match="in the middle of a call"):
        process.forward(x)
    rest = dict(values)
    assert list(rest)[-1] == GRAPH.nodes[-1].name
    np.testing.assert_array_equal(process.forward(x)["out"], rest["output.resize"])
    truth = dict(reference.trace(GRAPH, WEIGHTS, x))
    assert list(truth)[1:] == list(rest)


def test_command(tmp_path):
    spec = network()
    write_model(Canonical(spec, WEIGHTS), tmp_path / "a.safetensors")
    node, make = FAULTS["a kernel off by 1e-4"]
    write_model(Canonical(spec, make(node)[1]), tmp_path / "b.pth")
    common = ("parity", "--weights", tmp_path / "a.safetensors", "--trace", "--size", "97x129", "--backends", "onnx")
    told = call(*common)
    assert len([line for line in told.stdout.splitlines() if " 2x" in line]) == len(GRAPH.nodes)
    assert "onnx: no node is to blame" in told.stderr
    told = call(*common, "--against", tmp_path / "b.pth", code=1)
    assert f"at {node}, 2x" in told.stderr
    data = json.loads(call(*common, "--against", tmp_path / "b.pth", "--json", code=1).stdout)
    assert data["trace"]["blamed"]["onnx"]["node"] == node
    told = call(*common, "--node", "aspp", "--node", "classifier.conv")
    assert len(told.stdout.splitlines()) < len(GRAPH.nodes) / 2
    assert "aspp.fusion.bn" in told.stdout
    assert "stem" not in told.stdout
    fails(
        *common,
        "--node",
        "aspp.branch9.conv",
        code=2,
        match="unknown node 'aspp.branch9.conv': .*did you mean 'aspp.branch",
    )
    fails("parity", "--against", tmp_path / "b.pth", "--backends", "onnx", code=2, match="add --weights")
    fails("parity", "--node", "aspp", "--backends", "onnx", code=2, match="add --trace")
