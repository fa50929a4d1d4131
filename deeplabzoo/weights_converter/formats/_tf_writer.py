"""Writing TensorFlow's checkpoints: the data file, its index, and putting both in place so that they always agree."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from deeplabzoo.errors import OutputError
from deeplabzoo.files import reason
from deeplabzoo.weights_converter.formats import _dtypes, _leveldb
from deeplabzoo.weights_converter.formats._checkpoint import Array
from deeplabzoo.weights_converter.formats._crc32c import crc32c, mask
from deeplabzoo.weights_converter.formats._guard import shown
from deeplabzoo.weights_converter.formats._tf_types import DTYPES

_NUMBERS = {name: number for number, name in DTYPES.items()}
_VERSION = b"\x1a\x02\x08\x01"  # of the format: producer 1


def index_of(prefix: Path) -> Path:
    """Return the path of the index of a checkpoint."""
    return prefix.with_name(f"{prefix.name}.index")


def data_of(prefix: Path, shard: int = 0, shards: int = 1) -> Path:
    """Return the path of one of the data files of a checkpoint."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def write(prefix: Path, tensors: Mapping[str, Array], format_name: str) -> None:
    """Write data file and index, byte for byte as TensorFlow does: tensors by the spelling of their names.

    One tensor is in memory at a time.

    Args:
        prefix: path of the checkpoint; its files are replaced where they exist.
        tensors: name -> array of any shape and of a type that TensorFlow has.
        format_name: for messages.

    Raises:
        OutputError: a name or a type can't be stored.
    """
    keys = {_key(name): name for name in tensors}
    entries = [(b"", _header(1))]
    offset = 0
    with data_of(prefix).open("wb") as file:
        for key in sorted(keys):
            array = _dtypes.contiguous(keys[key], tensors[keys[key]], _NUMBERS, format_name)
            data = _dtypes.raw(array)
            file.write(data)
            checksum = mask(crc32c(np.asarray(data, np.uint8)))
            entries.append((key, _entry(array, offset, len(data), checksum)))
            offset += len(data)
    index_of(prefix).write_bytes(_leveldb.table(entries))


@contextlib.contextmanager
def beside_then_in_place(prefix: Path) -> Iterator[Path]:
    """Yield a prefix in the same folder to write to; on success its files replace those of `prefix`, else they go.

    At every moment a reader finds the old checkpoint, or none where there was none, or the new one; never the index of
    one with the data of the other. Of several writers one after the other puts its files in place. Where files of
    `prefix` are links, the links are replaced.

    Raises:
        OutputError: the files can't be written (full disk, no permission).
    """
    target = prefix.parent.resolve() / prefix.name
    beside = target.with_name(f".{secrets.token_hex(6)}.ckpt")
    try:
        yield beside
        for file in (data_of(beside), index_of(beside)):
            _flush(file)
        with _alone(target):
            if index_of(target).exists():
                _replace(beside, target)
            else:
                _place(beside, target)
    except OSError as error:
        raise OutputError(f"output {prefix} can't be written: {reason(error)}") from error
    finally:
        for file in (data_of(beside), index_of(beside), _detour_of(beside)):
            with contextlib.suppress(OSError):  # the first failure is the one worth telling
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(prefix: Path) -> Iterator[None]:
    """Keep every other process from putting a checkpoint called `prefix` in place; wait for one that is at it.

    The lock is on a hidden file beside it, which goes at the end. A writer that is killed leaves the file without its
    lock. Where the system or the file system has no such locks, writers do without.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    path = prefix.with_name(f".{prefix.name}.lock")
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_still(lock, path):  # the one that was waited for has removed it
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(lock)


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _place(new: Path, target: Path) -> None:
    """Give a checkpoint its name where none has it: until its index is there, there is no checkpoint."""
    data_of(new).replace(data_of(target))
    try:
        index_of(new).replace(index_of(target))
    except OSError:
        data_of(target).unlink(missing_ok=True)
        raise


def _detour_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.detour")


def _replace(new: Path, old: Path) -> None:
    """Replace a checkpoint by another.

    Two files can't be replaced at once. But an index names its data file by the number of data files, so the new data
    gets a second name first, as one of several, and an index that says so makes the new checkpoint valid in one step.
    Then the old data is not needed any more, and both files get their usual names in the same way.
    """
    detour = _detour_of(new)
    second, shards = _named_again(data_of(new), old)
    try:
        _, *entries = _leveldb.entries(index_of(new).read_bytes())
        detour.write_bytes(_leveldb.table([(b"", _header(shards)), *entries]))
        _flush(detour)
        detour.replace(index_of(old))
    except OSError:
        second.unlink(missing_ok=True)
        raise
    data_of(new).replace(data_of(old))
    index_of(new).replace(index_of(old))
    second.unlink()


def _named_again(data: Path, prefix: Path) -> tuple[Path, int]:
    """Give a data file a second name, as the first of several of `prefix`; returns it, and of how many it is.

    A name that is taken belongs to somebody else, and is left alone.
    """
    for shards in itertools.count(2):
        second = data_of(prefix, 0, shards)
        with contextlib.suppress(FileExistsError):
            try:
                os.link(data, second)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                _copy(data, second)
            break
    return second, shards


def _copy(source: Path, target: Path) -> None:
    """Copy a file to a name that none has, or `FileExistsError`; nothing is left where that fails."""
    with source.open("rb") as old, target.open("xb") as new:
        try:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())
        except OSError:
            target.unlink()
            raise


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _key(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise OutputError(f"tensor {shown(name)!r}: a name in TensorFlow is UTF-8 text; rename it") from None


def _header(shards: int) -> bytes:
    return b"\x08" + _leveldb.encoded(shards) + _VERSION


def _entry(array: Array, offset: int, size: int, checksum: int) -> bytes:
    """Return a BundleEntryProto; a protocol buffer leaves out what is zero."""
    dimensions = (b"\x08" + _leveldb.encoded(size) if size else b"" for size in array.shape)
    shape = b"".join(b"\x12" + _leveldb.encoded(len(dimension)) + dimension for dimension in dimensions)
    parts = [b"\x08", _leveldb.encoded(_NUMBERS[array.dtype.name]), b"\x12", _leveldb.encoded(len(shape)), shape]
    parts += [b"\x20", _leveldb.encoded(offset)] if offset else []
    parts += [b"\x28", _leveldb.encoded(size)] if size else []
    parts += [b"\x35", checksum.to_bytes(4, "little")] if checksum else []
    return b"".join(parts)
