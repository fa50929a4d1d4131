"""Zip archives whose entries are read where they lie: nothing is extracted, and no claim is believed unchecked."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from deeplabzoo.weights_converter.formats._checkpoint import MappedFile
from deeplabzoo.weights_converter.formats._guard import Flaw, head, shown

_LIST_LIMIT = 2**22  # bytes of the list of entries, about a hundred for each
_CHUNK = 2**20
_LOCAL_HEADER = 30  # bytes before the name of an entry
ALIGNMENT = 64  # torch's own: a memory-mapped tensor then starts on a cache line
_ZIP64_FROM = 2**31 - 2**20


class _Listing(io.FileIO):
    """A file that hands out no more at once than a list of entries may take: zipfile asks for whatever is claimed."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _LIST_LIMIT:
            raise Flaw(f"the archive's list of entries claims {size} bytes; the limit is {_LIST_LIMIT}")
        return super().read(size)


def directory(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return what an archive says of its entries, by name, in its order.

    Raises:
        Flaw: a name is there twice, entries overlap, or the list is too long.
        Exception: almost anything, where the archive is damaged.
    """
    with _Listing(path) as file, zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
    entries = {info.filename: info for info in listed}
    if len(entries) != len(listed):
        raise Flaw("the archive holds a name twice")
    end = 0
    for info in sorted(listed, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise Flaw(f"entry {shown(info.filename)!r} overlaps the one before it, as in a zip bomb")
        end = info.header_offset + _LOCAL_HEADER + info.compress_size
    return entries


def names(path: Path) -> list[str]:
    """Return the names of the entries; none where `path` is no archive, or a damaged one."""
    if head(path, 4) == b"PK\x03\x04":
        with contextlib.suppress(Exception):
            return list(directory(path))
    return []


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """Where an entry's bytes lie.

    Attributes:
        name: its name, for messages.
        offset: of its first byte in the archive.
        stored: how many bytes it takes there.
        size: how many it claims to be.
        checksum: CRC-32 of what it is; None where the writer computed none.
        deflated: whether it is compressed.
    """

    name: str
    offset: int
    stored: int
    size: int
    checksum: int | None
    deflated: bool


def place(file: MappedFile, info: zipfile.ZipInfo) -> Entry:
    """Find an entry.

    Raises:
        Flaw: it is encrypted, compressed in a way other than deflate, or not where the list says.
    """
    label = f"entry {shown(info.filename)!r}"
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if info.flag_bits & 1 or not (deflated or info.compress_type == zipfile.ZIP_STORED):
        raise Flaw(f"{label} is encrypted or compressed by another method than deflate; pack it again")
    if not deflated and info.file_size != info.compress_size:
        raise Flaw(f"damaged archive: {label} claims {info.file_size} bytes and takes {info.compress_size}")
    local = file.piece(info.header_offset, _LOCAL_HEADER).tobytes()
    if local[:4] != b"PK\x03\x04":
        raise Flaw(f"damaged archive: {label} is not where it should be")
    name_length, extra_length = struct.unpack("<HH", local[26:30])
    offset = info.header_offset + _LOCAL_HEADER + name_length + extra_length
    if offset + info.compress_size > file.size:
        raise Flaw(f"truncated: {label} ends after the file does")
    return Entry(info.filename, offset, info.compress_size, info.file_size, info.CRC or None, deflated)


def start(file: MappedFile, entry: Entry, count: int) -> bytes:
    """Return the first bytes of an entry, at most `count`, not checked against its check sum."""
    if not entry.deflated:
        return file.piece(entry.offset, min(count, entry.stored)).tobytes()
    # What can't be compressed is kept as it is, with a few bytes for each 16 kB or more.
    fed = file.piece(entry.offset, min(count + 1024, entry.stored)).tobytes()
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(fed, count)


def unpacked(file: MappedFile, entry: Entry) -> Iterator[bytes]:
    """Yield the bytes of an entry in chunks, never more than it claims; its check sum is compared at the end.

    Raises:
        Flaw: the bytes are damaged, or more or fewer than claimed.
    """
    count, checksum = 0, 0
    for chunk in _inflated(file, entry) if entry.deflated else _stored(file, entry):
        count += len(chunk)
        if count > entry.size:
            break
        checksum = zlib.crc32(chunk, checksum)
        yield chunk
    if count != entry.size:
        raise Flaw(
            f"entry {shown(entry.name)!r} claims {entry.size} bytes and holds another number; get the file again"
        )
    if entry.checksum is not None and checksum != entry.checksum:
        raise Flaw(f"entry {shown(entry.name)!r} is damaged (its check sum differs); get the file again")


def _stored(file: MappedFile, entry: Entry) -> Iterator[bytes]:
    for start in range(0, entry.stored, _CHUNK):
        yield file.piece(entry.offset + start, min(_CHUNK, entry.stored - start)).tobytes()


def _inflated(file: MappedFile, entry: Entry) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for fed in _stored(file, entry):
        while fed and not inflater.eof:
            yield inflater.decompress(fed, _CHUNK)
            fed = inflater.unconsumed_tail
    yield inflater.flush()


def whole(file: MappedFile, entry: Entry, limit: int) -> bytes:
    """Return the bytes of an entry of at most `limit`.

    Raises:
        Flaw: it claims more, or as `unpacked`.
    """
    if entry.size > limit:
        raise Flaw(f"entry {shown(entry.name)!r} claims {entry.size} bytes; the limit is {limit}")
    return b"".join(unpacked(file, entry))


def add(archive: zipfile.ZipFile, name: str, *parts: bytes | memoryview) -> None:
    """Write an uncompressed entry whose bytes begin at a multiple of 64, so that readers can map them."""
    info = zipfile.ZipInfo(name)  # its date is 1980: no clock in the bytes
    info.file_size = sum(map(len, parts))
    large = info.file_size > _ZIP64_FROM
    # The local header is 30 bytes, the name, then extra fields: ours for the padding, zipfile's of 20 where large.
    start = archive.start_dir + 30 + len(name.encode("utf-8")) + 4 + (20 if large else 0)
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # the field that torch itself uses
    with archive.open(info, "w", force_zip64=large) as entry:
        for part in parts:
            entry.write(part)
