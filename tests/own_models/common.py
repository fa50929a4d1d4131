"""What the scripts with models of one's own share: weights under a project's names, and faults one after another."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import DeepLabZooError
from deeplabzoo.parity.own_model import ModelTrace, trace_model
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.weights_converter.ledger import to_foreign


def lively(spec: ArchSpec, loud: str) -> dict[str, np.ndarray]:
    """Canonical weights in float64, one batch norm so loud that ReLU and ReLU6 differ after it."""
    weights = seeded_weights(build_graph(spec), 3, statistics="lively", dtype="float64")
    return {**weights, f"{loud}.weight": weights[f"{loud}.weight"] * 20}


def foreign(weights: dict[str, np.ndarray], spec: ArchSpec, layout: str, file_format: str) -> dict[str, np.ndarray]:
    return dict(to_foreign(weights, get_layout(layout), spec, file_format)[0])


def said(found: ModelTrace) -> dict[str, Any]:
    ((side, first),) = found.blamed.items()
    return {
        "side": side,
        "passed": found.passed,
        "node": None if first is None else first.node,
        "module": None if first is None else found.modules[first.node],
        "suspects": found.suspects,
        "line": found.lines()[0],
        "notes": found.notes,
        "unmatched": found.unmatched,
        "worst": max(row.error for row in found.rows),
        "rows": len(found.rows),
        "outputs": found.outputs,
        "dtype": found.dtype,
        "plain": json.loads(json.dumps(found.to_dict()))["passed"],
    }


def attempt(model: Any, **options: Any) -> Any:
    """What a trace says, or its error's text."""
    try:
        return said(trace_model(model, **options))
    except DeepLabZooError as error:
        return f"{type(error).__name__}: {error}"


def each(make: Callable[[], Any], faults: dict[str, Callable[[Any], Any]], **options: Any) -> dict[str, Any]:
    """What a trace says of a fresh model with each fault; a fault may give another model."""
    results = {}
    for name, put in faults.items():
        model = make()
        made = put(model)
        results[name] = attempt(model if made is None else made, **options)
    return results
