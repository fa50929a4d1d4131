"""Where the data are, which backends take part, and workers that live as long as the session.

`DEEPLABZOO_DATA` names the data folder (by default `../shared/data` beside the repository); with
`DEEPLABZOO_REQUIRE_DATA=1` its absence is a failure instead of a skip. `DEEPLABZOO_TEST_BACKENDS` names the backends,
with commas between; a backend that is named and not installed fails.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Threads of PyTorch that wait by spinning make it ten times slower on cores that others use too; workers inherit this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# So do numpy's own: the referee's small products took three times as long with two. Read once, when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from deeplabzoo.backends import resolve
from deeplabzoo.backends.worker import Worker

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DEEPLABZOO_DATA") or REPOSITORY.parent / "shared" / "data")
REQUESTED = tuple(
    name.strip() for name in os.environ.get("DEEPLABZOO_TEST_BACKENDS", "torch,paddle,keras").split(",") if name.strip()
)


@pytest.fixture(params=REQUESTED)
def backend(request: pytest.FixtureRequest) -> str:
    """Each requested backend in turn."""
    return request.param


def _there(path: Path) -> Path:
    if not path.exists():
        message = f"no {path}: set DEEPLABZOO_DATA to the data folder"
        if os.environ.get("DEEPLABZOO_REQUIRE_DATA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def requested() -> tuple[str, ...]:
    """Names of the backends that take part."""
    return REQUESTED


@pytest.fixture(scope="session")
def data() -> Path:
    """The data folder."""
    return _there(DATA)


@pytest.fixture(scope="session")
def goldens() -> ModuleType:
    """The module that makes the golden cases' tensors from their seeds."""
    path = _there(DATA.parent / "goldens.py")
    spec = importlib.util.spec_from_file_location("goldens", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checkpoint(data: Path) -> Path:
    """Prefix of the real TensorFlow checkpoint."""
    return _there(data / "weights" / "deeplabv3_mnv2_pascal_trainval" / "model.ckpt-30000.index").with_suffix("")


@pytest.fixture(scope="session")
def worker() -> Iterator[Callable[[str], Worker]]:
    """A worker by backend name, started on its first use and kept for the session."""
    started: dict[str, Worker] = {}

    def get(name: str) -> Worker:
        name = resolve(name).name
        if name not in started:
            started[name] = Worker(name)
        return started[name]

    yield get
    for process in started.values():
        process.close()
