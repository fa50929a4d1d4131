"""Protocol buffer messages, field by field, without a schema and without copying what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deeplabzoo.weights_converter.formats._guard import Flaw

Bytes = bytes | memoryview
_EMPTY = memoryview(b"")
_CHUNK = 2**20
_FIELD_LIMIT = 400_000  # of a whole file: the largest networks have a few tens of thousands
_TEXT_LIMIT = 64 * 2**20


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


class Field(NamedTuple):
    """One field of a message in a file.

    Attributes:
        field: its number in the schema.
        wire: how it is written: 0 variable-length number, 1 eight bytes, 2 counted bytes, 5 four bytes.
        number: the value where `wire` is 0.
        begin: where its bytes begin in the file, for the others.
        end: where they end.
    """

    field: int
    wire: int
    number: int
    begin: int
    end: int


class Walk:
    """A walk through the messages of a file that says where things lie and reads only what is asked for.

    It ends after so many fields, whatever their nesting: a file can hold half as many as it has bytes.
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._fields = _FIELD_LIMIT
        self._text = _TEXT_LIMIT

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message between two positions.

        Raises:
            Flaw: no protocol buffer, it ends early, or there are too many fields in the file.
        """
        position = begin
        while position < end:
            self._fields -= 1
            if self._fields < 0:
                raise Flaw(f"holds more than {_FIELD_LIMIT} fields; no network has so many")
            tag, position = varint(self.view, position)
            field, wire = tag >> 3, tag & 7
            start, number = position, 0
            if wire == 0:
                number, position = varint(self.view, position)
            elif wire == 2:
                length, start = varint(self.view, position)
                position = start + length
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
            else:
                raise Flaw("damaged: expected a protocol buffer")
            if position > end:
                raise Flaw("truncated or damaged: a protocol buffer ends early")
            yield Field(field, wire, number, start, position)

    def text(self, field: Field) -> str:
        """Return the text of a field; what is no UTF-8 is spelled with backslashes.

        Raises:
            Flaw: the field is no text, or there is too much text in the file.
        """
        self._text -= field.end - field.begin
        if field.wire != 2 or self._text < 0:
            raise Flaw(f"damaged: a name is no text, or the names take more than {_TEXT_LIMIT} bytes")
        return bytes(self.view[field.begin : field.end]).decode("utf-8", "backslashreplace")

    def numbers(self, field: Field) -> list[int]:
        """Return the signed numbers of a repeated field: one, or several where they are packed."""
        if field.wire == 0:
            return [signed(field.number)]
        if field.wire != 2:
            raise Flaw("damaged: expected whole numbers")
        found, position = [], field.begin
        while position < field.end:
            self._fields -= 1
            if self._fields < 0:
                raise Flaw(f"holds more than {_FIELD_LIMIT} fields; no network has so many")
            number, position = varint(self.view, position)
            found.append(signed(number))
        return found


def outline(start: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (field, wire, bytes) of the first fields of a message, to tell what it is; never fails.

    Args:
        start: the first bytes of the message; what they cut off is left out, or cut.
    """
    position = 0
    try:
        while position < len(start):
            tag, position = varint(start, position)
            wire, begin = tag & 7, position
            if wire == 0:
                _, position = varint(start, position)
            elif wire == 2:
                length, begin = varint(start, position)
                position = begin + length
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
            else:
                return
            yield tag >> 3, wire, start[begin:position]
    except Flaw:
        return


def signed(number: int) -> int:
    """Return a 64-bit number as the signed one that was meant."""
    return number - 2**64 if number >= 2**63 else number


def varints(data: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint64]:
    """Return packed variable-length numbers.

    Args:
        data: their bytes.
        count: how many there must be.

    Raises:
        Flaw: there is another number of them, or one is damaged.
    """
    found = sum(int(np.count_nonzero(data[at : at + _CHUNK] < 128)) for at in range(0, data.size, _CHUNK))
    if found != count or (data.size and data[-1] >= 128):
        raise Flaw(f"damaged: expected {count} numbers, found {found}")
    result = np.zeros(count, np.uint64)
    position = filled = 0
    while position < data.size:  # piece by piece, because the indices take many times the memory of the bytes
        ends = np.flatnonzero(data[position : position + _CHUNK] < 128) + position
        if not ends.size:
            raise Flaw("damaged number")
        starts = np.concatenate(([position], ends[:-1] + 1))
        lengths = ends - starts + 1
        if lengths.max() > 10:
            raise Flaw("damaged number")
        into = result[filled : filled + ends.size]
        for byte in range(int(lengths.max())):
            longer = lengths > byte
            into[longer] |= (data[starts[longer] + byte].astype(np.uint64) & np.uint64(0x7F)) << np.uint64(7 * byte)
        filled += ends.size
        position = int(ends[-1]) + 1
    return result
