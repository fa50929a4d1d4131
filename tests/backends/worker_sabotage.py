"""Workers that fail on purpose, and what every failure must look like."""

from __future__ import annotations

import re
import sys
import time

import pytest
from helpers import image

from deeplabzoo.backends import bootstrap
from deeplabzoo.backends.worker import Worker
from deeplabzoo.errors import WorkerError

BACKEND = "onnx"
"""The one that starts in a fraction of a second; what is tested here is no matter of the framework."""

LIMIT = 2.5

X = image(1, 3, 9, 9)


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
