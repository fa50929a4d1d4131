"""The Keras backend on each of its own backends, judged by the numpy referee.

No Keras in this process: `keras_checks.py` holds what is run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deeplabzoo.core import ops
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.weights_converter import keras_paths

ENGINES = ("tensorflow", "jax", "torch")
PROGRAM = Path(__file__).with_name("keras_checks.py")


def require(engine: str) -> None:
    if importlib.util.find_spec("keras") is None or importlib.util.find_spec(engine) is None:
        pytest.skip(f"keras or {engine} is not installed")


def on_engines(*slow: str) -> pytest.MarkDecorator:
    """One case an engine. JAX compiles each network and size anew, and big networks are slow on torch."""
    engines = [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in ENGINES]
    return pytest.mark.parametrize("engine", engines)


def run_checks(engine: str, *names: str) -> str:
    require(engine)
    root = PROGRAM.parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "KERAS_BACKEND": engine, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *names], env=environment, capture_output=True, text=True, timeout=800
    )
    last = "\n".join(done.stderr.strip().splitlines()[-25:])
    assert done.returncode == 0, f"keras/{engine}, {', '.join(names)}: exit status {done.returncode}\n{last}"
    return done.stdout


@on_engines("jax", "torch")
def test_forward_equals_the_reference(engine: str) -> None:
    assert run_checks(engine, "check_forward").count("\n") == 24


@on_engines("jax", "torch")
def test_forward_of_variants_equals_the_reference(engine: str) -> None:
    run_checks(engine, "check_variants")


@on_engines("jax")
def test_layers_equal_the_reference(engine: str) -> None:
    run_checks(engine, "check_briefly", "check_window_layers", "check_half_precision", "check_argmax_of_equals")


@on_engines("jax")
def test_training(engine: str) -> None:
    run_checks(engine, "check_training", "check_batch_norm", "check_one_value")


@on_engines("jax")
def test_files(engine: str) -> None:
    run_checks(engine, "check_saving", "check_configuration", "check_paths", "check_weights_written_without_keras")


def test_graph_mode_and_xla() -> None:
    run_checks("tensorflow", "check_tensorflow_graphs", "check_tensorflow_free_sizes_in_training")


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
