"""What runs inside a worker process: build a native model, run it, answer over the original stdout."""

from __future__ import annotations

import os
import platform
import select
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from deeplabzoo.backends import Backend, resolve, wire
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.training import Training
from deeplabzoo.errors import BackendError, DeepLabZooError, WorkerError

_GRACE = 5.0  # seconds in which a worker that is idle ends by itself


def main(name: str, device: str) -> None:
    """Answer messages until the other side closes the stream, then end the process."""
    # Frameworks print to stdout; the answers need it for themselves, so everything else goes to stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if sys.stdin is None:  # closed by what started this interpreter
        wire.send(answers, {"error": f"{sys.executable} was started without standard input, where the calls come from"})
        return
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    session = _Session(resolve(name), device, answers)
    while True:
        try:
            header, arrays = wire.receive(sys.stdin.buffer)
        except EOFError:
            sys.stderr.flush()
            os._exit(0)  # frameworks take up to a second to tidy up what ends here anyway
        try:
            session.answer(header, arrays)
        except DeepLabZooError as error:
            wire.send(answers, {"error": str(error), "backend": isinstance(error, BackendError)})
        except Exception as error:
            wire.send(answers, {"error": _told(error)})


def _end_with(calls: int) -> None:
    """End this process, whatever it is doing, soon after the one that calls it is gone."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(calls, 0)  # of no data, which is the main thread's; that nobody can write any more is always told
    poll.poll()
    time.sleep(_GRACE)
    os._exit(0)


@dataclass
class _Session:
    backend: Backend
    device: str
    answers: BinaryIO
    model: Any = None

    def answer(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        call = header["call"]
        if call == "hello":
            _check_installed(self.backend)
        run = self.backend.module("run")
        if call == "hello":
            run.configure(self.device)
            self.backend.check_device(self.device)
            versions = {**self.backend.versions(), "python": platform.python_version()}
            self.send({"protocol": wire.VERSION, "versions": versions, "device_name": run.device_name(self.device)})
        elif call == "load":
            self.model = None  # free the old model before the new one is made
            graph = Graph.from_json(header["graph"])
            model = self.backend.module("build").build(graph, dtype=header["dtype"], device=self.device)
            self.backend.module("weights").load_weights(model, arrays)
            # ONNX's models are files; others run as they are.
            self.model = getattr(run, "prepare", lambda made: made)(model)
            self.send({})
        elif self.model is None:
            raise WorkerError(f"{call} was called while no model was loaded: call load first")
        elif call == "forward":
            self.send({}, run.forward(self.model, arrays["x"]))
        elif call == "trace":
            for name, value in run.trace(self.model, arrays["x"]):
                self.send({"more": True, "node": name}, {"value": value})  # waits until the other side has room for it
            self.send({})
        elif call == "gradients":
            training = Training(**header["training"])
            loss, found = self.backend.module("train").gradients(self.model, arrays["x"], arrays["labels"], training)
            self.send({"loss": loss}, found)
        elif call == "train":
            training, read = Training(**header["training"]), self.backend.module("weights").read_weights
            losses = self.backend.module("train").train(self.model, arrays["x"], arrays["labels"], training)
            for step, loss in enumerate(losses, 1):
                self.send({"more": True, "loss": loss}, read(self.model) if step in header["keep"] else {})
            self.send({})

    def send(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        wire.send(self.answers, header, arrays)


def _check_installed(backend: Backend) -> None:
    """Name the interpreter where a package is missing: it may be another one than the caller's."""
    if missing := backend.missing():
        raise BackendError(
            f"interpreter {sys.executable} has no {' and no '.join(missing)}, which backend {backend.name} needs: install "
            f"it there with {sys.executable} -m pip install {' '.join(backend.distributions)}"
        )


def _told(error: Exception) -> str:
    """One line on a framework's exception, and what to do where memory ran out."""
    text = str(error).rpartition("Error Message Summary:")[2]  # Paddle puts pages of its C++ stack before it
    text = f"{type(error).__name__}: {text}"
    hint = "memory ran out: take a smaller image or model; " if wire.out_of_memory(text) else ""
    return wire.one_line(hint + text)
