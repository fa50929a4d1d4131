"""Whatever happens to a worker is told in one line, in time, and again at once to whoever asks later."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from helpers import lively, small_spec
from worker_sabotage import BACKEND, X, during_forward, fails, one_line, sabotaged, script

from deeplabzoo.backends import wire
from deeplabzoo.backends.worker import Worker
from deeplabzoo.errors import BackendError, WorkerError


@pytest.fixture(scope="module")
def model():
    return lively(small_spec("v3"))


def test_the_sabotage_is_what_fails(model):
    """The negative control of this file: without it everything works."""
    with during_forward("return {'out': np.zeros((1, 5, 9, 9), 'f4')}")(BACKEND, time_limit=30) as worker:
        worker.load(model.graph, model.weights)
        assert worker.forward(X)["out"].shape == (1, 5, 9, 9)


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("time.sleep(60)", r"gave no answer to 'forward' in 2\.5 s and was ended; .*raise the time limit .*--time-limit"),
        ("os._exit(7)", "died with status 7 during 'forward'; it said nothing"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV during 'forward'"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "died of SIGKILL .most likely because memory ran out.* during"),
        ("os.kill(os.getpid(), 40)", "died of signal 40"),
        ("sys.exit('the last words')", "died with status 1 during 'forward'; its last lines: the last words"),
        ("raise KeyboardInterrupt", "its last lines: KeyboardInterrupt"),  # nothing of its traceback
        ("print('x' * 9000); os.abort()", r"died of SIGABRT during 'forward'; its last lines: x+ \.\.\. x+"),
        (
            "os.write(2, b\"terminate called after throwing an instance of 'std::bad_alloc'\\n\"); os.abort()",
            "died of SIGABRT .memory ran out: take a smaller image or model. during",
        ),
        ("os.closerange(3, 20); time.sleep(60)", "closed its output and was ended"),
    ],
)  # fmt: skip
def test_a_worker_that_dies_or_hangs(model, code, match):
    fails(model, code, match)


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("np.empty(10**15)", "onnx: memory ran out: take a smaller image or model; .*Unable to allocate"),
        ("raise RuntimeError('bad\\n\\n  news\\n' + '-' * 60 + '\\x1b[31mred\\x00')", "onnx: RuntimeError: bad news - ?red$"),
        ("raise RuntimeError('start' + 'x' * 10**6 + 'end')", r"^onnx: RuntimeError: startx+ \.\.\. x+end$"),
        (
            "raise RuntimeError('C++ Traceback\\n0 a::b\\nError Message Summary:\\n---\\nResourceExhausted: no\\n [Hint: x]')",
            r"^onnx: memory ran out: .*; RuntimeError: --- ResourceExhausted: no \[Hint: x\]$",
        ),
        (
            "import resource\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))\n"
            "try:\n    bytearray(2**28)\n"
            "finally:\n    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
            "memory ran out: take a smaller image or model; MemoryError",
        ),
    ],
)  # fmt: skip
def test_an_exception_in_the_worker(model, code, match):
    """One line of bounded length, and the worker lives on."""
    with during_forward(code)(BACKEND, time_limit=30) as worker:
        worker.load(model.graph, model.weights)
        with pytest.raises(WorkerError, match=match) as caught:
            worker.forward(X)
        one_line(caught, 520)
        worker.load(model.graph, model.weights)


def framed(header, arrays=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"DLZ:" + struct.pack("<I", len(text) if length is None else length) + text + arrays


def described(*entry):
    return framed({"arrays": [entry]}, b"0123456789abcdef" * 4)


RUBBISH = {
    "text": (b"Welcome to this cluster!\nMind the step.\n", r"one that begins with b'DLZ:', received b'Welcome to this cluster!\\nMind"),
    "a long length": (b"\xff" * 64, r"one that begins with b'DLZ:', received b'\\xff"),
    "a long header": (framed(b"{}", length=2**32 - 1), "a header of at most 67108864 bytes, received a length of 4294967295"),
    "damaged JSON": (framed(b'{"arrays": [}'), r"a header in JSON, received b'\{"),
    "no text": (framed(b'"\xff\xfe"'), "a header in JSON"),
    "deep JSON": (framed(b"[" * 10**6), "a header in JSON"),
    "no object": (framed([1, 2]), "a header with a list of arrays"),
    "no arrays": (framed({}), "a header with a list of arrays"),
    "arrays that are none": (framed({"arrays": [7]}), "an array's name, real dtype and shape, received 7"),
    "objects": (described("x", "|O", [2]), "an array's name, real dtype and shape"),
    "complex": (described("x", "<c16", [2]), "an array's name, real dtype and shape"),
    "unknown dtype": (described("x", "<q99", [2]), "an array's name, real dtype and shape"),
    "no name": (described(5, "<f4", [2]), "an array's name, real dtype and shape"),
    "a negative size": (described("x", "<f4", [-1, 2]), r"an array's name, real dtype and shape, received .*\[-1, 2\]"),
    "a size of no number": (described("x", "<f4", ["2"]), "an array's name, real dtype and shape"),
    "a size of half a number": (described("x", "<f4", [1.5]), "an array's name, real dtype and shape"),
    "too many axes": (described("x", "<f4", [1] * 100), "an array's name, real dtype and shape"),
    "too large": (described("x", "<f8", [2**31, 2**31, 2**31]), "arrays of at most 68719476736 bytes in all"),
    "too many": (
        framed({"arrays": [[str(n), "<f8", [0]] for n in range(5)] + [["x", "<f8", [2**34]]]}),
        "arrays of at most 68719476736 bytes in all",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_takes_no_memory(tmp_path, name):
    rubbish, match = RUBBISH[name]
    (tmp_path / "stream").write_bytes(rubbish)
    tracemalloc.start()
    try:
        with (
            (tmp_path / "stream").open("rb") as stream,
            pytest.raises(WorkerError, match=f"^spoke no message of ours: expected {match}") as caught,
        ):
            wire.receive(stream)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    one_line(caught, 400)


@pytest.mark.parametrize("name", ["text", "a long length", "a long header", "damaged JSON", "objects", "too large"])
def test_rubbish_on_the_stream(model, name):
    """The worker lives and waits; whoever asked does not."""
    rubbish, match = RUBBISH[name]
    code = f"""
