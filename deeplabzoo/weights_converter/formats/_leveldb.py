"""Reading LevelDB tables (sorted key -> value), which is what the `.index` of a TensorFlow checkpoint is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deeplabzoo.weights_converter.formats._crc32c import crc32c, unmask
from deeplabzoo.weights_converter.formats._guard import Flaw
from deeplabzoo.weights_converter.formats._protobuf import varint

FOOTER = 48
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_TRAILER = 5  # compression, check sum
_BLOCK_LIMIT = 64 * 2**20
_NO_COMPRESSION, _SNAPPY = 0, 1


def entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of a whole table, by key.

    Args:
        data: all bytes of the file.

    Raises:
        Flaw: the table is damaged (check sums included) or truncated.
    """
    if len(data) < FOOTER or not data.endswith(MAGIC):
        raise Flaw("truncated or damaged: the index does not end like one")
    footer = data[-FOOTER:]
    position = 0
    for _ in range(2):  # the table of tables of contents, unused, then the one of blocks
        offset, position = varint(footer, position)
        size, position = varint(footer, position)
    total = 0
    for _, handle in _pairs(_block(data, offset, size)):
        block_offset, position = varint(handle, 0)
        block_size, _ = varint(handle, position)
        total += block_size
        if total > len(data):
            raise Flaw("damaged: the blocks of the index overlap")
        yield from _pairs(_block(data, block_offset, block_size))


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + _TRAILER > len(data):
        raise Flaw(f"truncated or damaged: a block of the index ends at {end}, the file has {len(data)}")
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if crc32c(np.frombuffer(data, np.uint8, size + 1, offset)) != unmask(stored):
        raise Flaw("damaged: the check sum of a block of the index differs; get the file again")
    block, compression = data[offset:end], data[end]
    if compression == _SNAPPY:
        return snappy(block)
    if compression != _NO_COMPRESSION:
        raise Flaw(f"the index is compressed in a way that is not known ({compression}); expected none or snappy")
    return block


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise Flaw("damaged: a block of the index is too short")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise Flaw("damaged: a block of the index claims more entries than it has bytes")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        unshared, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or position + unshared + length > end:
            raise Flaw("damaged: an entry of the index leaves its block")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def snappy(data: bytes) -> bytes:
    """Undo snappy's compression, which TensorFlow 1.0 and 1.1 may have used for the index."""
    size, position = varint(data, 0)
    if size > _BLOCK_LIMIT:
        raise Flaw(f"damaged: a block of the index claims {size} bytes")
    out = bytearray()
    while position < len(data) and len(out) <= size:
        tag = data[position]
        position += 1
        kind, count = tag & 3, (tag >> 2) + 1
        if kind == 0:
            if count > 60:
                width = count - 60
                count = int.from_bytes(data[position : position + width], "little") + 1
                position += width
            if position + count > len(data):
                raise Flaw("damaged: compressed data of the index ends early")
            out += data[position : position + count]
            position += count
            continue
        width = (1, 2, 4)[kind - 1]
        distance = int.from_bytes(data[position : position + width], "little")
        position += width
        if kind == 1:
            distance |= (tag >> 5) << 8
            count = (tag >> 2 & 7) + 4
        if not 0 < distance <= len(out):
            raise Flaw("damaged: compressed data of the index points before its beginning")
        repeated = bytes(out[-distance:])
        out += (repeated * (count // distance + 1))[:count]
    if len(out) != size:
        raise Flaw(f"damaged: a block of the index claims {size} bytes and holds {len(out)}")
    return bytes(out)
