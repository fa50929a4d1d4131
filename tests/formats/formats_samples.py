"""What the tests of formats share: tensors of every kind, and frameworks run in a process of their own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

_DIGEST = "import hashlib, json, sys\ndef digest(b): return hashlib.sha256(b).hexdigest()\n"


def run_framework(name: str, code: str, *arguments: object) -> Any:
    """Run code in a process that may import one framework; returns what it prints as JSON in its last line."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [sys.executable, "-W", "ignore", "-c", _DIGEST + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def table(tensors: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Name -> type, shape and digest of the bytes, to compare across processes."""

    def digest(value: Any) -> str:
        little = value if value.dtype.name == "bfloat16" else value.astype(value.dtype.newbyteorder("<"))
        return hashlib.sha256(little.tobytes()).hexdigest()

    return {name: [value.dtype.name, list(value.shape), digest(value)] for name, value in tensors.items()}


def sample(*, bfloat16: bool = True, unsigned: bool = False) -> dict[str, np.ndarray]:
    """Tensors of many kinds; the names are in no particular order on purpose."""
    random = np.random.default_rng(7)
    tensors: dict[str, np.ndarray] = {
        "z.weight": random.normal(size=(4, 3, 2, 2)).astype("f4"),
        "double": random.normal(size=(3, 5)),
        "a.half": random.normal(size=7).astype("f2"),
        "n.num_batches_tracked": np.array(123456789012, "i8"),
        "flags": np.array([True, False, True]),
        "scalar": np.array(1.5, "f4"),
        "empty": np.empty((0, 3), "f4"),
        "transposed": random.normal(size=(5, 6)).astype("f4").T,
        "sliced": random.normal(size=(8, 8)).astype("f4")[::2, 1::3],
        "big endian": random.normal(size=3).astype(">f4"),
        "bytes": np.arange(5, dtype="u1"),
        "small": np.arange(-3, 3, dtype="i1"),
        "int": np.arange(4, dtype="i4"),
        "nan": np.array([np.nan, np.inf, -0.0], "f4"),
        "long": np.arange(3000, dtype="f4"),
        "ünï": np.ones(1, "f4"),
    }
    if bfloat16:
        tensors["b.bf16"] = random.normal(size=(3, 3)).astype(ml_dtypes.bfloat16)
    if unsigned:
        tensors["u16"] = np.arange(3, dtype="u2")
        tensors["u64"] = np.arange(3, dtype="u8")
    return tensors


def same(left: Mapping[str, Any], right: Mapping[str, Any], *, ordered: bool = True) -> None:
    """Assert that two mappings hold the same tensors, bit for bit."""
    if ordered:
        assert list(left) == list(right)
    assert table(left) == table(right)


def small_files(folder: Path) -> dict[str, Path]:
    """Write one small valid file of each format that can be written."""
    from deeplabzoo.weights_converter import formats

    tensors = {"w": np.arange(6, dtype="f4").reshape(2, 3), "n": np.array(3, "i8")}
    paths = {name: folder / f"ok{name}" for name in (".safetensors", ".pth", ".pdparams", ".weights.h5")}
    for suffix, path in paths.items():
        if suffix == ".weights.h5":
            formats.write(path, {f"{k}/vars/0": v for k, v in tensors.items()}, metadata={"w": "conv"})
        else:
            formats.write(path, tensors)
    return paths
