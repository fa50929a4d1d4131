"""What counts as equal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deeplabzoo.core.training import trainable
from deeplabzoo.errors import WeightsError

BOUNDS = {"float64": 1e-11, "float32": 2e-5, "float16": 2e-2, "bfloat16": 1.2e-1}
"""Largest allowed error by dtype: float64 outputs of two backends, others against the float64 truth.

Those of half precision are twice the largest error of any preset, as `benchmarks/half.py` measured it; see docs/gpu.md.
"""

GRADIENT_BOUNDS = {"float64": 1e-9, "float32": 5e-2}
"""The same for gradients in evaluation mode, by the rule of `gradient_errors`.

In float32 most are within 1e-5, but one activation next to zero that changes sides moves gradients by some 1e-2.
"""

TRAINING_BOUNDS = {"float64": 1e-8, "float32": 3e-1}
"""The same for losses, parameters and running statistics after training steps.

In float32 a step of this size is near the last bit of a parameter, so that what it moved is known to some 1e-1; that no
step was taken, or one of twice the size, is an error of 1.
"""

ONE_STEP_BOUNDS = {"float64": 1e-9, "float32": 3e-1}
"""The same after one step."""

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
    return _ratio(_largest_difference(a, truth), scale)


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
    return {name: _ratio(_largest_difference(found[name], truth[name]), max(largest[name], floor)) for name in truth}


def training_errors(found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """max|a - b| / max|b| of every parameter and running statistic; against `FRACTION` of the largest where b is tiny."""
    largest = {name: float(np.abs(array).max()) for name, array in truth.items()}
    kinds = {name: trainable(name) for name in truth}
    floors = {
        kind: FRACTION * max(size for name, size in largest.items() if kinds[name] == kind)
        for kind in {*kinds.values()}
    }
    return {
        name: _ratio(_largest_difference(found[name], truth[name]), max(largest[name], floors[kinds[name]]))
        for name in truth
    }


def update_error(
    found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]
) -> float:
    """How wrongly the parameters moved: the norm of (a - start) - (b - start) over that of b - start, all together.

    A step is small beside the parameters, so that they alone would hardly show that none was taken.

    Args:
        found: trained parameters.
        truth: those of the referee.
        start: before the first step, as the side had them.
    """
    off = moved = 0.0
    with np.errstate(invalid="ignore", over="ignore"):  # the ratio of what is not finite is infinite
        for name in filter(trainable, truth):
            by, right = (side[name].astype(np.float64) - start[name] for side in (found, truth))
            off += float(np.square(by - right).sum())
            moved += float(np.square(right).sum())
    return _ratio(off**0.5, moved**0.5)


def label_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels whose largest channel is the same, for outputs N, C, H, W; one that is not finite agrees with none."""
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    return float((finite & (a.argmax(axis=1) == b.argmax(axis=1))).mean())


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise WeightsError(f"values of shapes {a.shape} and {b.shape} can't be compared")
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found below
        worst = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    return worst if np.isfinite(worst) else float("inf")


def _ratio(difference: float, scale: float) -> float:
    return difference / scale if scale > 0 and np.isfinite(scale) else float("inf")
