"""Writing a whole Keras model (`.keras`): the one format that its framework itself must write, in a process of its own.

Beside the weights such a file holds the configuration of every layer as the installed Keras serialises it, which
changes from release to release.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deeplabzoo.backends import resolve
from deeplabzoo.errors import BackendError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import Canonical

TIME_LIMIT = 600.0
"""Seconds that Keras may take to start, build and save."""

_SAVE = """
import sys
from deeplabzoo.models import build
build(weights=sys.argv[1], backend="keras", dtype=sys.argv[3]).save(sys.argv[2])
"""


def write_keras_archive(
    path: Path, model: Canonical, weights: Mapping[str, np.ndarray], *, dtype: str = "float32", force: bool = False
) -> None:
    """Save a model with Keras on TensorFlow.

    `keras.models.load_model` takes the file once `deeplabzoo.backends.keras.build` is imported, which registers our
    layers.

    Args:
        path: the file to write.
        model: spec and card.
        weights: canonical tensors.
        dtype: of the Keras model.
        force: replace the file where it exists.

    Raises:
        BackendError: Keras is not installed, or failed.
        OutputError: the file exists, or can't be written.
    """
    from deeplabzoo.files import beside_then_rename, check_output

    check_output(path, force=force)
    resolve("keras").require()
    with tempfile.TemporaryDirectory() as folder, beside_then_rename(path, force=force) as beside:
        canonical = Path(folder) / "model.safetensors"
        formats.write(canonical, weights, metadata=Canonical(model.spec, {}, model.card).metadata())
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
