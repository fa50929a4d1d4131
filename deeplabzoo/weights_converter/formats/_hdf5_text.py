"""Reading text attributes of HDF5 objects without the HDF5 library.

Text of no fixed length lies in a "global heap". The library believes the lengths that the file claims there: a few
changed bytes make it allocate four gigabytes, read past its own memory, or walk the heap for ever (1.14.6). Two short
texts are all that is needed from there, so they are read here, within bounds. The layout is that of the HDF5 File
Format Specification, version 3: object headers of version 1 (IV.A.1.a), attributes (IV.A.2.m), global heap (III.E).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from deeplabzoo.weights_converter.formats._checkpoint import MappedFile
from deeplabzoo.weights_converter.formats._guard import Flaw

_MESSAGES_LIMIT = 1000
_HEAP_LIMIT = 2**22  # the library makes heaps of 4 kB, and larger ones only for a longer text
_TEXT_LIMIT = 2**16
_CONTINUATION, _ATTRIBUTE = 0x10, 0x0C
_FIXED, _VARIABLE = 3, 9  # datatype classes: string of fixed length, variable length


def text_attribute(file: MappedFile, address: int, name: str) -> str | None:
    """Return an attribute of the object whose header is at `address`, or None where it has no such text.

    Raises:
        Flaw: the header or the heap is damaged, or of a version that Keras does not write.
    """
    for kind, message in _messages(file, address):
        if kind == _ATTRIBUTE and (text := _attribute(file, message, name.encode())) is not None:
            return text.decode("utf-8", "backslashreplace")
    return None


def _messages(file: MappedFile, address: int) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of the messages of an object header, through its continuations."""
    version, _, _, _, size = struct.unpack("<BBHII", file.piece(address, 12).tobytes())
    if version != 1:
        raise Flaw("an HDF5 file with object headers that Keras does not write (libver='latest'); save it with Keras")
    blocks = [(address + 16, size)]
    left = _MESSAGES_LIMIT
    while blocks:
        start, size = blocks.pop()
        block = file.piece(start, size).tobytes()
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
            elif not flags & 2:  # a shared message lies elsewhere; h5py and Keras make none
                yield kind, message


def _attribute(file: MappedFile, message: bytes, wanted: bytes) -> bytes | None:
    """Return the text of an attribute message where it has the name that is wanted."""
    version, _, *sizes = struct.unpack("<BBHHH", message[:8])
    position = 9 if version == 3 else 8  # version 3 tells the name's encoding
    parts = []
    for size in sizes:  # name, datatype, dataspace; padded in version 1
        parts.append(message[position : position + size])
        position += size + (-size % 8 if version == 1 else 0)
    name, datatype, dataspace = parts
    if name.rstrip(b"\0") != wanted or len(datatype) < 8 or len(dataspace) < 2 or dataspace[1] != 0:
        return None
    data = message[position:]
    if datatype[0] & 15 == _FIXED:
        (length,) = struct.unpack("<I", datatype[4:8])
        return data[:length].rstrip(b"\0")
    if datatype[0] & 15 != _VARIABLE or datatype[1] & 15 != 1:
        return None
    length, heap, index = struct.unpack("<IQI", data[:16])
    return _heap_object(file, heap, index, length) if length else b""


def _heap_object(file: MappedFile, address: int, wanted: int, length: int) -> bytes:
    signature, version, size = struct.unpack("<4sB3xQ", file.piece(address, 16).tobytes())
    if signature != b"GCOL" or version != 1 or size > _HEAP_LIMIT or length > _TEXT_LIMIT:
        raise Flaw("damaged HDF5 heap: it should hold the name of a layer; get the file again")
    heap = file.piece(address, size).tobytes()
    position = 16
    while position + 16 <= size:
        index, _, _, claimed = struct.unpack("<HHIQ", heap[position : position + 16])
        # Object 0 is the free space at the end.
        if index == 0 or claimed > size - position - 16:
            break
        if index == wanted and length <= claimed:
            return heap[position + 16 : position + 16 + length]
        position += 16 + claimed + -claimed % 8
    raise Flaw("damaged HDF5 heap: the name of a layer is not in it; get the file again")
