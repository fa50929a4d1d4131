"""Keras 3's .weights.h5: an HDF5 file where each layer is a group with a group `vars` of numbered variables."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile, check_sharing
from deeplabzoo.weights_converter.formats._guard import Flaw, reading, shown
from deeplabzoo.weights_converter.formats._hdf5 import address_of, check, is_hdf5, is_keras2, load, opened, walk
from deeplabzoo.weights_converter.formats._hdf5_text import Attributes, Pieces
from deeplabzoo.weights_converter.formats._hdf5_writer import created

NAME = "keras-h5"


def sniff(path: Path) -> bool:
    """Tell whether `path` starts like HDF5 and is not of Keras 2."""
    return is_hdf5(path) and not is_keras2(path)


def read(path: Path) -> Checkpoint:
    """Read a .weights.h5 file.

    Names are the HDF5 paths of the variables, such as `layers/conv2d_1/vars/0`. HDF5 lists a group by spelling, which
    says nothing about the model; the order here is natural: part by part, with numbers compared as numbers, so that
    `conv2d_2` comes before `conv2d_10`.

    Raises:
        FormatError: damaged, or it points outside itself; also on access of a tensor.
    """
    with reading(path, NAME):
        loaders, labels, notes = variables(MappedFile(path))
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, notes=notes, labels=labels)


def variables(source: Pieces) -> tuple[dict[str, Callable[[], Array]], dict[str, str], tuple[str, ...]]:
    """Return what a .weights.h5, or one inside another file, holds: loaders by name, labels of layers, notes.

    Raises:
        Flaw: as `read`.
    """
    attributes = Attributes(source)
    kinds: dict[str, bool] = {}
    labels: dict[str, str] = {}
    ignored: list[str] = []
    total = 0
    with opened(source) as file:
        for name, item in walk(file):
            layer, _, last = f"/{name}".rpartition("/")
            if isinstance(item, h5py.Group):
                if last == "vars" and (label := attributes.text(address_of(item), "name")) is not None:
                    labels[layer[1:]] = label
                continue
            # Keras stores bfloat16 as two bytes of no type, and says so.
            bfloat16 = item.dtype == np.dtype("V2") and attributes.text(address_of(item), "dtype") == "bfloat16"
            if layer.endswith("/vars") and (bfloat16 or item.dtype.kind in "biufc"):
                total += check(item)
                kinds[name] = bfloat16
            else:
                ignored.append(name)
    if not kinds:
        raise Flaw("holds no variables: expected datasets in groups called vars, as Keras 3 writes them")
    check_sharing(total, source.size)
    names = sorted(kinds, key=_natural)
    notes = (f"ignored datasets that are no variables: {shown(sorted(ignored)[:8])}",) if ignored else ()
    loaders = {name: functools.partial(load, source, name, bfloat16=kinds[name]) for name in names}
    return dict(loaders), {layer: labels[layer] for layer in sorted(labels, key=_natural)}, notes


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
        with created(path) as file:
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


def _natural(path: str) -> list[list[Any]]:
    """Order `a_2` before `a_10`: every part as text, number, text... where a longer number is the larger one."""
    parts = (re.split(r"([0-9]+)", part) for part in path.split("/"))
    return [[(len(t.lstrip("0")), t) if i % 2 else t for i, t in enumerate(part)] for part in parts]
