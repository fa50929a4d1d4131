"""ONNX: the initialisers of a graph, and what its nodes say of the network.

A model is one protocol buffer (onnx.proto of the ONNX project, Apache-2.0, is the source of the numbers below).
Weights lie in it as tensors, or in files beside it.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deeplabzoo.weights_converter.formats._checkpoint import Array, Checkpoint, LazyTensors, MappedFile
from deeplabzoo.weights_converter.formats._facts import JSON_LIMIT
from deeplabzoo.weights_converter.formats._guard import Flaw, head, reading, shown
from deeplabzoo.weights_converter.formats._onnx_tensor import FLOATS, Tensor, loader, read_tensor
from deeplabzoo.weights_converter.formats._protobuf import Field, Walk, outline, signed

NAME = "onnx"
_HEAD = 64 * 2**10
# Wire types of the fields of a model, and of its graph.
_MODEL = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 15, 16), 2)
_GRAPH_FIELD = 7
_METADATA_FIELD = 14
# The inputs of these nodes from the second on are weights.
_WEIGHTED = ("Conv", "ConvTranspose", "BatchNormalization")
_READ = (*_WEIGHTED, "Constant", "Identity", "Resize")
_HOPS = 8  # of Identity nodes between a tensor and its use
# Values take up to eight times the bytes that they are stored in; more means that tensors share them.
_MOST_SHARED = 8


@dataclasses.dataclass
class _Node:
    """What is read of a node: names, and the attributes of one tensor, number, text or list of whole numbers."""

    name: str = ""
    op: str = ""
    inputs: list[str] = dataclasses.field(default_factory=list)
    outputs: list[str] = dataclasses.field(default_factory=list)
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name, or that of its output where it has none."""
        return self.name or (self.outputs[0] if self.outputs else "")


def sniff(path: Path) -> bool:
    """Tell whether `path` starts like an ONNX model: fields of a model, one of them a graph."""
    seen = set()
    for field, wire, data in outline(head(path, _HEAD)):
        if _MODEL.get(field) != wire:
            return False
        seen.add(field)
        if field == _GRAPH_FIELD and not any(_GRAPH.get(inner) == kind for inner, kind, _ in outline(data)):
            return False
    return _GRAPH_FIELD in seen and bool(seen & {1, 8})


def read(path: Path) -> Checkpoint:
    """Read the weights of an ONNX model.

    Tensors are the graph's initialisers in their own order. After them come those that convolutions and batch norms
    take from Constant nodes, or through Identity nodes (exporters write equal tensors once), by the name that the
    node asks for.

    `facts["graph"]` says what the tensors do not: `convolutions` (name, weights, strides, dilations, pads, group,
    auto_pad), `batch_norms` (name, epsilon, scale) and `resizes` (name, coordinate_transformation_mode, mode), each
    in the order of the nodes, defaults filled in.

    Args:
        path: the model. Tensors outside of it must lie in files of the same folder.

    Raises:
        FormatError: damaged, no initialisers, a tensor of an unknown type, or external data that lead elsewhere; also
            on access of a tensor.
    """
    with reading(path, NAME):
        file = MappedFile(path)
        walk = Walk(file.piece(0, file.size).data)
        graphs = [field for field in walk.fields(0, file.size) if field.field == _GRAPH_FIELD and field.wire == 2]
        if len(graphs) != 1:
            raise Flaw(f"expected one graph, found {len(graphs)}")
        tensors: dict[str, Tensor] = {}
        nodes: list[_Node] = []
        notes = []
        sparse = 0
        for field in walk.fields(graphs[0].begin, graphs[0].end):
            if field.wire == 2 and field.field == 1:
                nodes.append(_node(walk, field))
            elif field.wire == 2 and field.field == 5:
                _add(tensors, read_tensor(walk, field))
            sparse += field.field == 15
        if sparse:
            notes.append(f"ignored {sparse} sparse initialisers")
        notes += _taken(walk, tensors, nodes)
        if not tensors:
            raise Flaw("the graph holds no initialisers; export the model with its weights")
        loaders = dict(_loaders(path, file, tensors, notes))
        return Checkpoint(
            LazyTensors(path, NAME, loaders),
            NAME,
            metadata=_metadata(walk, file.size),
            notes=tuple(notes),
            facts={"graph": _facts(nodes, tensors)},
        )


def _metadata(walk: Walk, size: int) -> dict[str, str]:
    """The model's own `metadata_props`, pairs of texts; of those too long for a name or a record, nothing."""
    found = {}
    for span in walk.fields(0, size):
        if span.field == _METADATA_FIELD and span.wire == 2 and span.end - span.begin <= JSON_LIMIT:
            pair = {field.field: field for field in walk.fields(span.begin, span.end) if field.wire == 2}
            if pair.keys() >= {1, 2}:
                value = walk.view[pair[2].begin : pair[2].end]
                found[walk.text(pair[1])] = bytes(value).decode("utf-8", "replace")
    return found


