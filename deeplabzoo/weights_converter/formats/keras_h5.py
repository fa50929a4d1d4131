"""Keras 3's .weights.h5: an HDF5 file where each layer is a group with a group `vars` of numbered variables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown
from deeplabzoo.weights_converter.formats._hdf5_text import text_attribute

NAME = "keras-h5"
_MAGIC = b"\x89HDF\r\n\x1a\n"
_OBJECTS_LIMIT = 200_000
_DEPTH_LIMIT = 64
# What HDF5 itself can undo; any other filter would load a plug-in from the machine. Deflate reaches about 1030:1.
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
_EXPANSION_LIMIT = 1100


def sniff(path: Path) -> bool:
    """Tell whether `path` starts like HDF5."""
    return head(path, len(_MAGIC)) == _MAGIC


def read(path: Path) -> Checkpoint:
    """Read a .weights.h5 file.

    Names are the HDF5 paths of the variables, such as `layers/conv2d_1/vars/0`. HDF5 lists a group by spelling, which
    says nothing about the model; the order here is natural: part by part, with numbers compared as numbers, so that
    `conv2d_2` comes before `conv2d_10`.

    Raises:
        FormatError: damaged, written by Keras 2, or it points outside itself; also on access of a tensor.
    """
    with reading(path, NAME):
        raw = MappedFile(path)
        with h5py.File(path, "r") as file:
            if "layer_names" in file.attrs or "model_weights" in file:
                raise Flaw("an .h5 of Keras 2, which is not supported; load it with Keras and save a .weights.h5")
            kinds: dict[str, bool] = {}
            labels: dict[str, str] = {}
            ignored: list[str] = []
            for name, item in _walk(file):
                layer, _, last = f"/{name}".rpartition("/")
                if isinstance(item, h5py.Group):
                    if last == "vars" and (label := _text(raw, item, "name")) is not None:
                        labels[layer[1:]] = label
                    continue
                # Keras stores bfloat16 as two bytes of no type, and says so.
                bfloat16 = item.dtype == np.dtype("V2") and _text(raw, item, "dtype") == "bfloat16"
                if layer.endswith("/vars") and (bfloat16 or item.dtype.kind in "biufc"):
                    _check(item)
                    kinds[name] = bfloat16
                else:
                    ignored.append(name)
        if not kinds:
            raise Flaw("holds no variables: expected datasets in groups called vars, as Keras 3 writes them")
        names = sorted(kinds, key=_natural)
        notes = (f"ignored datasets that are no variables: {shown(sorted(ignored)[:8])}",) if ignored else ()
        loaders = {name: lambda name=name: _load(path, name, bfloat16=kinds[name]) for name in names}
        labels = {layer: labels[layer] for layer in sorted(labels, key=_natural)}
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, notes=notes, labels=labels)


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .weights.h5 file as Keras 3 does, one tensor in memory at a time.

    Args:
        path: the file; replaced where it exists.
        tensors: HDF5 path ending in `vars/N` -> array of any shape and of a type Keras has.
        metadata: path of a layer's group, without `/vars` ("" for the model) -> the layer's name; the `labels` of a
            checkpoint read are just that. Keras makes a group for every layer that has a name, without variables too;
            it reads files without them as well.

    Raises:
        OutputError: a name or a type that Keras would not read.
    """
    for name in tensors:
        if not re.fullmatch(r"(?:[^/\0]+/)*vars/[0-9a-z_]+", name):
            raise OutputError(
                f"tensor {shown(name)!r}: expected the path of a Keras variable, like layers/conv2d/vars/0"
            )
    try:
        with h5py.File(path, "w") as file:
            for layer, label in (metadata or {}).items():
                file.require_group(f"{layer}/vars" if layer else "vars").attrs["name"] = label
            for name in tensors:
                array = _dtypes.contiguous(name, tensors[name], _dtypes.ITEMSIZE, NAME)
                if array.dtype.name.startswith("float8"):
                    raise OutputError(f"tensor {shown(name)!r}: format {NAME} can't hold {array.dtype}")
                if array.dtype.name == "bfloat16":
                    file.create_dataset(name, data=array.view("V2")).attrs["dtype"] = "bfloat16"
                else:
                    file.create_dataset(name, data=array)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:  # clashing paths, names HDF5 can't hold
        raise OutputError(f"output can't be written as {NAME}: {shown(error)}") from error


def _walk(file: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and object of all that a file holds, a group before what is in it; refuse links that lead away."""
    groups = [("", file)]
    seen: set[Any] = set()
    count = 0
    while groups:
        prefix, group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen or prefix.count("/") > _DEPTH_LIMIT:
            raise Flaw(f"group {shown(prefix)!r} holds itself, is there twice or lies too deep")
        seen.add(address)
        for part in group:
            count += 1
            if count > _OBJECTS_LIMIT:
                raise Flaw(f"holds more than {_OBJECTS_LIMIT} objects")
            name = f"{prefix}{part}"
            if isinstance(link := group.get(part, getlink=True), h5py.ExternalLink | h5py.SoftLink):
                raise Flaw(f"refuses {shown(name)!r}, a {type(link).__name__}: it leads to another place or file")
            item = group[part]
            if isinstance(item, h5py.Group):
                groups.append((f"{name}/", item))
            elif not isinstance(item, h5py.Dataset):
                raise Flaw(f"{shown(name)!r} is a {type(item).__name__}; expected groups and datasets")
            yield name, item


def _check(dataset: Any) -> None:
    """Refuse data outside the file, and claims that the stored bytes can't meet."""
    label = shown(dataset.name)
    if dataset.is_virtual or dataset.external:
        raise Flaw(f"refuses {label}: its data is in another file")
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    if not set(filters) <= set(_FILTERS):
        raise Flaw(
            f"{label} is compressed with a filter HDF5 does not have itself; expected {', '.join(_FILTERS.values())}"
        )
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if claimed > stored * (_EXPANSION_LIMIT if filters else 1):
        raise Flaw(f"{label} claims {claimed} bytes, the file holds {stored}")


def _text(raw: MappedFile, item: Any, name: str) -> str | None:
    return text_attribute(raw, h5py.h5o.get_info(item.id).addr, name)


def _load(path: Path, name: str, *, bfloat16: bool) -> Array:
    with h5py.File(path, "r") as file:
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise Flaw("the file has changed since it was opened; open it again")
        _check(dataset)
        array = np.asarray(dataset[()])
    if bfloat16:
        return array.view(_dtypes.resolve("bfloat16"))
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _natural(path: str) -> list[list[Any]]:
    """Order `a_2` before `a_10`: every part as text, number, text... where a longer number is the larger one."""
    parts = (re.split(r"([0-9]+)", part) for part in path.split("/"))
    return [[(len(t.lstrip("0")), t) if i % 2 else t for i, t in enumerate(part)] for part in parts]
