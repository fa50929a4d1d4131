"""The names of element types, their sizes, and the few that numpy itself does not have."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

import numpy as np

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats._checkpoint import Array
from deeplabzoo.weights_converter.formats._guard import Flaw, shown

_FOREIGN = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
NATIVE = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
ITEMSIZE = {name: np.dtype(name).itemsize for name in NATIVE} | _FOREIGN


def resolve(name: str) -> np.dtype[Any]:
    """Return the little-endian numpy dtype called `name`, one of `ITEMSIZE`.

    Raises:
        Flaw: the type needs `ml_dtypes` and it is not installed.
    """
    if name in _FOREIGN:
        try:
            # Imported here, because most checkpoints do without.
            foreign: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        except ImportError:
            raise Flaw(f"holds {name}, which numpy does not have by itself: pip install ml_dtypes") from None
        return foreign
    return _little(np.dtype(name))


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    # Through the code, because newbyteorder leaves "<" in a type where "=" says the same and is what others compare with.
    return np.dtype(f"<{dtype.str[1:]}")


def checked(name: str, value: object, legal: Collection[str], format_name: str) -> Array:
    """Return a tensor to be written, as it is.

    Args:
        name: the tensor's name, for the message.
        value: the array, of any shape.
        legal: names of the element types that the format can hold.
        format_name: the format's name, for the message.

    Raises:
        OutputError: `value` is no array, or of a type the format can't hold.
    """
    if not isinstance(value, np.ndarray):
        raise OutputError(f"tensor {shown(name)!r}: expected a numpy array, got {type(value).__name__}")
    if value.dtype.name not in legal:
        raise OutputError(
            f"tensor {shown(name)!r}: format {format_name} can't hold {value.dtype}; it holds {', '.join(legal)}"
        )
    return value


def contiguous(name: str, value: object, legal: Collection[str], format_name: str) -> Array:
    """Return a tensor to be written, C-contiguous and little-endian, copied only where it is not already.

    Arguments and errors are those of `checked`.
    """
    array = checked(name, value, legal, format_name)
    dtype = array.dtype if array.dtype.name in _FOREIGN else _little(array.dtype)
    return np.asarray(array, dtype=dtype, order="C")  # unlike np.ascontiguousarray it leaves 0-d as it is


def raw(array: Array) -> memoryview:
    """Return the bytes of a C-contiguous array without copying them."""
    return array.reshape(-1).view(np.uint8).data
