"""NumPy's .npz: a zip archive of .npy arrays. Arrays of Python objects, which are pickles, are refused."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats import _dtypes, _zip
from deeplabzoo.weights_converter.formats._checkpoint import (
    Array,
    Checkpoint,
    LazyTensors,
    MappedFile,
    as_dtype,
    check_sharing,
    checksum,
)
from deeplabzoo.weights_converter.formats._guard import Flaw, reading, shown

NAME = "npz"
_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_HEADER_LIMIT = 10_000  # numpy's own
_EXPANSION_LIMIT = 1100  # deflate reaches about 1030:1
_KINDS = {"b": "bool", "u": "uint", "i": "int", "f": "float", "c": "complex"}
# What numpy writes, and those that write like it. Only one way leads through it: a comma must stand between two sizes.
_HEADER = re.compile(
    r"\{\s*'descr':\s*'([<>|=])([a-zA-Z])(\d{1,3})',\s*'fortran_order':\s*(True|False),"
    r"\s*'shape':\s*\(((?:\d{1,19}L?,\s*){0,32}(?:\d{1,19}L?)?)\),?\s*\}\s*"
)
# numpy has no bfloat16: it would come back as two bytes of no type.
_LEGAL = _dtypes.NATIVE


@dataclasses.dataclass(frozen=True, slots=True)
class _Header:
    """What a .npy says of its array."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    length: int  # bytes before the data


def sniff(path: Path) -> bool:
    """Tell whether `path` is a zip archive of nothing but .npy."""
    names = _zip.names(path)
    return bool(names) and all(name.endswith(_SUFFIX) for name in names)


def read(path: Path) -> Checkpoint:
    """Read a .npz file.

    Order is that of the archive. Arrays of an archive that is not compressed are memory-mapped; compressed ones are
    unpacked on access. The check sum of an array is compared on its first access. Big-endian arrays are turned.

    Raises:
        FormatError: damaged, or an array of objects, text or fields; also on access of a tensor.
    """
    with reading(path, NAME):
        file = MappedFile(path)
        headers: dict[str, tuple[_zip.Entry, _Header]] = {}
        for name, info in _zip.directory(path).items():
            _check_name(name)
            entry = _zip.place(file, info)
            headers[name.removesuffix(_SUFFIX)] = entry, _header(file, entry)
        check_sharing(sum(entry.size for entry, _ in headers.values()), file.size)
        checked: set[str] = set()

        def load(name: str) -> Array:
            entry, header = headers[name]
            if entry.deflated:
                data = np.frombuffer(_zip.whole(file, entry, entry.size), np.uint8)[header.length :]
            else:
                whole = file.piece(entry.offset, entry.size)
                if name not in checked and entry.checksum is not None and checksum(zlib.crc32, whole) != entry.checksum:
                    raise Flaw(f"array {shown(name)!r} is damaged (its check sum differs); get the file again")
                data = whole[header.length :]
            checked.add(name)
            array = as_dtype(data, header.dtype).reshape(header.shape, order="F" if header.fortran else "C")
            return array.astype(array.dtype.newbyteorder("="), copy=False)

        loaders = {name: lambda name=name: load(name) for name in headers}
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME)


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .npz file, uncompressed, one tensor in memory at a time; `np.load(path, allow_pickle=False)` reads it.

    The same input gives the same bytes.

    Args:
        path: the file; replaced where it exists.
        tensors: name -> array of any shape and of a type numpy has itself.
        metadata: must be empty: the format has no place for it.

    Raises:
        OutputError: a name or a type (bfloat16 among them) that the format can't hold, or metadata.
    """
    if metadata:
        raise OutputError("format npz has no place for metadata; leave it out, or write safetensors")
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in tensors:
            value = tensors[name]
            try:
                _check_name(f"{name}{_SUFFIX}")
                name.encode()
            except (Flaw, UnicodeEncodeError):
                raise OutputError(f"tensor {shown(name)!r} can't be called so in a .npz; rename it") from None
            if getattr(value, "dtype", None) == "bfloat16":
                raise OutputError(
                    f"tensor {shown(name)!r}: numpy has no bfloat16; write it with dtype float32, or as safetensors"
                )
            array = _dtypes.contiguous(name, value, _LEGAL, NAME)
            shape = "".join(f"{size}, " for size in array.shape)
            text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': ({shape}), }}"
            padding = -(len(_MAGIC) + 4 + len(text) + 1) % 64
            text += " " * padding + "\n"
            header = _MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode("ascii")
            _zip.add(archive, f"{name}{_SUFFIX}", header, _dtypes.raw(array))


def _check_name(name: str) -> None:
    """Refuse a name that would lead out of the folder where somebody else unpacks the archive."""
    parts = name.split("/")
    if name == _SUFFIX or ".." in parts or not parts[0] or "\\" in name or "\0" in name:
        raise Flaw(f"refuses entry {shown(name)!r}: its name leads elsewhere, or is no name")


def _header(file: MappedFile, entry: _zip.Entry) -> _Header:
    label = f"array {shown(entry.name)!r} of the NumPy archive"
    start = _zip.start(file, entry, 12 + _HEADER_LIMIT)
    if start[:6] != _MAGIC or start[6:7] not in {b"\1", b"\2", b"\3"}:
        raise Flaw(f"{label} is no .npy of version 1 to 3")
    layout = "<H" if start[6] == 1 else "<I"
    begin = 8 + struct.calcsize(layout)
    (length,) = struct.unpack(layout, start[8:begin])
    if length > _HEADER_LIMIT or begin + length > entry.size:
        raise Flaw(f"{label} claims a header of {length} bytes; the limit is {_HEADER_LIMIT}")
    text = start[begin : begin + length].decode("latin-1")
    found = _HEADER.fullmatch(text)
    if found is None:
        raise Flaw(f"{label} holds objects, fields or is damaged: expected plain numbers, its header is {shown(text)}")
    order, kind, digits, fortran, listed = found.groups()
    name = "bool" if (kind, digits) == ("b", "1") else f"{_KINDS.get(kind, '?')}{int(digits) * 8}"
    if name not in _LEGAL:
        hint = (
            " (bfloat16 perhaps, which numpy does not have: save it as float32)" if (kind, digits) == ("V", "2") else ""
        )
        raise Flaw(f"{label} is of type {shown(order + kind + digits)}{hint}; expected plain numbers")
    shape = tuple(int(size.rstrip("L")) for size in re.findall(r"\d+L?", listed))
    dtype = np.dtype(name).newbyteorder(">" if order == ">" else "<")
    needed = math.prod(shape) * dtype.itemsize
    if needed != entry.size - begin - length:
        raise Flaw(f"{label}: {name} of shape {shown(shape)} takes {needed} bytes, the entry has another number")
    if entry.deflated and entry.size > entry.stored * _EXPANSION_LIMIT:
        raise Flaw(f"{label} claims {entry.size} bytes and takes {entry.stored}, which can't be")
    return _Header(dtype, shape, fortran == "True", begin + length)
