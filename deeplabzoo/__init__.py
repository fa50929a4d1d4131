"""DeepLabZoo: DeepLab described once, native in PyTorch, Paddle and Keras.

Importing this package imports no framework, and hardly anything else: every public name is looked up when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deeplabzoo._version import __version__

if TYPE_CHECKING:
    from deeplabzoo.core.spec import ArchSpec
    from deeplabzoo.errors import DeepLabZooError
    from deeplabzoo.models import build, graph, load, run
    from deeplabzoo.parity import parity
    from deeplabzoo.prediction import predict
    from deeplabzoo.weights_converter.canonical import Canonical
    from deeplabzoo.weights_converter.convert import convert
    from deeplabzoo.zoo.models import list_models
    from deeplabzoo.zoo.models import named_spec as spec

_WHERE = {
    "ArchSpec": ("core.spec", "ArchSpec"),
    "Canonical": ("weights_converter.canonical", "Canonical"),
    "DeepLabZooError": ("errors", "DeepLabZooError"),
    "build": ("models", "build"),
    "convert": ("weights_converter.convert", "convert"),
    "graph": ("models", "graph"),
    "list_models": ("zoo.models", "list_models"),
    "load": ("models", "load"),
    "parity": ("parity", "parity"),
    "predict": ("prediction", "predict"),
    "run": ("models", "run"),
    "spec": ("zoo.models", "named_spec"),
}

__all__ = [
    "ArchSpec",
    "Canonical",
    "DeepLabZooError",
    "__version__",
    "build",
    "convert",
    "graph",
    "list_models",
    "load",
    "parity",
    "predict",
    "run",
    "spec",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'deeplabzoo' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(f"deeplabzoo.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
