"""Whatever happens to a worker is told in one line, in time, and again at once to whoever asks later."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import stat
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import image, lively, small_spec

from deeplabzoo.backends import bootstrap, resolve, wire
from deeplabzoo.backends.worker import Worker
from deeplabzoo.backends.worker_log import KEPT
from deeplabzoo.errors import BackendError, WorkerError

BACKEND = "onnx"
"""The one that starts in a fraction of a second; what is tested here is no matter of the framework."""

LIMIT = 2.5

X = image(1, 3, 9, 9)


@pytest.fixture(scope="module")
def model():
    return lively(small_spec("v3"))


def sabotaged(code):
    """A Worker whose process runs `code` right before it listens; `run` is the backend's module of that name."""

    class Sabotaged(Worker):
        bootstrap = bootstrap.SOURCE.replace(
            "main(sys.argv[2]",
            "import os, signal, time, numpy as np\n"
            "from deeplabzoo.backends import wire\n"
            "import deeplabzoo.backends.onnx.run as run\n" + code + "\nmain(sys.argv[2]",
        )

    return Sabotaged


def during_forward(code):
    """A Worker that does `code` instead of a forward pass."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    return sabotaged(f"def forward(model, x):\n{body}run.forward = forward")


def script(folder, text):
    """An interpreter of one's own."""
    path = folder / "python"
    path.write_text("#!/bin/sh\n" + text.replace("@PYTHON", sys.executable))
    path.chmod(0o755)
    return str(path)


def one_line(error, most=1200):
    text = str(error.value)
    assert text.isprintable(), text
    assert len(text) <= most
    assert "Traceback" not in text
    return text


def fails(model, code, match, kind=WorkerError):
    """Sabotage a forward pass; the error, in one line and in time, and the same one at once the next time."""
    with during_forward(code)(BACKEND, time_limit=30) as worker:
        worker.load(model.graph, model.weights)
        worker.time_limit = LIMIT
        start = time.monotonic()
        with pytest.raises(kind, match=match) as caught:
            worker.forward(X)
        assert time.monotonic() - start < LIMIT + 5
        told = one_line(caught)
        start = time.monotonic()
        with pytest.raises(kind, match=re.escape(told)):
            worker.load(model.graph, model.weights)
        assert time.monotonic() - start < 1
    assert worker._process.poll() is not None
    return told


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


def test_the_bootstrap_is_parsed_by_old_pythons():
    ast.parse(bootstrap.SOURCE, feature_version=(3, 4))
    with pytest.raises(SyntaxError):
        ast.parse("x: int = (y := 2)", feature_version=(3, 4))
    assert f"sys.exit({bootstrap.REFUSED})" in bootstrap.SOURCE


OLD = "import sys; code = sys.argv.pop(2); sys.version_info = (3, 8, 18); sys.version = '3.8.18 (main)'; exec(code)"

INTERPRETERS = {
    "an old Python": (f'exec @PYTHON -c "{OLD}" "$@"', BackendError, r"interpreter .*python.* is Python 3\.8\.18: expected 3\.11 or later$"),
    "without numpy": ('exec @PYTHON -I -S "$@"', BackendError, "can't load the package: No module named 'numpy'.*-m pip install numpy"),
    "that ends": ("exit 0", WorkerError, r"\(.*python\) died with status 0 during 'start'; it said nothing; expected a Python"),
    "that is none": ('exec /bin/cat "$@"', WorkerError, "died with status 1 during 'start'; its last lines: .*invalid option"),
    "that prints first": ('echo Welcome; exec @PYTHON "$@"', WorkerError, r"expected one that begins with b'DLZ:', received b'Welcome\\n"),
    "without input": ('exec @PYTHON "$@" <&-', WorkerError, "started without standard input, where the calls come from"),
    "without output": ('exec @PYTHON "$@" >&-', WorkerError, "during 'start'; "),
    "that closes its output": ("exec >&-; sleep 60", WorkerError, "closed its output and was ended during 'start'"),
    "that hangs": ("sleep 60", WorkerError, r"did not start in 2\.5 s: it gave no answer and was ended; it said nothing; if it needs longer, raise"),
}  # fmt: skip


@pytest.mark.parametrize("name", INTERPRETERS)
def test_an_interpreter(tmp_path, name):
    text, kind, match = INTERPRETERS[name]
    limit = LIMIT if "sleep" in text else 30
    start = time.monotonic()
    with pytest.raises(kind, match=match) as caught:
        Worker(BACKEND, python=script(tmp_path, text), time_limit=limit)
    assert time.monotonic() - start < limit + 5
    one_line(caught)


