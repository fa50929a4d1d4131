"""Lay a graph over the operators of a TensorFlow Lite network: same wiring, or the first difference.

Names say nothing here; a convolution is found by what it reads, its stride, dilation, padding, activation and shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from deeplabzoo.core import ops
from deeplabzoo.core.graph import Graph, Node
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.base import Entry
from deeplabzoo.weights_converter.transforms import IDENTITY, Transform

OHWI = Transform("OHWI -> OIHW", lambda a: a.transpose(0, 3, 1, 2), lambda a: a.transpose(0, 2, 3, 1))
DEPTHWISE = Transform("1HWC -> C1HW", lambda a: a.transpose(3, 0, 1, 2), lambda a: a.transpose(1, 2, 3, 0))

Operator = Mapping[str, Any]


def entries(graph: Graph, checkpoint: Checkpoint) -> list[Entry]:
    """The table of a file's constants for a graph, in the order of the graph.

    Args:
        graph: a network whose every convolution is followed by nothing, or by batch norm, or by both batch norm and
            activation: all three are one operator there, with the batch norm folded.
        checkpoint: of format `tflite`.

    Returns:
        Kernel and bias of each convolution.

    Raises:
        LayoutError: the operators are not those of the graph; names the first node that has no counterpart.
    """
    return _Walk(graph, checkpoint).run()


def convolutions(checkpoint: Checkpoint) -> list[tuple[Operator, tuple[int, ...]]]:
    """The convolutions of a file in their order, each with the shape of its kernel; `LayoutError` where one has none."""
    found: list[tuple[Operator, tuple[int, ...]]] = []
    origins = _origins(checkpoint)
    for operator in checkpoint.facts["operators"]:
        if operator["op"] in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            kernel = origins.get(operator["inputs"][1]) if len(operator["inputs"]) > 1 else None
            if kernel is None or len(checkpoint.tensors[kernel].shape) != 4:
                raise LayoutError(f"{operator['op']} number {len(found) + 1} has no constant kernel of four axes")
            found.append((operator, checkpoint.tensors[kernel].shape))
    return found


def _origins(checkpoint: Checkpoint) -> dict[str | None, str]:
    """Name that an operator reads -> constant; half precision goes through an operator that widens it."""
    origins: dict[str | None, str] = {name: name for name in checkpoint.tensors}
    for operator in checkpoint.facts["operators"]:
        if operator["op"] == "DEQUANTIZE" and operator["inputs"] and operator["inputs"][0] in origins:
            origins |= dict.fromkeys(operator["outputs"], origins[operator["inputs"][0]])
    return origins


class _Walk:
    def __init__(self, graph: Graph, checkpoint: Checkpoint) -> None:
        self.graph = graph
        self.tensors = checkpoint.tensors
        self.facts = checkpoint.facts
        self.origins = _origins(checkpoint)
        self.left = [one for one in self.facts["operators"] if one["op"] != "DEQUANTIZE"]
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.inputs:
                self.readers[name].append(node)
        shape = self.facts["inputs"][0]["shape"] if len(self.facts["inputs"]) == 1 else []
        if len(shape) != 4 or min(shape) < 1:
            raise LayoutError(f"its input has shape {shape}; expected one image of a fixed size")
        self.sizes = graph.shapes(shape[1], shape[2])
        self.values: dict[str, str] = {}
        self.made: list[Entry] = []

    def run(self) -> list[Entry]:
        handlers: dict[type[ops.Op], Callable[[Node, Any], str]] = {
            ops.Input: lambda node, op: str(self.facts["inputs"][0]["name"]),
            ops.Conv2d: self._convolution,
            ops.BatchNorm: self._same,
            ops.Activation: self._same,
            ops.Dropout: self._same,
            ops.Add: self._add,
            ops.GlobalAvgPool: self._mean,
            ops.Concat: self._concat,
            ops.Resize: self._resize,
        }
        for node in self.graph.nodes:
            if type(node.op) not in handlers:
                raise LayoutError(f"{node.name} ({node.op.kind}) has no counterpart in TensorFlow Lite here")
            self.values[node.name] = handlers[type(node.op)](node, node.op)
        ends = [self.values[name] for _, name in self.graph.outputs]
        given = [one["name"] for one in self.facts["outputs"]]
        if self.left or ends != given:
            more = ", ".join(sorted({one["op"] for one in self.left})) or "none"
            raise LayoutError(
                f"operators that the network does not have: {more}; it ends in {ends}, the file in {given}"
            )
        return self.made

    def _take(self, node: Node, value: str, op: str, fits: Callable[[Operator], bool], wanted: str) -> str:
        """Output of the first operator of a kind that reads `value` and fits; it is taken away."""
        alike = [one for one in self.left if one["op"] == op and value in one["inputs"] and len(one["outputs"]) == 1]
        for operator in alike:
            if fits(operator):
                self.left.remove(operator)
                return str(operator["outputs"][0])
        seen = "; ".join(str({k: v for k, v in one.items() if k not in ("op", "inputs", "outputs")}) for one in alike)
        raise LayoutError(f"{node.name}: expected {op} of {value!r} with {wanted}; found {seen or 'none'}")

    def _same(self, node: Node, op: ops.Op) -> str:
        """Batch norm and activation are part of the convolution before them, dropout is of training alone."""
        before = node
        while isinstance(before.op, ops.BatchNorm | ops.Activation):
            before = self.graph.by_name[before.inputs[0]]
        if not isinstance(op, ops.Dropout) and not isinstance(before.op, ops.Conv2d):
            raise LayoutError(f"{node.name} follows no convolution; it has no counterpart in TensorFlow Lite here")
        return self.values[node.inputs[0]]

    def _convolution(self, node: Node, op: ops.Conv2d) -> str:
        kernel = (1, op.kernel, op.kernel, op.out_channels)
        if not op.depthwise:
            kernel = (op.out_channels, op.kernel, op.kernel, op.in_channels // op.groups)
        norm, activation = self._following(node)
        paddings = ("SAME", "VALID") if op.kernel == 1 else ("SAME",)
        same = (op.dilation * (op.kernel - 1) // 2,) * 4
        if op.padding != "same" and (op.padding != same or op.stride > 1):
            raise LayoutError(f"{node.name} pads {op.padding}, which TensorFlow Lite does not")
        taken: list[Operator] = []

        def fits(one: Operator) -> bool:
            names = [self.origins.get(name) for name in one["inputs"][1:]]
            if len(names) != 2 or names[0] is None or names[1] is None:
                return False
            right = (
                self.tensors[names[0]].shape == kernel
                and one["stride"] == [op.stride] * 2
                and (op.kernel == 1 or one["dilation"] == [op.dilation] * 2)
                and one["padding"] in paddings
                and one["activation"] == activation
            )
            if right:
                taken.append(one)
            return right

        wanted = f"kernel {kernel}, stride {op.stride}, dilation {op.dilation}, padding SAME, activation {activation}"
        kind = "DEPTHWISE_CONV_2D" if op.depthwise else "CONV_2D"
        output = self._take(node, self.values[node.inputs[0]], kind, fits, wanted)
        weight, bias = (self.origins[name] for name in taken[0]["inputs"][1:])
        self.made.append(Entry(weight, f"{node.name}.weight", DEPTHWISE if op.depthwise else OHWI))
        if norm is None and not op.bias:
            raise LayoutError(f"{node.name} has neither bias nor batch norm for the bias {bias!r}")
        self.made.append(Entry(bias, f"{norm or node.name}.bias", IDENTITY))
        return output

    def _following(self, node: Node) -> tuple[str | None, str]:
        """Name of the batch norm after a convolution, and what TensorFlow Lite calls the activation after both."""
        norm, readers = None, self.readers[node.name]
        if len(readers) == 1 and isinstance(readers[0].op, ops.BatchNorm):
            norm, readers = readers[0].name, self.readers[readers[0].name]
        if len(readers) == 1 and isinstance(readers[0].op, ops.Activation):
            return norm, readers[0].op.function.upper()
        return norm, "NONE"

    def _add(self, node: Node, op: ops.Op) -> str:
        values = [self.values[name] for name in node.inputs]
        return self._take(
            node, values[0], "ADD", lambda one: sorted(map(str, one["inputs"])) == sorted(values), f"inputs {values}"
        )

    def _mean(self, node: Node, op: ops.Op) -> str:
        size = list(self.sizes[node.inputs[0]][2:])
        return self._take(
            node,
            self.values[node.inputs[0]],
            "AVERAGE_POOL_2D",
            lambda one: one["filter"] == size and one["padding"] == "VALID" and one["activation"] == "NONE",
            f"filter {size}, padding VALID",
        )

    def _concat(self, node: Node, op: ops.Op) -> str:
        values = [self.values[name] for name in node.inputs]
        return self._take(
            node,
            values[0],
            "CONCATENATION",
            lambda one: one["inputs"] == values and one["axis"] in (3, -1) and one["activation"] == "NONE",
            f"inputs {values} on axis 3",
        )

    def _resize(self, node: Node, op: ops.Resize) -> str:
        """One resize, before or after which may stand one to the size that the map has already."""
        value, source = self.values[node.inputs[0]], self.sizes[node.inputs[0]][2:]
        target = self.sizes[node.name][2:]

        def size(one: Operator) -> list[int]:
            name = self.origins.get(one["inputs"][1]) if len(one["inputs"]) == 2 else None
            if name is None or self.tensors[name].dtype.kind != "i":
                return []
            return [int(number) for number in self.tensors[name].reshape(-1)[:2]]

        def fits(one: Operator) -> bool:
            rule = (one["align_corners"], one["half_pixel_centers"])
            return source == (1, 1) or rule == ((True, False) if op.align_corners else (False, True))

        while given := next(
            (o for o in self.left if o["op"] == "RESIZE_BILINEAR" and o["inputs"][:1] == [value]), None
        ):
            to = size(given)
            if to not in (list(source), list(target)):
                raise LayoutError(f"{node.name}: expected a resize of {value!r} to {list(target)}, found one to {to}")
            value = self._take(node, value, "RESIZE_BILINEAR", fits, f"align_corners = {op.align_corners}")
            source = (to[0], to[1])
        if source != target:
            raise LayoutError(f"{node.name}: expected a resize of {value!r} to {list(target)}, found none")
        return value
