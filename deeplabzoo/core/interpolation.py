"""Bilinear interpolation as a matrix: one definition for every backend."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def interpolation_matrix(source: int, target: int, *, align_corners: bool) -> npt.NDArray[np.float64]:
    """Matrix that resamples one axis from `source` to `target` points linearly.

    Resizing a map x of shape (h, w) is `A @ x @ B.T` with A for the height and B for the width. Target point i reads
    the source at `i * (source - 1) / (target - 1)` with `align_corners` (0 where the target has one point), else at
    `(i + 0.5) * source / target - 0.5`, cut to the range [0, source - 1]. This is what PyTorch, ONNX
    (`align_corners`, `half_pixel`) and TensorFlow (`compat.v1` with `align_corners`, v2 `tf.image.resize`) compute
    without antialiasing.

    Args:
        source: points read, at least 1.
        target: points made, at least 1.
        align_corners: whether the outermost points of both grids coincide.

    Returns:
        float64 array [target, source]; each row sums to 1.

    Raises:
        ValueError: a size below 1.
    """
    if source < 1 or target < 1:
        raise ValueError(f"interpolation needs sizes of at least 1, received source={source}, target={target}")
    index = np.arange(target, dtype=np.float64)
    if not align_corners:
        at = np.clip((index + 0.5) * source / target - 0.5, 0, source - 1)
    elif target > 1:
        at = index * (source - 1) / (target - 1)
    else:
        at = np.zeros(1)
    low = np.minimum(np.floor(at).astype(np.intp), source - 1)
    high = np.minimum(low + 1, source - 1)
    share = at - low
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, high), share)
    return matrix
