"""ONNX's TensorProto: a tensor's name, type and shape, and the five ways to store its values."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, MappedFile, as_dtype
from deeplabzoo.weights_converter.formats._guard import Flaw, shown
from deeplabzoo.weights_converter.formats._protobuf import Field, Walk, varints

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    19: "float8_e5m2",
}  # fmt: skip
FLOATS = ("float32", "float64", "float16", "bfloat16")
_TEXT = 8
_RAW, _EXTERNAL = 9, 13
# Fields of values as they are; elsewhere they are variable-length numbers, one an element.
_FIXED = {4: ("float32", "complex64"), 10: ("float64", "complex128")}
_VARIABLE = {7: ("int64",), 11: ("uint32", "uint64")}
_SMALL = 5
_BITS = {"float16": "uint16", "bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


@dataclasses.dataclass
class Tensor:
    """A tensor of a model: where its values lie, not the values.

    Attributes:
        name: in the graph.
        code: ONNX's number of the element type.
        shape: checked by `loader`.
        values: the parts of its values in the file, in order.
        external: what is said of another file that has the values.
    """

    name: str = ""
    code: int = 0
    shape: tuple[int, ...] = ()
    values: list[Field] = dataclasses.field(default_factory=list)
    external: dict[str, str] = dataclasses.field(default_factory=dict)
    is_external: bool = False

    @property
    def dtype(self) -> str:
        """Name of the element type, empty where it is not known."""
        return _DTYPES.get(self.code, "")

    @property
    def size(self) -> int:
        """Bytes of its values in memory, of a known type."""
        return math.prod(self.shape) * _dtypes.ITEMSIZE[self.dtype]

    @property
    def is_text(self) -> bool:
        """Whether it holds words."""
        return self.code == _TEXT


def read_tensor(walk: Walk, span: Field) -> Tensor:
    """Read what the message says of a tensor, none of its values.

    Raises:
        Flaw: the message is damaged.
    """
    tensor, shape = Tensor(), []
    for field in walk.fields(span.begin, span.end):
        if field.field == 1:
            shape += walk.numbers(field)
        elif field.field == 2:
            tensor.code = field.number
        elif field.field == 3:
            raise Flaw("holds a tensor in segments, which ONNX has given up; export the model again")
        elif field.field == 8:
            tensor.name = walk.text(field)
        elif field.field == _EXTERNAL and field.wire == 2:
            pair = {inner.field: walk.text(inner) for inner in walk.fields(field.begin, field.end)}
            tensor.external[pair.get(1, "")] = pair.get(2, "")
        elif field.field == 14:
            tensor.is_external = field.number == 1
        elif field.field in (_RAW, _SMALL, *_FIXED, *_VARIABLE):
            tensor.values.append(field)
    tensor.shape = tuple(shape)
    return tensor


def loader(path: Path, file: MappedFile, tensor: Tensor, beside: dict[str, MappedFile]) -> Callable[[], Array]:
    """Check everything a tensor claims and return what reads its values.

    Args:
        path: of the model.
        file: the model.
        tensor: the tensor.
        beside: files beside the model that are in use, by name; a new one is added.

    Raises:
        Flaw: its type is not known, its shape impossible, its values are not as many as the shape asks for, or they
            lie where they must not.
    """
    label = f"tensor {shown(tensor.name)!r}"
    if not tensor.dtype:
        raise Flaw(f"{label}: element type {tensor.code} of ONNX is not known; known: {', '.join(_DTYPES.values())}")
    if len(tensor.shape) > 32 or any(not 0 <= size < 2**63 for size in tensor.shape):
        raise Flaw(f"{label}: impossible shape {shown(tensor.shape)}")
    count, needed = math.prod(tensor.shape), tensor.size
    if tensor.is_external:
        begin, end = _place(tensor.external, needed, label)
        file = _file(path, tensor.external.get("location", ""), beside, label)
        if end > file.size:
            raise Flaw(f"truncated: {label} ends at byte {end} of {file.path.name}, which has {file.size}")
        return functools.partial(_view, file, tensor, begin, end)
    kinds = {field.field for field in tensor.values}
    if len(kinds) > 1:
        raise Flaw(f"{label}: its values are stored in several ways")
    kind = kinds.pop() if kinds else _RAW
    given = sum(field.end - field.begin for field in tensor.values)
    legal = {**_FIXED, **_VARIABLE, _RAW: (tensor.dtype,)}.get(kind)
    if legal is None:  # the field of small numbers takes every type that has no field of its own
        legal = tuple(set(_DTYPES.values()).difference(*_FIXED.values(), *_VARIABLE.values()))
    if tensor.dtype not in legal or (kind == _RAW and len(tensor.values) > 1):
        raise Flaw(f"{label}: {tensor.dtype} can't be stored in field {kind}")
    if kind in (_RAW, *_FIXED):
        if given != needed:
            raise Flaw(f"{label}: {tensor.dtype} of shape {shown(tensor.shape)} takes {needed} bytes, it has {given}")
        if len(tensor.values) <= 1:
            begin = tensor.values[0].begin if tensor.values else 0
            return functools.partial(_view, file, tensor, begin, begin + needed)
    elif not count <= given <= 10 * count:
        raise Flaw(f"{label}: shape {shown(tensor.shape)} takes {count} numbers, {given} bytes can't hold them")
    return functools.partial(_joined, file, tensor, kind)


def _view(file: MappedFile, tensor: Tensor, begin: int, end: int) -> Array:
    return as_dtype(file.piece(begin, end - begin), _dtypes.resolve(tensor.dtype)).reshape(tensor.shape)


def _joined(file: MappedFile, tensor: Tensor, kind: int) -> Array:
    """The values of a tensor in several parts, or in variable-length numbers."""
    dtype = _dtypes.resolve(tensor.dtype)
    first = tensor.values[0].begin if tensor.values else 0
    last = tensor.values[-1].end if tensor.values else 0
    piece = file.piece(first, last - first)
    parts = [piece[field.begin - first : field.end - first] for field in tensor.values]
    data: npt.NDArray[np.uint8] = np.concatenate([np.empty(0, np.uint8), *parts])
    if kind in _FIXED:
        return data.view(dtype).reshape(tensor.shape)
    numbers = varints(data, math.prod(tensor.shape))
    if tensor.dtype in _BITS:
        return numbers.astype(_BITS[tensor.dtype]).view(dtype).reshape(tensor.shape)
    return numbers.astype(dtype).reshape(tensor.shape)


def _place(external: dict[str, str], needed: int, label: str) -> tuple[int, int]:
    """First byte and end of a tensor in its file."""
    said = {}
    for key, usual in (("offset", "0"), ("length", str(needed))):
        text = external.get(key, usual)
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise Flaw(f"{label}: {key} of its external data is {shown(text)!r}; expected a whole number")
        said[key] = int(text)
    if said["length"] != needed:
        raise Flaw(f"{label}: its shape takes {needed} bytes, its external data have {said['length']}")
    return said["offset"], said["offset"] + needed


def _file(path: Path, location: str, beside: dict[str, MappedFile], label: str) -> MappedFile:
    """The file beside the model that has a tensor's values, and no file elsewhere."""
    if location not in beside:
        if location in ("", ".", "..") or any(letter in location for letter in "/\\:\0"):
            raise Flaw(
                f"{label}: its external data are said to be in {shown(location)!r}; expected the name of a file in the "
                "folder of the model"
            )
        other = path.parent / location
        if not other.is_file():
            raise Flaw(
                f"{label}: its external data are in {shown(location)!r}, which is missing; put it beside the model"
            )
        if other.resolve().parent != path.parent.resolve():
            raise Flaw(
                f"{label}: {shown(location)!r} is a link that leaves the folder of the model; copy the file itself"
            )
        beside[location] = MappedFile(other)
    return beside[location]
