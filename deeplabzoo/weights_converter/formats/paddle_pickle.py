"""Paddle's .pdparams: one pickle of a dictionary of numpy arrays. Nothing of it is executed (`restricted_pickle`).

Paddle keeps bfloat16 as numpy's uint16 and takes every uint16 for bfloat16; so do both halves of this module.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile, check_sharing
from deeplabzoo.weights_converter.formats._facts import plain_entries
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading
from deeplabzoo.weights_converter.formats._pickle_parts import Callee, refusal
from deeplabzoo.weights_converter.formats._state_dicts import find_tensors
from deeplabzoo.weights_converter.formats.pickle_values import ArrayStub, plain_names, total_bytes
from deeplabzoo.weights_converter.formats.restricted_pickle import Machine

NAME = "paddle"
_NAMES_KEY = "StructuredToParameterName@@"
_SLICES_KEY = "UnpackBigParamInfor@@"
_CODES = {
    "bool": "b1", "uint8": "u1", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8", "float16": "f2",
    "float32": "f4", "float64": "f8", "bfloat16": "u2", "complex64": "c8", "complex128": "c16",
}  # fmt: skip


def sniff(path: Path) -> bool:
    """Tell whether `path` starts like a pickle of protocol 2 to 5 (torch's old format must be ruled out first)."""
    start = head(path, 2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def read(path: Path) -> Checkpoint:
    """Read a .pdparams file.

    Order is that of the dictionary in the file. Tensors lie in it as they are since protocol 4 and are memory-mapped;
    those of protocol 2 are kept as text and decoded on access. uint16 is returned as bfloat16, which it stands for.

    Raises:
        FormatError: damaged, or it wants something executed; also on access of a tensor.
    """
    with reading(path, NAME):
        file = MappedFile(path)
        table = plain_names()
        table["builtins.eval"] = Callee("builtins.eval", _not_eval)
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                top, _ = Machine(view, table).run()
            finally:
                view.release()
        notes: list[str] = []
        if isinstance(top, dict):
            if _SLICES_KEY in top:
                raise Flaw("holds tensors cut in slices by protocol 2 or 3; save it again with protocol=4")
            if top.pop(_NAMES_KEY, None) is not None:
                notes.append(f"{_NAMES_KEY!r} left out: it holds Paddle's inner names of the tensors")
            _unname(top, set())
        found = find_tensors(top, lambda value: isinstance(value, ArrayStub))
        check_sharing(total_bytes(found.tensors.values()), file.size)
        meta = plain_entries(found.beside, file)
        loaders = {name: lambda array=array: _load(array, file) for name, array in found.tensors.items()}
        return Checkpoint(
            LazyTensors(path, NAME, loaders),
            NAME,
            notes=(*notes, *found.notes),
            facts={"meta": meta} if meta else {},
        )


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .pdparams file as `paddle.save(layer.state_dict(), path)` would, one tensor in memory at a time.

    Args:
        path: the file; replaced where it exists.
        tensors: name -> array of any shape and of a type Paddle has. bfloat16 is stored as uint16, as Paddle does.
        metadata: must be empty: a state dict has no place for it.

    Raises:
        OutputError: a type that Paddle does not have (uint16 among them: Paddle would read bfloat16), or metadata.
    """
    if metadata:
        raise OutputError("format paddle has no place for metadata; leave it out, or write safetensors")
    if _NAMES_KEY in tensors:
        raise OutputError(f"a tensor can't be called {_NAMES_KEY!r} in a .pdparams; rename it")
    with path.open("wb") as file:
        file.write(b"\x80\x04}(")
        for name in tensors:
            array = _dtypes.contiguous(name, tensors[name], _CODES, NAME)
            # The module's old name, because numpy 1 knows only that one and numpy 2 knows both.
            file.write(
                _text(name) + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01("
            )
            file.write(b"".join(b"\x8a\x08" + struct.pack("<q", size) for size in array.shape) + b"t")
            code = _CODES[array.dtype.name]
            order = "|" if array.dtype.itemsize == 1 else "<"
            file.write(b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R(K\x03" + _text(order))
            file.write(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
            data = _dtypes.raw(array)
            file.write(
                b"B" + struct.pack("<I", len(data)) if len(data) < 2**32 else b"\x8e" + struct.pack("<Q", len(data))
            )
            file.write(data)
            file.write(b"tb")
        file.write(_text(_NAMES_KEY) + b"}(")
        for name in tensors:
            file.write(_text(name) * 2)
        file.write(b"uu.")


def _load(array: ArrayStub, file: MappedFile) -> Array:
    loaded = array.load(file)
    return loaded.view(_dtypes.resolve("bfloat16")) if loaded.dtype == np.uint16 else loaded


def _unname(value: dict[Any, Any], seen: set[int], depth: int = 0) -> None:
    """Replace (inner name, array), the way Paddle 2 keeps a tensor inside a container, by the array.

    Each dictionary once: a file may hold the same one under a million keys.
    """
    if id(value) in seen or depth > 3:
        return
    seen.add(id(value))
    for key, item in value.items():
        if isinstance(item, dict):
            _unname(item, seen, depth + 1)
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], ArrayStub):
            value[key] = item[1]


def _not_eval(source: Any = None, names: Any = None) -> Any:
    """Stand for `eval('data', {'data': array})`, Paddle's way to say "array" for static graphs; refuse any other."""
    if isinstance(source, str) and source == "data" and isinstance(names, dict) and list(names) == ["data"]:
        value = names["data"]
        if isinstance(value, ArrayStub):
            return value
    raise refusal("builtins.eval")


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded
