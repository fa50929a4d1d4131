"""Keras 2's .h5: an HDF5 file whose groups are layers, in the order and with the weights that attributes list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deeplabzoo.errors import OutputError
from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile, check_sharing
from deeplabzoo.weights_converter.formats._facts import JSON_LIMIT, parse_config
from deeplabzoo.weights_converter.formats._guard import Flaw, reading, shown
from deeplabzoo.weights_converter.formats._hdf5 import address_of, check, is_keras2, load, opened, walk
from deeplabzoo.weights_converter.formats._hdf5_text import Attributes
from deeplabzoo.weights_converter.formats._hdf5_writer import created

NAME = "keras2-h5"
_TOP_LEVEL = "top_level_model_weights"  # weights of the model itself, which no list of layers names
_ATTRIBUTE_LIMIT = 64512  # bytes that Keras puts in one attribute; HDF5 takes a little more
_NAME_LIMIT = 1000  # bytes; every name in the list takes as many as the longest
_LEGAL = _dtypes.NATIVE
# Without a version, Keras 2 takes the weights for those of Keras 1 and turns kernels round.
_WRITER = {"backend": b"tensorflow", "keras_version": b"2.15.0"}


def sniff(path: Path) -> bool:
    """Tell whether `path` is an HDF5 file with Keras 2's list of layers or group of weights."""
    return is_keras2(path)


