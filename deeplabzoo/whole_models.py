"""Writing a network together with its weights: the formats that their own library must write.

A `.keras` file holds the configuration of every layer as the installed Keras serialises it, which changes from release
to release; Keras writes it in a process of its own, because it brings a framework. An ONNX model is a protocol buffer
that the `onnx` package makes here.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from deeplabzoo.backends import resolve
from deeplabzoo.errors import BackendError, OutputError
from deeplabzoo.files import beside_then_rename, check_output
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import Canonical

TIME_LIMIT = 600.0
"""Seconds that Keras may take to start, build and save."""

_SAVE = """
import sys
from deeplabzoo.models import build
build(weights=sys.argv[1], backend="keras", dtype=sys.argv[3]).save(sys.argv[2])
"""
_ONNX_LIMIT = 2**31 - 1
"""Bytes of a protocol buffer."""


def write_whole_model(
    path: Path, model: Canonical, file_format: str, *, dtype: str = "float32", force: bool = False
) -> None:
    """Save a model as `.keras`, which Keras on TensorFlow writes, or as `.onnx`.

    `keras.models.load_model` takes the file once `deeplabzoo.backends.keras.build` is imported, which registers our
    layers. Any ONNX runtime takes the other; its metadata hold spec and card.

    Args:
        path: the file to write.
        model: canonical weights, spec and card.
        file_format: `keras` or `onnx`.
        dtype: of the model.
        force: replace the file where it exists.

    Raises:
        BackendError: Keras or onnx is not installed, or Keras failed.
        OutputError: the file exists, can't be written, or would be larger than its format allows.
    """
    check_output(path, force=force)
    resolve(file_format).require()
    if file_format == "onnx":
        _write_onnx(path, model, dtype, force=force)
    else:
        _write_keras(path, model, dtype, force=force)


def _write_onnx(path: Path, model: Canonical, dtype: str, *, force: bool) -> None:
    from deeplabzoo.models import build

    native = build(weights=dataclasses.replace(model, spares={}), backend="onnx", dtype=dtype)
    if (size := native.ByteSize()) > _ONNX_LIMIT:
        raise OutputError(f"output {path}: an ONNX model of {size} bytes; the format ends at 2 GB")
    with beside_then_rename(path, force=force) as beside:
        beside.write_bytes(native.SerializeToString(deterministic=True))


def _write_keras(path: Path, model: Canonical, dtype: str, *, force: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, beside_then_rename(path, force=force) as beside:
        canonical = Path(folder) / "model.safetensors"
        formats.write(canonical, model.weights, metadata=Canonical(model.spec, {}, model.card).metadata())
        command = [sys.executable, "-c", _SAVE, str(canonical), str(beside), dtype]
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter and our own code
                command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            raise BackendError(f"Keras took more than {TIME_LIMIT:.0f} s to save {path}; try again") from None
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no further word"])[-1]
            raise BackendError(f"Keras could not save {path}: {said[:300]}")
