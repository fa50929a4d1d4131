"""What runs inside a worker process: build a native model, run it, answer over the original stdout."""

from __future__ import annotations

import os
import sys
from typing import Any, BinaryIO

import numpy as np

from deeplabzoo.backends import Backend, resolve, wire
from deeplabzoo.core.graph import Graph
from deeplabzoo.errors import BackendError, DeepLabZooError


def main(name: str, device: str) -> None:
    """Answer messages until the other side closes the stream."""
    # Frameworks print to stdout; the answers need it for themselves, so everything else goes to stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    backend, model = resolve(name), None
    while True:
        try:
            header, arrays = wire.receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            model = _answer(answers, backend, device, model, header, arrays)
        except DeepLabZooError as error:
            wire.send(answers, {"error": str(error), "backend": isinstance(error, BackendError)})
        except Exception as error:
            wire.send(answers, {"error": f"{type(error).__name__}: {error}"})


def _answer(
    answers: BinaryIO,
    backend: Backend,
    device: str,
    model: Any,
    header: dict[str, Any],
    arrays: dict[str, np.ndarray],
) -> Any:
    run = backend.module("run")
    if header["call"] == "hello":
        run.configure(device)
        backend.check_device(device)
        wire.send(answers, {"versions": backend.versions(), "device_name": run.device_name(device)})
    elif header["call"] == "load":
        graph = Graph.from_json(header["graph"])
        model = None  # free the old model before the new one is made
        model = backend.module("build").build(graph, dtype=header["dtype"], device=device)
        backend.module("weights").load_weights(model, arrays)
        model = getattr(run, "prepare", lambda made: made)(model)  # ONNX's models are files; others run as they are
        wire.send(answers, {})
    elif header["call"] == "forward":
        wire.send(answers, {}, run.forward(model, arrays["x"]))
    elif header["call"] == "trace":
        for name, value in run.trace(model, arrays["x"]):
            wire.send(answers, {"node": name}, {"value": value})  # waits until the other side has room for it
        wire.send(answers, {})
    return model
