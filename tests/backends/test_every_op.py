"""A small graph that has every op, through the worker of each backend, against the numpy referee."""

from __future__ import annotations

import dataclasses

import numpy as np
import op_cases
import pytest
from helpers import image

from deeplabzoo.core import ops, reference
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.parity.compare import BOUNDS, error

SIZES = ((33, 49), (40, 58), (35, 66))
"""Odd and even halves, quarters and eighths: every rounding of the poolings."""


def test_the_graph_has_every_op():
    graphs = op_cases.every_op(), op_cases.every_op(labels=True)
    assert {node.op.kind for graph in graphs for node in graph.nodes} == set(ops.OPS)
    functions = {node.op.function for node in graphs[0].nodes if isinstance(node.op, ops.Activation)}
    assert functions == {"relu", "relu6", "hard_sigmoid", "hard_swish", "sigmoid", "softmax"}
    assert max(len(node.inputs) for node in graphs[0].nodes if isinstance(node.op, ops.Add)) == 4
    assert all(Graph.from_json(graph.to_json()) == graph for graph in graphs)


def test_the_shapes_are_those_of_the_referee():
    for labels in (False, True):
        graph = op_cases.every_op(labels=labels)
        weights = seeded_weights(graph, 1, statistics="lively")
        for size in SIZES:
            made = reference.forward(graph, weights, image(2, 3, *size))
            assert {name: value.shape for name, value in made.items()} == {
                name: graph.shapes(*size, 2)[node] for name, node in graph.outputs
            }


@pytest.mark.parametrize("labels", [False, True])
def test_every_op(worker, backend, labels):
    graph = op_cases.every_op(labels=labels)
    weights = seeded_weights(graph, 1, statistics="lively", dtype="float64")
    process = worker(backend)
    for dtype, bound in (("float64", 1e-13), ("float32", BOUNDS["float32"]))[: 1 if labels else 2]:
        process.load(graph, weights, dtype=dtype)
        for size in SIZES:
            x = image(2, 3, *size)
            truth, made = reference.forward(graph, weights, x), process.forward(x)
            assert list(made) == ["out", "aux"]
            for name, values in truth.items():
                assert error(made[name], values) <= bound, (name, size, dtype)
    if labels:
        np.testing.assert_array_equal(made["out"], truth["out"])


def test_the_judge_fails_where_it_should():
    def wrong(change):
        def call(op, values, parameters):
            return reference.evaluate(change(op), values, parameters)

        return call

    def flipped(op):
        return dataclasses.replace(op, count_padding=not op.count_padding) if isinstance(op, ops.AvgPool) else op

    assert op_cases.judge(op_cases.pooling_cases((5,)), wrong(lambda op: op)) > 200
    with pytest.raises(AssertionError, match=r"AvgPool\(kernel=2, .*: error .*, expected at most 1e-14"):
        op_cases.judge(op_cases.pooling_cases((5,)), wrong(flipped))
    with pytest.raises(AssertionError, match=r"Add\(\) of .*: error"):
        op_cases.judge(op_cases.pointwise_cases(), lambda op, v, p: reference.evaluate(op, v[::-1], p))
