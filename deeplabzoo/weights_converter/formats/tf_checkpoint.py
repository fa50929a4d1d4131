"""TensorFlow's checkpoints: `prefix.index`, a table of what there is, and `prefix.data-00000-of-00001`, the bytes."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats import _dtypes, _leveldb, _tf_objects, _tf_writer
from deeplabzoo.weights_converter.formats._checkpoint import (
    Array,
    Checkpoint,
    LazyTensors,
    MappedFile,
    as_dtype,
    checksum,
)
from deeplabzoo.weights_converter.formats._crc32c import crc32c, unmask
from deeplabzoo.weights_converter.formats._guard import Flaw, reading, shown
from deeplabzoo.weights_converter.formats._protobuf import Bytes, fields
from deeplabzoo.weights_converter.formats._tf_types import DTYPES, NOT_NUMBERS, STRING, bytes_of, shape_of
from deeplabzoo.weights_converter.formats._tf_writer import data_of, index_of

NAME = "tf-checkpoint"
_INDEX_LIMIT = 4 * 2**20
_MOST_ENTRIES = 50_000
_TRIES = 100  # to find index and data of one checkpoint while others are put in its place
_SHARD = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_COPIES = "_all_variables/"  # Keras' export stores every variable once more under this path


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

    def content(self) -> tuple[object, ...]:
        """Return what is equal for entries of equal bytes."""
        return self.dtype, self.shape, self.size, self.checksum


def sniff(path: Path) -> bool:
    """Tell whether `path` is a prefix, an index, a data file or a folder of a TensorFlow checkpoint."""
    if path.is_dir():
        return bool(_prefixes(path))
    prefix = _prefix(path)
    return prefix is not None and _is_index(index_of(prefix))


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Order is that of the index: by spelling. Data files are memory-mapped. The check sum of every tensor is compared on
    its first access (two hundred megabytes a second), that of the index at once. Strings are left out with a note.

    Where a checkpoint of TensorFlow 2 tells the name of a variable, and no other variable has it, the tensor is called
    so, with a note; else by its key, as in TensorFlow 1.

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
        return bundle(path, prefix, NAME)


def bundle(path: Path, prefix: Path, format_name: str) -> Checkpoint:
    """Read the checkpoint called `prefix`.

    Args:
        path: what the user gave, for messages.
        prefix: the checkpoint.
        format_name: format of the result.

    Raises:
        Flaw: as `read`.
    """
    for _ in range(_TRIES):
        index = MappedFile(index_of(prefix))
        try:
            return _bundle(path, prefix, index, format_name)
        except (Flaw, OSError):
            if index.unchanged():
                raise
    raise Flaw("it is written anew all the time; read it when that is done")


def _bundle(path: Path, prefix: Path, index: MappedFile, format_name: str) -> Checkpoint:
    """Read the checkpoint that an index is of."""
    if index.size > _INDEX_LIMIT:
        raise Flaw(f"its index takes {index.size} bytes; the limit is {_INDEX_LIMIT}")
    shards, entries, graph, notes = _read_index(index.piece(0, index.size).tobytes())
    used = sorted({entry.shard for entry in (*entries.values(), *([graph] if graph else []))})
    files = {shard: _shard(data_of(prefix, shard, shards)) for shard in used}
    for name, entry in entries.items():
        if entry.offset + entry.size > files[entry.shard].size:
            raise Flaw(f"truncated: tensor {shown(name)!r} ends after {files[entry.shard].path.name} does")
    if not index.unchanged():  # the data files may be those of the next checkpoint
        raise Flaw("its index has changed")
    _check_overlap(entries)
    if graph is not None:
        text = _tf_objects.string(files[graph.shard].piece(graph.offset, graph.size), unmask(graph.checksum))
        entries, renamed = _renamed(entries, _tf_objects.names(text))
        notes += renamed
    checked: set[str] = set()

    def load(name: str, entry: _Entry) -> Array:
        piece = files[entry.shard].piece(entry.offset, entry.size)
        if name not in checked and checksum(crc32c, piece) != unmask(entry.checksum):
            raise Flaw(f"tensor {shown(name)!r} is damaged (its check sum differs); get the file again")
        checked.add(name)
        return as_dtype(piece, _dtypes.resolve(DTYPES[entry.dtype])).reshape(entry.shape)

    loaders = {name: lambda name=name, entry=entry: load(name, entry) for name, entry in entries.items()}
    return Checkpoint(LazyTensors(path, format_name, loaders), format_name, notes=notes)


def outputs(path: Path) -> tuple[Path, ...]:
    """Return the files that `write` makes for this prefix."""
    return data_of(path), index_of(path)


def beside_then_in_place(path: Path) -> AbstractContextManager[Path]:
    """Yield a prefix to write to, whose files then become those of `path`; see `_tf_writer.beside_then_in_place`."""
    return _tf_writer.beside_then_in_place(path)


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint, one tensor in memory at a time; tensors are laid out by the spelling of their names.

    Args:
        path: the prefix; its files are replaced where they exist.
        tensors: name -> array of any shape and of a type that TensorFlow has.
        metadata: must be empty; a checkpoint of TensorFlow has no place for it.

    Raises:
        OutputError: a name or a type can't be stored, or there is metadata.
    """
    if metadata:
        raise OutputError(f"format {NAME} has no place for metadata; leave it out, or write safetensors")
    _tf_writer.write(path, tensors, NAME)


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
    return next((c for c in candidates if c is not None and c.name and index_of(c).is_file()), None)


