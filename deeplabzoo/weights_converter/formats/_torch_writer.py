"""Writing PyTorch's .pth: the archive that torch.save would write for an OrderedDict of contiguous tensors."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats import _dtypes, _zip
from deeplabzoo.weights_converter.formats._checkpoint import Array

NAME = "torch"
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
_CLASSES = {dtype: storage for storage, dtype in STORAGES.items()}
_ROOT = "archive"


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .pth file, one tensor in memory at a time.

    `torch.load(path, weights_only=True)`, with or without `mmap=True`, gives an OrderedDict of contiguous tensors in
    the given order. The same input gives the same bytes.

    Args:
        path: the file; replaced where it exists.
        tensors: name -> array of any shape and of a type torch has.
        metadata: must be empty: a state dict has no place for it.

    Raises:
        OutputError: a type that torch does not have, or metadata.
    """
    if metadata:
        raise OutputError("format torch has no place for metadata; leave it out, or write safetensors")
    program = [b"\x80\x02", _global("collections", "OrderedDict"), b")R("]
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        # Readers find entries by name: with the pickle last, the tensors need to be looked at only once.
        for index, name in enumerate(tensors):
            array = _dtypes.contiguous(name, tensors[name], _dtypes.ITEMSIZE, NAME)
            program += [_text(name), _tensor(str(index), array)]
            _zip.add(archive, f"{_ROOT}/data/{index}", _dtypes.raw(array))
        program.append(b"u.")
        _zip.add(archive, f"{_ROOT}/data.pkl", b"".join(program))
        _zip.add(archive, f"{_ROOT}/.format_version", b"1")
        _zip.add(archive, f"{_ROOT}/.storage_alignment", b"%d" % _zip.ALIGNMENT)
        _zip.add(archive, f"{_ROOT}/byteorder", b"little")
        _zip.add(archive, f"{_ROOT}/version", b"3\n")


def _tensor(key: str, array: Array) -> bytes:
    dtype = array.dtype.name
    # Not the array's own, which may be anything along an axis of one element.
    strides = [math.prod(max(size, 1) for size in array.shape[axis + 1 :]) for axis in range(array.ndim)]
    typed = dtype in _CLASSES
    # Types that came to torch late have no storage class; they are rebuilt from bytes and a dtype.
    storage = _global("torch", _CLASSES[dtype]) if typed else _global("torch.storage", "UntypedStorage")
    count = array.size if typed else array.nbytes
    return b"".join(
        [
            _global("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"),
            b"((" + _text("storage") + storage + _text(key) + _text("cpu") + _integer(count) + b"tQK\x00",
            _integers(array.shape) + _integers(strides),
            b"\x89" + _global("collections", "OrderedDict") + b")R",
            b"" if typed else _global("torch", dtype),
            b"tR",
        ]
    )


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    return b"J" + struct.pack("<i", number) if number < 2**31 else b"\x8a\x08" + struct.pack("<q", number)


def _integers(numbers: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
