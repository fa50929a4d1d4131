"""Thirty injected faults: every one is found, and the node that it is in is named."""

from __future__ import annotations

import functools

import pytest
from faults import CASE, FAULTS, GRAPH, IN_THE_WAY_BACK, IN_TRAINING, SHOWS_AT, WEIGHTS, Sabotaged

from deeplabzoo.core.training import Training
from deeplabzoo.parity.blame import blamed_parameter
from deeplabzoo.parity.cases import REFEREE, case_of, seeded_image
from deeplabzoo.parity.judge import Answers, answers_of_referee, answers_of_worker, compare, make_exam
from deeplabzoo.parity.trace import trace_sides

ALL = (*FAULTS, *IN_THE_WAY_BACK, *IN_TRAINING)
LESSON = case_of(GRAPH, 4, 65, 97)


def test_there_are_thirty_faults_in_nodes_that_exist():
    assert len(set(ALL)) == 30
    nodes = [node for node, _ in (*FAULTS.values(), *IN_THE_WAY_BACK.values(), *IN_TRAINING.values()) if node]
    assert set(nodes) <= set(GRAPH.by_name)
    assert len(nodes) >= 28
    assert CASE.live
    assert LESSON.live


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_weights_and_graph(worker, requested, fault):
    """Each in one of the backends, in turn."""
    node, make = FAULTS[fault]
    names = (*requested, "onnx")
    process = worker(names[list(FAULTS).index(fault) % len(names)])
    graph, weights = make(node)
    process.load(graph, weights, dtype="float64")
    image = seeded_image(GRAPH, CASE, 0)
    found = trace_sides(GRAPH, WEIGHTS, (CASE, image), {"it": process.trace(image)}, run=graph)
    assert not found.passed
    assert found.blamed["it"].node == node


@functools.cache
def question(check):
    """The exam and the referee's answers."""
    training = Training(steps=10)
    exam = make_exam(GRAPH, WEIGHTS, [CASE], checks=[check], training=training, lesson=LESSON)
    return exam, answers_of_referee(exam)


def judged(check, process):
    exam, truth = question(check)
    answers = Answers()
    with process:
        answers_of_worker(exam, process, "float64", answers)
    rows = list(compare(exam, truth, {"it": answers}))
    return rows, blamed_parameter(GRAPH, rows, check, "it", REFEREE)


def test_the_right_ones_are_not_blamed():
    """The same workers without a fault."""
    for check in ("gradients", "training"):
        rows, blamed = judged(check, Sabotaged("pass", None))
        assert blamed is None
        assert all(row.passed for row in rows)


@pytest.mark.parametrize("fault", IN_THE_WAY_BACK)
def test_faults_of_the_way_back(fault):
    node, lines = IN_THE_WAY_BACK[fault]
    _, blamed = judged("gradients", Sabotaged(lines, node))
    assert blamed.name.rpartition(".")[0] == SHOWS_AT.get(fault, node)


@pytest.mark.parametrize("fault", IN_TRAINING)
def test_faults_of_training(fault):
    node, lines = IN_TRAINING[fault]
    _, blamed = judged("training", Sabotaged(lines, node))
    assert blamed is not None
    assert node is None or blamed.name.rpartition(".")[0] == node
