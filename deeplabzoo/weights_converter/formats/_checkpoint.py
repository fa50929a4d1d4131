"""What every reader returns: named arrays, read only when asked for."""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplabzoo.weights_converter.formats._guard import Flaw, reading

Array = npt.NDArray[Any]
_MOST_SHARED = 16
_SHARED_FREELY = 64 * 2**20
_PART = 2**24  # bytes that are looked at in one go


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A file of named tensors.

    Attributes:
        tensors: name -> array of any shape (0-d included), in the file's own order where it has one. The mapping is
            lazy: each access reads the tensor anew, memory-mapped where the format allows, so keep what you use twice.
            The arrays are read-only, and lie where the file has them: perhaps at an address that is no multiple of
            their item size (`np.require(array, requirements="A")` helps who can't take that). A flaw found on access is a `FormatError`, like one found when opening.
        format: one of `formats.FORMATS`.
        metadata: the `__metadata__` of safetensors; empty elsewhere.
        notes: one line for each thing a user should know: wrapper stripped, prefix removed, entries ignored.
        labels: keras-h5: path of a layer's group, without `/vars` (the model itself is "") -> its `name` attribute, in
            the order of the file. Layers without variables are here too. Empty elsewhere.
        facts: plain data (text, numbers, lists, dicts) that stand beside the tensors and say something of the network:
            `config` of a hub folder or a Keras file, `layer_names` of a Keras 2 file, `meta` of a checkpoint of PyTorch
            or Paddle that holds more than tensors, `graph` of a frozen graph or ONNX model, `operators` of a TFLite
            model, `layers` of a Caffe model. Empty elsewhere.
    """

    tensors: Mapping[str, Array]
    format: str
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class LazyTensors(Mapping[str, Array]):
    """Name -> array, where the array is made by a loader on each access; errors come out as `FormatError`."""

    def __init__(self, path: Path, format_name: str, loaders: Mapping[str, Callable[[], Array]]) -> None:
        self._path = path
        self._format = format_name
        self._loaders = loaders

    def __getitem__(self, name: str) -> Array:
        loader = self._loaders[name]
        with reading(self._path, self._format):
            array = loader()
            array.flags.writeable = False
            return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    def __contains__(self, name: object) -> bool:  # the inherited one would load the tensor
        return name in self._loaders

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of {self._path}>"


class MappedFile:
    """A file whose pieces are memory-mapped one by one, so that a piece's memory goes when its array goes.

    The file is not kept open: a `Checkpoint` then needs no closing. Each access checks that it is still the same file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size, self._identity = self._stat()

    def _stat(self) -> tuple[int, tuple[int, int]]:
        stat = os.stat(self.path)  # noqa: PTH116 - a few times faster than the method, and asked for every tensor
        return stat.st_size, (stat.st_ino, stat.st_mtime_ns)

    def unchanged(self) -> bool:
        """Tell whether the name still leads to the same file, and nobody has written to it."""
        try:
            return (self.size, self._identity) == self._stat()
        except OSError:
            return False

    def piece(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        """Return `count` bytes from `offset` as a read-only uint8 array backed by the file.

        Raises:
            Flaw: the piece lies outside the file, or the file has changed since it was opened.
        """
        if (self.size, self._identity) != self._stat():
            raise Flaw("the file has changed since it was opened; open it again")
        if offset < 0 or count < 0 or offset + count > self.size:
            raise Flaw(f"truncated: bytes {offset} to {offset + count} are asked for, the file has {self.size}")
        if count == 0:
            return np.empty(0, np.uint8)  # an empty range can't be mapped
        # Not numpy.memmap: resolving the path anew for each of a thousand tensors takes as long as copying them.
        begin = offset - offset % mmap.ALLOCATIONGRANULARITY
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            mapped = mmap.mmap(descriptor, offset + count - begin, access=mmap.ACCESS_READ, offset=begin)
        finally:
            os.close(descriptor)
        return np.frombuffer(mapped, np.uint8, count, offset - begin)


def release(array: Array) -> None:
    """Give back the memory of a tensor that is backed by a file; what is read of it later comes from the file again.

    Someone who looks at each value once calls this now and then: the pages of a tensor of a gigabyte would else count
    as the process's memory until the tensor goes. Arrays with memory of their own are left as they are.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        owner.madvise(mmap.MADV_DONTNEED)


def checksum(update: Callable[[Any, int], int], piece: npt.NDArray[np.uint8]) -> int:
    """Return the check sum of a piece of a file, of which a part at a time is in memory.

    Args:
        update: takes bytes and the check sum of all before them, 0 at first, as `zlib.crc32` does.
        piece: backed by the file or not.
    """
    value = 0
    for start in range(0, piece.size, _PART):
        value = update(piece[start : start + _PART], value)
        release(piece)
    return value


def check_sharing(total: int, stored: int) -> None:
    """Refuse tensors that are far more than the bytes they come from: a small file would fill the disk of its user.

    Args:
        total: bytes of all tensors.
        stored: bytes of the file.

    Raises:
        Flaw: as said. Layers that share their weights, which files may hold, are a few, and weights hardly shrink where
            they are compressed; those of an untrained model do, so a few megabytes may come from anything.
    """
    if total > max(_SHARED_FREELY, _MOST_SHARED * stored):
        raise Flaw(f"its tensors take {total} bytes, the file {stored}: they share their bytes or shrink too much")


def as_dtype(piece: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> Array:
    """See bytes as `dtype`, never copied: numpy reads them at any address, others get them aligned by the converter."""
    return piece.view(dtype)
