"""Runs checks in processes of their own: the frameworks' native libraries crash beside each other.

A framework is slow to import, so its process stays for all checks of a test file; each check is asked for by name and
fails by itself. `close` ends the processes.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
PADDLES_OWN = ("No ccache found", "Tensor do not have 'place' interface for pir graph mode")
"""Warnings that Paddle raises about itself, on import and in `to_static`'s backward; every other one is an error."""

OPTIONS = {"paddle": ["-Werror", *(f"-Wignore:{start}" for start in PADDLES_OWN)]}
"""What the interpreter is told, by framework."""

_processes: dict[str, _Process] = {}


def run(framework: str, file: str | Path, check: str, arguments: dict[str, Any], limit: float = 800) -> str:
    """Run one check of a file in the framework's process (`paddle`, `keras/jax`, ...); what it printed.

    Raises:
        AssertionError: it failed, killed the process or took longer than `limit` seconds.
    """
    if framework not in _processes:
        _processes[framework] = _Process(framework)
    try:
        answer = _processes[framework].ask({"file": str(HERE / file), "check": check, "arguments": arguments}, limit)
    except (EOFError, TimeoutError) as error:
        lost = _processes.pop(framework).close()
        raise AssertionError(f"{framework}, {check}: {error}; its last lines:\n{lost}") from None
    assert answer["failure"] is None, f"{framework}, {check}:\n{answer['failure']}"
    return answer["printed"]


def in_paddle(check: Callable[..., None]) -> Callable[..., None]:
    """Make a test of a check that runs beside Paddle; its arguments must be plain data or paths."""

    @functools.wraps(check)
    def test(**arguments: Any) -> None:
        run("paddle", sys.modules[check.__module__].__file__, check.__name__, arguments)

    test.check = check
    return test


def close() -> None:
    """End all processes."""
    while _processes:
        _processes.popitem()[1].close()


class _Process:
    def __init__(self, framework: str) -> None:
        name, _, engine = framework.partition("/")
        path = os.pathsep.join(filter(None, (str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", ""))))
        # The referee's products are small: a second thread spins more than it works, on cores that others use too.
        environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if engine:
            environment["KERAS_BACKEND"] = engine
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, *OPTIONS.get(name, []), __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment,
        )  # fmt: skip

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        try:
            print(json.dumps(request, default=str), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise EOFError(f"the process ended with status {self._process.wait()}") from None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise TimeoutError(f"no answer in {limit:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(f"the process ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> str:
        """End the process; the last lines it wrote to stderr."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.seek(0)
        lines = self._errors.read().splitlines()
        self._errors.close()
        return "\n".join(lines[-25:])


def _serve() -> None:
    """Answer requests until the other side closes the stream."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # frameworks print, also from native code
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        # Keras looks for TensorFlow's objects when it saves and loads, wherever TensorFlow is installed; beside torch
        # in one process it may crash the interpreter.
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    for line in sys.stdin:
        print(json.dumps(_answer(**json.loads(line))), file=answers, flush=True)


def _answer(file: str, check: str, arguments: dict[str, Any]) -> dict[str, Any]:
    failure = None
    with tempfile.TemporaryFile("w+") as printed:
        sys.stdout = printed
        try:
            function = getattr(_module(file), check)
            try:
                getattr(function, "check", function)(**arguments)
            finally:
                _reset()
        except BaseException:  # also SystemExit, and what pytest raises
            failure = traceback.format_exc()
        sys.stdout = sys.stderr
        printed.seek(0)
        return {"failure": failure, "printed": printed.read()}


def _reset() -> None:
    """The checks share a process, but not what they set or leave in it."""
    if paddle := sys.modules.get("paddle"):
        paddle.set_default_dtype("float32")
    if keras := sys.modules.get("keras"):
        keras.backend.clear_session()


@functools.cache
def _module(file: str) -> ModuleType:
    name = Path(file).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


if __name__ == "__main__":
    _serve()
