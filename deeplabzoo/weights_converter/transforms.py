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


def depthwise(channels: int) -> Transform:
    """TensorFlow's depthwise kernel H, W, C, M to C * M, 1, H, W, for C input channels.

    `forward` raises `ValueError` for a kernel of another number of channels.
    """

    def forward(a: np.ndarray) -> np.ndarray:
        height, width, own, multiplier = a.shape
        if own != channels:  # as many kernels, but each for another channel
            raise ValueError(f"a depthwise kernel of {own} channels, expected {channels}")
        return a.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)

    def inverse(a: np.ndarray) -> np.ndarray:
        return a.reshape(channels, -1, *a.shape[2:]).transpose(2, 3, 0, 1)

    return Transform("HWCM -> (C*M)1HW", forward, inverse)
