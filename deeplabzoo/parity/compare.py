"""What counts as equal."""

from __future__ import annotations

import numpy as np

from deeplabzoo.errors import WeightsError

BOUNDS = {"float64": 1e-11, "float32": 2e-5}
"""Largest allowed error by dtype: float64 outputs of two backends, float32 outputs against the float64 truth."""


def error(a: np.ndarray, truth: np.ndarray) -> float:
    """max|a - truth| / max|truth|, in float64; infinite where a value is not finite.

    Raises:
        WeightsError: different shapes, or a truth that is zero everywhere and so judges nothing.
    """
    if a.shape != truth.shape:
        raise WeightsError(f"outputs of shapes {a.shape} and {truth.shape} can't be compared")
    b = truth.astype(np.float64)
    scale = float(np.abs(b).max())
    if scale == 0:
        raise WeightsError("the truth is zero everywhere, which judges nothing: use other weights")
    worst = float(np.abs(a.astype(np.float64) - b).max()) / scale
    return worst if np.isfinite(worst) else float("inf")


def label_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels whose largest channel is the same, for outputs N, C, H, W."""
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
