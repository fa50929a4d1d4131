"""TensorFlow's graphs (tensorflow/core/framework/graph.proto): nodes, their inputs and attributes, and constants."""

from __future__ import annotations

import dataclasses
import math
import struct

import numpy as np

from deeplabzoo.weights_converter.formats import _dtypes
from deeplabzoo.weights_converter.formats._checkpoint import Array, MappedFile, as_dtype
from deeplabzoo.weights_converter.formats._guard import Flaw, shown
from deeplabzoo.weights_converter.formats._protobuf import Field, Walk, varints
from deeplabzoo.weights_converter.formats._tf_types import DTYPES, bytes_of, shape_of

_MOST_STEPS = 16  # from an input back to what it comes from
_MOST_LISTED = 2**24  # elements of a tensor whose values stand one by one, where their bytes do not bound them
_MOST_NUMBERS = 16  # of an attribute or a constant that says something of the network
_ATTRIBUTES = {
    "value", "strides", "dilations", "padding", "data_format", "epsilon", "align_corners", "half_pixel_centers",
}  # fmt: skip
_CONTENT = 4
# Element type -> the field of TensorProto that its values stand in one by one, and the type of those; none: of
# variable length.
_LISTS = {
    "float32": (5, "<f4"), "float64": (6, "<f8"), "int32": (7, ""), "int64": (10, ""), "bfloat16": (13, ""),
    "float16": (13, ""),
}  # fmt: skip


@dataclasses.dataclass
class Node:
    """An operation: what it is called, what it does, whose results it takes, and where attributes of use here lie."""

    name: str = ""
    op: str = ""
    inputs: list[str] = dataclasses.field(default_factory=list)
    attributes: dict[str, Field] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A constant: where its values lie, not the values.

    Attributes:
        dtype: one of `_LISTS`.
        shape: possible, but not yet known to fit the values.
        content: its bytes as they lie; or none.
        values: the parts of its values one by one, where there is no `content`.
    """

    dtype: str
    shape: tuple[int, ...]
    content: Field | None
    values: list[Field]

    @property
    def size(self) -> int:
        """Bytes of its values in memory."""
        return math.prod(self.shape) * _dtypes.ITEMSIZE[self.dtype]

    def check(self, label: str) -> None:
        """Raise `Flaw` where the values don't fit the shape, or the shape asks for more than the file can hold."""
        needed = self.size
        given = sum(part.end - part.begin for part in self.values)
        said = f"{label}: {self.dtype} of shape {shown(self.shape)} takes {needed} bytes"
        if self.content is not None:
            if needed != self.content.end - self.content.begin:
                raise Flaw(f"{said}, it has {self.content.end - self.content.begin}")
            return
        kind = _LISTS[self.dtype][1]
        if any(part.wire == 0 for part in self.values):
            raise Flaw(f"{label}: its values are not packed; save the graph with TensorFlow")
        if kind and (given > needed or given % np.dtype(kind).itemsize):
            raise Flaw(f"{said}, it has {given}")
        if math.prod(self.shape) > _MOST_LISTED and given < needed:
            raise Flaw(f"{said} and has {given}; the most that is filled up is {_MOST_LISTED} elements")

    def array(self, file: MappedFile) -> Array:
        """Read the tensor; `Flaw` where its values are damaged."""
        dtype = _dtypes.resolve(self.dtype)
        if self.content is not None:
            return as_dtype(_piece(file, self.content), dtype).reshape(self.shape)
        count = math.prod(self.shape)
        data = np.concatenate([np.empty(0, np.uint8), *(_piece(file, part) for part in self.values)])
        given = self._given(data, count).astype(dtype)
        # A protocol buffer with fewer values means the last one for all the others, and one with none means zero.
        result = np.full(count, given[-1] if given.size else 0, dtype)
        result[: given.size] = given
        return result.reshape(self.shape)

    def _given(self, data: Array, count: int) -> Array:
        kind = _LISTS[self.dtype][1]
        if kind:
            return data.view(kind)
        found = int(np.count_nonzero(data < 128))
        if found > count:
            raise Flaw(f"damaged: {found} values where {count} have a place")
        numbers = varints(data, found)
        if self.dtype in ("bfloat16", "float16"):  # its bits
            return numbers.astype("<u2").view(_dtypes.resolve(self.dtype))
        return numbers.view(np.int64)


