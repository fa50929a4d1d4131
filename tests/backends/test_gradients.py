"""Gradients and training steps of every backend, layer by layer, against the numpy referee.

`gradient_checks.py` holds what is run, in one process a framework.
"""

from __future__ import annotations

import importlib.util

import apart
import pytest

from deeplabzoo.backends import resolve

BACKENDS = (
    "torch",
    "paddle",
    "keras/tensorflow",
    pytest.param("keras/jax", marks=pytest.mark.slow),  # compiles each shape anew
    "keras/torch",
)


@pytest.mark.parametrize("check", ["layers", "graph"])
@pytest.mark.parametrize("name", BACKENDS)
def test_against_the_referee(name: str, check: str) -> None:
    modules = resolve(name).modules
    if any(importlib.util.find_spec(module) is None for module in modules):
        pytest.skip(f"{' or '.join(modules)} is not installed")
    apart.run(name, "gradient_checks.py", f"check_{check}", {"backend": name})
