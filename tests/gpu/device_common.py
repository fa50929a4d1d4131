"""The device that is judged, and skips that say what this interpreter lacks.

`DEEPLABZOO_TEST_DEVICE` names the device, `gpu` by default; `cpu` proves the same tests where there is no GPU. The
interpreter may lack all that the package needs beside numpy: what a test needs is imported in it, or it is skipped.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest

from deeplabzoo.backends import resolve

DEVICE = os.environ.get("DEEPLABZOO_TEST_DEVICE") or "gpu"
BACKENDS = ("torch", "keras/jax", "keras/torch", "keras/tensorflow", "paddle", "onnx")


def needed(name: str) -> ModuleType:
    """A module, or a skip that names the package which this interpreter lacks."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("deeplabzoo"):
            raise
        pytest.skip(f"{name} needs {error.name}, not installed here")


def installed(name: str) -> str:
    """The name of a backend that is installed, or a skip."""
    if missing := resolve(name).missing():
        pytest.skip(f"{name}: {' and '.join(missing)} not installed")
    return name
