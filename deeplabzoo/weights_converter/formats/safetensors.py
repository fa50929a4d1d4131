"""safetensors: eight bytes of length, a JSON header, then the tensors' bytes one after another.

Read and written here rather than through the library of the same name, which copies every tensor and needs all of
them in memory to write. The header is believed only after every claim in it has been checked against the file.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile, as_dtype
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown

NAME = "safetensors"
_HEADER_LIMIT = 4 * 2**20  # about forty thousand tensors; a header takes twenty times its length when it is read
_METADATA = "__metadata__"
_CODES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
_BY_NAME = {name: code for code, name in _CODES.items()}


def sniff(path: Path) -> bool:
    """Tell whether `path` starts like safetensors: a length, then the brace of a JSON object."""
    start = head(path, 9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= 2**40


def read(path: Path) -> Checkpoint:
    """Read a safetensors file.

    Order is that of the header. Writers are free to reorder tensors and the library does (by element size, then by
    name), so the order says nothing about the model.

    Raises:
        FormatError: the header lies or the file is damaged; also on access of a tensor.
    """
    with reading(path, NAME):
        file = MappedFile(path)
        (length,) = struct.unpack("<Q", file.piece(0, 8).tobytes())
        if length > min(_HEADER_LIMIT, file.size - 8):
            raise Flaw(f"the header claims {length} bytes; the file has {file.size}, the limit is {_HEADER_LIMIT}")
        header = _parse(file.piece(8, length).tobytes())
        metadata = _metadata(header.pop(_METADATA, {}))
        entries = {name: _entry(name, value) for name, value in header.items()}
        _check_offsets(entries, file.size - 8 - length)

        def load(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> Array:
            return as_dtype(file.piece(8 + length + begin, end - begin), _dtypes.resolve(dtype)).reshape(shape)

        loaders = {name: lambda entry=entry: load(*entry) for name, entry in entries.items()}
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, metadata)


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    Tensors are laid out by descending element size, in the given order within a size, so that each one is aligned;
    what needs the given order must keep it in the metadata. The mapping is gone through twice: shapes, then data.

    Args:
        path: the file; replaced where it exists.
        tensors: name -> array of any shape and of a type safetensors has.
        metadata: text -> text, stored under `__metadata__`.

    Raises:
        OutputError: a name, a type or the metadata can't be stored.
    """
    header: dict[str, Any] = {}
    sizes = {name: _plan(name, value) for name, value in tensors.items()}
    offset = 0
    for name in sorted(sizes, key=lambda name: -_dtypes.ITEMSIZE[sizes[name][0]]):
        dtype, shape = sizes[name]
        end = offset + math.prod(shape) * _dtypes.ITEMSIZE[dtype]
        header[name] = {"dtype": _BY_NAME[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    start = _start(metadata or {}, header)
    with path.open("wb") as file:
        file.write(start)
        for name in header:
            array = _dtypes.contiguous(name, tensors[name], _BY_NAME, NAME)
            if (array.dtype.name, array.shape) != sizes[name]:
                raise OutputError(f"tensor {shown(name)!r} changed between two looks at it")
            file.write(_dtypes.raw(array))


def write_with_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy a safetensors file with other metadata, its tensors byte for byte in their order.

    Raises:
        FormatError: the source is damaged.
        OutputError: the metadata can't be stored.
    """
    read(source)  # believes nothing, and says what is wrong
    with source.open("rb") as old, target.open("wb") as new:
        (length,) = struct.unpack("<Q", old.read(8))
        header = _parse(old.read(length))
        header.pop(_METADATA, None)
        new.write(_start(metadata, header))
        shutil.copyfileobj(old, new)


def _start(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> bytes:
    """Length and header, padded so that the tensors begin at a multiple of eight."""
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise OutputError("metadata of safetensors must be text -> text; turn other values into text first")
    header = {**({_METADATA: dict(metadata)} if metadata else {}), **tensors}
    # Names are text of any kind; ASCII escapes keep lone surrogates out of the UTF-8.
    encoded = json.dumps(header, separators=(",", ":")).encode("ascii")
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _HEADER_LIMIT:
        raise OutputError(f"the header takes {len(encoded)} bytes; the limit is {_HEADER_LIMIT}")
    return struct.pack("<Q", len(encoded)) + encoded


def _plan(name: str, value: Array) -> tuple[str, tuple[int, ...]]:
    if name == _METADATA:
        raise OutputError(f"a tensor can't be called {_METADATA!r} in safetensors; rename it")
    return _dtypes.checked(name, value, _BY_NAME, NAME).dtype.name, value.shape


def _parse(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise Flaw("the header holds a name twice")
        return result

    header = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise Flaw(f"the header is a JSON {type(header).__name__}; expected an object")
    return header


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Flaw(f"{_METADATA} in the header is not text -> text")
    return value


def _entry(name: str, value: object) -> tuple[str, tuple[int, ...], int, int]:
    label = f"tensor {shown(name)!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Flaw(f"{label}: expected dtype, shape and data_offsets in the header")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in _CODES:
        raise Flaw(f"{label}: unknown dtype {shown(code)}; known: {', '.join(_CODES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise Flaw(f"{label}: shape and data_offsets must be lists of whole numbers, got {shown(numbers)}")
    if len(shape) > 32 or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Flaw(f"{label}: impossible shape {shown(shape)} or data_offsets {shown(offsets)}")
    begin, end = offsets
    needed = math.prod(shape) * _dtypes.ITEMSIZE[_CODES[code]]
    if needed != end - begin:
        raise Flaw(f"{label}: {code} of shape {shown(shape)} takes {needed} bytes, data_offsets give {end - begin}")
    return _CODES[code], tuple(shape), begin, end


def _check_offsets(entries: Mapping[str, tuple[str, tuple[int, ...], int, int]], available: int) -> None:
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            kind = "overlaps the one before it" if begin < position else "leaves a hole before it"
            raise Flaw(f"tensor {shown(name)!r} {kind}: it starts at byte {begin}, expected {position}")
        position = end
    if position != available:
        raise Flaw(f"truncated or overlong: tensors take {position} bytes, the file has {available} after the header")
