"""Frozen graphs of TensorFlow (`frozen_inference_graph.pb`): a GraphDef in which the weights are constants."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown
from deeplabzoo.weights_converter.formats._protobuf import Walk, varint
from deeplabzoo.weights_converter.formats._tf_facts import BATCH_NORMS, CONVOLUTIONS, facts
from deeplabzoo.weights_converter.formats._tf_nodes import Graph

NAME = "tf-graph"
_LIMIT = 2**31  # no protocol buffer is larger
_MOST_FILLED = 2**28  # bytes that a file of a few kilobytes may ask for, by leaving out values that are equal
# Operation -> which of its inputs are weights. Sub is the end of a batch norm (offset - mean * scale); what an image has
# subtracted comes second.
_WEIGHTS = {
    **dict.fromkeys((*CONVOLUTIONS, "Conv2DBackpropInput", "BiasAdd"), (1,)),
    **dict.fromkeys(BATCH_NORMS, (1, 2, 3, 4)),
    **dict.fromkeys(("Add", "AddV2", "Mul", "MatMul"), (0, 1)),
    **dict.fromkeys(("Sub", "Rsqrt"), (0,)),
}
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_VARIABLES = ("VariableV2", "Variable", "VarHandleOp")
# How TensorFlow spells names (tensorflow/core/graph/graph_constructor.cc).
_NODE_NAME = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
_OP_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_.\\/>-]*")


def sniff(path: Path) -> bool:
    """Tell whether `path` starts with a node: its length, its name, its operation."""
    start = head(path, 4096)
    try:
        tag, (length, position) = start[:1], varint(start, 1)
        if tag != b"\x0a" or position + length > path.stat().st_size:
            return False
        for tag, legal in ((b"\x0a", _NODE_NAME), (b"\x12", _OP_NAME)):
            found = start[position : position + 1]
            length, position = varint(start, position + 1)
            if found != tag or not legal.fullmatch(start[position : position + length]):
                return False
            position += length
    except (Flaw, OSError):
        return False
    return True


def read(path: Path) -> Checkpoint:
    """Read the weights of a frozen graph.

    Weights are the constants of floating point, of at least one dimension, that a convolution, a batch norm (fused or
    of single operations), a bias or a matrix product takes, directly or through `Identity`. All others are counted in
    a note. Order is that of the graph. In a graph of TensorFlow 1 the names are those of the variables.

    `facts["graph"]` tells what the graph says of convolutions, batch norms and resizes: see `_tf_facts.facts`.

    Raises:
        FormatError: damaged, not frozen, or without weights; also on access of a tensor.
    """
    with reading(path, NAME):
        file = MappedFile(path)
        if file.size > _LIMIT:
            raise Flaw(f"takes {file.size} bytes; a protocol buffer has at most {_LIMIT}")
        return constants(path, file, Walk(file.piece(0, file.size).data), (0, file.size), NAME)


def constants(path: Path, file: MappedFile, walk: Walk, span: tuple[int, int], format_name: str) -> Checkpoint:
    """Read the weights of a graph that is a part of a file.

    Args:
        path: what the user gave, for messages.
        file: the file.
        walk: through that file.
        span: where the GraphDef begins and ends.
        format_name: format of the result.

    Raises:
        Flaw: as `read`.
    """
    graph = Graph(file, walk, *span)
    wanted = _wanted(graph)
    loaders: dict[str, Callable[[], Array]] = {}
    others: Counter[str] = Counter()
    filled = 0
    for node in graph.nodes.values():
        if node.op != "Const":
            continue
        tensor = graph.tensor(node)
        if tensor is None:
            others["others"] += 1
        elif node.name in wanted and tensor.dtype in _FLOATS and tensor.shape and 0 not in tensor.shape:
            loaders[node.name] = functools.partial(tensor.array, file)
            filled += 0 if tensor.content else tensor.size
        else:
            others[tensor.dtype] += 1
    variables = [node.name for node in graph.nodes.values() if node.op in _VARIABLES]
    if variables:
        raise Flaw(
            f"a graph that is not frozen: its variables ({len(variables)}, such as {shown(variables[0])}) are in a "
            "checkpoint; give that, or freeze the graph"
        )
    if not loaders:
        raise Flaw(f"a graph of {len(graph.nodes)} nodes without weights that are constants of floating point")
    if filled > _MOST_FILLED:
        raise Flaw(f"constants whose values are not all in the file take {filled} bytes; the limit is {_MOST_FILLED}")
    notes: tuple[str, ...] = ()
    if others:
        counts = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
        notes = (f"constants that are no weights left out: {others.total()} ({counts})",)
    tensors = LazyTensors(path, format_name, loaders)
    return Checkpoint(tensors, format_name, notes=notes, facts={"graph": facts(graph)})


def _wanted(graph: Graph) -> set[str]:
    """Return the names of the constants that some node takes where it takes weights."""
    found = (graph.constant(node, position) for node in graph.nodes.values() for position in _WEIGHTS.get(node.op, ()))
    return {node.name for node in found if node is not None}
