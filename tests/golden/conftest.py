"""Fixtures of the tests of recorded goldens."""

from __future__ import annotations

import pytest
from golden_changes import SIZE, SPEC

from deeplabzoo.parity import golden as goldens
from deeplabzoo.parity.golden import record


@pytest.fixture
def kept(monkeypatch, worker):
    """The session's workers in place of new ones: the same processes, started once."""

    class Kept:
        def __init__(self, name, *, device="cpu", python=None):
            self.process = worker(name)

        def __getattr__(self, name):
            return getattr(self.process, name)

        def __enter__(self):
            return self

        def __exit__(self, *failure):
            pass

        def close(self):
            pass

    monkeypatch.setattr(goldens, "Worker", Kept)
    return Kept


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A golden of ONNX alone, which starts fast, with the referee's gradients; and its file."""
    golden = record(SPEC, backends=["onnx"], sizes=[SIZE])
    path = tmp_path_factory.mktemp("golden") / "small.golden"
    golden.save(path)
    return golden, path
