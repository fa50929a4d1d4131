"""Graph to ONNX `ModelProto`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from deeplabzoo._version import __version__
from deeplabzoo.backends.onnx.ops import OPSET, make_layer
from deeplabzoo.core.graph import Graph, Node
from deeplabzoo.core.ops import Argmax
from deeplabzoo.errors import BackendError

DTYPES = {"float64": TensorProto.DOUBLE, "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
GRAPH_KEY = "deeplabzoo.graph"
"""Metadata of the model: the graph it was built from, as JSON."""


def build(graph: Graph, *, dtype: str = "float32", device: str = "cpu") -> ModelProto:
    """The checked model, with weights of zero, opset 18, free batch, height and width.

    Its input is `input`, its outputs are those of the graph (`out`, `aux`); initialisers have the canonical names of
    the parameters, and each value inside has the name of the node that makes it.

    Args:
        graph: what to build.
        dtype: `float64` (only onnx.reference runs it), `float32` or `float16`.
        device: `cpu` or `gpu`: the same model.

    Raises:
        BackendError: bfloat16, for which onnxruntime has no convolution.
    """
    del device
    if dtype not in DTYPES:
        raise BackendError(f"backend onnx in {dtype}: expected one of {', '.join(DTYPES)}, which onnxruntime can run")
    nodes = []
    for node in graph.nodes[1:]:
        nodes += make_layer(node.op, name=node.name, inputs=node.inputs, dtype=dtype).nodes
    for name, node_name in graph.outputs:
        nodes.append(helper.make_node("Identity", [node_name], [name], name=name))
    made = helper.make_graph(
        nodes,
        "deeplab",
        [_value(graph.input.name, DTYPES[dtype], [*"N", graph.input.op.attributes()["channels"], *"HW"])],
        [_output(graph, name, node, DTYPES[dtype]) for name, node in graph.outputs],
        [numpy_helper.from_array(np.zeros(shape, dtype), name) for name, shape in graph.parameters().items()],
    )
    model = _model(made)
    helper.set_model_props(model, {GRAPH_KEY: graph.to_json()})
    onnx.checker.check_model(model)
    return model


def single_node(node: Node, values: Sequence[np.ndarray], parameters: Sequence[TensorProto], dtype: str) -> ModelProto:
    """A model of one node of a graph alone, to look at what it makes.

    Args:
        node: what to run.
        values: what it reads, for their shapes.
        parameters: its initialisers.
        dtype: of the values.
    """
    names = [f"read{number}" for number in range(len(values))]
    made = TensorProto.INT64 if isinstance(node.op, Argmax) else DTYPES[dtype]
    graph = helper.make_graph(
        make_layer(node.op, name=node.name, inputs=names, dtype=dtype).nodes,
        "node",
        [_value(name, DTYPES[dtype], list(value.shape)) for name, value in zip(names, values, strict=True)],
        [_value(node.name, made, [None] * 4)],
        list(parameters),
    )
    return _model(graph)


def graph_of(model: ModelProto) -> Graph | None:
    """The graph that a model was built from; none where this package did not build it.

    Raises:
        GraphError: the model's record of it is broken.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == GRAPH_KEY), None)
    return None if text is None else Graph.from_json(text)


def _model(graph: GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="deeplabzoo",
        producer_version=__version__,
    )


def _output(graph: Graph, name: str, node: str, dtype: int) -> Any:
    op = graph.by_name[node].op
    plane = ["H", "W"] if graph.shapes(257, 385)[node][2:] == (257, 385) else [f"{name}_H", f"{name}_W"]
    channels = graph.shapes(257, 385)[node][1]
    return _value(name, TensorProto.INT64 if isinstance(op, Argmax) else dtype, ["N", channels, *plane])


def _value(name: str, dtype: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)
