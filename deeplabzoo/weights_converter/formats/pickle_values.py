"""The inert values a pickle may build: numpy arrays, containers, and what stands for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, MappedFile, as_dtype
from deeplabzoo.weights_converter.formats._guard import Flaw, shown
from deeplabzoo.weights_converter.formats._pickle_parts import (
    NAME_LIMIT,
    Buildable,
    Callee,
    Inert,
    Stranger,
    View,
    refusal,
)

_DIMENSIONS = 32
_PAIRS_LIMIT = 1_000_000
_KINDS = {"b": "bool", "u": "uint", "i": "int", "f": "float", "c": "complex"}


class Latin1:
    """Bytes that a protocol-2 pickle keeps as text, one character a byte."""

    __slots__ = ("text",)

    def __init__(self, text: str | View) -> None:
        self.text = text


class DtypeStub(Buildable):
    """A numpy dtype of the file: a name of `_dtypes.ITEMSIZE`."""

    __slots__ = ("name",)

    def __init__(self, code: Any) -> None:
        text = code.decode("latin-1") if isinstance(code, bytes) else code
        kind, size = (text[:1], text[1:]) if isinstance(text, str) else ("", "")
        name = _KINDS.get(kind, "") + (
            str(int(size) * 8) if size.isascii() and size.isdigit() and len(size) < 3 else ""
        )
        name = "bool" if text == "b1" else name
        if name not in _dtypes.ITEMSIZE:
            raise Flaw(f"refuses a numpy array of type {shown(code)}: expected plain numbers or booleans")
        self.name = name

    def build(self, state: Any) -> None:
        """Take (version, byte order, subdtype, names, fields, itemsize, alignment, flags)."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise Flaw("refuses a structured numpy type: expected plain numbers or booleans")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", "|", "="):
            raise Flaw(f"refuses a numpy array of byte order {shown(order)}: expected little-endian")


class ArrayStub(Buildable):
    """A numpy array of the file: its shape, type and where its bytes are."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype = "uint8"
        self.fortran = False
        self.data: bytes | View | Latin1 = b""

    def build(self, state: Any) -> None:
        """Take (version, shape, dtype, is Fortran, bytes), or the same without the version."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Flaw("damaged pickle: a numpy array without its shape, type and data")
        shape, dtype, fortran, data = state[-4:]
        self.fill(data, dtype, shape, fortran=bool(fortran))

    def fill(self, data: Any, dtype: Any, shape: Any, *, fortran: bool) -> None:
        """Set all fields, checking that the data has the length that shape and type ask for."""
        if not isinstance(dtype, DtypeStub):
            raise Flaw("damaged pickle: a numpy array without a type")
        if isinstance(data, list):
            raise Flaw("refuses a numpy array of Python objects: expected plain numbers or booleans")
        if isinstance(data, str) or (isinstance(data, View) and data.text):
            data = Latin1(data)
        if not isinstance(data, bytes | View | Latin1):
            raise Flaw("damaged pickle: a numpy array without bytes")
        self.shape, self.dtype, self.fortran, self.data = checked_shape(shape), dtype.name, fortran, data
        if not isinstance(data, Latin1):  # the length of text is known when it is decoded
            self._check_length(data.length if isinstance(data, View) else len(data))

    def _check_length(self, length: int) -> None:
        needed = math.prod(self.shape) * _dtypes.ITEMSIZE[self.dtype]
        if needed != length:
            raise Flaw(f"an array of {self.dtype} {shown(self.shape)} takes {needed} bytes, the file holds {length}")

    def load(self, file: MappedFile) -> Array:
        """Return the array, backed by the file where its bytes lie there as they are."""
        data: Any = self.data
        if isinstance(data, Latin1):
            text = data.text
            if isinstance(text, View):
                text = file.piece(text.offset, text.length).tobytes().decode("utf-8")
            data = text.encode("latin-1")
            self._check_length(len(data))
        piece = file.piece(data.offset, data.length) if isinstance(data, View) else np.frombuffer(data, np.uint8)
        return as_dtype(piece, _dtypes.resolve(self.dtype)).reshape(self.shape, order="F" if self.fortran else "C")


