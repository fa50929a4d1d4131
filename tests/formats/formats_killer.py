"""Writes that are ended from outside, in a process that makes itself a copy for each of them.

Run as a program: `formats_killer.py boundaries|moments|full FORMAT FOLDER [COUNT]`. It prints a JSON list of what a
reader finds after each end: "old" or "new", or what was wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.errors import DeepLabZooError, OutputError
from deeplabzoo.weights_converter import formats

NAMES = [f"layers/conv2d_{i}/vars/0" for i in range(4)]
SUFFIXES = {
    "safetensors": ".safetensors", "torch": ".pth", "paddle": ".pdparams", "keras-h5": ".weights.h5",
    "keras2-h5": ".h5", "npz": ".npz", "tf-checkpoint": ".ckpt", "hub-folder": "",
}  # fmt: skip
_CHANGES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.", "tensor", "fsync")


class Tensors(Mapping[str, np.ndarray]):
    """Tensors of a seed; something may happen each time that one is asked for."""

    def __init__(self, seed: int, then: Callable[[], None] = lambda: None, size: int = 5000) -> None:
        self.seed = seed
        self.then = then
        self.size = size

    def __getitem__(self, name: str) -> np.ndarray:
        self.then()
        return np.random.default_rng([self.seed, NAMES.index(name)]).normal(size=self.size).astype("f4")

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


def write(path: Path, format: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Write, replacing what is there."""
    metadata = {"config": json.dumps({"seed": 1})} if format == "hub-folder" else None
    formats.write(path, tensors, format=format, metadata=metadata, force=True)


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Of the names and the bytes."""
    return hashlib.sha256(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))).hexdigest()


def found(path: Path, size: int = 5000) -> str:
    """Which of the two a reader finds."""
    try:
        told = digest(formats.read(path).tensors)
    except DeepLabZooError as error:
        return f"neither: {error}"
    return {digest(Tensors(seed, size=size)): name for seed, name in ((1, "old"), (2, "new"))}.get(told, "a mixture")


def strays(path: Path, format: str) -> list[str]:
    """Files that are neither outputs nor hidden; a data file of an interrupted replacement belongs to its index."""
    names = {output.name for output in formats.outputs(path, format=format)}
    others = {item.name for item in path.parent.iterdir() if not item.name.startswith(".")} - names
    return sorted(name for name in others if ".data-00000-of-" not in name)


def ended(path: Path, format: str, end: Callable[[int], None]) -> bool:
    """Write the new over the old in a copy of this process, where `end` decides what ends it; False where nothing did.

    Args:
        path: what is replaced.
        format: of it.
        end: called in the copy with its own number before it writes, or in this process with the copy's after.
    """
    copy = os.fork()
    if copy == 0:
        end(0)
        write(path, format, Tensors(2, lambda: sys.audit("tensor")))
        os._exit(0)
    end(copy)
    _, status = os.waitpid(copy, 0)
    return os.WIFSIGNALED(status)


def _kill_before(number: int, folder: Path) -> None:
    """Kill this process before its change of that number."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event.startswith(_CHANGES):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    flush = os.fsync

    def audited(descriptor: int) -> None:
        sys.audit("fsync")
        flush(descriptor)

    os.fsync = audited
    sys.addaudithook(hook)


def boundaries(format: str, folder: Path, _: int) -> list[str]:
    """End a write before each of its changes."""
    results = []
    number = 0
    while True:
        path = _fresh(format, folder)
        if not ended(path, format, lambda copy: None if copy else _kill_before(number, folder)):
            return [*results, found(path)]
        results.append(_after(path, format))
        number += 1


def moments(format: str, folder: Path, count: int) -> list[str]:
    """End a write at random moments."""
    path = _fresh(format, folder)
    began = time.monotonic()
    ended(path, format, lambda copy: None)
    longest = 1.2 * (time.monotonic() - began)
    choose = random.Random(0)

    def end(copy: int) -> None:
        if copy:
            time.sleep(choose.uniform(0, longest))
            os.kill(copy, signal.SIGKILL)

    results = []
    for _ in range(count):
        path = _fresh(format, folder)
        ended(path, format, end)
        results.append(_after(path, format))
    return results


def _fresh(format: str, folder: Path) -> Path:
    """Return the path of an old file alone in its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / f"model{SUFFIXES[format]}"
    write(path, format, Tensors(1))
    return path


def _after(path: Path, format: str) -> str:
    """What a reader finds after an end; and then the next write must go well."""
    result = found(path)
    if left := strays(path, format):
        return f"{result}, with {left}"
    write(path, format, Tensors(2))
    return result if found(path) == "new" else f"{result}, but not written again"


def full(format: str, folder: Path, size: int) -> list[str]:
    """Write to a full disk: `folder` is a small one, on which a file of `size` numbers a tensor does not fit."""
    path = folder / f"model{SUFFIXES[format]}"
    write(path, format, Tensors(1))
    try:
        write(path, format, Tensors(2, size=size))
    except OutputError as error:
        said = str(error)
    else:
        said = "it went well"
    left = [item.name for item in folder.iterdir() if item.name.startswith(".")]
    return [said, found(path), *strays(path, format), *left]


if __name__ == "__main__":
    what, name, where, number = sys.argv[1:]
    print(json.dumps({"boundaries": boundaries, "moments": moments, "full": full}[what](name, Path(where), int(number))))
