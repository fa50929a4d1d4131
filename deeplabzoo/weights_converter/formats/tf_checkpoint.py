"""TensorFlow's checkpoints: `prefix.index`, a table of what there is, and `prefix.data-00000-of-00001`, the bytes."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

from deeplabzoo.weights_converter.formats import _dtypes, _leveldb
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile, as_dtype
from deeplabzoo.weights_converter.formats._crc32c import crc32c, unmask
from deeplabzoo.weights_converter.formats._guard import Flaw, reading, shown
from deeplabzoo.weights_converter.formats._protobuf import Bytes, fields

NAME = "tf-checkpoint"
_INDEX_LIMIT = 256 * 2**20
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn",
}  # fmt: skip
_NOT_NUMBERS = {7: "string", 20: "resource", 21: "variant"}
_SHARD = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")


@dataclasses.dataclass
class _Entry:
    """What the index says of one tensor (BundleEntryProto)."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    sliced: bool = False


def sniff(path: Path) -> bool:
    """Tell whether `path` is a prefix, an index, a data file or a folder of a TensorFlow checkpoint."""
    if path.is_dir():
        return bool(_prefixes(path))
    prefix = _prefix(path)
    return prefix is not None and _is_index(_beside(prefix, ".index"))


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Order is that of the index: by spelling. Data files are memory-mapped. The check sum of every tensor is compared on
    its first access (a hundred megabytes a second), that of the index at once. Strings, such as the object graph of
    TensorFlow 2, are left out with a note.

    Args:
        path: the prefix (`model.ckpt-30000`), its index, one of its data files, or a folder that holds one checkpoint.

    Raises:
        FormatError: damaged, a data file missing, sliced variables; also on access of a tensor.
    """
    with reading(path, NAME):
        if path.is_dir():
            prefixes = _prefixes(path)
            if len(prefixes) != 1:
                names = ", ".join(shown(prefix.name) for prefix in prefixes) or "none"
                raise Flaw(f"expected a folder with one TensorFlow checkpoint; found {names}: give the one to read")
            prefix = prefixes[0]
        else:
            found = _prefix(path)
            if found is None:
                raise Flaw("no TensorFlow checkpoint: there is no .index of that name")
            prefix = found
        index = MappedFile(_beside(prefix, ".index"))
        if index.size > _INDEX_LIMIT:
            raise Flaw(f"its index takes {index.size} bytes; the limit is {_INDEX_LIMIT}")
        shards, entries, notes = _read_index(index.piece(0, index.size).tobytes())
        used = sorted({entry.shard for entry in entries.values()})
        files = {shard: _shard(_beside(prefix, f".data-{shard:05d}-of-{shards:05d}")) for shard in used}
        checked: set[str] = set()

        def load(name: str, entry: _Entry) -> Array:
            piece = files[entry.shard].piece(entry.offset, entry.size)
            if name not in checked and crc32c(piece) != unmask(entry.checksum):
                raise Flaw(f"tensor {shown(name)!r} is damaged (its check sum differs); get the file again")
            checked.add(name)
            return as_dtype(piece, _dtypes.resolve(_DTYPES[entry.dtype])).reshape(entry.shape)

        for name, entry in entries.items():
            if entry.offset + entry.size > files[entry.shard].size:
                raise Flaw(f"truncated: tensor {shown(name)!r} ends after {files[entry.shard].path.name} does")
        loaders = {name: lambda name=name, entry=entry: load(name, entry) for name, entry in entries.items()}
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, notes=notes)


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _is_index(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(_leveldb.MAGIC), 2)
            return file.read() == _leveldb.MAGIC
    except OSError:
        return False


def _prefixes(folder: Path) -> list[Path]:
    """Return the prefixes of the checkpoints in a folder, by name."""
    return [index.with_suffix("") for index in sorted(folder.glob("*.index")) if _is_index(index)]


def _prefix(path: Path) -> Path | None:
    """Return the prefix that `path` belongs to, or None where no index of that name exists."""
    shard = _SHARD.fullmatch(path.name)
    candidates = [path, path.with_suffix("") if path.suffix == ".index" else None]
    candidates.append(path.with_name(shard[1]) if shard else None)
    return next((c for c in candidates if c is not None and c.name and _beside(c, ".index").is_file()), None)


def _shard(path: Path) -> MappedFile:
    if not path.is_file():
        raise Flaw(f"its data file {path.name} is missing; put it beside the index")
    return MappedFile(path)


def _read_index(data: bytes) -> tuple[int, dict[str, _Entry], tuple[str, ...]]:
    """Return the number of data files, the tensors, and notes."""
    shards = 0
    result: dict[str, _Entry] = {}
    ignored: list[str] = []
    for key, value in _leveldb.entries(data):
        if not key:
            shards = _header(value)
            continue
        name = key.decode("utf-8", "backslashreplace")
        entry = _entry(value)
        if entry.sliced:
            raise Flaw(f"{shown(name)!r} is a partitioned variable; save the checkpoint without partitions")
        if entry.dtype in _NOT_NUMBERS:
            ignored.append(f"{shown(name)} ({_NOT_NUMBERS[entry.dtype]})")
            continue
        _check(name, entry, shards)
        result[name] = entry
    if not shards:
        raise Flaw("an index without a header; get the file again")
    if not result:
        raise Flaw("the index holds no tensors")
    more = f" and {len(ignored) - 8} more" if len(ignored) > 8 else ""
    notes = (f"ignored entries that are no numbers: {', '.join(ignored[:8])}{more}",) if ignored else ()
    return shards, result, notes


def _check(name: str, entry: _Entry, shards: int) -> None:
    label = f"tensor {shown(name)!r}"
    if entry.dtype not in _DTYPES:
        raise Flaw(
            f"{label}: element type {entry.dtype} of TensorFlow is not known; known: {', '.join(_DTYPES.values())}"
        )
    if len(entry.shape) > 32 or any(not 0 <= size < 2**63 for size in entry.shape):
        raise Flaw(f"{label}: impossible shape {shown(entry.shape)}")
    needed = math.prod(entry.shape) * _dtypes.ITEMSIZE[_DTYPES[entry.dtype]]
    if needed != entry.size:
        raise Flaw(f"{label}: shape {shown(entry.shape)} takes {needed} bytes, the index gives {entry.size}")
    if not 0 <= entry.shard < shards:
        raise Flaw(f"{label}: it is in data file {entry.shard} of {shards}")


def _header(data: Bytes) -> int:
    shards, endianness = 0, 0
    for field, number, _ in fields(data):
        shards = number if field == 1 else shards
        endianness = number if field == 2 else endianness
    if endianness:
        raise Flaw("written on a big-endian machine; save it again on a little-endian one")
    if not 0 < shards < 100_000:
        raise Flaw(f"the index claims {shards} data files")
    return shards


def _entry(data: Bytes) -> _Entry:
    entry = _Entry()
    for field, number, payload in fields(data):
        if field == 1:
            entry.dtype = number
        elif field == 2:
            entry.shape = tuple(_dimension(inner) for kind, _, inner in fields(payload) if kind == 2)
        elif field == 3:
            entry.shard = number
        elif field == 4:
            entry.offset = number
        elif field == 5:
            entry.size = number
        elif field == 6:
            entry.checksum = number
        elif field == 7:
            entry.sliced = True
    return entry


def _dimension(data: Bytes) -> int:
    size = 0
    for field, number, _ in fields(data):
        size = number if field == 1 else size
    return size
