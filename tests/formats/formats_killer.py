"""Writes that are ended from outside, in a process that makes itself a copy for each of them.

Run as a program: `formats_killer.py WHAT FOLDER NUMBER FORMAT ...`, where WHAT is one of the functions below. It prints
by format what a reader finds after each end, "old" or "new", or what was said.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import resource
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
_CHANGES = (
    "open",
    "os.rename",
    "os.link",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "shutil.",
    "tensor",
    "fsync",
)


class Tensors(Mapping[str, np.ndarray]):
    """Tensors of a seed; something may happen each time that one is asked for."""

    def __init__(self, seed: int, then: Callable[[], None] = lambda: None, size: int = 1000) -> None:
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

    def __contains__(self, name: object) -> bool:
        return name in NAMES


def write(path: Path, format: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Write, replacing what is there."""
    metadata = {"config": json.dumps({"seed": 1})} if format == "hub-folder" else None
    formats.write(path, tensors, format=format, metadata=metadata, force=True)


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Of the names and the bytes."""
    return hashlib.sha256(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))).hexdigest()


def found(path: Path, size: int = 1000) -> str:
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
        try:
            end(0)
            write(path, format, Tensors(2, lambda: sys.audit("tensor")))
            os._exit(0)
        finally:
            os._exit(1)
    end(copy)
    _, status = os.waitpid(copy, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _kill_before(number: int, copy: int) -> None:
    """Kill the copy, which this is where `copy` is 0, before its change of that number."""
    if copy:
        return
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
        if not ended(path, format, functools.partial(_kill_before, number)):
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


def limited(format: str, folder: Path, _: int) -> list[str]:
    """Write where no file may grow beyond some size, from nothing to a byte less than what is needed."""
    path = _fresh(format, folder)
    largest = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    results = []
    for size in (0, 1, largest // 2, largest - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            results.append(_refused(path, format, Tensors(2)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    return results


def full(format: str, folder: Path, size: int) -> list[str]:
    """Write tensors of that many numbers in a disk that they do not fit in, which is mounted at `folder`."""
    path = folder / f"model{SUFFIXES[format]}"
    write(path, format, Tensors(1))
    result = _refused(path, format, Tensors(2, size=size))
    for file in folder.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    return [result]


def readonly(format: str, folder: Path, _: int) -> list[str]:
    """Write where nothing may be written."""
    try:
        write(folder / f"model{SUFFIXES[format]}", format, Tensors(1))
    except OutputError as error:
        return [str(error)]
    return ["it went well"]


def _refused(path: Path, format: str, tensors: Tensors) -> str:
    """What is said of a write that can't be, and what is found then."""
    try:
        write(path, format, tensors)
    except OutputError as error:
        said = str(error).removeprefix(f"output {path} can't be written: ")
    else:
        said = "it went well"
    hidden = [item.name for item in path.parent.iterdir() if item.name.startswith(".")]
    return "; ".join([said, found(path), *strays(path, format), *hidden])


if __name__ == "__main__":
    what, where, number, *names = sys.argv[1:]
    function = {"boundaries": boundaries, "moments": moments, "limited": limited, "full": full, "readonly": readonly}[
        what
    ]
    print(json.dumps({name: function(name, Path(where), int(number)) for name in names}))
