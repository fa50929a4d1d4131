"""float16 and bfloat16 against the float64 truth: what is right is within the bound, what is wrong is over it.

`benchmarks/half.py` measured the bounds.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import deeplabzoo
from deeplabzoo.backends import resolve
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError
from deeplabzoo.parity.cases import REFEREE, case_of
from deeplabzoo.parity.compare import BOUNDS
from deeplabzoo.parity.golden import record
from deeplabzoo.parity.judge import Answers, answers_of_referee, answers_of_worker, compare, make_exam

HALF = ("float16", "bfloat16")
SPEC = deeplabzoo.spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3)).narrowed(8)
GRAPH = build_graph(SPEC)
EXAM = make_exam(GRAPH, seeded_weights(GRAPH, 3, statistics="lively"), [case_of(GRAPH, 2, 65, 97)])


@pytest.fixture(scope="module")
def truth():
    assert EXAM.cases[0].live
    return answers_of_referee(EXAM)


def able(names, dtype):
    """Those of some backends that compute in a dtype."""
    return [name for name in names if dtype in resolve(name).flags.DTYPES]


def with_op(node, **changes):
    """The exam for workers that run a graph with another node."""
    nodes = [
        dataclasses.replace(one, op=dataclasses.replace(one.op, **changes)) if one.name == node else one
        for one in GRAPH.nodes
    ]
    return dataclasses.replace(EXAM, other=(Graph(tuple(nodes), GRAPH.outputs), EXAM.weights))


def with_tensor(name, change):
    """The exam for workers with another tensor."""
    return dataclasses.replace(EXAM, other=(GRAPH, {**EXAM.weights, name: change(EXAM.weights[name])}))


FAULTS = {
    "a kernel transposed": with_tensor("backbone.stem.conv.weight", lambda a: a.swapaxes(2, 3)),
    "a rate": with_op("aspp.branch2.depthwise.conv", dilation=3, padding=(3, 3, 3, 3)),
    "an epsilon": with_op("decoder.conv1.pointwise.bn", epsilon=1.0),
    "a scale": with_tensor("aspp.fusion.bn.weight", lambda a: a * np.float32(1.5)),
}


def errors(exam, truth, process, dtype):
    answers = Answers()
    answers_of_worker(exam, process, dtype, answers)
    return [row.error for row in compare(exam, truth, {process.backend.name: answers}, dtype=dtype)]


@pytest.mark.parametrize("dtype", HALF)
def test_a_run_in_half_precision(requested, dtype):
    """Backends without the dtype take part in float64, under a name that says so."""
    names = [resolve(name).name for name in (*requested, "onnx")]
    report = deeplabzoo.parity(SPEC, backends=names, dtype=dtype, sizes=[(65, 97)], trace=True)
    assert report.passed, report.lines()
    assert [side.dtype for side in report.sides] == [
        dtype if name in able(names, dtype) else "float64" for name in names
    ]
    assert {row.second for row in report.rows} == {REFEREE}
    for row, side in zip(report.rows, report.sides, strict=True):
        assert row.first == side.name
        if side.dtype == dtype:
            assert 1e-5 < row.error <= BOUNDS[dtype]
            assert 0.9 < row.labels <= 1
        else:
            assert side.name.endswith(" (float64, cpu)")
            assert row.error <= BOUNDS["float64"]
            assert row.labels == 1
    assert not any(report.trace.blamed.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_over_the_bound(worker, requested, truth, fault):
    for dtype in HALF:
        for name in able((*requested, "onnx"), dtype):
            worst = max(errors(FAULTS[fault], truth, worker(name), dtype))
            assert worst > BOUNDS[dtype], (name, dtype)


def test_what_half_precision_can_not_see(worker, requested, truth):
    """An epsilon of 1e-4 for 1e-3 is found in float32 and lost in the rounding of half: a pass there says less."""
    assert GRAPH.by_name["backbone.stem.bn"].op.epsilon == pytest.approx(1e-3)
    small = with_op("backbone.stem.bn", epsilon=float(np.float32(1e-4)))
    for name in able(requested, "bfloat16"):
        assert max(errors(small, truth, worker(name), "float32")) > BOUNDS["float32"]
        for dtype in HALF:
            assert max(errors(small, truth, worker(name), dtype)) <= BOUNDS[dtype]


def test_a_value_that_float16_can_not_hold(worker, requested, truth):
    """It becomes infinite, which is an error and no crash; bfloat16 reaches as far as float32."""
    high = dataclasses.replace(EXAM, weights={**EXAM.weights, "classifier.conv.bias": np.full(21, 1e5, np.float32)})
    exact = answers_of_referee(high)
    for name in able(requested, "bfloat16"):
        assert errors(high, exact, worker(name), "float16") == [float("inf")]
        assert max(errors(high, exact, worker(name), "bfloat16")) <= BOUNDS["bfloat16"]


@pytest.mark.parametrize("check", ["gradients", "training"])
@pytest.mark.parametrize("dtype", HALF)
def test_gradients_and_training_are_refused(requested, check, dtype):
    with pytest.raises(BackendError, match=f"{check} in {dtype}: expected one of float64, float32"):
        deeplabzoo.parity(SPEC, backends=requested[:1], dtype=dtype, sizes=[(33, 33)], checks=("forward", check))


def test_goldens_are_of_full_precision():
    with pytest.raises(BackendError, match="unknown dtype 'float16': expected one of float64, float32"):
        record(SPEC, backends=["onnx"], dtypes=["float16"])
