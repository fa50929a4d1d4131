"""The pytest plugin: fixture `parity`, and options that say where it runs.

pytest loads it in every suite of an environment that has this package, so it imports nothing until a test asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Backends, and interpreters of other environments, on the command line or in the configuration file."""
    group = parser.getgroup("deeplabzoo", "parity of DeepLab models")
    group.addoption(
        "--deeplabzoo-backends", metavar="NAMES", help="Backends of the fixture parity, with commas: torch,keras."
    )
    group.addoption(
        "--deeplabzoo-python",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="Python interpreter of another environment for a backend, such as paddle=/opt/paddle/bin/python.",
    )
    parser.addini("deeplabzoo_backends", "Backends of the fixture parity.", type="args", default=[])
    parser.addini("deeplabzoo_python", "NAME=PATH: interpreters of other environments.", type="linelist", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Look at the interpreters before any test runs."""
    _pythons(config)


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`deeplabzoo.testing.assert_parity` with the backends and interpreters of the command line or the configuration.

    What a test says itself goes before both. A live model has a framework and a process of its own.
    """
    from deeplabzoo.testing import assert_parity
    from deeplabzoo.weights_converter.native import is_native

    config = request.config
    named = config.getoption("--deeplabzoo-backends")
    backends = config.getini("deeplabzoo_backends") if named is None else [n.strip() for n in named.split(",")]
    usual = {"backends": backends or None, "pythons": _pythons(config) or None}

    def judge(model: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return assert_parity(model, **options if is_native(model) else {**usual, **options})

    return judge


def _pythons(config: pytest.Config) -> dict[str, str]:
    """Interpreters by full name of the backend, those of the command line first; `UsageError` for what is none."""
    pythons: dict[str, str] = {}
    for pairs in (config.getini("deeplabzoo_python"), config.getoption("--deeplabzoo-python")):
        given: dict[str, str] = {}
        for pair in pairs:
            name, _, path = pair.partition("=")
            if not name or not path:
                raise pytest.UsageError(f"{pair!r}: expected NAME=PATH, such as paddle=/opt/paddle/bin/python")
            if given.setdefault(name, path) != path:
                raise pytest.UsageError(f"{name} was given two interpreters, {given[name]} and {path}: give one")
        if given:
            from deeplabzoo.backends import by_full_name
            from deeplabzoo.errors import BackendError

            try:
                pythons.update(by_full_name(given))
            except BackendError as error:
                raise pytest.UsageError(str(error)) from None
    return pythons