def send(stream, header, arrays=None):
    stream.write({rubbish!r}); stream.flush(); time.sleep(60)
wire.send = send
return {{}}"""
    fails(model, code, f"worker for onnx spoke no message of ours: expected {match}")


@pytest.mark.parametrize("cut", [3, 8, 20, -5])
def test_an_answer_that_breaks_off(model, cut):
    code = f"""
import io
def send(stream, header, arrays=None, whole=wire.send):
    buffer = io.BytesIO()
    whole(buffer, header, arrays)
    stream.write(buffer.getvalue()[:{cut}]); stream.flush(); os._exit(3)
wire.send = send
return {{"out": np.zeros(100)}}"""
    fails(model, code, "died with status 3 during 'forward'")


def test_an_answer_without_what_was_asked_for(model):
    worker = sabotaged("run.trace = lambda model, x: [('a', np.zeros(2))]\nsend = wire.send\n"
                       "wire.send = lambda s, h, a=None: send(s, {k: v for k, v in h.items() if k != 'node'}, a)")  # fmt: skip
    with worker(BACKEND) as process:
        process.load(model.graph, model.weights)
        with pytest.raises(WorkerError, match="expected an answer with 'node', received one with more"):
            next(process.trace(X))


@pytest.mark.parametrize("version", [0, wire.VERSION + 1])
def test_another_version_of_the_messages(version):
    with pytest.raises(
        WorkerError, match=f"speaks version {version} of the messages, expected {wire.VERSION}"
    ) as caught:
        sabotaged(f"wire.VERSION = {version}")(BACKEND)
    one_line(caught)


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, -math.inf])
def test_no_time_limit(limit):
    with pytest.raises(BackendError, match=rf"^time_limit = {limit}: expected seconds above 0$"):
        Worker(BACKEND, time_limit=limit)


def test_a_time_limit_of_ages():
    """More than a thread can wait for."""
    with sabotaged("time.sleep(60)")(BACKEND, time_limit=1e12, wait=False) as worker:
        time.sleep(0.2)
        assert worker._first.watchdog.is_alive()


def test_two_threads(model):
    """One is served, the other is refused."""
    with during_forward("time.sleep(1); return {'out': x}")(BACKEND) as worker:
        worker.load(model.graph, model.weights)
        found = []

        def ask():
            try:
                found.append(worker.forward(X)["out"])
            except WorkerError as error:
                found.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert [text for text in found if isinstance(text, str)] == [
            "worker for onnx is in the middle of a call: read its results to their end first"
        ] * 3
        np.testing.assert_array_equal(found[-1], X)
        np.testing.assert_array_equal(worker.forward(2 * X)["out"], 2 * X)


def test_closed_in_the_middle_of_a_trace(model):
    """The next value has come already, and nobody will ever take it."""
    with Worker(BACKEND) as worker:
        worker.load(model.graph, model.weights)
        values = worker.trace(X)
        next(values)
        time.sleep(0.3)
        start = time.monotonic()
        worker.close()
        assert time.monotonic() - start < 1.5
        assert not worker._listener.is_alive()
        assert worker._process.stdout.closed
        assert worker._process.stderr.closed
        with pytest.raises(WorkerError, match="is closed"):
            next(values)


def test_closed_by_another_thread(model):
    worker = during_forward("time.sleep(60)")(BACKEND)
    worker.load(model.graph, model.weights)
    threading.Timer(0.3, worker.close).start()
    start = time.monotonic()
    with pytest.raises(WorkerError, match="was closed in the middle of 'forward'"):
        worker.forward(X)
    assert time.monotonic() - start < 20
    with pytest.raises(WorkerError, match="is closed: start a new one"):
        worker.forward(X)


def test_side_by_side():
    """Three that take three seconds each start in less than nine."""
    slow = sabotaged("time.sleep(3)")
    start = time.monotonic()
    workers = [slow(BACKEND, wait=False) for _ in range(3)]
    assert time.monotonic() - start < 3
    assert not any(worker.answered for worker in workers)
    for worker in workers:
        worker.ready()
        worker.ready()
        assert worker.answered
        assert worker.versions["onnx"]
    assert time.monotonic() - start < 8
    for worker in workers:
        assert 3 < worker.seconds["start"] < 8
        worker.close()
        assert worker.device_name == "CPU"  # is known for good


def test_a_start_that_nobody_waits_for(tmp_path, model):
    """The constructor raises nothing then; `ready` and every call do."""
    worker = Worker(BACKEND, python=script(tmp_path, "echo no >&2; exit 5"), wait=False)
    for ask in (worker.ready, lambda: worker.load(model.graph, model.weights), lambda: worker.versions):
        with pytest.raises(WorkerError, match="died with status 5 during 'start'; its last lines: no"):
            ask()
    assert not worker.answered
    worker.close()
    with sabotaged("time.sleep(60)")(BACKEND, wait=False) as worker:
        worker.close()
        with pytest.raises(WorkerError, match="is closed"):
            worker.ready()


def test_the_start_s_time_runs_without_anyone_waiting():
    with sabotaged("time.sleep(60)")(BACKEND, time_limit=1, wait=False) as worker:
        worker._process.wait(timeout=5)
        with pytest.raises(WorkerError, match="did not start in 1 s"):
            worker.ready()
    with Worker(BACKEND, wait=False) as worker:
        deadline = time.monotonic() + 30
        while worker._answers.empty():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker._first.watchdog.function()  # its time is up, but the answer came before
        assert worker.versions
        assert 0 < worker.seconds["start"] < 30


def test_a_caller_without_standard_streams(tmp_path):
    """Pipes then get the numbers of the standard streams."""
    code = (
        "from deeplabzoo.backends.worker import Worker\n"
        "with Worker('onnx') as worker: versions = worker.versions\n"
        f"open({str(tmp_path / 'told')!r}, 'w').write(versions['onnx'])\n"
    )
    command = f'exec "{sys.executable}" -W ignore -c "$1" <&- >&- 2>&-'
    assert subprocess.run(["/bin/sh", "-c", command, "sh", code], timeout=60, check=False).returncode == 0
    assert (tmp_path / "told").read_text()
