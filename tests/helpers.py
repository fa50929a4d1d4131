"""What tests of several rooms share: specs small enough to run often, and Python run in a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

import deeplabzoo
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import counters, seeded_weights
from deeplabzoo.weights_converter.canonical import Canonical

SMALL_MOBILENET = {"name": "mobilenet_v2", "width": 0.35}

LIVE_RATES = {8: (2, 4, 6), 16: (1, 2, 3)}
"""Rates by stride whose taps all read real pixels from 64x96 on; the tests that use them assert it."""


def small_spec(arch: str = "v3plus", **options: Any) -> ArchSpec:
    """A MobileNetV2 of width 0.35 with a narrow head: built and run in a fraction of a second."""
    aspp = {"channels": 16, **options.pop("aspp", {})}
    if arch == "v3plus":
        options["decoder"] = {"channels": 24, "low_level_channels": 8, **options.pop("decoder", {})}
    defaults = {"backbone": SMALL_MOBILENET, "output_stride": 8, "num_classes": 5, "rates": (2, 4, 6)}
    if "rates" in aspp or "order" in aspp:
        defaults.pop("rates")
    return deeplabzoo.spec(arch, **{**defaults, "aspp": aspp, **options})


def lively(spec: ArchSpec, seed: int = 0) -> Canonical:
    """The spec with seeded weights whose statistics differ from tensor to tensor."""
    return Canonical(spec, seeded_weights(deeplabzoo.graph(spec), seed, statistics="lively"))


def with_counters(model: Canonical, value: int = 7) -> Canonical:
    """The model with a `num_batches_tracked` beside each batch norm."""
    counted = {name: np.array(value + n) for n, name in enumerate(counters(model.graph))}
    return Canonical(model.spec, {**model.weights, **counted}, model.card)


def image(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded normal images N, C, H, W."""
    return np.random.default_rng(seed).standard_normal(shape)


def digests(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Name -> dtype, shape, digest of the bytes: equal where names and bits are."""
    return {
        name: (str(a.dtype), tuple(a.shape), hashlib.sha256(np.asarray(a, order="C").tobytes()).hexdigest())
        for name, a in tensors.items()
    }


def python(code: str, *arguments: object, timeout: float = 300) -> Any:
    """Run code in a fresh interpreter; what it prints as JSON in its last line, or None."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None
