"""A backend that the caller asked for and that is not here must not pass as skipped."""

from __future__ import annotations

import importlib.util
import os

import pytest

from deeplabzoo.backends import resolve


def test_requested_backends_are_installed(requested):
    assert requested, "DEEPLABZOO_TEST_BACKENDS names no backend"
    missing = {name: resolve(name).missing() for name in requested if resolve(name).missing()}
    assert not missing, f"requested in DEEPLABZOO_TEST_BACKENDS but not installed: {missing}"


def test_what_ci_requires_is_installed():
    """Tests skip where an optional package is missing; where everything is required, none may be."""
    if os.environ.get("DEEPLABZOO_REQUIRE_DATA") != "1":
        pytest.skip("DEEPLABZOO_REQUIRE_DATA is not 1: packages may be missing here")
    needed = ("torch", "paddle", "keras", "tensorflow", "jax", "pydensecrf")
    assert [name for name in needed if importlib.util.find_spec(name) is None] == []
