"""Graph to a functional `keras.Model`."""

from __future__ import annotations

from typing import Any

import keras

from deeplabzoo.backends.keras import ops as layers
from deeplabzoo.backends.keras._sizes import index_dtype
from deeplabzoo.backends.keras.flags import DTYPES
from deeplabzoo.core import ops
from deeplabzoo.core.graph import Graph
from deeplabzoo.errors import BackendError, unknown
from deeplabzoo.weights_converter.keras_paths import MODEL_NAME, keras_layer_name


@keras.saving.register_keras_serializable(package=layers.PACKAGE)
class DeepLab(keras.Model):
    """A DeepLab as a functional Keras model.

    Takes preprocessed images N, H, W, C of any N, H and W and returns the output N, H, W, classes, or, where the spec
    has an auxiliary head, a dict with `out` and `aux`. Layers are named after the nodes, dots written `__`:
    `model.get_layer("backbone__stem__conv")`. `graph` is the description it was built from; it is saved with the model.
    """

    # Keras takes a subclass for a functional model by these three positional arguments.
    def __init__(
        self, inputs: Any, outputs: Any, name: str | None = None, *, graph: Any = None, **options: Any
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=name, **options)
        self.graph = Graph.from_json(graph) if isinstance(graph, str) else graph

    def get_config(self) -> dict[str, Any]:
        """Layers and connections as every functional model has them, and the graph."""
        config: dict[str, Any] = super().get_config()
        # Keras' own helpers may rewire the layers into a model of this class, which then has no description.
        return config if self.graph is None else {**config, "graph": self.graph.to_json()}


def build(graph: Graph, *, dtype: str = "float32", device: str = "cpu") -> DeepLab:
    """The native model, with the framework's own random weights.

    Args:
        graph: what to build.
        dtype: `float64`, `float32`, `float16` or `bfloat16`, of every layer; the global Keras policy is left alone.
        device: `cpu`, or `gpu`, where the variables live.

    Raises:
        BackendError: another dtype, or float64 on JAX while its 64-bit types are switched off.
    """
    if dtype not in DTYPES:
        raise BackendError(unknown("dtype", dtype, DTYPES))
    if dtype == "float64" and index_dtype() != "int64":
        raise BackendError(
            "Keras on JAX was asked for float64 while 64-bit types are switched off: run "
            'jax.config.update("jax_enable_x64", True) before anything else'
        )
    with keras.device(keras_device(device)):
        channels = graph.input.op.attributes()["channels"]
        image = keras.Input((None, None, channels), dtype=dtype, name=keras_layer_name(graph.input.name))
        values = {graph.input.name: image}
        for node in graph.nodes[1:]:
            layer = layers.make_layer(node.op, name=keras_layer_name(node.name), dtype=dtype)
            inputs = [values[name] for name in node.inputs]
            values[node.name] = layer(inputs) if takes_a_list(node.op) else layer(*inputs)
        outputs = {name: values[node] for name, node in graph.outputs}
        return DeepLab(image, outputs if len(outputs) > 1 else outputs["out"], name=MODEL_NAME, graph=graph)


def takes_a_list(op: ops.Op) -> bool:
    """Whether the op's layer is one of Keras' own that merge, which take a list."""
    return isinstance(op, ops.Add | ops.Concat | ops.Multiply)


def keras_device(device: str) -> str:
    """Keras' name of the first `cpu` or `gpu`."""
    # PyTorch takes "cpu:0" for another device than "cpu", and Keras' variables would lose their place in a copy.
    return device if device == "cpu" and keras.backend.backend() == "torch" else f"{device}:0"
