"""PyTorch's .pth: a zip archive with a pickle and one uncompressed entry a storage; before 1.6, pickles in a row.

Nothing of the pickle is executed (`restricted_pickle`), and tensors are memory-mapped where they lie in the archive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.weights_converter.formats import _dtypes, _zip
from deeplabzoo.weights_converter.formats._checkpoint import (
    Array,
    Checkpoint,
    LazyTensors,
    MappedFile,
    as_dtype,
    check_sharing,
    checksum,
)
from deeplabzoo.weights_converter.formats._facts import plain_entries
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown
from deeplabzoo.weights_converter.formats._pickle_parts import Buildable, Callee, Inert
from deeplabzoo.weights_converter.formats._state_dicts import find_tensors
from deeplabzoo.weights_converter.formats._torch_writer import NAME, STORAGES, write
from deeplabzoo.weights_converter.formats.pickle_values import ArrayStub, checked_shape, plain_names, total_bytes
from deeplabzoo.weights_converter.formats.restricted_pickle import Machine

__all__ = ["NAME", "read", "sniff", "write"]

_PICKLE_LIMIT = 64 * 2**20  # the pickle names the tensors and holds none; a thousand take 200 kB
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c, pickled with protocol 2
_LEGACY_VERSION = 1001


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """A storage class or a torch.dtype: the name of its element type, "" for bytes of any type."""

    dtype: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    count: int  # elements; bytes where dtype is ""
    first: int = 0  # element of the storage called `key` where a view of it begins


class _Tensor(Buildable):
    """A strided view of a storage."""

    __slots__ = ("dtype", "first", "shape", "storage", "strides")

    def __init__(self, storage: Any, first: Any, shape: Any, strides: Any, dtype: Any = None) -> None:
        if not isinstance(storage, _Storage) or not (dtype is None or isinstance(dtype, _Kind)):
            raise Flaw("damaged pickle: a tensor without a storage or a type")
        self.shape, self.strides = checked_shape(shape), checked_shape(strides)
        (self.first,) = checked_shape(first)
        self.storage = storage
        self.dtype = dtype.dtype if dtype else storage.dtype
        if self.dtype not in _dtypes.ITEMSIZE:
            raise Flaw("damaged pickle: a tensor of no element type")
        available = storage.count if storage.dtype else storage.count // _dtypes.ITEMSIZE[self.dtype]
        if len(self.shape) != len(self.strides) or math.prod(self.shape) > available or self.last > available:
            raise Flaw(
                f"a tensor claims shape {shown(self.shape)}, strides {shown(self.strides)} and offset {self.first}, "
                f"its storage has {available} elements"
            )

    @property
    def last(self) -> int:
        """One past the last element of the storage that the tensor touches."""
        if 0 in self.shape:
            return self.first
        return self.first + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    def build(self, state: Any) -> None:
        """A tensor's own state is refused: only subclasses have one."""
        raise Flaw("refuses to set the state of a tensor")

    def load(self, file: MappedFile, offset: int) -> Array:
        """Return the tensor, given the offset of its storage in the file."""
        dtype = _dtypes.resolve(self.dtype)
        begin, end = (
            (self.storage.first + self.first) * dtype.itemsize,
            (self.storage.first + self.last) * dtype.itemsize,
        )
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        flat = as_dtype(file.piece(offset + begin, end - begin), dtype)
        # The bounds were checked when the tensor was made. numpy's as_strided does not know types that are not its own.
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.ndarray(self.shape, dtype, flat.view(np.uint8).data, 0, strides)


