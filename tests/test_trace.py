"""Trace parity: every node of every backend, and the blame on the node that a fault was put into."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers import image
from test_cli import call, fails

import deeplabzoo as dz
from deeplabzoo.core import reference
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import GraphError, WorkerError
from deeplabzoo.parity.forward import case_of
from deeplabzoo.parity.trace import NodeRow, first_jump, trace
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import write_model


def network():
    """A narrow v3+ whose rates are small, so that every tap is live on a small image."""
    spec = dz.spec("v3plus").narrowed(8)
    return spec.replace(aspp=spec.aspp.replace(rates=(2, 3, 4)))


GRAPH = build_graph(network())
WEIGHTS = seeded_weights(GRAPH, 1, statistics="lively")
CASE = case_of(GRAPH, 1, 97, 129)


def with_op(name, **changes):
    """The graph with one node's attributes changed."""
    nodes = (
        dataclasses.replace(node, op=dataclasses.replace(node.op, **changes)) if node.name == name else node
        for node in GRAPH.nodes
    )
    return Graph(tuple(nodes), GRAPH.outputs), WEIGHTS


def with_tensor(name, change):
    """The weights with one tensor changed."""
    return GRAPH, {**WEIGHTS, name: change(WEIGHTS[name])}


def swapped_statistics(norm):
    mean, var = WEIGHTS[f"{norm}.running_mean"], WEIGHTS[f"{norm}.running_var"]
    return GRAPH, {**WEIGHTS, f"{norm}.running_mean": var, f"{norm}.running_var": np.abs(mean) + 0.1}


FAULTS = {
    "a kernel transposed": ("backbone.stage2.block2.conv2", lambda n: with_tensor(f"{n}.weight", lambda a: a.swapaxes(0, 1))),
    "a kernel mirrored": ("backbone.stage1.block1.conv2", lambda n: with_tensor(f"{n}.weight", lambda a: a[..., ::-1])),
    "a kernel off by 1e-4": ("backbone.stage4.block1.conv1", lambda n: with_tensor(f"{n}.weight", lambda a: a * (1 + 1e-4))),
    "one value off": ("classifier.conv", lambda n: with_tensor(f"{n}.weight", lambda a: a + 1e-3 * (a == a.max()))),
    "two classes exchanged": ("classifier.conv", lambda n: with_tensor(f"{n}.weight", lambda a: a[[1, 0, *range(2, 21)]])),
    "a bias off": ("classifier.conv", lambda n: with_tensor(f"{n}.bias", lambda a: a + 1e-3)),
    "a scale off": ("backbone.stem.bn", lambda n: with_tensor(f"{n}.weight", lambda a: a * (1 + 1e-4))),
    "a shift off": ("aspp.fusion.bn", lambda n: with_tensor(f"{n}.bias", lambda a: a + 1e-3)),
    "an epsilon": ("backbone.stage3.block2.bn1", lambda n: with_op(n, epsilon=float(np.float32(1e-3)))),
    "mean and variance exchanged": ("backbone.stage3.block1.bn3", swapped_statistics),
    "a rate": ("aspp.branch2.depthwise.conv", lambda n: with_op(n, dilation=4, padding=(4, 4, 4, 4))),
    "a dilation in the backbone": ("backbone.stage4.block2.conv2", lambda n: with_op(n, dilation=1, padding=(1, 1, 1, 1))),
    "padding on the other side": ("backbone.stage2.block1.conv2", lambda n: with_op(n, padding=(0, 2, 0, 2))),
    "padding of the pooling": ("backbone.stem.pool", lambda n: with_op(n, padding=(0, 1, 0, 1))),
    "the corners of the decoder": ("decoder.resize", lambda n: with_op(n, align_corners=True)),
    "the corners of the output": ("output.resize", lambda n: with_op(n, align_corners=True)),
    "another activation": ("backbone.stage1.block2.relu1", lambda n: with_op(n, function="relu6")),
}  # fmt: skip


def test_the_faults_are_in_nodes_that_exist():
    assert {name for name, _ in FAULTS.values()} <= set(GRAPH.by_name)
    assert CASE.live


def test_every_node_of_every_backend(requested):
    found = trace(GRAPH, WEIGHTS, CASE, (*requested, "onnx"))
    assert found.passed
    sides = {*found.versions}
    assert [row.node for row in found.rows][:: len(sides)] == [node.name for node in GRAPH.nodes]
    assert {row.side for row in found.rows} == sides
    assert max(row.error for row in found.rows) < 1e-13
    assert all(found.versions.values())
    data = json.loads(json.dumps(found.to_dict()))
    assert data["passed"]
    assert data["blamed"] == dict.fromkeys(sides)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_blame(fault):
    node, make = FAULTS[fault]
    found = trace(GRAPH, WEIGHTS, CASE, ["onnx"], other=make(node))
    assert not found.passed
    assert found.blamed["onnx"].node == node


def test_float32_is_judged_by_jumps(requested):
    """Rounding grows along the network; only a node that adds much more than it read is to blame."""
    assert trace(GRAPH, WEIGHTS, CASE, requested[:1], dtype="float32").passed
    node, make = FAULTS["a scale off"]
    found = trace(GRAPH, WEIGHTS, CASE, requested[:1], dtype="float32", other=make(node))
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
        trace(GRAPH, WEIGHTS, CASE, ["onnx"], other=(other, seeded_weights(other, 0)))


def test_a_worker_in_the_middle_of_a_trace(worker):
    """It says so, and goes on once the trace was read; one who stops closes it without waiting."""
    process = worker("onnx")
    process.load(GRAPH, WEIGHTS, dtype="float64")
    x = image(1, 3, 65, 65)
    values = process.trace(x)
    next(values)
    with pytest.raises(WorkerError, match="in the middle of a trace"):
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
    assert len(told.stdout.splitlines()) == len(GRAPH.nodes) + 2
    assert "onnx: no node is to blame" in told.stderr
    told = call(*common, "--against", tmp_path / "b.pth", code=1)
    assert f"at {node}, 1x" in told.stderr
    data = json.loads(call(*common, "--against", tmp_path / "b.pth", "--json", code=1).stdout)
    assert data["blamed"]["onnx"]["node"] == node
    fails("parity", "--against", tmp_path / "b.pth", "--backends", "onnx", code=2, match="add --weights and --trace")
    fails(*common, "--size", "65x65", code=2, match="one --size")
