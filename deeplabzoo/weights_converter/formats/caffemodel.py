"""Caffe's `.caffemodel`: the layers of a network with their blobs, in one protocol buffer.

Source of the numbers: caffe.proto of BVLC/caffe (BSD-2-Clause). Files of two generations are about: `layer`, and the
older `layers`, in which DeepLab v1 and v2 on VGG-16 were published.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile, as_dtype
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown
from deeplabzoo.weights_converter.formats._protobuf import Field, Walk, outline, signed

NAME = "caffemodel"
_HEAD = 64 * 2**10
_NET = {1: 2, 2: 2, 3: 2, 4: 0, 5: 0, 6: 2, 7: 0, 8: 2, 100: 2}
_MOST_NUMBERS = 16  # of axes of a shape, a padding or a stride
_MOST_BLOBS = 16  # of a layer: each of them has the layer's name in its own

# Types that the older files number; by the names that the newer ones have.
_V1_TYPES = {
    1: "Accuracy", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 8: "Flatten", 12: "ImageData",
    14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split",
    25: "Eltwise", 33: "Slice", 36: "Silence", 39: "Deconvolution",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Generation:
    """Where a message of a layer has what is read of it."""

    name: int
    type: int
    blobs: int
    convolution: int
    batch_norm: int | None


_GENERATIONS = {100: _Generation(1, 2, 7, 106, 139), 2: _Generation(4, 5, 6, 10, None)}
_V0 = 1  # what a layer of 2013 holds instead


@dataclasses.dataclass
class _Blob:
    """A tensor of a layer: where its values lie, not the values."""

    shape: tuple[int, ...]
    dtype: str
    values: list[Field]


def sniff(path: Path) -> bool:
    """Tell whether `path` starts like a network of Caffe: at most a name and inputs, then a layer with its name."""
    names = 0
    for field, wire, data in outline(head(path, _HEAD)):
        names += field == 1
        if _NET.get(field) != wire or names > 1:
            return False
        if field in _GENERATIONS:
            inner = {number: kind for number, kind, _ in outline(data)}
            return inner.get(_GENERATIONS[field].name) == 2 or (field == 2 and inner.get(_V0) == 2)
    return False


def read(path: Path) -> Checkpoint:
    """Read the blobs of a network.

    Names are `LAYER/INDEX`: `conv1_1/0` is the weight of that convolution, `conv1_1/1` its bias. Shapes are the
    file's; those of the older kind have four axes (num, channels, height, width), and from the second blob of a layer
    on (1, 1, 1, N) is taken for the vector that it is. Values are passed on as they are: the mean and the variance of
    a BatchNorm are still to be divided by its third blob.

    `facts["layers"]` has each layer's name and type in the file's order; a convolution's pad, kernel_size, stride,
    dilation (lists, of one number where it counts for both axes) and group, too, and a BatchNorm's epsilon.

    Raises:
        FormatError: damaged, no blobs, or of 2013; also on access of a tensor.
    """
    with reading(path, NAME):
        file = MappedFile(path)
        walk = Walk(file.piece(0, file.size).data)
        blobs: dict[str, _Blob] = {}
        layers = []
        for field in walk.fields(0, file.size):
            if field.field in _GENERATIONS and field.wire == 2:
                layer, own = _layer(walk, field, _GENERATIONS[field.field])
                layers.append(layer)
                for index, blob in enumerate(own):
                    name = f"{layer['name']}/{index}"
                    if name in blobs:
                        raise Flaw(f"two layers with blobs are called {shown(layer['name'])!r}")
                    blobs[name] = blob
        if not blobs:
            raise Flaw(f"holds {len(layers)} layers and no blobs; give the .caffemodel, not the network's description")
        loaders = {name: _loader(file, name, blob) for name, blob in blobs.items()}
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, facts={"layers": layers})


def _layer(walk: Walk, span: Field, where: _Generation) -> tuple[dict[str, Any], list[_Blob]]:
    name, kind = "", ""
    blobs: list[_Blob] = []
    more: dict[str, Any] = {}
    for field in walk.fields(span.begin, span.end):
        if field.field == where.name:
            name = walk.text(field)
        elif field.field == where.type:
            kind = walk.text(field) if field.wire == 2 else _V1_TYPES.get(field.number, f"type {field.number}")
        elif field.field == where.blobs and field.wire == 2:
            if len(blobs) == _MOST_BLOBS:
                raise Flaw(f"a layer holds more than {_MOST_BLOBS} blobs; no layer of Caffe does")
            blobs.append(_blob(walk, field, len(blobs)))
        elif field.field == where.convolution and field.wire == 2:
            more = _convolution(walk, field)
        elif field.field == where.batch_norm and field.wire == 2:
            more = {"epsilon": _epsilon(walk, field)}
        elif field.field == _V0:
            raise Flaw("written by a Caffe of 2013; upgrade it with Caffe's upgrade_net_proto_binary")
    if kind == "BatchNorm":
        more = {"epsilon": 1e-5, **more}
    return {"name": name, "type": kind, **more}, blobs


def _blob(walk: Walk, span: Field, index: int) -> _Blob:
    shape: list[int] | None = None
    legacy = {}
    values: dict[int, list[Field]] = {5: [], 8: []}
    for field in walk.fields(span.begin, span.end):
        if field.field == 7 and field.wire == 2:
            shape = [n for part in walk.fields(field.begin, field.end) if part.field == 1 for n in walk.numbers(part)]
        elif field.field in (1, 2, 3, 4) and field.wire == 0:
            legacy[field.field] = signed(field.number)
        elif field.field in values:
            values[field.field].append(field)
    if shape is None:
        shape = [legacy.get(axis, 0) for axis in (1, 2, 3, 4)]
        if index and shape[:3] == [1, 1, 1]:
            shape = shape[3:]
    dtype = "float64" if values[8] else "float32"
    return _Blob(tuple(shape), dtype, values[8] or values[5])


def _convolution(walk: Walk, span: Field) -> dict[str, Any]:
    """Parameters of a convolution, defaults filled in.

    DeepLab's own Caffe called the dilation `hole` and numbered it as later versions do a flag: hence a flag above 1
    is one.
    """
    found: dict[int, list[int]] = {}
    for field in walk.fields(span.begin, span.end):
        if field.field in (3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 17, 18):
            found[field.field] = [*found.get(field.field, []), *walk.numbers(field)][:_MOST_NUMBERS]
    hole = [number for number in found.get(17, []) if number > 1]
    return {
        "pad": _sides(found, 3, 9, 10, 0),
        "kernel_size": _sides(found, 4, 11, 12, 0),
        "stride": _sides(found, 6, 13, 14, 1),
        "dilation": found.get(18) or hole or [1],
        "group": found.get(5, [1])[-1],
    }


def _sides(found: dict[int, list[int]], both: int, height: int, width: int, usual: int) -> list[int]:
    if height in found or width in found:
        return [found.get(height, [usual])[-1], found.get(width, [usual])[-1]]
    return found.get(both) or [usual]


def _epsilon(walk: Walk, span: Field) -> float:
    value = 1e-5
    for field in walk.fields(span.begin, span.end):
        if field.field == 3 and field.wire == 5:
            (value,) = struct.unpack("<f", walk.view[field.begin : field.end])
    return value


def _loader(file: MappedFile, name: str, blob: _Blob) -> Callable[[], Array]:
    """Check what a blob claims and return what reads it."""
    label = f"blob {shown(name)!r}"
    if len(blob.shape) > _MOST_NUMBERS or any(not 0 <= size < 2**63 for size in blob.shape):
        raise Flaw(f"{label}: impossible shape {shown(blob.shape)}")
    dtype = _dtypes.resolve(blob.dtype)
    needed = math.prod(blob.shape) * dtype.itemsize
    given = sum(field.end - field.begin for field in blob.values)
    if given != needed:
        raise Flaw(f"{label}: {dtype} of shape {shown(blob.shape)} takes {needed} bytes, it has {given}")
    return functools.partial(_load, file, blob, dtype)


def _load(file: MappedFile, blob: _Blob, dtype: np.dtype[Any]) -> Array:
    if not blob.values:
        return np.empty(blob.shape, dtype)
    first, last = blob.values[0].begin, blob.values[-1].end
    piece = file.piece(first, last - first)
    if len(blob.values) > 1:  # unpacked, a tag before each number
        parts: list[npt.NDArray[np.uint8]] = [piece[field.begin - first : field.end - first] for field in blob.values]
        piece = np.concatenate(parts)
    return as_dtype(piece, dtype).reshape(blob.shape)
