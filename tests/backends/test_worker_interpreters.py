"""Workers in interpreters of other environments, fit or not, and in scripts around them."""

from __future__ import annotations

import ast
import os
import stat
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import lively, small_spec
from worker_sabotage import BACKEND, LIMIT, X, during_forward, fails, one_line, script

from deeplabzoo.backends import bootstrap, resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.backends.worker_log import KEPT
from deeplabzoo.errors import BackendError, WorkerError


@pytest.fixture(scope="module")
def model():
    return lively(small_spec("v3"))


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
