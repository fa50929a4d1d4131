"""Workers on the device that is judged, and questions with their float64 truth."""

from __future__ import annotations

import functools

import pytest
from device_common import BACKENDS, DEVICE, installed, needed

from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, unknown
from deeplabzoo.zoo.models import named_spec


def pytest_configure():
    """A device of another name would skip everything."""
    if DEVICE not in ("cpu", "gpu"):
        raise pytest.UsageError("DEEPLABZOO_TEST_DEVICE: " + unknown("device", DEVICE, ("cpu", "gpu")))


@pytest.fixture(scope="session", params=BACKENDS)
def on_device(request):
    """A worker on the device, shared by all tests; a backend that is not there, or has no such device, is skipped."""
    try:
        worker = Worker(installed(request.param), device=DEVICE)
    except BackendError as failure:
        pytest.skip(str(failure))
    with worker:
        versions = ", ".join(f"{name} {version}" for name, version in worker.versions.items())
        print(f"\n{request.param} on {worker.device_name}: {versions}")
        yield worker


@pytest.fixture(scope="session")
def ask():
    """Exam and float64 truth by preset, divisor of the channels and check, each made once."""
    judge, cases = needed("deeplabzoo.parity.judge"), needed("deeplabzoo.parity.cases")

    @functools.cache
    def made(preset, narrow, check):
        spec = named_spec(preset).narrowed(narrow).with_small_rates()
        graph = build_graph(spec)
        inputs = cases.default_cases(spec)
        assert inputs[0].live
        height, width = inputs[0].height, inputs[0].width
        exam = judge.make_exam(
            graph,
            seeded_weights(graph, 7, statistics="lively"),
            inputs if check == "forward" else inputs[:1],
            checks=(check,),
            lesson=cases.case_of(graph, 4, height, width),
        )
        return exam, judge.answers_of_referee(exam)

    return made


@pytest.fixture(scope="session")
def judged():
    """Comparisons of a worker's answers, in a dtype, with the truth."""
    judge = needed("deeplabzoo.parity.judge")

    def rows(worker, dtype, exam, truth):
        answers = judge.Answers()
        judge.answers_of_worker(exam, worker, dtype, answers)
        found = list(judge.compare(exam, truth, {worker.backend.name: answers}, dtype=dtype))
        assert found
        worst = max(found, key=lambda row: row.error)
        labels = "" if worst.labels is None else f", labels equal {min(row.labels for row in found):.3%}"
        print(
            f"{worker.backend.name} {dtype} {worst.check}: {worst.error:.1e} at {worst.name}, bound {worst.bound:g}{labels}"
        )
        return found

    return rows
