"""The Keras backend on each of its own backends, judged by the numpy referee.

No Keras in this process: `keras_*_checks.py` hold what is run, in one process an engine.
"""

from __future__ import annotations

import importlib.util

import apart
import numpy as np
import pytest

from deeplabzoo.core import ops
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.weights_converter import keras_paths

ENGINES = ("tensorflow", "jax", "torch")


def on_engines(*slow: str) -> pytest.MarkDecorator:
    """One case an engine. JAX compiles each network and size anew, and big networks are slow on torch."""
    engines = [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in ENGINES]
    return pytest.mark.parametrize("engine", engines)


def run_check(engine: str, file: str, check: str) -> str:
    if importlib.util.find_spec("keras") is None or importlib.util.find_spec(engine) is None:
        pytest.skip(f"keras or {engine} is not installed")
    return apart.run(f"keras/{engine}", f"keras_{file}_checks.py", check, {})


@pytest.mark.slow  # `test_parity.py` has the same matrix for TensorFlow
@on_engines()
def test_forward_equals_the_reference(engine: str) -> None:
    assert run_check(engine, "network", "check_forward").count("\n") == 24


@on_engines("jax", "torch")
def test_forward_of_variants_equals_the_reference(engine: str) -> None:
    run_check(engine, "network", "check_variants")


@pytest.mark.parametrize("check", ["briefly", "every_op", "half_precision", "configuration"])
@on_engines("jax")
def test_networks(engine: str, check: str) -> None:
    run_check(engine, "network", f"check_{check}")


@pytest.mark.parametrize(
    "check",
    ["window_layers", "pooling_layers", "pointwise_layers", "stock_layers", "argmax_of_equals", "batch_norm"],
)
@on_engines("jax")
def test_layers(engine: str, check: str) -> None:
    run_check(engine, "layer", f"check_{check}")


@pytest.mark.parametrize("check", ["training", "one_value"])
@on_engines("jax")
def test_training(engine: str, check: str) -> None:
    run_check(engine, "training", f"check_{check}")


@pytest.mark.parametrize("check", ["saving", "paths", "weights_written_without_keras"])
@on_engines("jax")
def test_files(engine: str, check: str) -> None:
    run_check(engine, "file", f"check_{check}")


WITH_CORNERS = pytest.param("graphs_with_corners", marks=pytest.mark.slow)  # `every_op` has them too


@pytest.mark.parametrize("check", ["graphs", "graphs_of_windows", WITH_CORNERS, "free_sizes_in_training"])
def test_graph_mode_and_xla(check: str) -> None:
    run_check("tensorflow", "training", f"check_tensorflow_{check}")


def test_transposes_are_exact_inverses_and_views() -> None:
    random = np.random.default_rng(0)
    for op in (
        ops.Conv2d(in_channels=4, out_channels=6, kernel=3),
        ops.Conv2d(in_channels=4, out_channels=6, kernel=3, groups=2),
        ops.Conv2d(in_channels=4, out_channels=8, kernel=5, groups=4),
        ops.Conv2d(in_channels=1, out_channels=2, kernel=1),
    ):
        weight = random.standard_normal(op.parameters()["weight"])
        kernel = keras_paths.to_keras(op, "weight", weight)
        assert np.shares_memory(kernel, weight)
        assert np.array_equal(keras_paths.from_keras(op, "weight", kernel), weight)
    depthwise = ops.Conv2d(in_channels=4, out_channels=8, kernel=5, groups=4)
    weight = random.standard_normal((8, 1, 5, 5))
    kernel = keras_paths.to_keras(depthwise, "weight", weight)
    assert kernel.shape == (5, 5, 4, 2)
    assert kernel[1, 2, 3, 1] == weight[3 * 2 + 1, 0, 1, 2]
    assert keras_paths.to_keras(depthwise, "bias", weight) is weight


def test_names_are_inverses() -> None:
    graph = build_graph(make_spec("v3plus", aux=True))
    names = [node.name for node in graph.nodes]
    assert [keras_paths.keras_node_name(keras_paths.keras_layer_name(name)) for name in names] == names
