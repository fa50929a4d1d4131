"""Protocol buffers and flat buffers written by hand, right or wrong on purpose."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats


def varint(number: int) -> bytes:
    """A variable-length number; a negative one as protocol buffers have it."""
    number %= 2**64
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def number(field: int, value: int) -> bytes:
    """A field with a number."""
    return varint(field << 3) + varint(value)


def counted(field: int, data: bytes | str) -> bytes:
    """A field with bytes, a text or a message."""
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def fixed(field: int, value: float, kind: str = "f") -> bytes:
    """A field with a float or, as `d`, a double."""
    return varint(field << 3 | (5 if kind == "f" else 1)) + struct.pack(f"<{kind}", value)


def packed(values: list[int]) -> bytes:
    """Numbers one after another."""
    return b"".join(map(varint, values))


def flat(root: dict[int, Any]) -> bytes:
    """A flat buffer of TensorFlow Lite: tables are dicts by field, with a slot of eight bytes for each field.

    A field is (letter of `struct`, number), a text, bytes, a list of whole numbers, a table or a list of tables.
    """
    buffer = bytearray(struct.pack("<I4s", 0, b"TFL3"))

    def place(value: Any) -> int:
        buffer.extend(b"\0" * (-len(buffer) % 4))
        if isinstance(value, dict):
            return table(value)
        start = len(buffer)
        if isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            buffer.extend(struct.pack("<I", len(data)) + data)
        elif value and isinstance(value[0], dict):
            buffer.extend(struct.pack("<I", len(value)) + b"\0" * 4 * len(value))
            placed: dict[int, int] = {}  # the same dict several times is one table
            for index, one in enumerate(value):
                if id(one) not in placed:
                    placed[id(one)] = place(one)
                at = start + 4 + 4 * index
                struct.pack_into("<I", buffer, at, placed[id(one)] - at)
        else:
            buffer.extend(struct.pack(f"<I{len(value)}i", len(value), *value))
        return start

    def refer(at: int, value: Any) -> None:
        struct.pack_into("<I", buffer, at, place(value) - at)

    def table(fields: dict[int, Any]) -> int:
        count = max(fields, default=-1) + 1
        slots = [4 + 8 * index if index in fields else 0 for index in range(count)]
        head = struct.pack(f"<HH{count}H", 4 + 2 * count, 4 + 8 * count, *slots)
        head += b"\0" * (-len(head) % 4)
        start = len(buffer) + len(head)
        buffer.extend(head + struct.pack("<i", len(head)) + b"\0" * 8 * count)
        for index, value in fields.items():
            at = start + 4 + 8 * index
            if isinstance(value, tuple):
                struct.pack_into(f"<{value[0]}", buffer, at, value[1])
            else:
                refer(at, value)
        return start

    refer(0, root)
    return bytes(buffer)


def survives(path: Path, content: bytes) -> bool:
    """Read everything of a file; tells whether that went well, and fails where the error is not a clear line."""
    path.write_bytes(content)
    try:
        for value in formats.read(path).tensors.values():
            value.tobytes()
    except FormatError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(str(path))
        return False
    return True


def damaged(content: bytes, seed: int) -> bytes:
    """The content with a few bytes changed, added, taken out or copied elsewhere."""
    chance = random.Random(seed)
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        changes: list[Callable[[], bytes]] = [
            lambda: bytes([chance.randrange(256)]),
            lambda: bytes(chance.choices((0, 1, 127, 128, 255), k=4)),
            lambda: bytes(data[chance.randrange(len(data)) :][:8]),
        ]
        end = at + chance.choice((0, 1, 4, 8))
        data[at:end] = chance.choice(changes)()
    return bytes(data)
