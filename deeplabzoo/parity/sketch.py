"""What a golden keeps of large arrays: outputs on a grid and by digest, gradients by norm and sum."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from deeplabzoo.core.graph import Graph
from deeplabzoo.core.training import INPUT, trainable
from deeplabzoo.errors import WeightsError
from deeplabzoo.parity.cases import Case
from deeplabzoo.parity.compare import FRACTION
from deeplabzoo.parity.judge import LOSS

GRID = 24
"""Most points of a grid along height or width."""
_GRID_VALUES = 4096
"""Most values of a grid over all images and channels, as long as it keeps its four corners."""

Grid = tuple[tuple[int, ...], tuple[int, ...]]
"""Rows and columns."""


@dataclass(frozen=True)
class Output:
    """What is kept of an output.

    Attributes:
        grid: values on the grid, N, C, rows, columns, in the side's dtype.
        digest: of the whole.
        labels: digest of the largest channel of every pixel.
    """

    grid: np.ndarray
    digest: str
    labels: str


@dataclass(frozen=True)
class Gradients:
    """What is kept of gradients, in the order of `gradient_sizes`.

    Attributes:
        loss: see `core.training`.
        norms: Euclidean norm of the gradient by each parameter and by the image, float64.
        sums: of the same gradients, float64.
    """

    loss: float
    norms: np.ndarray
    sums: np.ndarray


def gradient_sizes(graph: Graph, case: Case) -> dict[str, int]:
    """How many numbers the gradients by each parameter, in canonical order, and by the image have."""
    sizes = {name: math.prod(shape) for name, shape in graph.parameters().items() if trainable(name)}
    return {**sizes, INPUT: math.prod(graph.shapes(case.height, case.width, case.batch)[graph.input.name])}


def grid_of(shape: tuple[int, ...]) -> Grid:
    """Rows and columns that are kept of an output N, C, H, W: evenly spread, with all four borders."""
    most = max(2, min(GRID, math.isqrt(_GRID_VALUES // (shape[0] * shape[1]))))
    rows, columns = (_spread(side, min(side, most)) for side in shape[2:])
    return rows, columns


def _spread(side: int, count: int) -> tuple[int, ...]:
    """Places from 0 to `side` - 1: the same in every version of numpy, because a golden is believed with these alone."""
    step = (side - 1) / max(count - 1, 1)
    return tuple(round(place * step) for place in range(count))


def sketch_outputs(outputs: Mapping[str, np.ndarray], grids: Mapping[str, Grid]) -> dict[str, Output]:
    """What is kept of outputs by name, N, C, H, W."""
    return {
        name: Output(
            outputs[name][:, :, rows][:, :, :, columns],
            digest_of([outputs[name]]),
            digest_of([outputs[name].argmax(axis=1).astype(np.int32)]),
        )
        for name, (rows, columns) in grids.items()
    }


def sketch_gradients(found: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> Gradients:
    """What is kept of gradients by name, `judge.LOSS` among them; all of it is computed in float64."""
    exact = [found[name].astype(np.float64).reshape(-1) for name in sizes]
    return Gradients(
        float(found[LOSS]),
        np.array([np.linalg.norm(values) for values in exact]),
        np.array([values.sum() for values in exact]),
    )


def norm_errors(found: Gradients, truth: Gradients, sizes: Mapping[str, int]) -> dict[str, float]:
    """The larger of |norm - norm'| / norm' and |sum - sum'| / (norm' * sqrt(size)) by name.

    In place of a smaller norm' stands that of a gradient whose root mean square is `FRACTION` of the largest one of all
    gradients, because a true gradient may be zero. The loss, of a scale of its own, is judged by its relative error.

    Raises:
        WeightsError: a truth of zeros judges nothing.
    """
    roots = np.sqrt(list(sizes.values()))
    scale = np.maximum(truth.norms, FRACTION * (truth.norms / roots).max() * roots)
    if not scale.all() or not truth.loss:
        raise WeightsError("all gradients or the loss are zero, which judges nothing: use other weights or labels")
    norms, sums = np.abs(found.norms - truth.norms) / scale, np.abs(found.sums - truth.sums) / (scale * roots)
    errors = [abs(found.loss - truth.loss) / abs(truth.loss), *np.maximum(norms, sums)]
    finite = np.nan_to_num(errors, nan=np.inf)
    return dict(zip((LOSS, *sizes), map(float, finite), strict=True))


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over dtypes, shapes and values, little endian."""
    total = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        total.update(f"{plain.dtype.str} {array.shape}\n".encode())
        total.update(plain.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
