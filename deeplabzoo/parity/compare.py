"""What counts as equal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deeplabzoo.errors import WeightsError

BOUNDS = {"float64": 1e-11, "float32": 2e-5, "float16": 1e-2, "bfloat16": 8e-2}
"""Largest allowed error by dtype: float64 outputs of two backends, float32 outputs against the float64 truth."""

GRADIENT_BOUNDS = {"float64": 1e-9, "float32": 5e-2}
"""The same for gradients in evaluation mode, by the rule of `gradient_errors`.

In float32 most are within 1e-5, but one activation next to zero that changes sides moves gradients by some 1e-2.
"""

TRAINING_BOUNDS = {"float64": 1e-8, "float32": 1e-1}
"""The same for losses, parameters and running statistics after training steps.

Batch norm divides by what few values have in common: in float32 ten steps of a deep network end some 1e-2 apart.
"""

FRACTION = 1e-4
"""Share of a network's largest gradient entry below which gradients are judged against that share: a true gradient may
be zero (a bias before batch norm), where a ratio means nothing."""


def error(a: np.ndarray, truth: np.ndarray) -> float:
    """max|a - truth| / max|truth|, in float64; infinite where a value is not finite.

    Raises:
        WeightsError: different shapes, or a truth that is zero everywhere and so judges nothing.
    """
    scale = float(np.abs(truth.astype(np.float64)).max())
    if scale == 0:
        raise WeightsError("the truth is zero everywhere, which judges nothing: use other weights")
    worst = _largest_difference(a, truth)
    return worst / scale if np.isfinite(scale) else float("inf")


def gradient_errors(found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """max|a - b| / max(max|b|, `FRACTION` of the largest entry of all gradients) by name.

    Raises:
        WeightsError: other names or shapes, or a truth that is zero everywhere.
    """
    if found.keys() != truth.keys():
        strange = sorted(found.keys() ^ truth.keys())
        raise WeightsError(f"gradients of other names can't be compared: {', '.join(strange[:3])} on one side alone")
    largest = {name: float(np.abs(array).max()) for name, array in truth.items()}
    floor = FRACTION * max(largest.values())
    if floor == 0:
        raise WeightsError("all gradients are zero, which judges nothing: use other weights or labels")
    return {name: _largest_difference(found[name], truth[name]) / max(largest[name], floor) for name in truth}


def training_errors(found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """max|a - b| / max|b| of every parameter and running statistic; against `FRACTION` of the largest where b is tiny."""
    largest = {name: float(np.abs(array).max()) for name, array in truth.items()}
    floor = FRACTION * max(largest.values())
    return {name: _largest_difference(found[name], truth[name]) / max(largest[name], floor) for name in truth}


def label_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels whose largest channel is the same, for outputs N, C, H, W."""
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise WeightsError(f"values of shapes {a.shape} and {b.shape} can't be compared")
    worst = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    return worst if np.isfinite(worst) else float("inf")
