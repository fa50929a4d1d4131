"""What the files that test the PyTorch backend share; skips them where PyTorch is not asked for or not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import image, lively, small_spec

import deeplabzoo
from deeplabzoo.core import reference
from deeplabzoo.core.spec import ArchSpec

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture(scope="module", autouse=True)
def asked_for(requested: tuple[str, ...]) -> None:
    """For every test of a file that imports it."""
    if "torch" not in requested:
        pytest.skip("torch is not in DEEPLABZOO_TEST_BACKENDS")


SPEC = small_spec()
AUX = small_spec("v3", aux={"channels": 8}, aspp={"channels": 16})


def build(spec: ArchSpec = SPEC, **options: Any) -> Any:
    return deeplabzoo.build(spec, weights=lively(spec).weights, backend="torch", **options)


def x(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.from_numpy(image(*shape, seed=seed)).to(dtype)


def truth(spec: ArchSpec, images: Any) -> dict[str, np.ndarray]:
    model = lively(spec)
    return reference.forward(model.graph, model.weights, images.double().numpy())