class Graph:
    """The nodes of a GraphDef by name; functions, which a frozen graph does not have, are passed over."""

    def __init__(self, file: MappedFile, walk: Walk, begin: int, end: int) -> None:
        """Read a graph.

        Args:
            file: the file.
            walk: through that file.
            begin: where the message begins.
            end: where it ends.

        Raises:
            Flaw: damaged, too large, or a name is there twice.
        """
        self._file = file
        self._walk = walk
        self.nodes: dict[str, Node] = {}
        for field in walk.fields(begin, end):
            if field.field == 1:
                node = self._node(field)
                if not node.name or not node.op or node.name in self.nodes:
                    raise Flaw(f"damaged: a node without a name or an operation, or two named {shown(node.name)!r}")
                self.nodes[node.name] = node

    def origin(self, node: Node, position: int) -> Node | None:
        """Return the node that an input comes from, `Identity` passed over; None where there is no such node."""
        found: Node | None = node
        for _ in range(_MOST_STEPS):
            if found is None or position >= len(found.inputs):
                return None
            found = self.nodes.get(found.inputs[position].partition(":")[0])
            if found is None or found.op != "Identity":
                return found
            position = 0
        return None

    def constant(self, node: Node, position: int) -> Node | None:
        """Return the constant that is one of a node's inputs, or None."""
        found = self.origin(node, position)
        return found if found is not None and found.op == "Const" else None

    def small(self, node: Node, position: int) -> list[float] | None:
        """Return the numbers of a small constant that is one of a node's inputs, or None where it is none."""
        found = self.constant(node, position)
        tensor = None if found is None else self.tensor(found)
        if tensor is None or math.prod(tensor.shape) > _MOST_NUMBERS:
            return None
        array = tensor.array(self._file).reshape(-1)
        whole = array.dtype.kind == "i"
        return [int(value) if whole else float(str(value)) for value in array]

    def tensor(self, node: Node) -> Tensor | None:
        """Return what is known of a constant, None where its elements are no numbers of use here.

        Raises:
            Flaw: what is claimed of it can't be.
        """
        label = f"constant {shown(node.name)!r}"
        number, shape = 0, memoryview(b"")
        content: Field | None = None
        values: dict[int, list[Field]] = {}
        for field in self._value(node, "value", 8):
            if field.field == 1:
                number = field.number
            elif field.field == 2:
                shape = self._walk.view[field.begin : field.end]
            elif field.field == _CONTENT and field.end > field.begin:
                content = field
            elif field.field in (5, 6, 7, 10, 13):
                values.setdefault(field.field, []).append(field)
        dtype = DTYPES.get(number, "")
        if dtype not in _LISTS:
            return None
        sizes = shape_of(shape)
        bytes_of(label, number, sizes)
        tensor = Tensor(dtype, sizes, content, [] if content else values.get(_LISTS[dtype][0], []))
        tensor.check(label)
        return tensor

    def flag(self, node: Node, attribute: str) -> bool:
        """Return an attribute that is true or false; false where it is not there."""
        return any(field.number for field in self._attribute(node, attribute) if field.field == 5)

    def real(self, node: Node, attribute: str, default: float) -> float:
        """Return an attribute of floating point, as the shortest number that stands for the same float32."""
        for field in self._attribute(node, attribute):
            if (field.field, field.wire) == (4, 5):
                (value,) = struct.unpack("<f", self._walk.view[field.begin : field.end])
                return float(str(np.float32(value)))
        return default

    def integers(self, node: Node, attribute: str, default: list[int]) -> list[int]:
        """Return an attribute that is a list of whole numbers."""
        found = [n for field in self._value(node, attribute, 1) if field.field == 3 for n in self._walk.numbers(field)]
        if len(found) > _MOST_NUMBERS:
            raise Flaw(f"damaged: {attribute} of node {shown(node.name)!r} has {len(found)} numbers")
        return found or default

    def text(self, node: Node, attribute: str, default: str) -> str:
        """Return an attribute that is text."""
        texts = [self._walk.text(field) for field in self._attribute(node, attribute) if field.field == 2]
        return texts[-1] if texts else default

    def _attribute(self, node: Node, attribute: str) -> list[Field]:
        span = node.attributes.get(attribute)
        return [] if span is None else list(self._walk.fields(span.begin, span.end))

    def _value(self, node: Node, attribute: str, kind: int) -> list[Field]:
        """Return the fields of the message that an attribute holds as one of its kinds."""
        spans = [field for field in self._attribute(node, attribute) if field.field == kind]
        return [field for span in spans for field in self._walk.fields(span.begin, span.end)]

    def _node(self, span: Field) -> Node:
        node = Node()
        for field in self._walk.fields(span.begin, span.end):
            if field.field == 1:
                node.name = self._walk.text(field)
            elif field.field == 2:
                node.op = self._walk.text(field)
            elif field.field == 3:
                node.inputs.append(self._walk.text(field))
            elif field.field == 5:
                pair = {inner.field: inner for inner in self._walk.fields(field.begin, field.end)}
                key = self._walk.text(pair[1]) if 1 in pair else ""
                if key in _ATTRIBUTES and 2 in pair:
                    node.attributes[key] = pair[2]
        return node


def _piece(file: MappedFile, span: Field) -> Array:
    return file.piece(span.begin, span.end - span.begin)