def test_an_interpreter_without_the_framework(tmp_path):
    """It names the interpreter and what to install there."""
    for part in Path(np.__file__).parents[1].glob("numpy*"):
        (tmp_path / part.name).symlink_to(part)
    with pytest.raises(
        BackendError, match=r"interpreter \S+ has no paddle, which backend paddle needs: .*pip install"
    ) as caught:
        Worker("paddle", python=script(tmp_path, f'PYTHONPATH={tmp_path} exec @PYTHON -S "$@"'), time_limit=30)
    assert one_line(caught).endswith(" -m pip install paddlepaddle")


@pytest.mark.parametrize(
    ("name", "distributions"),
    [
        ("torch", "torch"),
        ("paddle", "paddlepaddle"),
        ("keras", "keras tensorflow"),
        ("keras/jax", "keras jax"),
        ("keras/torch", "keras torch"),
        ("onnx", "onnx onnxruntime"),
    ],
)
def test_what_pip_installs(name, distributions):
    """The framework's own distributions: another environment need not have this package, nor its registry."""
    assert " ".join(resolve(name).distributions) == distributions


@pytest.mark.parametrize("path", ["", "/", "/nowhere/python", "/etc/hostname", "a\0b", "x" * 5000])
def test_a_path_that_can_t_be_run(path):
    with pytest.raises(BackendError, match=r"can't be run: .*; expected the path of a Python interpreter"):
        Worker(BACKEND, python=path)


def test_a_wrapper_script(tmp_path, model):
    """It and the Python that it started end together."""
    code = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    worker = during_forward(code)(BACKEND, python=script(tmp_path, '@PYTHON "$@"; exit $?'))
    worker.load(model.graph, model.weights)
    worker.time_limit = 1
    with pytest.raises(WorkerError, match="gave no answer"):
        worker.forward(X)
    worker.close()
    inner = int((tmp_path / "pid").read_text())
    assert inner != worker._process.pid
    gone(inner)


@pytest.mark.parametrize("wait", [True, False])
def test_what_a_wrapper_script_started(tmp_path, wait):
    """It lives on after the script, until whoever finds the script ended ends it too."""
    started = f"sleep 1003 >/dev/null 2>&1 </dev/null & echo $! >{tmp_path / 'pid'}; exit 3"
    if wait:
        with pytest.raises(WorkerError, match="died with status 3"):
            Worker(BACKEND, python=script(tmp_path, started))
    else:
        worker = Worker(BACKEND, python=script(tmp_path, started), wait=False)
        time.sleep(0.5)
        worker.close()
    gone(int((tmp_path / "pid").read_text()))


def test_a_number_that_was_given_back_is_not_killed(monkeypatch):
    """It may be somebody else's."""
    sent = []
    worker = Worker(BACKEND)
    monkeypatch.setattr(os, "killpg", lambda *arguments: sent.append(worker._process.returncode))
    worker.close()
    assert sent == [None]
    worker._kill()
    assert sent == [None]


def test_a_system_without_waitid(monkeypatch, tmp_path, model):
    monkeypatch.delattr(os, "waitid")
    fails(model, "os._exit(7)", "died with status 7 during 'forward'")
    with pytest.raises(WorkerError, match="closed its output and was ended"):
        Worker(BACKEND, python=script(tmp_path, "exec >&-; sleep 60"), time_limit=1)


def gone(process):
    deadline = time.monotonic() + 5
    while Path(f"/proc/{process}").exists() and "Z" not in Path(f"/proc/{process}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interpreter_that_never_stops_talking(tmp_path):
    """Neither memory nor a disk is filled, and nobody waits for room."""
    tracemalloc.start()
    try:
        with Worker(BACKEND, python=script(tmp_path, "yes no room >&2"), time_limit=2, wait=False) as worker:
            assert stat.S_ISFIFO(os.fstat(worker._process.stderr.fileno()).st_mode)
            with pytest.raises(WorkerError, match=r"; its last lines: no room \| no room \|.*; if it needs") as caught:
                worker.ready()
            assert len(worker._log._kept) == KEPT
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    one_line(caught)
    text = "yes a long way | head -c 50000000 >&2; echo >&2; echo the end >&2; exit 9"
    with pytest.raises(WorkerError, match=r"status 9 .*: a long way \| .*the end; expected a Python"):
        Worker(BACKEND, python=script(tmp_path, text), time_limit=30)


def test_last_lines_while_somebody_holds_the_pipe(tmp_path):
    """A process of a group of its own is not ended, and not waited for either."""
    code = "import os, time; os.setsid(); time.sleep(8)"
    text = f"@PYTHON -c '{code}' >/dev/null </dev/null & sleep 0.5; echo these >&2; exit 9"
    worker = Worker(BACKEND, python=script(tmp_path, text), wait=False)
    start = time.monotonic()
    with pytest.raises(WorkerError, match="status 9 during 'start'; its last lines: these;"):
        worker.ready()
    worker.close()
    assert time.monotonic() - start < 4
    assert worker._process.stderr.closed


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
