"""Casting the tensors of a conversion to another element type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from deeplabzoo.errors import WeightsError, unknown
from deeplabzoo.weights_converter.ledger import LazyWeights, LedgerRow

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def check_dtype(name: str) -> None:
    """`WeightsError` where `name` is none of `DTYPES`."""
    if name not in DTYPES:
        raise WeightsError(unknown("dtype", name, DTYPES))


def cast(tensors: LazyWeights, rows: list[LedgerRow], dtype: str) -> tuple[LazyWeights, list[LedgerRow], list[str]]:
    """Tensors of real numbers in another type, the ledger that says so, and a note where values were lost.

    Rounding is to the nearest, ties to even. Whole numbers (counters) stay as they are.

    Args:
        tensors: by name.
        rows: their ledger.
        dtype: one of `DTYPES`.
    """
    wanted = DTYPES[dtype]
    makers: dict[str, Callable[[], np.ndarray]] = {}
    changed: dict[str, LedgerRow] = {}
    infinite: list[str] = []
    for row in rows:
        if row.foreign not in tensors:
            continue
        array = tensors[row.foreign]
        if array.dtype == wanted or array.dtype.kind not in "fV":
            makers[row.foreign] = lambda name=row.foreign: tensors[name]  # type: ignore[misc]
            continue
        makers[row.foreign] = lambda name=row.foreign: _cast(tensors[name], wanted)  # type: ignore[misc]
        if wanted.itemsize < array.dtype.itemsize and np.isinf(_cast(array, wanted)).sum() > np.isinf(array).sum():
            infinite.append(row.foreign)
        how = f"{row.transform}, {array.dtype} -> {dtype}"
        changed[row.foreign] = LedgerRow(row.foreign, row.shape, dtype, how, row.canonical)
    notes = []
    if infinite:
        notes.append(f"{dtype} can't hold values of {', '.join(infinite[:6])}: they became infinite")
    return LazyWeights(makers), [changed.get(row.foreign, row) for row in rows], notes


def _cast(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    with np.errstate(over="ignore"):  # told of in the notes
        return array.astype(dtype)
