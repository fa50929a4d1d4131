"""Bytes <-> named numpy arrays: the file formats of checkpoints, without the frameworks that made the files.

Nothing in a file is executed, whatever it claims is checked before memory is given to it, and everything wrong about
it is a `FormatError` of one line. Names and arrays are passed on as they are: what they mean is the layouts' affair.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from deeplabzoo.errors import FormatError, OutputError, unknown
from deeplabzoo.files import beside_then_rename, check_output
from deeplabzoo.weights_converter.formats import (
    _zip,
    caffemodel,
    hub_folder,
    keras2_h5,
    keras_archive,
    keras_h5,
    keras_preset,
    npz,
    onnx,
    paddle_pickle,
    safetensors,
    saved_model,
    tf_checkpoint,
    tf_graph,
    tflite,
    torch_pickle,
)
from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, release
from deeplabzoo.weights_converter.formats._guard import Flaw, existing_file, head, reading, shown, tail
from deeplabzoo.weights_converter.formats._state_dicts import around, without_prefixes

__all__ = [
    "FORMATS", "Checkpoint", "Flaw", "around", "check_outputs", "detect", "format_of_suffix", "outputs", "read", "release",
    "shown", "without_prefixes", "write",
]  # fmt: skip

# In the order of asking: torch's old format is a pickle too, so Paddle comes after it.
_MODULES: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        safetensors, torch_pickle, paddle_pickle, keras_h5, tf_checkpoint, keras2_h5, keras_archive, npz, hub_folder,
        keras_preset, saved_model, tf_graph, tflite, onnx, caffemodel,
    )
}  # fmt: skip
# What may be a folder, or a prefix that no file has for a name.
_NOT_FILES = (tf_checkpoint, saved_model, hub_folder, keras_preset)
# What holds the names of a module's tensors, and with them those of whatever the module was wrapped in.
_STATE_DICTS = {module.NAME for module in (safetensors, torch_pickle, paddle_pickle, npz, hub_folder)}
FORMATS = tuple(_MODULES)
_SUFFIXES = {
    ".safetensors": safetensors.NAME,
    ".pth": torch_pickle.NAME,
    ".pt": torch_pickle.NAME,
    ".pth.tar": torch_pickle.NAME,
    ".bin": torch_pickle.NAME,
    ".pdparams": paddle_pickle.NAME,
    ".weights.h5": keras_h5.NAME,
    ".h5": keras2_h5.NAME,
    ".keras": keras_archive.NAME,
    ".npz": npz.NAME,
    ".ckpt": tf_checkpoint.NAME,
    ".onnx": onnx.NAME,
}
_NAME_LIMIT = 1000  # characters of a tensor's name that is written; readers take a few more
_STEP = re.compile(r"(?<=\.ckpt)-\d+$")  # what TensorFlow adds to a prefix
_TAR_AT = 257
_TABLE_END = bytes.fromhex("57fb808b247547db")  # of a table of LevelDB, which a checkpoint of TensorFlow's old kind is
# What people really give by mistake: how it begins, and what it then is.
_STRANGERS = {
    b"version https://git-lfs": "it is a Git LFS pointer; fetch the file itself",
    b"\x1f\x8b": "it is gzip; unpack it first",
    b"BZh": "it is bzip2; unpack it first",
    b"\xfd7zXZ": "it is xz; unpack it first",
    b"\x93NUMPY": "it is a single NumPy array",
    b"node {": "it is a TensorFlow graph as text; give the binary one (.pb)",
}


def detect(path: str | os.PathLike[str]) -> str:
    """Tell the format of a file by what it holds; its name does not count.

    Args:
        path: a file, the prefix or folder of a TensorFlow checkpoint, or the folder of a SavedModel, of the hub or of a
            preset of KerasHub.

    Returns:
        One of `FORMATS`.

    Raises:
        FormatError: missing, a folder, empty, or none of the formats; says what was found and which are known.
    """
    path = Path(path)
    with reading(path, "checkpoint"):
        for module in _NOT_FILES:
            if module.sniff(path):
                return str(module.NAME)
        existing_file(path)
        for name, module in _MODULES.items():
            if module.sniff(path):
                return name
        raise FormatError(
            f"{path}: not a checkpoint this package reads: {_describe(path)}; known formats: {', '.join(FORMATS)}"
        )


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of any known format; its tensors are read when they are asked for.

    Prefixes that wrappers leave on every name of a state dict (`module.` and such) are gone, and a note says so.

    Args:
        path: a file, the prefix or folder of a TensorFlow checkpoint, or the folder of a SavedModel, of the hub or of a
            preset of KerasHub.

    Raises:
        FormatError: as `detect`, or damaged, or it wants something executed. The same error may come on access of a
            tensor.
    """
    path = Path(path)
    checkpoint = _MODULES[detect(path)].read(path)
    assert isinstance(checkpoint, Checkpoint)  # noqa: S101 - for the type checker: modules are untyped values
    if checkpoint.format in _STATE_DICTS:
        with reading(path, checkpoint.format):
            checkpoint, _ = without_prefixes(checkpoint)
    return hub_folder.with_config(checkpoint, path)


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
        path: the file; for "tf-checkpoint" the prefix of its two files, for "hub-folder" the folder.
        tensors: name -> array, of any shape and of a type that the format has. May be lazy. Values are stored
            C-contiguous and little-endian, bit for bit.
        format: one of `FORMATS` that can be written; by default what the suffix says.
        metadata: safetensors: its `__metadata__`; keras-h5: the `labels` of a checkpoint; keras2-h5: `layer_names`, a
            JSON list; hub-folder: `config`, a JSON object; none elsewhere.
        force: replace the file where it exists.

    Raises:
        FormatError: the format or the suffix is unknown; or a lazy tensor can't be read from its own file.
        OutputError: the file exists, can't be written, or the format can't hold what is given.
    """
    module = _writer(path, format)
    path = Path(path)
    names = list(tensors)
    if not names or not all(isinstance(key, str) and key for key in names):
        raise OutputError(f"output {path}: expected at least one tensor, and text for every name")
    longest = max(names, key=len)
    if len(longest) > _NAME_LIMIT:
        raise OutputError(f"tensor {shown(longest)!r}: a name of {len(longest)} characters; the limit is {_NAME_LIMIT}")
    check_outputs(path, format=module.NAME, force=force)
    in_place = getattr(module, "beside_then_in_place", None)
    with beside_then_rename(path, force=force) if in_place is None else in_place(path) as beside:
        module.write(beside, tensors, metadata)


def outputs(path: str | os.PathLike[str], *, format: str | None = None) -> tuple[Path, ...]:
    """Return the files that `write` makes: the path itself, except where a format consists of several files.

    Arguments and errors are those of `write`.
    """
    module = _writer(path, format)
    path = Path(path)
    files: tuple[Path, ...] = module.outputs(path) if hasattr(module, "outputs") else (path,)
    return files


def check_outputs(path: str | os.PathLike[str], *, format: str | None = None, force: bool = False) -> None:
    """Raise what `write` would, before anything is made for it: `OutputError` where a file exists or can't be there.

    Arguments are those of `write`.
    """
    module = _writer(path, format)
    check = getattr(module, "check_output", check_output)
    for file in outputs(path, format=module.NAME):
        check(file, force=force)


def _writer(path: str | os.PathLike[str], format: str | None) -> ModuleType:
    if not Path(path).name or "\0" in os.fspath(path):
        raise OutputError(f"output {shown(os.fspath(path))!r}: expected a name; give one")
    name = format_of_suffix(path) if format is None else format
    if name not in _MODULES:
        raise FormatError(unknown("format", name, _writable()))
    if not hasattr(_MODULES[name], "write"):
        raise OutputError(f"format {name} can only be read; write one of {', '.join(_writable())}")
    return _MODULES[name]


def format_of_suffix(path: str | os.PathLike[str]) -> str:
    """Return the format that the name of an output asks for: by its suffix, or a folder of the hub where it ends in `/`.

    Raises:
        FormatError: the suffix is unknown; suggests a near one.
    """
    if os.fspath(path).endswith("/"):
        return str(hub_folder.NAME)
    name = _STEP.sub("", Path(path).name)
    for suffix, format_name in _SUFFIXES.items():
        if name.endswith(suffix) and name != suffix:
            return format_name
    raise FormatError(f"{path}: {unknown('suffix', Path(name).suffix, _SUFFIXES)}")


def _writable() -> list[str]:
    return [name for name, module in _MODULES.items() if hasattr(module, "write")]


def _describe(path: Path) -> str:
    """Say what a file of no known format is, as far as its first bytes tell."""
    start = head(path, _TAR_AT + 5)
    if start[_TAR_AT:] == b"ustar":
        return (
            "it is a tar archive; unpack it first (one that torch made before 2017: load it with torch, save it again)"
        )
    if start.startswith(b"PK\x03\x04"):
        return _describe_zip(path)
    if tail(path, len(_TABLE_END)) == _TABLE_END:
        return "it is a TensorFlow checkpoint in the format V1; restore it with tf.compat.v1 and save it in V2"
    found = next((text for magic, text in _STRANGERS.items() if start.startswith(magic)), None)
    return found or f"it starts with {start[:16]!r}"


def _describe_zip(path: Path) -> str:
    try:
        count = len(_zip.directory(path))
    except Flaw as flaw:
        return f"it is a zip archive, and {flaw}"
    except Exception:  # zipfile raises almost anything for a damaged archive
        return "it is a zip archive, damaged or truncated"
    return f"it is a zip archive without data.pkl, of {count} entries"
