"""Canonical weights: numpy arrays by parameter name, convolutions O, I / groups, kH, kW.

Names are node names with `.weight`, `.bias`, `.running_mean`, `.running_var`. `.num_batches_tracked` (int64) beside a
batch norm is optional: torch layouts keep it, everything else ignores it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from deeplabzoo.core.graph import Graph
from deeplabzoo.core.ops import BatchNorm
from deeplabzoo.errors import WeightsError

Weights = Mapping[str, np.ndarray]

_FLOATS = "fV"
"""Kinds of dtype that weights have; `V` is bfloat16, which numpy does not know by itself."""
_REAL = _FLOATS + "iu"
"""Kinds of dtype that hold real numbers."""


def plain(array: np.ndarray) -> np.ndarray:
    """The array in a type that every numpy and every framework reads: native byte order, bfloat16 widened to float32.

    Widening loses nothing.

    Raises:
        WeightsError: no real numbers.
    """
    array = np.asarray(array)
    if array.dtype.kind not in _REAL + "b":
        raise WeightsError(f"an array of {array.dtype}: expected real numbers")
    if array.dtype.kind == "V" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        return array.astype(np.float32 if array.dtype.kind == "V" else np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether weights can be of a type: whole numbers are quantised ones, and their scale is not there."""
    return dtype.kind in _FLOATS and (dtype.kind == "f" or "float" in dtype.name)


def counters(graph: Graph) -> list[str]:
    """Names of the optional `num_batches_tracked` tensors."""
    return [f"{node.name}.num_batches_tracked" for node in graph.nodes if isinstance(node.op, BatchNorm)]


def check_weights(graph: Graph, weights: Weights) -> None:
    """Every parameter of the graph must be there with its shape, and nothing else.

    Raises:
        WeightsError: lists missing, unexpected and misshapen tensors, each sorted, and names the first cause.
    """
    shapes = graph.parameters()
    missing = sorted(shapes.keys() - weights.keys())
    unexpected = sorted(weights.keys() - shapes.keys() - set(counters(graph)))
    wrong = []
    for name, shape in sorted(shapes.items()):
        if name not in weights:
            continue
        array = weights[name]  # once: the mapping may be lazy
        if tuple(array.shape) != shape:
            wrong.append(f"{name} {tuple(array.shape)}, expected {shape}")
        elif not is_float(array.dtype):
            wrong.append(f"{name} of {array.dtype}, expected floating point: quantised weights have no scale here")
    if missing or unexpected or wrong:
        first = missing[:1] or wrong[:1] or unexpected[:1]
        raise WeightsError(
            f"the weights do not fit the architecture, first {first[0]}: "
            + "; ".join(
                f"{len(names)} {what} ({_shorten(names)})"
                for what, names in (("missing", missing), ("of the wrong shape", wrong), ("unexpected", unexpected))
                if names
            )
        )


def seeded_weights(
    graph: Graph, seed: int = 0, *, statistics: Literal["fresh", "lively"] = "fresh", dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Random weights that depend on the seed and each name alone, so that every backend starts from the same ones.

    Kernels are normal with standard deviation sqrt(2 / fan-in) (He et al. 2015), drawn in float64.

    Args:
        graph: what the weights are for.
        seed: any non-negative integer.
        statistics: `fresh` for training (scales and variances 1, biases and means 0), or `lively` for parity checks:
            scales in [0.5, 1), variances in [0.5, 1.5), biases and means normal * 0.1, so that a swap would show.
        dtype: of the arrays.

    Raises:
        WeightsError: a negative seed.
    """
    if seed < 0:
        raise WeightsError(f"seed {seed}: expected a whole number of at least 0")
    weights = {}
    for node in graph.nodes:
        for name, shape in node.parameters().items():
            random = np.random.default_rng([seed, zlib.crc32(name.encode())])
            weights[name] = _draw(
                random, name.rsplit(".", 1)[1], shape, isinstance(node.op, BatchNorm), statistics == "lively"
            ).astype(dtype)
    return weights


def classifier_names(graph: Graph) -> list[str]:
    """Parameters whose shape follows the number of classes: the classifier's and the auxiliary classifier's."""
    return [name for name in graph.parameters() if name.startswith(("classifier.", "aux.classifier."))]


def _draw(random: np.random.Generator, suffix: str, shape: tuple[int, ...], norm: bool, lively: bool) -> np.ndarray:
    if suffix == "weight" and not norm:
        return random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    if suffix in ("weight", "running_var"):
        high = 1.0 if suffix == "weight" else 1.5
        return random.uniform(0.5, high, shape) if lively else np.ones(shape)
    return random.standard_normal(shape) * 0.1 if lively else np.zeros(shape)


def _shorten(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
