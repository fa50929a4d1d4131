"""A worker answers, or dies loudly and in time."""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import image, lively, small_spec

from deeplabzoo.backends import wire
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core import reference
from deeplabzoo.errors import BackendError, WorkerError


@pytest.fixture(scope="module")
def model():
    return lively(small_spec("v3"))


def ended(worker: Worker) -> bool:
    return worker._process.poll() is not None


def test_wire():
    stream = io.BytesIO()
    arrays = {
        "a": np.arange(6.0).reshape(2, 3).T,
        "empty": np.empty((0, 4), "f4"),
        "scalar": np.array(7),
        "half": np.ones(3, "f2"),
        "bool": np.array([True, False]),
    }
    wire.send(stream, {"call": "x", "n": 1}, arrays)
    wire.send(stream, {})
    stream.seek(0)
    header, received = wire.receive(stream)
    assert header == {"call": "x", "n": 1}
    for name, array in arrays.items():
        np.testing.assert_array_equal(received[name], array)
        assert received[name].dtype == array.dtype
    assert wire.receive(stream) == ({}, {})
    with pytest.raises(EOFError):
        wire.receive(stream)
    for cut in range(1, len(stream.getvalue())):
        with pytest.raises(EOFError):
            read_all(io.BytesIO(stream.getvalue()[:cut]))


def read_all(stream):
    while True:
        wire.receive(stream)


def test_answers(backend, model):
    x = image(1, 3, 33, 49)
    with Worker(backend) as worker:
        assert worker.device_name == "CPU"
        assert all(worker.versions.values())
        assert worker.versions["python"] == platform.python_version()
        for dtype, bound in (("float64", 1e-11), ("float32", 2e-5)):
            worker.load(model.graph, model.weights, dtype=dtype)
            y = worker.forward(x)["out"]
            truth = reference.forward(model.graph, model.weights, x)["out"]
            assert np.abs(y - truth).max() <= bound * np.abs(truth).max()
    assert ended(worker)


def test_the_frameworks_own_message(worker, backend, model):
    """An error inside the worker comes back in its own words, and the worker lives on."""
    process = worker(backend)
    process.load(model.graph, model.weights)
    with pytest.raises(WorkerError) as caught:
        process.forward(image(1, 7, 33, 33))
    message = str(caught.value)
    assert message.startswith(f"{process.backend.name}: ")
    assert len(message) > 60
    assert "7" in message
    cut = {n: a for n, a in model.weights.items() if n != "classifier.conv.bias"}
    with pytest.raises(WorkerError, match=r"first classifier\.conv\.bias"):
        process.load(model.graph, cut)
    process.load(model.graph, model.weights)
    assert process.forward(image(1, 3, 9, 9))["out"].shape == (1, 5, 9, 9)


def test_forward_before_load(requested):
    with Worker(requested[0]) as worker, pytest.raises(WorkerError, match=f"{worker.backend.name}: "):
        worker.forward(image(1, 3, 9, 9))


def test_unknown_dtype(worker, backend, model):
    with pytest.raises((BackendError, WorkerError), match="float46"):
        worker(backend).load(model.graph, model.weights, dtype="float46")


def test_killed(requested, model):
    with Worker(requested[0]) as worker:
        worker.load(model.graph, model.weights)
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(
            WorkerError, match=rf"worker for {worker.backend.name} died of SIGKILL .*memory.* during 'forward'"
        ):
            worker.forward(image(1, 3, 33, 33))
        with pytest.raises(WorkerError, match="died"):
            worker.forward(image(1, 3, 33, 33))
    assert ended(worker)


@pytest.mark.parametrize("size", [33, 513])
def test_a_worker_that_hangs(requested, model, size):
    """Stopped, it neither answers nor reads; the larger image does not even fit into the pipe."""
    with Worker(requested[0]) as worker:
        worker.load(model.graph, model.weights)
        worker.time_limit = 1.0
        os.kill(worker._process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"gave no answer to 'forward' in 1 s and was ended"):
            worker.forward(image(1, 3, size, size))
        assert time.monotonic() - start < 10
        worker._process.wait(timeout=5)
        assert ended(worker)


def test_a_start_that_takes_too_long(requested):
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"did not start in 0\.01 s: .*raise the time limit"):
        Worker(requested[0], time_limit=0.01)
    assert time.monotonic() - start < 10


def test_an_interpreter_that_is_not_there(requested, tmp_path):
    with pytest.raises(BackendError, match=r"worker for .*: '/nowhere/python' can't be run: No such file"):
        Worker(requested[0], python="/nowhere/python")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'this is no Python' >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(WorkerError, match=r"died with status 3 during 'start'; its last lines: this is no Python"):
        Worker(requested[0], python=str(script))
    script.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(WorkerError, match="it said nothing"):
        Worker(requested[0], python=str(script))


def test_another_interpreter(requested, model, tmp_path, monkeypatch):
    """The worker may be another Python, with packages of its own; ours is taken from here."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the folder of another environment')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker(requested[0], python=sys.executable) as worker:
        worker.load(model.graph, model.weights)
        assert worker.forward(image(1, 3, 9, 9))["out"].shape == (1, 5, 9, 9)


def test_seconds(model):
    """What the caller waited, by call."""
    with Worker("onnx") as worker:
        assert set(worker.seconds) == {"start"}
        worker.load(model.graph, model.weights)
        start = time.monotonic()
        for _ in range(3):
            worker.forward(image(1, 3, 97, 97))
        passed = time.monotonic() - start
        assert set(worker.seconds) == {"start", "load", "forward"}
        assert 0.5 * passed < worker.seconds["forward"] <= passed
        start = time.monotonic()
        for _ in worker.trace(image(1, 3, 33, 33)):
            time.sleep(0.01)  # the caller's own time
        passed = time.monotonic() - start
        assert 0 < worker.seconds["trace"] <= passed - 0.01 * len(model.graph.nodes)


def test_no_gpu_is_said(requested):
    from deeplabzoo.backends import resolve

    if resolve(requested[0]).folder == "torch" and _has_gpu():
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError, match=r"device 'gpu': expected one of cpu"):
        Worker(requested[0], device="gpu")


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def test_a_folder_named_like_a_framework_is_not_imported(requested, tmp_path, monkeypatch):
    (tmp_path / f"{requested[0]}.py").write_text("raise SystemExit('imported from the current folder')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    with Worker(requested[0]) as worker:
        assert worker.versions


def test_unknown_backend():
    with pytest.raises(BackendError, match="did you mean 'paddle'"):
        Worker("padle")
