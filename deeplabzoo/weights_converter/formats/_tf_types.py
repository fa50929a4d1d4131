"""What TensorFlow's files have in common: the numbers of element types, and shapes."""

from __future__ import annotations

import math

from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._guard import Flaw, shown
from deeplabzoo.weights_converter.formats._protobuf import Bytes, fields

# tensorflow/core/framework/types.proto
DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn",
}  # fmt: skip
STRING = 7
NOT_NUMBERS = {STRING: "string", 20: "resource", 21: "variant"}
_MOST_DIMENSIONS = 32
_SHAPE_LIMIT = 4096  # bytes


def shape_of(data: Bytes) -> tuple[int, ...]:
    """Return the shape that a TensorShapeProto tells; sizes are as they stand there, so they may be impossible.

    Raises:
        Flaw: it is damaged, or has too many dimensions.
    """
    if len(data) > _SHAPE_LIMIT:
        raise Flaw(f"a shape that takes {len(data)} bytes; the limit is {_SHAPE_LIMIT}")
    sizes = []
    for field, _, inner in fields(data):
        if field == 2:
            sizes.append(next((number for kind, number, _ in fields(inner) if kind == 1), 0))
        if len(sizes) > _MOST_DIMENSIONS:
            raise Flaw(f"a shape of more than {_MOST_DIMENSIONS} dimensions")
    return tuple(sizes)


def bytes_of(label: str, dtype: int, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor takes.

    Args:
        label: the tensor, for the message.
        dtype: number of its element type.
        shape: as `shape_of` gave it.

    Raises:
        Flaw: the element type is not known, or the shape is impossible.
    """
    if dtype not in DTYPES:
        raise Flaw(f"{label}: element type {dtype} of TensorFlow is not known; known: {', '.join(DTYPES.values())}")
    if any(not 0 <= size < 2**63 for size in shape):
        raise Flaw(f"{label}: impossible shape {shown(shape)}")
    return math.prod(shape) * _dtypes.ITEMSIZE[DTYPES[dtype]]