def total_bytes(tensors: Iterable[Any]) -> int:
    """Return how many bytes tensors take, each with a `shape` and the name of a `dtype`."""
    return sum(math.prod(tensor.shape) * _dtypes.ITEMSIZE[tensor.dtype] for tensor in tensors)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """Return `shape` where it is a tuple of whole numbers.

    Raises:
        Flaw: it is something else.
    """
    if isinstance(shape, int) and not isinstance(shape, bool):
        shape = (shape,)
    if not isinstance(shape, tuple | list) or len(shape) > _DIMENSIONS:
        raise Flaw("damaged pickle: a shape that is no tuple of at most 32 numbers")
    if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise Flaw(f"impossible shape {shown(shape)}")
    return tuple(shape)


def plain_names() -> dict[str, Any]:
    """Return the names any pickle may use, and what they stand for here: containers, and numpy's arrays.

    A new table for each file, because what it lets a file do is counted.
    """
    pairs_left = _PAIRS_LIMIT

    def ordered_dict(pairs: Any = ()) -> dict[str, Any]:
        nonlocal pairs_left
        if not isinstance(pairs, list | tuple):
            raise Flaw("damaged pickle: an OrderedDict of what is no list")
        pairs_left -= len(pairs)
        if pairs_left < 0 or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise Flaw("damaged pickle: an OrderedDict of what are no pairs, or too many")
        if not all(isinstance(key, str) for key, _ in pairs):
            raise Flaw("an OrderedDict has a key that is no text")
        return dict(pairs)

    ndarray = Inert("numpy.ndarray")

    def reconstruct(kind: Any, shape: Any, code: Any) -> ArrayStub:
        if kind is not ndarray:
            raise Flaw("refuses a subclass of numpy.ndarray")
        return ArrayStub()

    def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> ArrayStub:
        array = ArrayStub()
        array.fill(data, dtype, shape, fortran=order == "F")
        return array

    def encode(text: Any, encoding: Any) -> Latin1:
        if encoding not in ("latin1", "latin-1") or not (
            isinstance(text, str) or (isinstance(text, View) and text.text)
        ):
            raise Flaw("damaged pickle: bytes kept as text that is not latin-1")
        return Latin1(text)

    def same_tuple(items: Any = ()) -> tuple[Any, ...]:
        if not isinstance(items, tuple):
            raise Flaw("damaged pickle: a tuple of what is no tuple")
        return items

    def attribute(of: Any, name: Any) -> Inert:
        # How protocol 2 says "that method of that class".
        if not isinstance(of, Stranger) or not isinstance(name, str) or len(name) > NAME_LIMIT:
            raise refusal("builtins.getattr")
        return Inert(f"{of.name}.{name}")

    table: dict[str, Any] = {"numpy.ndarray": ndarray}
    callees: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": ordered_dict,
        "builtins.tuple": same_tuple,
        "_codecs.encode": encode,
        "builtins.bytes": lambda: b"",  # how protocol 2 says b""
        "builtins.getattr": attribute,
        "numpy.dtype": lambda code, *_: DtypeStub(code),
    }
    for core in ("numpy.core", "numpy._core"):
        callees[f"{core}.multiarray._reconstruct"] = reconstruct
        callees[f"{core}.multiarray.scalar"] = _scalar
        callees[f"{core}.numeric._frombuffer"] = from_buffer
    table |= {name: Callee(name, function) for name, function in callees.items()}
    # What training scripts keep beside the tensors. Nothing of it is made: it is noted as ignored.
    for name in (
        "argparse.Namespace", "builtins.bool", "builtins.bytearray", "builtins.complex", "builtins.dict",
        "builtins.float", "builtins.frozenset", "builtins.int", "builtins.list", "builtins.object", "builtins.set",
        "builtins.slice", "builtins.str", "collections.Counter", "collections.UserDict", "collections.defaultdict",
        "collections.deque", "copyreg._reconstructor", "datetime.date", "datetime.datetime", "datetime.timedelta",
        "decimal.Decimal", "fractions.Fraction", "pathlib.PosixPath", "pathlib.WindowsPath",
        "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "types.SimpleNamespace", "typing.Any", "uuid.UUID",
    ):  # fmt: skip
        table[name] = Callee(name, lambda *_, name=name: Inert(name))
    return table


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """Return a numpy scalar as a plain number where it is one."""
    raw = data.text.encode("latin-1") if isinstance(data, Latin1) and isinstance(data.text, str) else data
    if not isinstance(dtype, DtypeStub) or not isinstance(raw, bytes) or dtype.name not in _dtypes.NATIVE:
        return Inert("numpy scalar")
    return np.frombuffer(raw, np.dtype(dtype.name).newbyteorder("<"), 1)[0].item()
