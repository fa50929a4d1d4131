"""Messages between this process and a worker: a JSON header and raw arrays over a byte stream.

A message is the header's length (8 bytes, little endian), the header, then each array's bytes in the header's order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from deeplabzoo.core.weights import plain

Arrays = Mapping[str, np.ndarray]


def send(stream: BinaryIO, header: Mapping[str, Any], arrays: Arrays | None = None) -> None:
    """Write one message and flush; bfloat16 crosses as float32.

    Raises:
        WeightsError: an array of no real numbers; nothing has been written then.
    """
    contiguous = {name: np.asarray(plain(array), order="C") for name, array in (arrays or {}).items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in contiguous.items()]
    text = json.dumps({**header, "arrays": described}).encode()
    stream.write(struct.pack("<Q", len(text)))
    stream.write(text)
    for array in contiguous.values():
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
    """
    (length,) = struct.unpack("<Q", _read(stream, 8))
    header = json.loads(_read(stream, length))
    arrays = {}
    for name, dtype, shape in header.pop("arrays"):
        array = np.empty(shape, dtype)
        _read_into(stream, memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
        arrays[name] = array
    return header, arrays


def _read(stream: BinaryIO, size: int) -> bytes:
    data = bytearray(size)
    _read_into(stream, memoryview(data))
    return bytes(data)


def _read_into(stream: BinaryIO, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other side closed the stream")
        view = view[count:]
