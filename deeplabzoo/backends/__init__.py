"""Backends: each turns a graph into a native model of its framework.

No framework is imported before it is asked for (it may be absent, heavy or broken), and never two in one process:
their native libraries crash one another. `resolve` knows the names, `Backend.module` imports one of a backend's files.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from deeplabzoo.errors import BackendError, unknown

FOLDERS = ("torch", "paddle", "keras", "onnx")
KERAS_ENGINES = ("tensorflow", "jax", "torch")
NAMES = ("torch", "paddle", "keras", *(f"keras/{engine}" for engine in KERAS_ENGINES), "onnx")

_CRASHING_TOGETHER = ("torch", "paddle", "tensorflow")
"""Measured: with two of these in one process the interpreter dies in two of three import orders."""


@dataclass(frozen=True)
class Backend:
    """A backend by name: its folder, and for Keras the framework that Keras itself runs on."""

    folder: str
    engine: str

    @property
    def name(self) -> str:
        """`torch`, `paddle`, `keras/tensorflow`, ..."""
        return f"keras/{self.engine}" if self.folder == "keras" else self.folder

    @property
    def flags(self) -> Any:
        """The backend's abilities, a module of constants."""
        return importlib.import_module(f"deeplabzoo.backends.{self.folder}.flags")

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that must be importable."""
        return tuple(dict.fromkeys((*self.flags.MODULES, self.engine)))

    @property
    def extra(self) -> str:
        """The extras of this package that install the backend."""
        return (
            {"jax": "jax", "torch": "torch,keras"}.get(self.engine, "keras") if self.folder == "keras" else self.folder
        )

    @property
    def distributions(self) -> tuple[str, ...]:
        """What pip installs for `modules`, for an environment where this package need not be."""
        first = dict(zip(self.flags.MODULES, self.flags.DISTRIBUTIONS, strict=False))  # more are others in its place
        return tuple(first.get(module, module) for module in self.modules)

    def missing(self) -> tuple[str, ...]:
        """Modules that are not installed here."""
        return tuple(name for name in self.modules if importlib.util.find_spec(name) is None)

    def require(self) -> None:
        """Raise `BackendError` where the backend is not installed, naming the extra to install."""
        if missing := self.missing():
            raise BackendError(
                f"backend {self.name} needs {' and '.join(missing)}, not installed here: "
                f'run pip install "deeplabzoo[{self.extra}]"'
            )

    def versions(self) -> dict[str, str]:
        """Versions of the distributions involved, without importing them."""
        found = {}
        for name in dict.fromkeys((*self.flags.DISTRIBUTIONS, *(() if self.engine == self.folder else (self.engine,)))):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    def enter(self) -> None:
        """Make this process fit for the backend, or refuse before a framework is imported beside a wrong one.

        Raises:
            BackendError: not installed, an incompatible framework is loaded, or Keras already runs on another one.
        """
        self.require()
        loaded = [name for name in _CRASHING_TOGETHER if name in sys.modules and name != self.engine]
        if self.engine in _CRASHING_TOGETHER and loaded:
            raise BackendError(
                f"backend {self.name} can't be loaded beside {loaded[0]}, which this process has imported: their native "
                "libraries crash one another; use deeplabzoo.run, which works in a process of its own"
            )
        if self.folder == "keras":
            keras = sys.modules.get("keras")
            if keras is not None and (running := keras.backend.backend()) != self.engine:
                raise BackendError(
                    f"Keras already runs on {running} in this process, asked for {self.name}: start a new process, or "
                    f"use backend='keras/{running}'"
                )
            os.environ["KERAS_BACKEND"] = self.engine

    def module(self, name: str) -> ModuleType:
        """Import `ops`, `build`, `weights` or `run` of the backend's folder, after `enter`."""
        self.enter()
        return importlib.import_module(f"deeplabzoo.backends.{self.folder}.{name}")

    def check_device(self, device: str) -> None:
        """`BackendError` where the backend has no such device here; imports the framework."""
        available = self.module("run").devices()
        if device not in available:
            raise BackendError(
                f"{self.name} on device {device!r}: expected one of {', '.join(available)}, which is all there is here"
            )


def resolve(name: str) -> Backend:
    """The backend of a name such as `torch` or `keras/jax`; plain `keras` runs on TensorFlow.

    Raises:
        BackendError: an unknown name.
    """
    if name not in NAMES:
        raise BackendError(unknown("backend", name, NAMES))
    folder, _, engine = name.partition("/")
    if folder == "keras":
        return Backend("keras", engine or "tensorflow")
    return Backend(folder, folder)


def by_full_name(pythons: Mapping[str, str] | None) -> dict[str, str]:
    """Interpreters by the full names of backends: `keras` stands for `keras/tensorflow`.

    Raises:
        BackendError: an unknown backend, or one backend with two interpreters.
    """
    found: dict[str, str] = {}
    for name, path in (pythons or {}).items():
        full = resolve(name).name
        if found.setdefault(full, path) != path:
            raise BackendError(f"{full} was given two interpreters, {found[full]} and {path}: give one")
    return found


def default_backend() -> Backend:
    """The first backend that is installed here.

    Raises:
        BackendError: none is.
    """
    for name in ("torch", "paddle", "keras/tensorflow", "keras/jax"):
        backend = resolve(name)
        if not backend.missing():
            return backend
    raise BackendError('no backend is installed here: run pip install "deeplabzoo[torch]", [paddle] or [keras]')
