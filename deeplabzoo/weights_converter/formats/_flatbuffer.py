"""FlatBuffers: tables and vectors that point to each other by offsets, every one of them checked.

Layout from the FlatBuffers project's internals page (Apache-2.0). Offsets can lead in circles and the same vector can
be part of a thousand tables; a reader that walks a schema without recursion, and a limit on what is read in all, bound
the work whatever the file says.
"""

from __future__ import annotations

import struct

from deeplabzoo.weights_converter.formats._guard import Flaw

_LIMIT = 500_000  # numbers and references of a whole file: DeepLab v3 on MobileNetV2 has seven thousand
_TEXT_LIMIT = 64 * 2**20
_SIZES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8}


class FlatBuffer:
    """The bytes of a file, and how much of them may still be read."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._left = _LIMIT
        self._text = _TEXT_LIMIT

    def root(self) -> Table:
        """Return the table that the file is."""
        return Table(self, self.number("I", 0))

    def number(self, kind: str, position: int) -> int:
        """Return the number at `position`; `Flaw` where that is outside of the file."""
        return self.numbers(kind, position, 1)[0]

    def numbers(self, kind: str, position: int, count: int) -> tuple[int, ...]:
        """Return `count` whole numbers of a kind (a letter of `struct`) from `position`."""
        self._spend(count)
        return struct.unpack(f"<{count}{kind}", self._piece(position, count * _SIZES[kind]))

    def text(self, position: int, count: int) -> str:
        """Return text; what is no UTF-8 is spelled with backslashes."""
        self._text -= count
        if self._text < 0:
            raise Flaw(f"damaged: its names take more than {_TEXT_LIMIT} bytes")
        return bytes(self._piece(position, count)).decode("utf-8", "backslashreplace")

    def check(self, position: int, count: int) -> None:
        """`Flaw` where bytes are outside of the file."""
        self._piece(position, count)

    def _piece(self, position: int, count: int) -> memoryview:
        if position < 0 or position + count > len(self._view):
            raise Flaw(
                f"truncated or damaged: bytes {position} to {position + count} are asked for, the file has "
                f"{len(self._view)}"
            )
        return self._view[position : position + count]

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Flaw(f"damaged: it takes more than {_LIMIT} steps to read; no network does")


class Table:
    """A table: fields by their number in the schema, each of which may be absent."""

    def __init__(self, buffer: FlatBuffer, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._slots = position - buffer.number("i", position)
        size = buffer.number("H", self._slots)
        if size < 4:  # its own size and that of the table
            raise Flaw(f"damaged: the list of a table's fields takes {size} bytes")
        self._count = (size - 4) // 2

    def _field(self, field: int) -> int | None:
        """Where the value of a field is, or none where it has its default."""
        if field >= self._count:
            return None
        offset = self._buffer.number("H", self._slots + 4 + 2 * field)
        return self._position + offset if offset else None

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """Return a number of a kind (a letter of `struct`)."""
        position = self._field(field)
        return default if position is None else self._buffer.number(kind, position)

    def table(self, field: int) -> Table | None:
        """Return the table of a field, or none."""
        position = self._field(field)
        return None if position is None else Table(self._buffer, position + self._buffer.number("I", position))

    def span(self, field: int, size: int = 1) -> tuple[int, int]:
        """Return first byte and length of a vector whose elements take `size` bytes; (0, 0) where it is absent."""
        position = self._field(field)
        if position is None:
            return 0, 0
        start = position + self._buffer.number("I", position)
        count = self._buffer.number("I", start)
        self._buffer.check(start + 4, count * size)
        return start + 4, count

    def numbers(self, field: int, kind: str) -> tuple[int, ...]:
        """Return a vector of numbers, empty where it is absent."""
        start, count = self.span(field, _SIZES[kind])
        return self._buffer.numbers(kind, start, count)

    def text(self, field: int) -> str:
        """Return text, empty where it is absent."""
        return self._buffer.text(*self.span(field))

    def tables(self, field: int) -> list[Table]:
        """Return a vector of tables, empty where it is absent."""
        start, count = self.span(field, 4)
        offsets = self._buffer.numbers("I", start, count)
        return [Table(self._buffer, start + 4 * index + offset) for index, offset in enumerate(offsets)]
