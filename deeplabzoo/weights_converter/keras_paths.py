"""Where Keras 3 puts each parameter in a `.weights.h5` file, told from the graph alone, without Keras.

Keras names the groups of a file neither by layer name nor by creation order: it sorts the layers of a functional model
by their distance from the outputs (`keras.src.ops.function.map_graph`) and numbers them within their class
(`keras.src.saving.saving_lib._save_container_state`): `layers/conv2d`, `layers/conv2d_1`, ... The native model has one
layer for each node, and its layer subclasses keep the stock class names, so the graph decides every path.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deeplabzoo.core import ops
from deeplabzoo.core.graph import Graph, Node

MODEL_NAME = "deeplab"
"""Name of the native model."""

_SUFFIXES = {
    ops.Conv2d: ("weight", "bias"),
    ops.BatchNorm: ("weight", "bias", "running_mean", "running_var"),
}
"""Canonical suffixes in the order of the layer's variables `0`, `1`, ..."""


def keras_variable_paths(graph: Graph) -> dict[str, str]:
    """HDF5 path of every parameter (`backbone.stem.conv.weight`: `layers/conv2d/vars/0`), in the order of the file."""
    paths = {}
    for node, group in _groups(graph):
        suffixes = [suffix for suffix in _SUFFIXES.get(type(node.op), ()) if suffix in node.op.parameters()]
        paths.update({f"{node.name}.{suffix}": f"{group}/vars/{n}" for n, suffix in enumerate(suffixes)})
    return paths


def keras_group_names(graph: Graph) -> dict[str, str]:
    """The attribute `name` that Keras writes beside each layer's variables: `layers/conv2d` is `backbone__stem__conv`.

    Keys are the layers' groups, without the `vars` that carries the attribute; layers without variables have one too,
    and so has the model itself (`""`). Keras reads none of them.
    """
    return {"": MODEL_NAME, **{group: keras_layer_name(node.name) for node, group in _groups(graph)}}


def keras_layer_name(node: str) -> str:
    """Layer name of a node: dots become `__`, which no node name contains (the torch Keras backend refuses dots)."""
    return node.replace(".", "__")


def keras_node_name(layer: str) -> str:
    """Inverse of `keras_layer_name`."""
    return layer.replace("__", ".")


def training_state(path: str) -> str | None:
    """What a variable is of which no network knows: those of an optimizer stand beside the layers of the model.

    A model that was compiled keeps them in its `.weights.h5` and `.keras`, the step and the learning rate first.
    """
    return "optimizer slot" if path.startswith("optimizer/") else None


def to_keras(op: ops.Op, suffix: str, array: np.ndarray) -> np.ndarray:
    """A canonical array in Keras' layout: kernels H, W, I, O; depthwise kernels H, W, C, O / C. A view of the array."""
    if not isinstance(op, ops.Conv2d) or suffix != "weight":
        return array
    if op.depthwise:
        array = array.reshape(op.in_channels, -1, op.kernel, op.kernel)
        return array.transpose(2, 3, 0, 1)
    return array.transpose(2, 3, 1, 0)


def from_keras(op: ops.Op, suffix: str, array: np.ndarray) -> np.ndarray:
    """Inverse of `to_keras`; a view where the layouts allow one."""
    if not isinstance(op, ops.Conv2d) or suffix != "weight":
        return array
    if op.depthwise:
        return array.transpose(2, 3, 0, 1).reshape(op.out_channels, 1, op.kernel, op.kernel)
    return array.transpose(3, 2, 0, 1)


def _groups(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Every node with its group in the file, in Keras' order of layers."""
    used: dict[str, int] = {}
    for node in _layer_order(graph):
        kind = _snake_class(node.op)
        used[kind] = used.get(kind, -1) + 1
        yield node, f"layers/{kind}_{used[kind]}" if used[kind] else f"layers/{kind}"


def _layer_order(graph: Graph) -> list[Node]:
    """Nodes by falling distance from the outputs, those of equal distance as a depth-first search meets them."""
    # Keras flattens a dict of outputs by its sorted keys.
    met, finished = _search(graph, [node for _, node in sorted(graph.outputs)])
    depth: dict[str, int] = {}
    for name in reversed(finished):
        depth.setdefault(name, 0)
        for source in graph.by_name[name].inputs:
            depth[source] = max(depth.get(source, 0), depth[name] + 1)
    return [graph.by_name[name] for name in sorted(met, key=lambda name: -depth[name])]


def _search(graph: Graph, outputs: list[str]) -> tuple[list[str], list[str]]:
    """Depth-first from the outputs to the input: names in the order in which they are met, and are finished."""
    met: dict[str, None] = {}
    finished: list[str] = []
    for output in outputs:
        if output in met:
            continue
        met[output] = None
        # A stack of its own: a ResNet-101 is too deep for comfort with Python's.
        stack = [(output, iter(graph.by_name[output].inputs))]
        while stack:
            name, sources = stack[-1]
            source = next((source for source in sources if source not in met), None)
            if source is None:
                finished.append(name)
                stack.pop()
            else:
                met[source] = None
                stack.append((source, iter(graph.by_name[source].inputs)))
    return list(met), finished


def _snake_class(op: ops.Op) -> str:
    """Keras' snake case of the class name of the op's layer."""
    match op:
        case ops.Conv2d():
            return "depthwise_conv2d" if op.depthwise else "conv2d"
        case ops.Activation():
            return _SNAKE_FUNCTION.get(op.function, "activation")
        case ops.Dropout():
            return "spatial_dropout2d" if op.channelwise else "dropout"
    return _SNAKE_CLASS[type(op)]


_SNAKE_FUNCTION = {"softmax": "softmax", "relu": "re_lu", "relu6": "re_lu"}
"""Functions with a layer class of their own."""

_SNAKE_CLASS: dict[type[ops.Op], str] = {
    ops.Input: "input_layer",
    ops.BatchNorm: "batch_normalization",
    ops.MaxPool: "max_pooling2d",
    ops.AvgPool: "average_pooling2d",
    ops.GlobalAvgPool: "global_average_pooling2d",
    ops.Add: "add",
    ops.Multiply: "multiply",
    ops.Concat: "concatenate",
    ops.Resize: "resize",
    ops.Argmax: "argmax",
}
