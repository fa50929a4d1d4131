"""Protocol buffer messages, field by field, without a schema and without copying what they hold."""

from __future__ import annotations

from collections.abc import Iterator

from deeplabzoo.weights_converter.formats._guard import Flaw

Bytes = bytes | memoryview
_EMPTY = memoryview(b"")


def varint(data: Bytes, position: int) -> tuple[int, int]:
    """Return the variable-length number at `position` and the position after it; `Flaw` where there is none."""
    number = 0
    for index in range(10):
        if position + index >= len(data):
            raise Flaw("truncated number")
        byte = data[position + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, position + index + 1
    raise Flaw("damaged number")


def fields(data: Bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Yield (field, number, bytes) of a message: number or bytes, whichever the field has; the other is 0 or empty.

    Args:
        data: the message. Bytes come out as views of it, so a memory-mapped file is read only where it is looked at.

    Raises:
        Flaw: no protocol buffer, or it ends early.
    """
    view = memoryview(data)
    position = 0
    while position < len(view):
        tag, position = varint(view, position)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            number, position = varint(view, position)
            yield field, number, _EMPTY
            continue
        if wire == 2:
            length, position = varint(view, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise Flaw("damaged: expected a protocol buffer")
        payload = view[position : position + length]
        if len(payload) != length:
            raise Flaw("damaged: a protocol buffer ends early")
        position += length
        yield field, int.from_bytes(payload, "little") if wire in (1, 5) else 0, payload