def _names() -> dict[str, Any]:
    def tensor_v2(storage: Any, first: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        return _Tensor(storage, first, shape, strides)

    def tensor_v3(
        storage: Any, first: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
    ) -> _Tensor:
        return _Tensor(storage, first, shape, strides, dtype)

    def parameter(data: Any, *_: Any) -> Any:
        if not isinstance(data, _Tensor | ArrayStub):
            raise Flaw("damaged pickle: a parameter without a tensor")
        return data

    callees: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": tensor_v2,
        "torch._utils._rebuild_tensor_v2": tensor_v2,
        "torch._utils._rebuild_tensor_v3": tensor_v3,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
        "torch.Size": lambda sizes=(): checked_shape(sizes),
        "torch.device": lambda *_: Inert("torch.device"),
    }
    table = plain_names()
    table |= {name: Callee(name, function) for name, function in callees.items()}
    table |= {f"torch.{storage}": _Kind(dtype) for storage, dtype in STORAGES.items()}
    table |= {f"torch.{dtype}": _Kind(dtype) for dtype in _dtypes.ITEMSIZE}
    table["torch.storage.UntypedStorage"] = _Kind("")
    return table


def _storage(key: Any) -> _Storage:
    """Make a storage from its persistent id: ("storage", class, key, location, count[, view of another])."""
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage":
        raise Flaw("refuses a persistent id that is not a storage")
    kind, name, count = key[1], key[2], key[4]
    view = key[5] if len(key) == 6 else None
    if not isinstance(kind, _Kind) or not isinstance(name, str):
        raise Flaw("damaged pickle: a storage without type or name")
    (checked,) = checked_shape(count)
    if view is None:
        return _Storage(name, kind.dtype, checked)
    if not isinstance(view, tuple) or len(view) != 3:
        raise Flaw("damaged pickle: a view of a storage that is not (name, offset, count)")
    first, length = checked_shape(view[1:])
    if first + length > checked:
        raise Flaw(f"a view of {length} elements at {first} leaves its storage of {checked}")
    return _Storage(name, kind.dtype, length, first)


def sniff(path: Path) -> bool:
    """Tell whether `path` is a zip archive with torch's pickle in it, or starts with the old format's magic number."""
    start = head(path)
    if start.startswith(_LEGACY):
        return True
    if not start.startswith(b"PK\x03\x04"):
        return False
    names = _zip.names(path)
    # A truncated archive has no list; torch writes the pickle first.
    return any(map(_is_pickle, names)) if names else b"/data.pkl" in start


def read(path: Path) -> Checkpoint:
    """Read a .pth file.

    Order is that of the dictionary in the file. Tensors keep their strides, so they are contiguous where the module
    that made them had them so. A dictionary wrapped in another (`state_dict`, `model`...) is found; `notes` says so.
    Plain data beside the tensors (epoch, best score, the `meta` of mmsegmentation) are `facts["meta"]`.

    Raises:
        FormatError: damaged, or it wants something executed; also on access of a tensor (check sum of its storage).
    """
    with reading(path, NAME):
        file = MappedFile(path)
        top, offset_of = _read_legacy(file) if head(path).startswith(_LEGACY) else _read_zip(file)
        found = find_tensors(top, lambda value: isinstance(value, _Tensor | ArrayStub))
        meta = plain_entries(found.beside, file)

        def load(tensor: _Tensor | ArrayStub) -> Array:
            if isinstance(tensor, ArrayStub):
                return tensor.load(file)
            return tensor.load(file, offset_of(tensor.storage))

        for tensor in found.tensors.values():
            if isinstance(tensor, _Tensor):
                offset_of(tensor.storage, check=False)
        check_sharing(total_bytes(found.tensors.values()), file.size)
        loaders = {name: lambda tensor=tensor: load(tensor) for name, tensor in found.tensors.items()}
        facts = {"meta": meta} if meta else {}
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, notes=tuple(found.notes), facts=facts)


def _is_pickle(name: str) -> bool:
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


