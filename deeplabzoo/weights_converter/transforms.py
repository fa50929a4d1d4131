"""Transforms between a foreign tensor and a canonical one, each with its exact inverse; both are views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """A reversible rearrangement of one tensor.

    Attributes:
        name: what the ledger prints, `foreign -> canonical`.
        forward: foreign to canonical.
        inverse: canonical to foreign.
    """

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


IDENTITY = Transform("as is", lambda a: a, lambda a: a)
HWIO = Transform("HWIO -> OIHW", lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0))


def _from_hwcm(a: np.ndarray) -> np.ndarray:
    height, width, channels, multiplier = a.shape
    return a.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)


def depthwise(channels: int) -> Transform:
    """TensorFlow's depthwise kernel H, W, C, M to C * M, 1, H, W, for C input channels."""

    def inverse(a: np.ndarray) -> np.ndarray:
        return a.reshape(channels, -1, *a.shape[2:]).transpose(2, 3, 0, 1)

    return Transform("HWCM -> (C*M)1HW", _from_hwcm, inverse)
