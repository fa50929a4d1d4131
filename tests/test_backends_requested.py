"""A backend that the caller asked for and that is not here must not pass as skipped."""

from __future__ import annotations

from deeplabzoo.backends import resolve


def test_requested_backends_are_installed(requested):
    assert requested, "DEEPLABZOO_TEST_BACKENDS names no backend"
    missing = {name: resolve(name).missing() for name in requested if resolve(name).missing()}
    assert not missing, f"requested in DEEPLABZOO_TEST_BACKENDS but not installed: {missing}"
