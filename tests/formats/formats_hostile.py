"""The registry of hostile files: what makes each of them, and what its refusal says."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import h5py
from formats_targets import KERNEL, archive

HOSTILE: dict[str, tuple[Callable[[Path], Path], str | None]] = {}
"""By name: what makes the file in a folder, and what its refusal says; None where it is read and does no harm."""


def attack(name: str, said: str | None) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Register a function that makes a file in a folder."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        HOSTILE[name] = make, said
        return make

    return register


def plain(name: str, said: str | None, file: str, content: Callable[[], bytes]) -> None:
    """Register a file of that name and content."""

    def make(folder: Path) -> Path:
        (folder / file).write_bytes(content())
        return folder / file

    HOSTILE[name] = make, said


def zipped(name: str, said: str | None, file: str, entries: Callable[[], dict[str, bytes]], kind: int = 0) -> None:
    """Register a zip archive."""
    HOSTILE[name] = lambda folder: archive(folder / file, entries(), kind), said


def keras_parts() -> dict[str, bytes]:
    """Entries of a sound .keras."""
    file = io.BytesIO()
    with h5py.File(file, "w") as made:
        made["layers/conv2d/vars/0"] = KERNEL
    return {"config.json": b"{}", "model.weights.h5": file.getvalue()}
