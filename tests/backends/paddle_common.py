"""What the files that test the Paddle backend share. Paddle is imported in `apart`'s process only."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from deeplabzoo.backends import resolve
from deeplabzoo.core import reference
from deeplabzoo.core.analysis import all_taps_live
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core.weights import seeded_weights

FLOAT64, FLOAT32 = 1e-11, 2e-5
ODD, EVEN = (65, 81), (80, 96)
RATES = (1, 2, 3)
SMALL = {"name": "mobilenet_v2", "width": 0.25}
SLIM = {"name": "resnet50", "stride_in": "last_unit", "padding": "same"}


def network(arch: str, **options: Any) -> Graph:
    """A graph with narrow heads, for speed."""
    options["aspp"] = {"channels": 32, **options.get("aspp", {})}
    if arch == "v3plus":
        options["decoder"] = {"channels": 32, "low_level_channels": 12, **options.get("decoder", {})}
    return build_graph(make_spec(arch, **options))


def make(graph: Graph, dtype: str = "float32") -> Any:
    """A Paddle model with lively weights."""
    model = resolve("paddle").module("build").build(graph, dtype=dtype)
    resolve("paddle").module("weights").load_weights(model, lively(graph))
    return model


@functools.lru_cache(maxsize=1)
def lively(graph: Graph) -> dict[str, np.ndarray]:
    """The weights of `make`."""
    return seeded_weights(graph, 1, statistics="lively", dtype="float64")


def image(size: tuple[int, int], batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, *size))


def error(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def judge(graph: Graph, x: np.ndarray, *, float32: bool) -> None:
    """The Paddle model against the numpy referee."""
    assert all_taps_live(graph, *x.shape[2:])
    run = resolve("paddle").module("run")
    truth = reference.forward(graph, lively(graph), x)
    for dtype, bound in (("float64", FLOAT64), ("float32", FLOAT32))[: 1 + float32]:
        found = run.forward(make(graph, dtype), x)
        assert list(found) == list(truth)
        for name, value in truth.items():
            assert found[name].dtype == (value.dtype if value.dtype == np.int64 else dtype)
            assert error(found[name], value) <= bound, (name, dtype)
