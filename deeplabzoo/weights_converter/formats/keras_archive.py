"""Keras 3's .keras: a zip archive with the weights as a .weights.h5 in it, beside the model's configuration."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplabzoo.weights_converter.formats import _zip
from deeplabzoo.weights_converter.formats._checkpoint import Checkpoint, LazyTensors, MappedFile
from deeplabzoo.weights_converter.formats._facts import JSON_LIMIT, parse_config
from deeplabzoo.weights_converter.formats._guard import Flaw, reading
from deeplabzoo.weights_converter.formats._hdf5_text import Pieces
from deeplabzoo.weights_converter.formats._keras_labels import labels_of
from deeplabzoo.weights_converter.formats.keras_h5 import variables

NAME = "keras"
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_ELSEWHERE = ("model.weights.npz", "model.weights.json")
# Weights hardly shrink. Those of an untrained model do, so small archives may hold whatever they like.
_UNPACKED_FREELY = 64 * 2**20
_EXPANSION_LIMIT = 20


class _Window:
    """A part of a file."""

    def __init__(self, file: MappedFile, entry: _zip.Entry) -> None:
        self._file = file
        self._offset = entry.offset
        self.size = entry.size

    def piece(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise Flaw(f"truncated: bytes {offset} to {offset + count} of {_WEIGHTS} are asked for, it has {self.size}")
        return self._file.piece(self._offset + offset, count)


class _Unpacked:
    """An entry unpacked into a file without a name, which goes when this goes."""

    def __init__(self, file: MappedFile, entry: _zip.Entry) -> None:
        self.size = entry.size
        try:
            with tempfile.TemporaryFile() as temporary:
                for chunk in _zip.unpacked(file, entry):
                    temporary.write(chunk)
                temporary.flush()
                self._map = mmap.mmap(temporary.fileno(), self.size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise Flaw(f"its {_WEIGHTS} can't be unpacked into {tempfile.gettempdir()}: {error.strerror}") from error

    def piece(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise Flaw(f"truncated: bytes {offset} to {offset + count} of {_WEIGHTS} are asked for, it has {self.size}")
        return np.frombuffer(self._map, np.uint8, count, offset)


def sniff(path: Path) -> bool:
    """Tell whether `path` is a zip archive with a model's weights in it, as Keras names them."""
    names = _zip.names(path)
    return _WEIGHTS in names or any(name in names for name in _ELSEWHERE)


def read(path: Path) -> Checkpoint:
    """Read a .keras file.

    Names, order and labels are those of the .weights.h5 inside. `facts["config"]` is the model's configuration. Older
    Keras keeps no names of layers beside the weights; they are then taken from the configuration, where it tells them
    for sure. Keras does not compress the weights; where somebody has, they are unpacked into a file without a name.

    Raises:
        FormatError: damaged, a zip bomb, or as keras-h5; also on access of a tensor.
    """
    with reading(path, NAME):
        file = MappedFile(path)
        entries = _zip.directory(path)
        if _WEIGHTS not in entries:
            kept = ", ".join(name for name in _ELSEWHERE if name in entries)
            raise Flaw(f"keeps its weights in {kept}; load it with Keras and save it with {_WEIGHTS}")
        if _CONFIG not in entries:
            raise Flaw(f"holds no {_CONFIG}; expected a whole Keras model (.keras)")
        text = _zip.whole(file, _zip.place(file, entries[_CONFIG]), JSON_LIMIT)
        config = parse_config(text, f"{_CONFIG} of the whole Keras model")
        loaders, labels, notes = variables(_weights(file, _zip.place(file, entries[_WEIGHTS])))
        if not labels:
            labels = labels_of(config, loaders)
            if labels:
                notes += ("names of layers taken from the configuration: this Keras keeps none beside the weights",)
        return Checkpoint(LazyTensors(path, NAME, loaders), NAME, notes=notes, labels=labels, facts={"config": config})


def _weights(file: MappedFile, entry: _zip.Entry) -> Pieces:
    if not entry.deflated:
        return _Window(file, entry)
    if entry.size > max(_UNPACKED_FREELY, entry.stored * _EXPANSION_LIMIT):
        raise Flaw(
            f"its {_WEIGHTS} claims {entry.size} bytes and takes {entry.stored}: weights do not shrink so far; load it "
            "with Keras and save it anew"
        )
    return _Unpacked(file, entry)
