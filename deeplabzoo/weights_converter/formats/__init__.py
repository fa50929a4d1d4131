"""Bytes <-> named numpy arrays: the file formats of checkpoints, without the frameworks that made the files.

Nothing in a file is executed, whatever it claims is checked before memory is given to it, and everything wrong about
it is a `FormatError` of one line. Names and arrays are passed on as they are: what they mean is the layouts' affair.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from deeplabzoo.errors import FormatError, OutputError, unknown
from deeplabzoo.files import beside_then_rename, check_output
from deeplabzoo.weights_converter.formats import keras_h5, paddle_pickle, safetensors, tf_checkpoint, torch_pickle
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint
from deeplabzoo.weights_converter.formats._guard import existing_file, head, reading

__all__ = ["FORMATS", "Checkpoint", "detect", "format_of_suffix", "read", "write"]

# In the order of asking: torch's old format is a pickle too, so Paddle comes after it.
_MODULES: dict[str, ModuleType] = {
    module.NAME: module for module in (safetensors, torch_pickle, paddle_pickle, keras_h5, tf_checkpoint)
}
FORMATS = tuple(_MODULES)
_SUFFIXES = {
    ".safetensors": safetensors.NAME,
    ".pth": torch_pickle.NAME,
    ".pt": torch_pickle.NAME,
    ".pdparams": paddle_pickle.NAME,
    ".weights.h5": keras_h5.NAME,
}
# What people really give by mistake: how it begins, and what it then is.
_STRANGERS = {
    b"version https://git-lfs": "it is a Git LFS pointer; fetch the file itself",
    b"\x1f\x8b": "it is gzip; unpack it first",
    b"BZh": "it is bzip2; unpack it first",
    b"\xfd7zXZ": "it is xz; unpack it first",
    b"\x93NUMPY": "it is a single NumPy array",
}


def detect(path: str | os.PathLike[str]) -> str:
    """Tell the format of a file by what it holds; its name does not count.

    Args:
        path: a file, or the prefix or folder of a TensorFlow checkpoint.

    Returns:
        One of `FORMATS`.

    Raises:
        FormatError: missing, a folder, empty, or none of the formats; says what was found and which are known.
    """
    path = Path(path)
    with reading(path, "checkpoint"):
        if tf_checkpoint.sniff(path):
            return tf_checkpoint.NAME
        existing_file(path)
        for name, module in _MODULES.items():
            if module.sniff(path):
                return name
        raise FormatError(
            f"{path}: not a checkpoint this package reads: {_describe(path)}; known formats: {', '.join(FORMATS)}"
        )


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of any known format; its tensors are read when they are asked for.

    Args:
        path: a file, or the prefix or folder of a TensorFlow checkpoint.

    Raises:
        FormatError: as `detect`, or damaged, or it wants something executed. The same error may come on access of a
            tensor.
    """
    path = Path(path)
    checkpoint = _MODULES[detect(path)].read(path)
    assert isinstance(checkpoint, Checkpoint)  # noqa: S101 - for the type checker: modules are untyped values
    return checkpoint


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    *,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write tensors to a file, one in memory at a time; on any failure nothing is left under the name.

    Args:
        path: the file.
        tensors: name -> array, of any shape and of a type that the format has. May be lazy. Values are stored
            C-contiguous and little-endian, bit for bit.
        format: one of `FORMATS` but "tf-checkpoint"; by default what the suffix says.
        metadata: safetensors: its `__metadata__`; keras-h5: the `labels` of a checkpoint; none elsewhere.
        force: replace the file where it exists.

    Raises:
        FormatError: the format or the suffix is unknown; or a lazy tensor can't be read from its own file.
        OutputError: the file exists, can't be written, or the format can't hold what is given.
    """
    path = Path(path)
    name = format_of_suffix(path) if format is None else format
    if name not in _MODULES:
        raise FormatError(unknown("format", name, _writable()))
    module = _MODULES[name]
    if not hasattr(module, "write"):
        raise OutputError(f"format {name} can only be read; write one of {', '.join(_writable())}")
    names = list(tensors)
    if not names or not all(isinstance(key, str) and key for key in names):
        raise OutputError(f"output {path}: expected at least one tensor, and text for every name")
    check_output(path, force=force)
    with beside_then_rename(path) as beside:
        module.write(beside, tensors, metadata)


def format_of_suffix(path: str | os.PathLike[str]) -> str:
    """Return the format that the name of an output asks for.

    Raises:
        FormatError: the suffix is unknown; suggests a near one.
    """
    name = Path(path).name
    for suffix, format_name in _SUFFIXES.items():
        if name.endswith(suffix) and name != suffix:
            return format_name
    said = unknown("suffix", Path(name).suffix, _SUFFIXES)
    # Too far from .weights.h5 to be found near it, and what everyone tries first.
    raise FormatError(f"{path}: {said}{'; did you mean .weights.h5?' if name.endswith('.h5') else ''}")


def _writable() -> list[str]:
    return [name for name, module in _MODULES.items() if hasattr(module, "write")]


def _describe(path: Path) -> str:
    """Say what a file of no known format is, as far as its first bytes tell."""
    start = head(path)
    if start.startswith(b"PK\x03\x04"):
        return _describe_zip(path)
    if start[4:8] == b"TFL3":
        return "it is a TensorFlow Lite model"
    found = next((text for magic, text in _STRANGERS.items() if start.startswith(magic)), None)
    return found or f"it starts with {start[:16]!r}"


def _describe_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises almost anything for a damaged archive
        return "it is a zip archive, damaged or truncated"
    if "model.weights.h5" in names:
        return "it is a whole Keras model (.keras); load it with Keras and save a .weights.h5"
    if names and all(name.endswith(".npy") for name in names):
        return "it is a NumPy archive (.npz)"
    return f"it is a zip archive without data.pkl, of {len(names)} entries"