def _shard(path: Path) -> MappedFile:
    if not path.is_file():
        raise Flaw(f"its data file {path.name} is missing; put it beside the index")
    return MappedFile(path)


def _read_index(data: bytes) -> tuple[int, dict[str, _Entry], _Entry | None, tuple[str, ...]]:
    """Return the number of data files, the tensors, the object graph where there is one, and notes."""
    shards = 0
    result: dict[str, _Entry] = {}
    graph: _Entry | None = None
    ignored: list[str] = []
    for count, (key, value) in enumerate(_leveldb.entries(data)):
        if count > _MOST_ENTRIES:
            raise Flaw(f"the index holds more than {_MOST_ENTRIES} entries")
        if not key:
            shards = _header(value)
            continue
        name = key.decode("utf-8", "backslashreplace")
        entry = _entry(value)
        if entry.sliced:
            raise Flaw(f"{shown(name)!r} is a partitioned variable; save the checkpoint without partitions")
        if entry.dtype in NOT_NUMBERS:
            if (name, entry.dtype, entry.shape) == (_tf_objects.KEY, STRING, ()):
                graph = _checked_graph(entry, shards)
            else:
                ignored.append(f"{shown(name)} ({NOT_NUMBERS[entry.dtype]})")
            continue
        _check(name, entry, shards)
        result[name] = entry
    if not shards:
        raise Flaw("an index without a header; get the file again")
    if not result:
        raise Flaw("the index holds no tensors")
    more = f" and {len(ignored) - 8} more" if len(ignored) > 8 else ""
    notes = (f"ignored entries that are no numbers: {', '.join(ignored[:8])}{more}",) if ignored else ()
    return shards, result, graph, notes


def _checked_graph(entry: _Entry, shards: int) -> _Entry:
    if entry.size > _tf_objects.LIMIT:
        raise Flaw(f"its object graph takes {entry.size} bytes; the limit is {_tf_objects.LIMIT}")
    if not 0 <= entry.shard < shards:
        raise Flaw(f"the object graph is in data file {entry.shard} of {shards}")
    return entry


def _check(name: str, entry: _Entry, shards: int) -> None:
    label = f"tensor {shown(name)!r}"
    needed = bytes_of(label, entry.dtype, entry.shape)
    if needed != entry.size:
        raise Flaw(f"{label}: shape {shown(entry.shape)} takes {needed} bytes, the index gives {entry.size}")
    if not 0 <= entry.shard < shards:
        raise Flaw(f"{label}: it is in data file {entry.shard} of {shards}")


def _check_overlap(entries: dict[str, _Entry]) -> None:
    """Refuse a small data file that is many large tensors at once."""
    shard, end = 0, 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset, item[1].size)):
        if entry.shard == shard and entry.offset < end:
            raise Flaw(f"tensor {shown(name)!r} overlaps the one before it, which ends at byte {end}")
        shard, end = entry.shard, entry.offset + entry.size


def _renamed(entries: dict[str, _Entry], names: dict[str, str]) -> tuple[dict[str, _Entry], tuple[str, ...]]:
    """Return the tensors by the names of their variables, where those are unique, and notes of what was done."""
    originals = {(names.get(key), e.content()) for key, e in entries.items() if not key.startswith(_COPIES)}
    kept = {
        key: entry
        for key, entry in entries.items()
        if not (key.startswith(_COPIES) and key in names and (names[key], entry.content()) in originals)
    }
    times = Counter(names[key] for key in kept if key in names)
    unique = {key: name for key, name in names.items() if times[name] == 1 and name not in kept}
    result = {unique.get(key, key): entry for key, entry in kept.items()}
    notes = []
    if changed := sum(key in unique for key in kept):
        notes.append(f"tensors called by the names of their variables, not by their keys in the file: {changed}")
    if copies := len(entries) - len(kept):
        notes.append(
            f"tensors under {_COPIES} left out, which the file holds twice with equal names and check sums: {copies}"
        )
    return result, tuple(notes)


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
            entry.shape = shape_of(payload)
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
