"""The graph: a flat list of nodes in topological order, plain data, identified by dotted names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deeplabzoo.core import ops
from deeplabzoo.core.ops import Op, Padding, Shape, float32_exact
from deeplabzoo.errors import GraphError, unknown

FORMAT_VERSION = 1
_PART = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass(frozen=True)
class Node:
    """One operation: its dotted name (the identity everywhere), what it does, and the nodes it reads."""

    name: str
    op: Op
    inputs: tuple[str, ...]

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Canonical parameter names (`node.weight`, ...) and shapes."""
        return {f"{self.name}.{suffix}": shape for suffix, shape in self.op.parameters().items()}


@dataclass(frozen=True)
class Graph:
    """A network: nodes in topological order and its named outputs.

    Equal graphs compute the same function and hash equal. The first node is the input. `outputs` holds pairs of
    output name (`out`, `aux`) and node name.

    Raises:
        GraphError: a name used twice, a name that is a prefix of another, an unknown or later input, a part of a name
            that is not lower case words joined by single underscores.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        prefixes: set[str] = set()
        if not self.nodes:
            raise GraphError("a graph without nodes: expected an input at least")
        for node in self.nodes:
            for part in node.name.split("."):
                if not _PART.fullmatch(part):
                    raise GraphError(f"node {node.name!r}: {part!r} must be lower case words joined by single '_'")
            if node.name in seen:
                raise GraphError(f"node {node.name!r} exists twice")
            least, most = node.op.arity
            if not least <= len(node.inputs) <= most or isinstance(node.op, ops.Input) != (not seen):
                raise GraphError(
                    f"node {node.name!r} ({node.op.kind}) reads {len(node.inputs)} values: expected "
                    + (f"{least}" if least == most else f"at least {least}")
                    + ", and one input, the first node"
                )
            for source in node.inputs:
                if source not in seen:
                    raise GraphError(f"node {node.name!r} reads {source!r}, which no earlier node makes")
            seen.add(node.name)
            prefixes.update(_prefixes(node.name))
        if clash := sorted(seen & prefixes):
            raise GraphError(f"node {clash[0]!r} is also the name of a group; rename one")
        for name, node_name in self.outputs:
            if node_name not in seen:
                raise GraphError(f"output {name!r} names {node_name!r}, which does not exist")

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @property
    def input(self) -> Node:
        """The input node."""
        return self.nodes[0]

    def members(self, names: Iterable[str]) -> frozenset[str]:
        """Names of the nodes that are named, or whose group is.

        Raises:
            GraphError: a name that is neither.
        """
        groups = {prefix for name in self.by_name for prefix in _prefixes(name)}
        for name in names:
            if name not in self.by_name and name not in groups:
                raise GraphError(unknown("node", name, (*self.by_name, *sorted(groups))))
        return frozenset(node for node in self.by_name for name in names if node == name or node.startswith(f"{name}."))

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """All canonical parameter names with their shapes, in canonical order."""
        return {name: shape for node in self.nodes for name, shape in node.parameters().items()}

    def shapes(self, height: int, width: int, batch: int = 1) -> dict[str, Shape]:
        """Output shape of every node for an image of `height` x `width` pixels.

        Raises:
            GraphError: the image is too small, or shapes do not fit; the node is named.
        """
        image: Shape = (batch, self.input.op.attributes()["channels"], height, width)
        shapes: dict[str, Shape] = {}
        for node in self.nodes:
            try:
                shapes[node.name] = node.op.infer([shapes[name] for name in node.inputs] or [image])
            except GraphError as error:
                raise GraphError(f"{node.name}: {error}") from None
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_dict`."""
        return {
            "format": FORMAT_VERSION,
            "nodes": [
                {"name": n.name, "op": n.op.kind, "inputs": list(n.inputs), **n.op.attributes()} for n in self.nodes
            ],
            "outputs": dict(self.outputs),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Graph:
        """Read plain data.

        Raises:
            GraphError: another format version, missing keys, or a graph that breaks a rule.
        """
        if not isinstance(data, Mapping):
            raise GraphError(f"graph data of type {type(data).__name__}: expected a table")
        if data.get("format") != FORMAT_VERSION:
            raise GraphError(f"graph format {data.get('format')!r}: this version reads format {FORMAT_VERSION}")
        try:
            nodes = []
            for entry in data["nodes"]:
                attributes = dict(entry)
                name, kind, inputs = attributes.pop("name"), attributes.pop("op"), tuple(attributes.pop("inputs"))
                nodes.append(Node(name, ops.op_from_attributes(kind, attributes), inputs))
            return cls(tuple(nodes), tuple(data["outputs"].items()))
        except KeyError as error:
            raise GraphError(f"graph data: {error.args[0]!r} is missing") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise GraphError(f"graph data of a wrong form: {error}") from None

    def to_json(self) -> str:
        """Compact JSON, one stable text for equal graphs."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Inverse of `to_json`.

        Raises:
            GraphError: no JSON, or a graph that breaks a rule.
        """
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise GraphError(f"the graph is not JSON: {error}") from None
        return cls.from_dict(data)

    def digest(self) -> str:
        """SHA-256 of the JSON: the identity of the function, apart from its weights."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def rows(self, height: int, width: int) -> list[tuple[str, str, str, str]]:
        """(name, op, attributes, output shape) of every node, to print as a table."""
        shapes = self.shapes(height, width)
        return [
            (
                node.name,
                node.op.kind,
                " ".join(f"{k}={v}" for k, v in node.op.attributes().items()),
                "x".join(map(str, shapes[node.name])),
            )
            for node in self.nodes
        ]


class GraphBuilder:
    """Collects nodes; every method adds one and returns its name.

    Names are relative to the scopes entered with `scope`; the builder keeps channels and stride of each node.
    """

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._channels: dict[str, int] = {}
        self._strides: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._scopes: list[str] = []

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of all nodes added inside."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def channels(self, node: str) -> int:
        """Number of output channels of a node."""
        return self._channels[node]

    def stride(self, node: str) -> int:
        """Pixels of the image between neighbouring points of a node's map."""
        return self._strides[node]

    def position(self, node: str) -> int:
        """How many nodes were added before a node."""
        return self._positions[node]

    def finish(self, outputs: Mapping[str, str]) -> Graph:
        """The graph of all nodes that an output needs; others (a stage nobody reads) are left out."""
        needed = set(outputs.values()) | {self._nodes[0].name}
        for node in reversed(self._nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return Graph(tuple(n for n in self._nodes if n.name in needed), tuple(outputs.items()))

    def input(self, channels: int) -> str:
        """The image."""
        return self._add("input", ops.Input(channels=channels), (), channels)

    def conv(
        self,
        name: str,
        x: str,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: Padding | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> str:
        """A convolution; without `padding`, dilation * (kernel // 2) on all sides."""
        half = dilation * (kernel // 2)
        op = ops.Conv2d(
            in_channels=self.channels(x),
            out_channels=channels,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=(half, half, half, half) if padding is None else padding,
            groups=groups,
            bias=bias,
        )
        return self._add(name, op, (x,), channels)

    def batch_norm(self, name: str, x: str, *, epsilon: float, momentum: float, exact: bool = False) -> str:
        """Batch normalisation; momentum is rounded to float32, and epsilon too unless it is to be taken `exact`."""
        epsilon = epsilon if exact else float32_exact(epsilon)
        op = ops.BatchNorm(channels=self.channels(x), epsilon=epsilon, momentum=float32_exact(momentum))
        return self._add(name, op, (x,), self.channels(x))

    def apply(self, name: str, op: Op, *inputs: str) -> str:
        """Any other op."""
        if isinstance(op, ops.Concat):
            channels = sum(self.channels(x) for x in inputs)
        else:
            channels = 1 if isinstance(op, ops.Argmax) else self.channels(inputs[0])
        return self._add(name, op, inputs, channels)

    def activation(self, name: str, x: str, function: str) -> str:
        """A function of `ops.Activation`."""
        return self.apply(name, ops.op_from_attributes("activation", {"function": function}), x)

    def _add(self, name: str, op: Op, inputs: tuple[str, ...], channels: int) -> str:
        full = ".".join([*self._scopes, name])
        self._nodes.append(Node(full, op, inputs))
        self._channels[full] = channels
        self._positions[full] = len(self._nodes) - 1
        # A resize takes the grid of the map whose size it takes, which is its last input.
        before = self._strides[inputs[-1 if isinstance(op, ops.Resize) else 0]] if inputs else 1
        self._strides[full] = before * op.stride if isinstance(op, ops.Conv2d | ops.MaxPool | ops.AvgPool) else before
        return full


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
