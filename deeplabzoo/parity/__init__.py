"""Parity: the same graph and weights in every backend, judged by error.

The room has the name of its main function, so the module itself can be called: `deeplabzoo.parity("v3plus", ...)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from deeplabzoo.parity.cases import Case
from deeplabzoo.parity.compare import BOUNDS, error, label_agreement
from deeplabzoo.parity.report import Report
from deeplabzoo.parity.run import parity

__all__ = ["BOUNDS", "Case", "Report", "error", "label_agreement", "parity"]


class _CallableModule(ModuleType):
    """Importing a submodule makes it an attribute of its package, in place of the function of that name."""

    def __call__(self, *arguments: Any, **options: Any) -> Report:
        return parity(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
