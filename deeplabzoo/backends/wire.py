"""Messages between this process and a worker: a JSON header and raw arrays over a byte stream.

A message is four bytes that tell it is one, the header's length (4 bytes, little endian), the header, then each array's
bytes in the header's order. Nobody's word is taken for a size: what is read is checked before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from deeplabzoo.core.weights import plain
from deeplabzoo.errors import WorkerError

VERSION = 1
"""Of the messages and of what the calls in them mean; both sides must be of the same."""

LARGEST_HEADER = 2**26
"""Bytes; the graph of the largest preset and the names of its weights take a hundredth of it."""

LARGEST_ARRAYS = 2**36
"""Bytes of all arrays of a message: 64 GiB."""

Arrays = Mapping[str, np.ndarray]

_MAGIC = b"DLZ:"
_PREFIX = struct.Struct("<4sI")
_KINDS = "fiub"
"""Kinds of dtype that `plain` sends. Others are refused: bytes off the stream must not become pointers to objects."""
_MOST_AXES = 32

# numpy; torch on CPU and on CUDA; Paddle and TensorFlow; JAX; onnxruntime; C++; Python.
_OUT_OF_MEMORY = re.compile(
    "unable to allocate|can't allocate memory|out of memory|Resource_?Exhausted|failed to allocate|bad_alloc|MemoryError",
    re.IGNORECASE,
)


def send(stream: BinaryIO, header: Mapping[str, Any], arrays: Arrays | None = None) -> None:
    """Write one message and flush; bfloat16 crosses as float32.

    Raises:
        WeightsError: an array of no real numbers; nothing has been written then.
    """
    contiguous = {name: np.asarray(plain(array), order="C") for name, array in (arrays or {}).items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in contiguous.items()]
    text = json.dumps({**header, "arrays": described}).encode()
    stream.write(_PREFIX.pack(_MAGIC, len(text)))
    stream.write(text)
    for array in contiguous.values():
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one message.

    Raises:
        EOFError: the other side is gone, before a message or in the middle of one.
        WorkerError: what came is no message of ours, as the end of a sentence: `spoke no message of ours: ...`.
        MemoryError: an array does not fit.
    """
    prefix = stream.read(_PREFIX.size)  # fewer at the stream's end
    if not prefix:
        raise EOFError("the other side closed the stream")
    if prefix[: len(_MAGIC)] != _MAGIC[: len(prefix)]:
        raise _rubbish(f"one that begins with {_MAGIC!r}", prefix + _rest(stream))
    if len(prefix) < _PREFIX.size:
        raise EOFError("the other side closed the stream in the middle of a message")
    length = _PREFIX.unpack(prefix)[1]
    if length > LARGEST_HEADER:
        raise _rubbish(f"a header of at most {LARGEST_HEADER} bytes", f"a length of {length}")
    text = stream.read(length)
    if len(text) < length:
        raise EOFError("the other side closed the stream in the middle of a header")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _rubbish("a header in JSON", text) from None
    described = header.pop("arrays", None) if isinstance(header, dict) else None
    if not isinstance(described, list):
        raise _rubbish("a header with a list of arrays", text)
    arrays, room = {}, LARGEST_ARRAYS
    for entry in described:
        name, dtype, shape = _described(entry)
        room -= dtype.itemsize * math.prod(shape)
        if room < 0:
            raise _rubbish(f"arrays of at most {LARGEST_ARRAYS} bytes in all", entry)
        array = np.empty(shape, dtype)
        _read_into(stream, memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
        arrays[name] = array
    return header, arrays


def one_line(text: str, most: int = 500) -> str:
    """A framework's text for a message of ours: no line breaks or control characters, and the middle of a long one cut."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)  # colours
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    line = re.sub(r"[-=*#]{4,}", "-", line)  # rulers
    tail = most // 3
    return line if len(line) <= most else f"{line[: most - tail - 5]} ... {line[-tail:]}"


def out_of_memory(text: str) -> bool:
    """Whether a text is one of those with which numpy, the frameworks and C++ say that memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def _described(entry: Any) -> tuple[str, np.dtype[Any], list[int]]:
    """Name, dtype and shape of an array, as `send` writes them."""
    with contextlib.suppress(TypeError, ValueError):
        name, code, shape = entry
        dtype = np.dtype(code)
        good = isinstance(name, str) and dtype.kind in _KINDS and isinstance(shape, list) and len(shape) <= _MOST_AXES
        if good and all(type(size) is int and size >= 0 for size in shape):
            return name, dtype, shape
    raise _rubbish("an array's name, real dtype and shape", entry)


def _rubbish(expected: str, received: Any) -> WorkerError:
    told = repr(received[:80]) if isinstance(received, bytes) else str(received)
    return WorkerError(f"spoke no message of ours: expected {expected}, received {one_line(told, 200)}")


def _rest(stream: BinaryIO) -> bytes:
    """What else has come already, without waiting for more."""
    with contextlib.suppress(OSError, ValueError):
        os.set_blocking(stream.fileno(), False)
        return stream.read(80) or b""
    return b""


def _read_into(stream: BinaryIO, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other side closed the stream in the middle of an array")
        view = view[count:]