class _Offset:
    """Where storages lie: a call gives the offset of one in the file, after a check that it is whole."""

    def __init__(self, file: MappedFile, found: Mapping[str, tuple[int, int, int | None]]) -> None:
        self._file = file
        self._found = found  # key -> offset, bytes, check sum
        self._checked: set[str] = set()

    def __call__(self, storage: _Storage, *, check: bool = True) -> int:
        if storage.key not in self._found:
            raise Flaw(f"storage {shown(storage.key)!r} is not in the file")
        offset, length, stored = self._found[storage.key]
        needed = (storage.first + storage.count) * _dtypes.ITEMSIZE.get(storage.dtype, 1)
        if needed > length:
            raise Flaw(f"storage {shown(storage.key)!r} claims {needed} bytes, the file holds {length}")
        if check and storage.key not in self._checked:
            if stored is not None and checksum(zlib.crc32, self._file.piece(offset, length)) != stored:
                raise Flaw(f"storage {shown(storage.key)!r} is damaged (its check sum differs); get the file again")
            self._checked.add(storage.key)
        return offset


def _read_zip(file: MappedFile) -> tuple[Any, _Offset]:
    entries = _zip.directory(file.path)
    pickles = [name for name in entries if _is_pickle(name)]
    if len(pickles) != 1:
        raise Flaw(f"the archive holds {len(pickles)} pickles called data.pkl; expected one")
    root = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(f"{root}code/") for name in entries):
        raise Flaw("a TorchScript archive, which holds code; save the module's state dict instead")
    if f"{root}byteorder" in entries:
        offset, length, _ = _place(file, entries[f"{root}byteorder"])
        order = file.piece(offset, length).tobytes()
        if order != b"little":
            raise Flaw(f"byte order {shown(order)}; expected little: save it again on a little-endian machine")
    offset, length, stored = _place(file, entries[pickles[0]])
    if length > _PICKLE_LIMIT:
        raise Flaw(f"its pickle takes {length} bytes; the limit is {_PICKLE_LIMIT}")
    data = file.piece(offset, length)
    if stored is not None and checksum(zlib.crc32, data) != stored:
        raise Flaw("its pickle is damaged (the check sum differs); get the file again")
    top, _ = Machine(data.data, _names(), _storage, base=offset).run()
    prefix = f"{root}data/"
    found = {name.removeprefix(prefix): _place(file, info) for name, info in entries.items() if name.startswith(prefix)}
    return top, _Offset(file, found)


def _place(file: MappedFile, info: zipfile.ZipInfo) -> tuple[int, int, int | None]:
    """Return offset, length and check sum (None where torch was told not to compute any) of an entry's bytes."""
    entry = _zip.place(file, info)
    if entry.deflated:
        raise Flaw(f"entry {shown(info.filename)!r} is compressed, which torch never does; save it again")
    return entry.offset, entry.size, entry.checksum


def _read_legacy(file: MappedFile) -> tuple[Any, _Offset]:
    """Read magic number, version, system, the tensors' pickle, the names of the storages, and where each one lies."""
    with _mapped(file.path) as data:
        storages: dict[str, _Storage] = {}

        def remember(key: Any) -> _Storage:
            storage = _storage(key)
            if storages.setdefault(storage.key, storage).dtype != storage.dtype:
                raise Flaw(f"storage {shown(storage.key)!r} has two element types")
            return storage

        machine = Machine(data, _names(), remember)
        _, position = machine.run()
        version, position = machine.run(position)
        system, position = machine.run(position)
        if version != _LEGACY_VERSION:
            raise Flaw(f"version {shown(version)} of torch's old format; expected {_LEGACY_VERSION}")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Flaw("saved on a big-endian machine; save it again on a little-endian one")
        top, position = machine.run(position)
        keys, position = machine.run(position)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise Flaw("damaged: no list of storages")
        found: dict[str, tuple[int, int, int | None]] = {}
        for key in keys:
            (count,) = struct.unpack("<q", data[position : position + 8])
            position += 8
            storage = storages.get(key)
            length = count * (_dtypes.ITEMSIZE.get(storage.dtype, 1) if storage else 1)
            if storage is None or not 0 <= length <= file.size - position:
                raise Flaw(f"truncated or damaged: storage {shown(key)!r} claims {count} elements")
            found[key] = (position, length, None)
            position += length
        return top, _Offset(file, found)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            yield view
        finally:
            view.release()