def _add(tensors: dict[str, Tensor], tensor: Tensor) -> None:
    if tensor.name in tensors:
        raise Flaw(f"two initialisers are called {shown(tensor.name)!r}")
    tensors[tensor.name] = tensor


def _loaders(
    path: Path, file: MappedFile, tensors: Mapping[str, Tensor], notes: list[str]
) -> Iterator[tuple[str, Callable[[], Array]]]:
    beside: dict[str, MappedFile] = {}
    texts = [name for name, tensor in tensors.items() if tensor.is_text]
    if texts:
        notes.append(f"ignored initialisers that are text: {', '.join(map(shown, texts[:8]))}")
    for name, tensor in tensors.items():
        if not tensor.is_text:
            yield name, loader(path, file, tensor, beside)
    total = sum(tensor.size for tensor in tensors.values() if not tensor.is_text)
    stored = file.size + sum(other.size for other in beside.values())
    if total > _MOST_SHARED * stored:
        raise Flaw(f"its tensors take {total} bytes, its files {stored}: they overlap")


def _node(walk: Walk, span: Field) -> _Node:
    node = _Node()
    attributes = []
    for field in walk.fields(span.begin, span.end):
        if field.field == 1:
            node.inputs.append(walk.text(field))
        elif field.field == 2:
            node.outputs.append(walk.text(field))
        elif field.field == 3:
            node.name = walk.text(field)
        elif field.field == 4:
            node.op = walk.text(field)
        elif field.field == 5 and field.wire == 2:
            attributes.append(field)
    if node.op in _READ:
        node.attributes = dict(_attribute(walk, field) for field in attributes)
    return node


def _attribute(walk: Walk, span: Field) -> tuple[str, Any]:
    name, value, many = "", None, []
    for field in walk.fields(span.begin, span.end):
        if field.field == 1:
            name = walk.text(field)
        elif field.field == 2 and field.wire == 5:
            (value,) = struct.unpack("<f", walk.view[field.begin : field.end])
        elif field.field == 3 and field.wire == 0:
            value = signed(field.number)
        elif field.field == 4:
            value = walk.text(field)
        elif field.field == 5 and field.wire == 2:
            value = field
        elif field.field == 8:
            many += walk.numbers(field)
    return name, many or value


def _taken(walk: Walk, tensors: dict[str, Tensor], nodes: list[_Node]) -> list[str]:
    """Add the tensors that convolutions and batch norms take from other nodes; returns notes."""
    constants = {
        node.outputs[0]: node.attributes["value"]
        for node in nodes
        if node.op == "Constant" and node.outputs and isinstance(node.attributes.get("value"), Field)
    }
    same = {node.outputs[0]: node.inputs[0] for node in nodes if node.op == "Identity" and node.outputs and node.inputs}
    held: list[str] = []
    copied: list[str] = []
    for name in (name for node in nodes if node.op in _WEIGHTED for name in node.inputs[1:]):
        origin = name
        for _ in range(_HOPS):
            if origin in tensors or origin not in same:
                break
            origin = same[origin]
        if name in tensors or not name:
            continue
        if origin in tensors:
            tensors[name] = tensors[origin]
            copied.append(name)
        elif origin in constants:
            tensor = read_tensor(walk, constants[origin])
            if tensor.dtype in FLOATS:
                tensors[name] = tensor
                held.append(name)
    return [
        f"{len(names)} tensors {what}, such as {shown(names[0])}"
        for names, what in ((held, "stand in Constant nodes"), (copied, "are copies made by Identity nodes"))
        if names
    ]


def _facts(nodes: list[_Node], tensors: Mapping[str, Tensor]) -> dict[str, list[dict[str, Any]]]:
    facts: dict[str, list[dict[str, Any]]] = {"convolutions": [], "batch_norms": [], "resizes": []}
    for node in nodes:
        given = node.attributes
        weights = node.inputs[1] if len(node.inputs) > 1 else ""
        if node.op == "Conv":
            axes = max(len(tensors[weights].shape) - 2, 0) if weights in tensors else 0
            usual = {"strides": [1] * axes, "dilations": [1] * axes, "pads": [0] * 2 * axes, "group": 1}
            values = {name: _like(given.get(name), value) for name, value in usual.items()}
            values["auto_pad"] = _like(given.get("auto_pad"), "NOTSET")
            facts["convolutions"].append({"name": node.label, "weights": weights, **values})
        elif node.op == "BatchNormalization":
            epsilon = _like(given.get("epsilon"), 1e-5)
            facts["batch_norms"].append({"name": node.label, "epsilon": epsilon, "scale": weights})
        elif node.op == "Resize":
            usual = {"coordinate_transformation_mode": "half_pixel", "mode": "nearest"}
            values = {name: _like(given.get(name), value) for name, value in usual.items()}
            facts["resizes"].append({"name": node.label, **values})
    return facts


def _like(value: Any, usual: Any) -> Any:
    """The value of an attribute where it is of the type that it should be, else the standard's default."""
    return value if isinstance(value, type(usual)) else usual