def read(path: Path) -> Checkpoint:
    """Read an .h5 of weights, or of a whole model, of Keras 2 (or of Keras 3 in that format).

    A tensor's name is the weight's without `:0` where that begins with the layer's name and a slash (`Conv/kernel`),
    else the layer's name, a slash and it: weights of a model `inner` used as a layer are called `inner/c1/kernel`
    whether Keras 2 wrote them (`c1/kernel:0`) or Keras 3 (`inner/c1/kernel`). Order is that of the lists in the file.

    `facts["layer_names"]` lists all layers in the order of the file, those without weights too; `facts["config"]` is
    the `model_config` of a whole model.

    Raises:
        FormatError: damaged, or it points outside itself; also on access of a tensor.
    """
    with reading(path, NAME):
        source = MappedFile(path)
        attributes = Attributes(source)
        facts: dict[str, Any] = {}
        with opened(source) as file:
            root = address_of(file)
            groups: dict[str, int] = {"": root}
            datasets: dict[str, None] = {}
            for name, item in walk(file):
                if isinstance(item, h5py.Group):
                    groups[name] = address_of(item)
                else:
                    datasets[name] = None
            config = attributes.text(root, "model_config", limit=JSON_LIMIT)
            if config is not None:
                facts["config"] = parse_config(config, "its attribute model_config")
            base = "model_weights" if "model_weights" in groups else ""
            layers = attributes.texts(groups[base], "layer_names")
            if layers is None:
                raise Flaw("holds no list of layers (the attribute layer_names); get the file again")
            facts["layer_names"] = layers
            top = [_TOP_LEVEL] if _join(base, _TOP_LEVEL) in groups and _TOP_LEVEL not in layers else []
            places = {}
            total = 0
            for layer in layers + top:
                group = _join(base, layer)
                if not layer or group not in groups:
                    raise Flaw(f"lists a layer {shown(layer)!r} that is not there; get the file again")
                for weight in attributes.texts(groups[group], "weight_names") or []:
                    place = f"{group}/{weight}"
                    if place not in datasets:
                        raise Flaw(f"lists a weight {shown(weight)!r} that layer {shown(layer)!r} does not hold")
                    name = _tensor_name(layer, weight)
                    if name in places:
                        raise Flaw(f"holds two weights called {shown(name)!r}")
                    total += _check(file[place])
                    places[name] = place
        if not places:
            raise Flaw("holds no weights: none of its layers lists any")
        check_sharing(total, source.size)
        loaders = {name: lambda place=place: load(source, place) for name, place in places.items()}
        ignored = list(datasets.keys() - set(places.values()))
        notes = (
            (f"ignored {len(ignored)} datasets that are no weights: {shown(sorted(ignored)[:4])}",) if ignored else ()
        )
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, notes=notes, facts=facts)


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write an .h5 of weights that Keras 2 loads, and Keras 3 by its reader of old files; one tensor in memory.

    Keras fills a model by position: the layers that have weights in the order listed, and within a layer the weights
    in the order listed (kernel, bias; gamma, beta, moving mean, moving variance); with `by_name=True` it finds layers
    by name. Both need the tensors of a layer in that order, and the first all layers in the order of the model.

    Args:
        path: the file; replaced where it exists.
        tensors: `layer/weight` (`Conv/kernel`, `inner/c1/kernel`) -> array of a type numpy has itself.
        metadata: `layer_names`, a JSON list of all layers in the order of the model, as `facts` of a file read has it.
            Without it the layers are those before the first slash of the names, in the order of the tensors.

    Raises:
        OutputError: a name without a layer, a type or metadata that the format has no place for.
    """
    layers = _layers(tensors, metadata or {})
    try:
        with created(path) as file:
            for key, value in _WRITER.items():
                file.attrs[key] = np.bytes_(value)
            _write_names(file, "layer_names", [layer for layer in layers if layer != _TOP_LEVEL])
            for layer, names in layers.items():
                group = file.require_group(layer)
                # By the name that a graph of TensorFlow gives a weight: Keras 2 does so, and some loaders expect it.
                weights = {f"{name}:0": name for name in names}
                _write_names(group, "weight_names", list(weights))
                for weight, name in weights.items():
                    tensor = tensors[name]
                    if getattr(tensor, "dtype", None) == "bfloat16":
                        raise OutputError(f"tensor {shown(name)!r}: Keras 2 has no bfloat16; write it as float32")
                    group.create_dataset(weight, data=_dtypes.contiguous(name, tensor, _LEGAL, NAME))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:  # clashing paths, names HDF5 can't hold
        raise OutputError(f"output can't be written as {NAME}: {shown(error)}") from error


def _join(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name


def _tensor_name(layer: str, weight: str) -> str:
    short = weight.removesuffix(":0")
    return short if short.startswith(f"{layer}/") else f"{layer}/{short}"


def _check(dataset: Any) -> int:
    if dataset.dtype.kind not in "biufc":
        raise Flaw(f"{shown(dataset.name)} is of type {shown(str(dataset.dtype))}; expected numbers")
    return check(dataset)


def _layers(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the layers in their order, each with the names of its tensors."""
    if set(metadata) - {"layer_names"}:
        raise OutputError(f"format {NAME} has no place for metadata but layer_names; leave {', '.join(metadata)} out")
    for name in tensors:
        if not all(part and part != "." for part in name.split("/")) or "/" not in name or "\0" in name:
            raise OutputError(f"tensor {shown(name)!r}: expected layer/weight, as Keras names it, like Conv/kernel")
    if "layer_names" not in metadata:
        listed = list(dict.fromkeys(name.partition("/")[0] for name in tensors))
    else:
        listed = _listed(metadata["layer_names"])
    layers: dict[str, list[str]] = {layer: [] for layer in listed}
    if any(name.startswith(f"{_TOP_LEVEL}/") for name in tensors):
        layers.setdefault(_TOP_LEVEL, [])
    for name in tensors:
        parts = name.split("/")
        # A layer's name may hold a slash: the longest layer that fits.
        owners = ("/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
        owner = next((owner for owner in owners if owner in layers), None)
        if owner is None:
            raise OutputError(f"tensor {shown(name)!r} belongs to none of the layers that layer_names lists")
        layers[owner].append(name)
    return layers


def _listed(text: str) -> list[str]:
    try:
        listed = json.loads(text)
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(isinstance(layer, str) and layer.strip("/") for layer in listed):
        raise OutputError(f"metadata layer_names = {shown(text)}: expected a JSON list of the names of layers")
    if len(set(listed)) != len(listed):
        raise OutputError("metadata layer_names holds a name twice; list each layer once")
    return listed


def _write_names(group: Any, name: str, names: list[str]) -> None:
    """Store a list of names in as many attributes as Keras makes of it."""
    if any(len(text.encode("utf-8")) > _NAME_LIMIT for text in names):
        raise OutputError(f"a name in {name} takes more than {_NAME_LIMIT} bytes; shorten it")
    encoded = np.array([text.encode("utf-8") for text in names], np.bytes_) if names else np.empty(0, "f8")
    chunks, count = [encoded], 1
    while any(chunk.nbytes > _ATTRIBUTE_LIMIT for chunk in chunks):
        count += 1
        chunks = np.array_split(encoded, count)
    for index, chunk in enumerate(chunks):
        group.attrs[name if count == 1 else f"{name}{index}"] = chunk
