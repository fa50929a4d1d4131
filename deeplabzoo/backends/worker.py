"""A backend in a process of its own, spoken to with numpy arrays.

The process may run another Python interpreter, so that each framework can live in an environment of its own. Whatever
happens to it (it hangs, dies, runs out of memory, prints what it should not) is told in one line, with the framework's
own last words, and a call never outlasts its time limit.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np

from deeplabzoo.backends import Backend, bootstrap, resolve, wire
from deeplabzoo.backends.worker_log import Log
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.training import EVALUATION, Training
from deeplabzoo.errors import BackendError, DeepLabZooError, WorkerError

TIME_LIMIT = 900.0
"""Seconds a single call may take before the worker is ended."""

_GRACE = 5.0
"""Seconds that a process gets to end by itself."""

_Message = tuple[dict[str, Any], dict[str, np.ndarray]]


def check_time_limit(seconds: float) -> None:
    """Refuse what is no time limit.

    Raises:
        BackendError: not a finite number above 0.
    """
    if not 0 < seconds < math.inf:
        raise BackendError(f"time_limit = {seconds!r}: expected seconds above 0")


@dataclass
class _Call:
    """A call in progress: its name, when it began, and what ends the worker when its time is up."""

    name: str
    watchdog: threading.Timer
    late: threading.Event
    start: float = field(default_factory=time.monotonic)


class Worker:
    """A running worker; use it as a context manager, or call `close`.

    One call at a time: a second thread, or a call while results are still being read, is refused. A worker that died
    answers every later call with the same line.

    Args:
        backend: name such as `paddle` or `keras/jax`.
        device: `cpu`, or `gpu` for strict float32 on a GPU.
        python: interpreter to run, of an environment with numpy and the framework; this one by default.
        time_limit: seconds a single call may take, and the start.
        wait: for the framework to be imported. Without, many workers start side by side, and what is wrong with one is
            raised by `ready` or by whatever needs it first.

    Attributes:
        seconds: spent so far: `start`, from starting the process to its framework being there, and by call what the
            caller waited.

    Raises:
        BackendError: the backend is unknown, not installed, or has no such device; the interpreter can't be run; the
            time limit is no finite number above 0.
        WorkerError: the process died while starting, or is none of ours.
    """

    bootstrap: ClassVar[str] = bootstrap.SOURCE
    """What the interpreter is told to run, with the package's folder, the backend and the device as arguments."""

    def __init__(
        self,
        backend: str,
        *,
        device: str = "cpu",
        python: str | None = None,
        time_limit: float = TIME_LIMIT,
        wait: bool = True,
    ) -> None:
        check_time_limit(time_limit)
        self.backend: Backend = resolve(backend)
        self.device, self.time_limit = device, time_limit
        self._elsewhere = python is not None
        self._who = f"worker for {self.backend.name}"
        if python is not None:
            self._who += f" ({wire.one_line(str(python), 200)})"
        self.seconds: dict[str, float] = {}
        if python is None:
            self.backend.require()
        self._process = self._start(python)
        self._log = Log(_binary(self._process.stderr))
        self._reaping = threading.Lock()  # of the process' number, which is nobody's or another's afterwards
        # When a message came, and the message, what is wrong with it, or None for no more.
        self._answers: queue.Queue[tuple[float, _Message | WorkerError | None]] = queue.Queue(1)
        self._closed = False
        self._failure: DeepLabZooError | None = None
        self._lock = threading.Lock()  # of `_busy`: whether a call is in progress
        self._starting = threading.Lock()  # of `_hello`
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._busy = True
        self._hello: dict[str, Any] | None = None
        self._first = self._begin("start", {"call": "hello"})
        if wait:
            try:
                self.ready()
            except BaseException:
                self.close()
                raise

    def ready(self) -> None:
        """Wait until the framework is imported; calls do so by themselves.

        Raises:
            BackendError, WorkerError: as the constructor with `wait`.
        """
        with self._starting:
            if self._hello is not None:
                return
            self._check_usable()
            header, _ = self._finish(self._first)
            if (version := header.get("protocol")) != wire.VERSION:
                raise self._fail(
                    WorkerError(
                        f"{self._who} speaks version {version!r} of the messages, expected "
                        f"{wire.VERSION}: it runs another version of this package"
                    )
                )
            self._hello = {name: self._field(header, name) for name in ("versions", "device_name")}

    @property
    def answered(self) -> bool:
        """Whether the framework was imported, so that `versions` and `device_name` are known; does not wait."""
        return self._hello is not None

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the framework's distributions in the worker's environment, and of its `python`."""
        self.ready()
        return dict((self._hello or {})["versions"])

    @property
    def device_name(self) -> str:
        """What the device calls itself."""
        self.ready()
        return str((self._hello or {})["device_name"])

    def load(self, graph: Graph, weights: Mapping[str, np.ndarray], *, dtype: str = "float32") -> None:
        """Build the native model of `graph` in the worker and fill in canonical weights."""
        self._ask({"call": "load", "graph": graph.to_json(), "dtype": dtype}, weights)

    def forward(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, N, C, H, W, for a preprocessed image batch N, C, H, W, in inference mode."""
        return self._ask({"call": "forward"}, {"x": x})[1]

    def trace(self, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Name and value of every node in the graph's order, one at a time: the worker waits for whoever reads.

        A value is sent when the one before it was taken, so that few are in memory at once. Arguments and errors as
        for `forward`. Whoever stops in the middle must close the worker: it stays busy and refuses every other call.
        """
        for header, arrays in self._stream({"call": "trace"}, {"x": x}):
            yield self._field(header, "node"), self._field(arrays, "value")

    def gradients(
        self, x: np.ndarray, labels: np.ndarray, training: Training = EVALUATION
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Loss, and its gradients by canonical parameter name and by the image, as `core.training.gradients`."""
        header, arrays = self._ask({"call": "gradients", "training": training.to_dict()}, {"x": x, "labels": labels})
        return self._field(header, "loss"), arrays

    def train(
        self, x: np.ndarray, labels: np.ndarray, training: Training, keep: Collection[int] = ()
    ) -> Iterator[tuple[float, dict[str, np.ndarray]]]:
        """Loss before each step, and all canonical weights after those of `keep` (from 1), else none.

        The model stays trained. Read as `trace`; arguments and errors as for `core.training.train`.
        """
        header = {"call": "train", "training": training.to_dict(), "keep": sorted(keep)}
        for answer, arrays in self._stream(header, {"x": x, "labels": labels}):
            yield self._field(answer, "loss"), arrays

    def close(self) -> None:
        """End the process; at once where it is in the middle of a call."""
        if self._closed:
            return
        self._closed = True
        self._first.watchdog.cancel()
        if self._busy:
            self._kill()  # it may have stopped reading, and then closing its pipe would block
        with contextlib.suppress(OSError):
            _binary(self._process.stdin).close()
        self._wait()
        self._listener.join(timeout=_GRACE)  # it holds the other pipe until the process is gone
        if not self._listener.is_alive():
            _binary(self._process.stdout).close()
        with contextlib.suppress(queue.Empty):
            self._answers.get_nowait()  # it may be large
        self._put_nothing()  # for a thread that still waits
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, python: str | None) -> subprocess.Popen[bytes]:
        home = Path(__file__).parents[1]
        interpreter = sys.executable if python is None else python
        try:
            return subprocess.Popen(  # noqa: S603 - the interpreter is the caller's own choice
                [interpreter, "-c", self.bootstrap, str(home), self.backend.name, self.device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=bootstrap.environment(self.backend.engine, self.device, elsewhere=python is not None),
                process_group=0,  # so that what an interpreter's wrapper script starts is ended with it
            )
        except (OSError, TypeError, ValueError) as error:  # no such file, no path at all, a zero byte in it
            reason = getattr(error, "strerror", None) or error
            raise BackendError(
                f"worker for {self.backend.name}: {interpreter!r} can't be run: {reason}; expected the path of a Python "
                "interpreter"
            ) from None

    def _listen(self) -> None:
        stream = _binary(self._process.stdout)
        last: WorkerError | None = None
        try:
            while not self._closed:
                self._put(wire.receive(stream))
        except WorkerError as error:
            last = error
        except MemoryError:
            last = WorkerError("sent an answer that memory has no room for here: take a smaller image or model")
        except (EOFError, OSError, ValueError):
            pass
        self._put(last)

    def _put(self, answer: _Message | WorkerError | None) -> None:
        """Wait until somebody has room for what came, or wants nothing any more."""
        came = time.monotonic()
        while not self._closed:
            with contextlib.suppress(queue.Full):
                self._answers.put((came, answer), timeout=0.1)
                return

    def _ask(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> _Message:
        self.ready()
        self._check_usable()
        with self._lock:
            if self._busy:
                raise WorkerError(f"{self._who} is in the middle of a call: read its results to their end first")
            self._busy = True
        return self._finish(self._begin(header["call"], header, arrays))

    def _stream(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[_Message]:
        answer, made = self._ask(header, arrays)
        while answer.get("more"):
            yield answer, made
            self._check_usable()
            answer, made = self._finish(self._begin(header["call"]))

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))
        if self._closed:
            raise WorkerError(f"{self._who} is closed: start a new one")

    def _begin(
        self, name: str, header: Mapping[str, Any] | None = None, arrays: Mapping[str, np.ndarray] | None = None
    ) -> _Call:
        """Send a call, or wait for the next answer to the last one; its time runs from here."""
        # Sending may block as well as waiting: a worker that hangs reads nothing.
        late = threading.Event()

        def end() -> None:
            if self._answers.empty():  # else the answer came in time and nobody has asked for it yet
                late.set()
                self._kill()
                self._put_nothing()

        call = _Call(name, threading.Timer(min(self.time_limit, threading.TIMEOUT_MAX), end), late)
        call.watchdog.daemon = True
        call.watchdog.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # a dead worker is told of by `_finish`, with its last words
                if header is not None:
                    wire.send(_binary(self._process.stdin), header, arrays)
        except BaseException as error:
            call.watchdog.cancel()
            # What is wrong with arrays is raised before anything is sent.
            self._busy = not isinstance(error, DeepLabZooError | MemoryError)
            raise
        return call

    def _finish(self, call: _Call) -> _Message:
        """The answer to a call, which is then over unless more is to come."""
        try:
            came, answer = self._answers.get()
        finally:
            call.watchdog.cancel()
        first = call is self._first
        # What came before it was asked for cost the caller nothing.
        self.seconds[call.name] = self.seconds.get(call.name, 0.0) + max(0.0, came - call.start)
        if self._closed:
            raise WorkerError(f"{self._who} was closed in the middle of {call.name!r}")
        if call.late.is_set():
            limit = f"{self.time_limit:g} s"
            what = f"gave no answer to {call.name!r} in {limit} and was ended"
            if first:
                what = f"did not start in {limit}: it gave no answer and was ended"
            advice = "if it needs longer, raise the time limit (time_limit; on the command line --time-limit)"
            raise self._fail(WorkerError(f"{self._who} {what}{self._log.last_words()}; {advice}"))
        if answer is None:
            raise self._fail(self._death(call))
        if isinstance(answer, WorkerError):
            self._kill()  # what it says has an end then
            raise self._fail(WorkerError(f"{self._who} {answer}{self._log.last_words(silent='')}"))
        self._busy = bool(answer[0].get("more"))
        if "error" in answer[0]:
            told = wire.one_line(str(answer[0]["error"]))
            # Our own words name the backend.
            error = BackendError(told) if answer[0].get("backend") else WorkerError(f"{self.backend.name}: {told}")
            raise self._fail(error) if first else error
        return answer

    def _field(self, found: Mapping[str, Any], name: str) -> Any:
        if name not in found:
            raise self._fail(
                WorkerError(
                    f"{self._who} spoke no message of ours: expected an answer with {name!r}, "
                    f"received one with {wire.one_line(', '.join(found) or 'nothing', 200)}"
                )
            )
        return found[name]

    def _fail(self, error: DeepLabZooError) -> DeepLabZooError:
        """Keep an error for all later calls, and end the process."""
        self._failure = error
        self._kill()
        return error

    def _death(self, call: _Call) -> DeepLabZooError:
        code = self._wait()
        lines = self._log.last_lines()
        if code == bootstrap.REFUSED and call is self._first and lines:
            return BackendError(f"worker for {self.backend.name}: {wire.one_line(lines[-1])}")
        wanted = "; expected a Python interpreter" if self._elsewhere and call is self._first else ""
        return WorkerError(f"{self._who} {self._log.ending(code)} during {call.name!r}{self._log.last_words()}{wanted}")

    def _wait(self) -> int | None:
        """The status of a process that is about to end by itself; None where it had to be ended."""
        ended = self._ends_within(min(_GRACE, self.time_limit))
        self._kill()  # what it started may live on
        with self._reaping:
            code = self._process.wait()
        return code if ended else None

    def _ends_within(self, seconds: float) -> bool:
        """Whether the process ends in time; it is not reaped, so that its number still is that of its group."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13; what a process started lives on there
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return self._process.returncode is not None
        end = time.monotonic() + seconds
        try:
            while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if time.monotonic() > end:
                    return False
                time.sleep(0.005)
        except ChildProcessError:  # the system or the caller has reaped it
            self._process.poll()
        return True

    def _kill(self) -> None:
        """End the process and all that it started."""
        with self._reaping:
            if self._process.returncode is None:
                with contextlib.suppress(OSError):  # it is just gone
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _put_nothing(self) -> None:
        with contextlib.suppress(queue.Full):
            self._answers.put_nowait((time.monotonic(), None))


def _binary(stream: Any) -> BinaryIO:
    if stream is None:
        raise WorkerError("the worker has no pipe")
    return stream  # type: ignore[no-any-return]
