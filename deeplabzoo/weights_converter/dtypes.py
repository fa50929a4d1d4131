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
    vanished: list[str] = []
    for row in rows:
        if row.foreign not in tensors:
            continue
        array = tensors[row.foreign]
        if array.dtype == wanted or array.dtype.kind not in "fV":
            makers[row.foreign] = lambda name=row.foreign: tensors[name]  # type: ignore[misc]
            continue
        makers[row.foreign] = lambda name=row.foreign: cast_array(tensors[name], wanted)  # type: ignore[misc]
        if _narrows(array.dtype, wanted):
            made = cast_array(array, wanted)
            if np.isinf(made).sum() > np.isinf(array).sum():
                infinite.append(row.foreign)
            if (made == 0).sum() > (array == 0).sum():
                vanished.append(row.foreign)
        how = f"{row.transform}, {array.dtype} -> {dtype}"
        changed[row.foreign] = LedgerRow(row.foreign, row.shape, dtype, how, row.canonical)
    notes = [
        f"{dtype} can't hold values of {', '.join(names[:6])}"
        + (f" and {len(names) - 6} more tensors" if len(names) > 6 else "")
        + f": they became {what}"
        for names, what in ((infinite, "infinite"), (vanished, "zero"))
        if names
    ]
    return LazyWeights(makers), [changed.get(row.foreign, row) for row in rows], notes


def _narrows(old: np.dtype[Any], new: np.dtype[Any]) -> bool:
    """Whether `new` reaches less far up or down than `old`; bfloat16 and float16 have two bytes and other ends."""
    before, after = ml_dtypes.finfo(old), ml_dtypes.finfo(new)
    return bool(after.max < before.max or after.smallest_subnormal > before.smallest_subnormal)


def cast_array(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """One tensor in another type, rounded to the nearest, ties to even; what is too large becomes infinite."""
    with np.errstate(over="ignore"):  # told of in the notes
        return array.astype(dtype)
