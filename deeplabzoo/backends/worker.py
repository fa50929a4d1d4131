"""A backend in a process of its own, spoken to with numpy arrays.

The process may run another Python interpreter, so that each framework can live in an environment of its own. It dies
loudly, with the framework's own last lines, and a call never outlasts its time limit.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from deeplabzoo.backends import Backend, resolve, wire
from deeplabzoo.core.graph import Graph
from deeplabzoo.errors import BackendError, WeightsError, WorkerError

TIME_LIMIT = 900.0
"""Seconds a single call may take before the worker is ended."""

# Loads this very package in the other interpreter without putting its folder on the path, which would bring the rest
# of our site-packages along.
_BOOTSTRAP = """
import importlib.util, sys
home = sys.argv[1]
spec = importlib.util.spec_from_file_location("deeplabzoo", home + "/__init__.py", submodule_search_locations=[home])
module = importlib.util.module_from_spec(spec)
sys.modules["deeplabzoo"] = module
spec.loader.exec_module(module)
from deeplabzoo.backends.worker_main import main
main(sys.argv[2], sys.argv[3])
"""


class Worker:
    """A running worker; use it as a context manager, or call `close`.

    Args:
        backend: name such as `paddle` or `keras/jax`.
        device: `cpu`, or `gpu` for strict float32 on a GPU.
        python: interpreter to run; this one by default.
        time_limit: seconds a single call may take.

    Raises:
        BackendError: the backend is unknown, not installed, or has no such device.
        WorkerError: the process died while starting.
    """

    def __init__(
        self, backend: str, *, device: str = "cpu", python: str | None = None, time_limit: float = TIME_LIMIT
    ) -> None:
        self.backend: Backend = resolve(backend)
        self.device, self.time_limit = device, time_limit
        if python is None:
            self.backend.require()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = self._start(python or sys.executable)
        self._answers: queue.Queue[tuple[dict[str, Any], dict[str, np.ndarray]] | None] = queue.Queue(1)
        self._busy = self._closed = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            header, _ = self._ask({"call": "hello"})
        except BaseException:
            self.close()
            raise
        self.versions: dict[str, str] = header["versions"]
        self.device_name: str = header["device_name"]

    def load(self, graph: Graph, weights: Mapping[str, np.ndarray], *, dtype: str = "float32") -> None:
        """Build the native model of `graph` in the worker and fill in canonical weights."""
        self._ask({"call": "load", "graph": graph.to_json(), "dtype": dtype}, weights)

    def forward(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, N, C, H, W, for a preprocessed image batch N, C, H, W, in inference mode."""
        return self._ask({"call": "forward"}, {"x": x})[1]

    def trace(self, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Name and value of every node in the graph's order, one at a time: the worker waits for whoever reads.

        A value is sent when the one before it was taken, so that few are in memory at once. Arguments and errors as
        for `forward`; one who stops in the middle closes the worker.
        """
        header, arrays = self._ask({"call": "trace"}, {"x": x})
        while "node" in header:
            yield header["node"], arrays["value"]
            header, arrays = self._answer("trace", None)

    def close(self) -> None:
        """End the process; at once where it is in the middle of a call."""
        if self._closed:
            return
        self._closed = True
        if self._busy:
            self._process.kill()  # it may have stopped reading, and then closing its pipe would block
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(queue.Empty):  # it may wait for room for an answer nobody wants
            while True:
                self._answers.get_nowait()
        self._listener.join(timeout=5)  # it holds the other pipe until the process is gone
        if self._process.stdout is not None and not self._listener.is_alive():
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, python: str) -> subprocess.Popen[bytes]:
        home = Path(__file__).parents[1]
        environment = {
            **os.environ,
            "KERAS_BACKEND": self.backend.engine,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONWARNINGS": "ignore",  # a framework's own deprecation notes are not this program's output
        }
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        try:
            # -P keeps the current folder, which may hold anything named `torch`, off the path.
            return subprocess.Popen(  # noqa: S603 - the interpreter is the caller's own choice
                [python, "-P", "-c", _BOOTSTRAP, str(home), self.backend.name, self.device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
            )
        except (OSError, TypeError, ValueError) as error:  # no such file, no path at all, a zero byte in it
            self._log.close()
            reason = getattr(error, "strerror", None) or error
            raise BackendError(f"worker for {self.backend.name}: {python!r} can't be run: {reason}") from None

    def _listen(self) -> None:
        stream = self._process.stdout
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                self._answers.put(wire.receive(_binary(stream)))
        self._answers.put(None)

    def _ask(
        self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if self._closed:
            raise WorkerError(f"worker for {self.backend.name} is closed: start a new one")
        if self._busy:
            raise WorkerError(f"worker for {self.backend.name} is in the middle of a trace: read it to its end first")
        return self._answer(header["call"], header, arrays)

    def _answer(
        self, call: str, header: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The next answer, to `header` or, without one, to the last call."""
        # Sending may block as well as waiting: a worker that hangs reads nothing.
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        watchdog = threading.Timer(self.time_limit, end)
        watchdog.daemon = True
        watchdog.start()
        self._busy = True
        try:
            with contextlib.suppress(BrokenPipeError):  # a dead worker is told of below, with its last words
                if header is not None:
                    wire.send(_binary(self._process.stdin), header, arrays)
            answer = self._answers.get()
            self._busy = answer is not None and "node" in answer[0]
        except WeightsError:  # refused before anything was sent
            self._busy = False
            raise
        finally:
            watchdog.cancel()
        if late.is_set():
            raise WorkerError(
                f"worker for {self.backend.name} gave no answer to {call!r} in {self.time_limit:g} s and was "
                f"ended{self._last_lines()}"
            )
        if answer is None:
            self._answers.put(None)  # for whoever asks the dead worker again
            code = self._process.wait()
            killed = (
                " (killed, most likely because memory ran out: take a smaller image or model)" if code == -9 else ""
            )
            raise WorkerError(
                f"worker for {self.backend.name} died with status {code}{killed} during {call!r}{self._last_lines()}"
            )
        if "error" in answer[0]:
            if answer[0].get("backend"):  # our own words, which name the backend
                raise BackendError(answer[0]["error"])
            raise WorkerError(f"{self.backend.name}: {answer[0]['error']}")
        return answer

    def _last_lines(self, most: int = 5) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return "; its last lines: " + " | ".join(lines[-most:]) if lines else "; it said nothing"


def _binary(stream: Any) -> BinaryIO:
    if stream is None:
        raise WorkerError("the worker has no pipe")
    return stream  # type: ignore[no-any-return]
