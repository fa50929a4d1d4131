"""What the checks of the Keras backend share. Imported in a process of `apart`, on the engine of `KERAS_BACKEND`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from deeplabzoo.backends.keras import build, run, weights
from deeplabzoo.core import reference
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core.weights import seeded_weights

run.configure("cpu")

ENGINE = keras.backend.backend()  # JAX compiles for each network and size, so it gets fewer of them
FLOAT64, FLOAT32 = 1e-11, 2e-5
SMALL = {"name": "mobilenet_v2", "width": 0.25}


def network(arch: str, **options: Any) -> Graph:
    """A graph with narrow heads, for speed."""
    options["aspp"] = {"channels": 32, **options.get("aspp", {})}
    if arch == "v3plus":
        options["decoder"] = {"channels": 32, "low_level_channels": 12, **options.get("decoder", {})}
    return build_graph(make_spec(arch, num_classes=5, **options))


def built(graph: Graph, dtype: str = "float32", seed: int = 1) -> tuple[Any, dict[str, np.ndarray]]:
    values = seeded_weights(graph, seed, statistics="lively", dtype="float64")
    model = build.build(graph, dtype=dtype)
    weights.load_weights(model, values)
    return model, values


def images(batch: int, height: int, width: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(height).standard_normal((batch, 3, height, width)).astype(dtype)


def assert_equals_reference(
    title: str, model: Any, graph: Graph, values: dict[str, np.ndarray], x: np.ndarray, bound: float
) -> None:
    assert_equals_truth(title, run.forward(model, x), reference.forward(graph, values, x), bound)


def assert_equals_truth(title: str, found: dict[str, np.ndarray], truth: dict[str, np.ndarray], bound: float) -> None:
    assert list(found) == list(truth), title
    for name, value in found.items():
        assert value.shape == truth[name].shape, f"{title}, {name}"
        error = np.abs(value.astype("float64") - truth[name]).max() / np.abs(truth[name]).max()
        assert error <= bound, f"{title}, {name}: error {error:.1e}, expected at most {bound:.0e}"
        print(f"{title} {name} {value.shape} {value.dtype} {error:.1e}")
