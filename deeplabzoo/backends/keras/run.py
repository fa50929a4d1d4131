"""Running a Keras model on numpy arrays."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from deeplabzoo.backends.keras.build import keras_device, takes_a_list
from deeplabzoo.core.graph import Node
from deeplabzoo.core.schedule import walk
from deeplabzoo.weights_converter.keras_paths import keras_layer_name


def configure(device: str) -> None:
    """Make this process compute strictly: float32 products in float32, deterministic kernels, GPUs hidden for `cpu`.

    Call it in a process of its own (a worker), before the first operation: TensorFlow and JAX can't change these
    settings later. On JAX it switches the 64-bit types on.
    """
    _CONFIGURE[keras.backend.backend()](device == "gpu")


def devices() -> tuple[str, ...]:
    """Devices that work here: `cpu`, and `gpu` where the Keras backend finds one."""
    return ("cpu", "gpu") if _gpus() else ("cpu",)


def device_name(device: str) -> str:
    """What the device calls itself."""
    return _gpus()[0] if device == "gpu" else "CPU"


def forward(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, N, C, H, W, for a preprocessed image batch N, C, H, W, cast to the model's dtype."""
    images = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    with on_device(model):
        results = model.predict_on_batch(keras.ops.convert_to_tensor(images, dtype=model.inputs[0].dtype))
    if not isinstance(results, dict):
        results = {"out": results}
    names = [name for name, _ in model.graph.outputs]  # JAX returns dicts sorted
    return {name: np.ascontiguousarray(results[name].transpose(0, 3, 1, 2)) for name in names}


def trace(model: Any, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value N, C, H, W of every node in the graph's order, each made when it is asked for."""

    def apply(node: Node, values: list[Any]) -> Any:
        layer = model.get_layer(keras_layer_name(node.name))
        with on_device(model):
            return layer(values) if takes_a_list(node.op) else layer(*values)

    images = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    with on_device(model):
        image = keras.ops.convert_to_tensor(images, dtype=model.inputs[0].dtype)
    for node, value in walk(model.graph, image, apply):
        yield node.name, np.ascontiguousarray(keras.ops.convert_to_numpy(value).transpose(0, 3, 1, 2))


def on_device(model: Any) -> Any:
    """A context in which Keras makes tensors where the model's variables live."""
    device = str(model.variables[0].value.device).lower()
    return keras.device(keras_device("gpu" if "gpu" in device or "cuda" in device else "cpu"))


def _configure_tensorflow(gpu: bool) -> None:
    tf = importlib.import_module("tensorflow")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if not gpu:
        tf.config.set_visible_devices([], "GPU")
        return
    tf.config.experimental.enable_op_determinism()
    for found in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(found, True)  # else it takes all memory from the other workers


def _configure_jax(gpu: bool) -> None:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    if not gpu:
        jax.config.update("jax_platforms", "cpu")
        return
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes the memory of other workers


def _configure_torch(gpu: bool) -> None:
    # No need to hide anything: `build` and `forward` name their device, and Keras obeys on torch.
    importlib.import_module("deeplabzoo.backends.torch.run").configure("gpu" if gpu else "cpu")


_CONFIGURE = {"tensorflow": _configure_tensorflow, "jax": _configure_jax, "torch": _configure_torch}


def _gpus() -> list[str]:
    """Names of the GPUs that the Keras backend finds."""
    backend = keras.backend.backend()
    framework = importlib.import_module(backend)
    if backend == "torch":
        return [framework.cuda.get_device_name(n) for n in range(framework.cuda.device_count())]
    if backend == "jax":
        return [device.device_kind for device in framework.devices() if device.platform == "gpu"]
    found = framework.config.list_physical_devices("GPU")
    return [framework.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in found]
