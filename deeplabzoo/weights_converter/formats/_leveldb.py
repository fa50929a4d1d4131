"""LevelDB tables (sorted key -> value), which is what the `.index` of a TensorFlow checkpoint is: read and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from deeplabzoo.weights_converter.formats._crc32c import crc32c, mask, unmask
from deeplabzoo.weights_converter.formats._guard import Flaw
from deeplabzoo.weights_converter.formats._protobuf import varint

FOOTER = 48
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_TRAILER = 5  # compression, check sum
_BLOCK_LIMIT = 64 * 2**20
_MOST_BLOCKS = 1024
_KEY_LIMIT = 2**16
_KEYS_LIMIT = 64 * 2**20  # bytes; each key repeats the beginning of the one before it, so a small table can hold many
_VALUES_LIMIT = 2**21  # bytes; about forty tell what there is to know of a tensor
_NO_COMPRESSION, _SNAPPY = 0, 1
# What TensorFlow writes with: bytes of a block, and how many keys in a row may leave out a common beginning.
_BLOCK_SIZE, _RESTART_INTERVAL = 2**18, 16


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
    total, keys, values = 0, 0, 0
    for count, (_, handle) in enumerate(_pairs(_block(data, offset, size))):
        block_offset, position = varint(handle, 0)
        block_size, _ = varint(handle, position)
        total += block_size
        if total > len(data) or count >= _MOST_BLOCKS:
            raise Flaw("damaged: the blocks of the index overlap, or are too many")
        for key, value in _pairs(_block(data, block_offset, block_size)):
            keys, values = keys + len(key), values + len(value)
            if keys > _KEYS_LIMIT or values > _VALUES_LIMIT:
                raise Flaw(f"the index takes more than {_KEYS_LIMIT} bytes for names, or {_VALUES_LIMIT} for the rest")
            yield key, value


def table(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a table, byte for byte the one that TensorFlow writes where one block is enough.

    Args:
        pairs: key and value, by key; at least one.
    """
    out = bytearray()
    contents: list[tuple[bytes, bytes]] = []
    block = _Block(_RESTART_INTERVAL)
    for key, value in pairs:
        if len(block.data) >= _BLOCK_SIZE:
            contents.append((block.key, _sealed(out, block)))
            block = _Block(_RESTART_INTERVAL)
        block.add(key, value)
    # A table of contents needs keys that are not before any of the block; LevelDB takes the shortest at the end.
    contents.append((_successor(block.key), _sealed(out, block)))
    unused = _sealed(out, _Block(_RESTART_INTERVAL))
    last = _Block(1)
    for key, handle in contents:
        last.add(key, handle)
    footer = unused + _sealed(out, last)
    return bytes(out) + footer.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC


class _Block:
    """Pairs of a table on their way into it."""

    def __init__(self, interval: int) -> None:
        self.data = bytearray()
        self.key = b""
        self._interval = interval
        self._count = 0
        self._restarts = [0]

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count and self._count % self._interval == 0:
            self._restarts.append(len(self.data))
        elif self._count:
            shared = next((i for i, (a, b) in enumerate(zip(self.key, key, strict=False)) if a != b), len(self.key))
            shared = min(shared, len(key))
        self.data += encoded(shared) + encoded(len(key) - shared) + encoded(len(value)) + key[shared:] + value
        self.key = key
        self._count += 1

    def whole(self) -> bytes:
        return bytes(self.data) + b"".join(n.to_bytes(4, "little") for n in (*self._restarts, len(self._restarts)))


def _sealed(out: bytearray, block: _Block) -> bytes:
    """Append a block and its check sum; return where it is."""
    handle = encoded(len(out))
    data = block.whole() + bytes([_NO_COMPRESSION])
    out += data + mask(crc32c(np.frombuffer(data, np.uint8))).to_bytes(4, "little")
    return handle + encoded(len(data) - 1)


def _successor(key: bytes) -> bytes:
    """Return a short key that is not before `key`."""
    at = next((i for i, byte in enumerate(key) if byte != 0xFF), None)
    return key if at is None else key[:at] + bytes([key[at] + 1])


def encoded(number: int) -> bytes:
    """Return a number as LevelDB and protocol buffers write it: seven bits a byte, lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


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
        if shared + unshared > _KEY_LIMIT:
            raise Flaw(f"a name in the index takes {shared + unshared} bytes; the limit is {_KEY_LIMIT}")
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
        start = len(out) - distance
        repeated = bytes(out[start : start + count])
        out += (repeated * (count // distance + 1))[:count]
    if len(out) != size:
        raise Flaw(f"damaged: a block of the index claims {size} bytes and holds {len(out)}")
    return bytes(out)
