"""No process of `apart` outlives the test file that asked for it."""

from __future__ import annotations

from collections.abc import Iterator

import apart
import pytest


@pytest.fixture(scope="module", autouse=True)
def _own_processes() -> Iterator[None]:
    yield
    apart.close()
