"""What the readers of Keras' HDF5 files share: opening, walking, checking and loading, within bounds."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, MappedFile, as_dtype
from deeplabzoo.weights_converter.formats._guard import Flaw, head, shown
from deeplabzoo.weights_converter.formats._hdf5_text import Attributes, Pieces

_MAGIC = b"\x89HDF\r\n\x1a\n"
_OBJECTS_LIMIT = 10_000
_NAME_LIMIT = 2048  # characters of a path: each object in a group has the whole path of the group in its own
_DEPTH_LIMIT = 64
# What HDF5 itself can undo; any other filter would load a plug-in from the machine. Deflate reaches about 1030:1.
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
_EXPANSION_LIMIT = 1100


class _FileOfPieces(io.RawIOBase):
    """Bytes in pieces, seen as a file, which is what h5py reads when there is no path."""

    def __init__(self, source: Pieces) -> None:
        super().__init__()
        self._data = source.piece(0, source.size).data  # once: the library reads thousands of small pieces
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), len(self._data) - self._position))
        view[:count] = self._data[self._position : self._position + count]
        self._position += count
        return count


def is_hdf5(path: Path) -> bool:
    """Tell whether `path` starts like HDF5."""
    return head(path, len(_MAGIC)) == _MAGIC


def is_keras2(path: Path) -> bool:
    """Tell whether `path` is HDF5 with what only Keras 2 writes: a list of layers, or a group of weights."""
    if not is_hdf5(path):
        return False
    with contextlib.suppress(Exception):  # damaged beyond telling
        source = MappedFile(path)
        with opened(source) as file:
            return "model_weights" in file or Attributes(source).has(address_of(file), "layer_names")
    return False


@contextlib.contextmanager
def opened(source: Pieces) -> Iterator[Any]:
    """Open a file, or bytes inside another file, with h5py."""
    where = source.path if isinstance(source, MappedFile) else _FileOfPieces(source)
    with h5py.File(where, "r") as file:
        yield file


def address_of(item: Any) -> int:
    """Return where the header of an object lies."""
    return int(h5py.h5o.get_info(item.id).addr)


def walk(file: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and object of all that a file holds, a group before what is in it; refuse links that lead away."""
    groups = [("", file)]
    seen: set[int] = set()
    count = 0
    while groups:
        prefix, group = groups.pop()
        address = address_of(group)
        if address in seen or prefix.count("/") > _DEPTH_LIMIT:
            raise Flaw(f"group {shown(prefix)!r} holds itself, is there twice or lies too deep")
        seen.add(address)
        for part in group:
            count += 1
            if count > _OBJECTS_LIMIT:
                raise Flaw(f"holds more than {_OBJECTS_LIMIT} objects")
            name = f"{prefix}{part}"
            if len(name) > _NAME_LIMIT:
                raise Flaw(f"{shown(name)!r} is a name of {len(name)} characters; the limit is {_NAME_LIMIT}")
            if isinstance(link := group.get(part, getlink=True), h5py.ExternalLink | h5py.SoftLink):
                raise Flaw(f"refuses {shown(name)!r}, a {type(link).__name__}: it leads to another place or file")
            item = group[part]
            if isinstance(item, h5py.Group):
                groups.append((f"{name}/", item))
            elif not isinstance(item, h5py.Dataset):
                raise Flaw(f"{shown(name)!r} is a {type(item).__name__}; expected groups and datasets")
            elif (address := address_of(item)) in seen:
                raise Flaw(f"{shown(name)!r} is there twice")
            else:
                seen.add(address)
            yield name, item


def check(dataset: Any) -> int:
    """Refuse data outside the file, and claims that the stored bytes can't meet; returns how many bytes it claims.

    Raises:
        Flaw: as said.
    """
    label = shown(dataset.name)
    if dataset.is_virtual or dataset.external:
        raise Flaw(f"refuses {label}: its data is in another file")
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    if not set(filters) <= set(_FILTERS):
        raise Flaw(
            f"{label} is compressed with a filter HDF5 does not have itself; expected {', '.join(_FILTERS.values())}"
        )
    claimed: int = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if claimed > stored * (_EXPANSION_LIMIT if filters else 1):
        raise Flaw(f"{label} claims {claimed} bytes, the file holds {stored}")
    return claimed


def load(source: Pieces, name: str, *, bfloat16: bool = False) -> Array:
    """Return a dataset in native byte order, checked anew; `bfloat16` where its two bytes of no type stand for that."""
    with opened(source) as file:
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise Flaw("the file has changed since it was opened; open it again")
        check(dataset)
        array = _mapped(source, dataset)
    if bfloat16:
        return array.view(_dtypes.resolve("bfloat16"))
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _mapped(source: Pieces, dataset: Any) -> Array:
    """A dataset's values: the file's own bytes where they lie in one piece, so that a large one takes no memory."""
    offset = dataset.id.get_offset()  # none for chunks, compact data and data not written yet
    if offset is None or dataset.dtype.kind not in "biuf" or not dataset.size:
        return np.asarray(dataset[()])
    piece = source.piece(offset, dataset.size * dataset.dtype.itemsize)
    return as_dtype(piece, dataset.dtype).reshape(dataset.shape)
