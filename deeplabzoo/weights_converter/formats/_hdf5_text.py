"""Reading text attributes of HDF5 objects without the HDF5 library.

Text of no fixed length lies in a "global heap". The library believes the lengths that the file claims there: a few
changed bytes make it allocate four gigabytes, read past its own memory, or walk the heap for ever (1.14.6). Keras keeps
names of layers and weights, and the configuration of a model, there; they are read here, within bounds. The layout is
that of the HDF5 File Format Specification, version 3: object headers of version 1 (IV.A.1.a), dataspaces (IV.A.2.b),
attributes (IV.A.2.m), global heap (III.E).
"""

from __future__ import annotations

import struct
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deeplabzoo.weights_converter.formats._guard import Flaw

_MESSAGES_LIMIT = 1000
_HEAP_LIMIT = 2**24  # the library makes heaps of 4 kB, and larger ones only for a longer text
_NAME_LIMIT = 2**16
_SPARE = 2**16
_CONTINUATION, _ATTRIBUTE = 0x10, 0x0C
_FIXED, _VARIABLE = 3, 9  # datatype classes: string of fixed length, variable length


class Pieces(Protocol):
    """Bytes that are read in pieces: a `MappedFile`, or a part of one."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def piece(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        """Return `count` bytes from `offset` as a read-only uint8 array; raises `Flaw` where they are not there."""


class Attributes:
    """The text attributes of the objects of one file.

    Headers and heaps of a sound file do not overlap, so all of them together are no longer than the file. A file that
    makes its reader go through more than a few times its own length is refused.
    """

    def __init__(self, file: Pieces) -> None:
        self._file = file
        self._left = 4 * file.size + _SPARE
        self._last: tuple[int, list[_Attribute]] | None = None
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def has(self, address: int, name: str) -> bool:
        """Tell whether the object at `address` has an attribute, or the first part of one; raises as `text`."""
        return any(attribute.name in {name.encode(), f"{name}0".encode()} for attribute in self._attributes(address))

    def text(self, address: int, name: str, *, limit: int = _NAME_LIMIT) -> str | None:
        """Return an attribute of the object whose header is at `address`, or None where it has no such text.

        Raises:
            Flaw: the header or the heap is damaged, of a version that Keras does not write, or the text is longer than
                `limit` bytes.
        """
        for attribute in self._attributes(address):
            if attribute.name == name.encode() and not attribute.sizes:
                found = self._texts(attribute, 1, limit)
                if found:
                    return found[0]
        return None

    def texts(self, address: int, name: str) -> list[str] | None:
        """Return an attribute that is a list of text, or None where the object at `address` has none of that name.

        What does not fit in one attribute Keras keeps as `name0`, `name1`, ...; the parts are joined.

        Raises:
            Flaw: as `text`.
        """
        found = {attribute.name: attribute for attribute in self._attributes(address)}
        parts = [name] if name.encode() in found else []
        while not parts or parts[-1] != name:
            part = f"{name}{len(parts)}"
            if part.encode() not in found:
                break
            parts.append(part)
        joined: list[str] = []
        for part in parts:
            attribute = found[part.encode()]
            if len(attribute.sizes) != 1:
                raise Flaw(f"its attribute {part} is no list of names; get the file again")
            texts = self._texts(attribute, attribute.sizes[0], _NAME_LIMIT)
            if texts is None:
                raise Flaw(f"its attribute {part} is no list of text; get the file again")
            joined += texts
        return joined if parts else None

    def _take(self, offset: int, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise Flaw("damaged HDF5: its headers and names take more room than the file has; get the file again")
        return self._file.piece(offset, count).tobytes()

    def _attributes(self, address: int) -> list[_Attribute]:
        """Return the attributes in an object header, through its continuations."""
        if self._last is not None and self._last[0] == address:
            return self._last[1]
        version, _, _, _, size = struct.unpack("<BBHII", self._take(address, 12))
        if version != 1:
            raise Flaw(
                "an HDF5 file with object headers that Keras does not write (libver='latest'); save it with Keras"
            )
        blocks = [(address + 16, size)]
        attributes = []
        left = _MESSAGES_LIMIT
        while blocks:
            start, size = blocks.pop()
            block = self._take(start, size)
            position = 0
            while position + 8 <= size:
                kind, length, flags = struct.unpack("<HHB", block[position : position + 5])
                message = block[position + 8 : position + 8 + length]
                position += 8 + length
                left -= 1
                if left < 0 or position > size:
                    raise Flaw("damaged HDF5 object header; get the file again")
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack("<QQ", message[:16]))
                elif kind == _ATTRIBUTE and not flags & 2:  # a shared message lies elsewhere; h5py and Keras make none
                    attributes.append(_Attribute(message))
        self._last = (address, attributes)
        return attributes

    def _texts(self, attribute: _Attribute, count: int, limit: int) -> list[str] | None:
        """Return the first `count` texts of an attribute, or None where it is of another type."""
        if count == 0:
            return []
        kind, data = attribute.datatype[0] & 15, attribute.data
        (length,) = struct.unpack("<I", attribute.datatype[4:8])
        if kind == _FIXED:
            if not 0 < length <= limit or count * length > len(data):
                raise Flaw("damaged HDF5 attribute: its text is not there; get the file again")
            raw = [data[i * length : (i + 1) * length].rstrip(b"\0") for i in range(count)]
        elif kind == _VARIABLE and attribute.datatype[1] & 15 == 1:
            if count * 16 > len(data):
                raise Flaw("damaged HDF5 attribute: its text is not there; get the file again")
            places = (struct.unpack("<IQI", data[i * 16 : i * 16 + 16]) for i in range(count))
            raw = [self._heap_object(heap, index, size, limit) if size else b"" for size, heap, index in places]
        else:
            return None
        return [text.decode("utf-8", "backslashreplace") for text in raw]

    def _heap_object(self, address: int, wanted: int, length: int, limit: int) -> bytes:
        if length > limit:
            raise Flaw(f"damaged HDF5 heap: a text claims {length} bytes, the limit is {limit}; get the file again")
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        offset, claimed = self._heaps[address].get(wanted, (0, -1))
        if length > claimed:
            raise Flaw("damaged HDF5 heap: the name of a layer is not in it; get the file again")
        return self._take(offset, length)

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Return where the objects of a heap lie: index -> offset in the file, and length."""
        signature, version, size = struct.unpack("<4sB3xQ", self._take(address, 16))
        if signature != b"GCOL" or version != 1 or size > _HEAP_LIMIT:
            raise Flaw("damaged HDF5 heap: it should hold the name of a layer; get the file again")
        heap = self._take(address, size)
        objects: dict[int, tuple[int, int]] = {}
        position = 16
        while position + 16 <= size:
            index, _, _, claimed = struct.unpack("<HHIQ", heap[position : position + 16])
            # Object 0 is the free space at the end.
            if index == 0 or claimed > size - position - 16:
                break
            objects.setdefault(index, (address + position + 16, claimed))
            position += 16 + claimed + -claimed % 8
        return objects


class _Attribute:
    """An attribute message, taken apart: its name, datatype, the sizes of its dimensions, and its bytes."""

    def __init__(self, message: bytes) -> None:
        version, flags, *lengths = struct.unpack("<BBHHH", message[:8])
        position = 9 if version == 3 else 8  # version 3 tells the name's encoding
        parts = []
        for length in lengths:  # name, datatype, dataspace; padded in version 1
            parts.append(message[position : position + length])
            position += length + (-length % 8 if version == 1 else 0)
        name, self.datatype, dataspace = parts
        # A shared type lies elsewhere, like a shared message: what is here is its address.
        sound = len(self.datatype) >= 8 and len(dataspace) >= 4 and not (version > 1 and flags & 3)
        self.name = name.rstrip(b"\0") if sound else b""
        self.data = message[position:]
        start = 4 if dataspace[:1] == b"\x02" else 8
        rank = dataspace[1] if sound else 0
        dimensions = dataspace[start : start + 8 * rank]
        self.sizes = struct.unpack(f"<{len(dimensions) // 8}Q", dimensions[: len(dimensions) // 8 * 8])
