"""Groups: every name prefix as a callable part of the network, and the order in which its children run.

Backends whose models are trees of modules (torch, Paddle) build one module a group from these plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from deeplabzoo.core.graph import Graph, Node
from deeplabzoo.errors import GraphError

Value = TypeVar("Value")


def walk(graph: Graph, image: Value, apply: Callable[[Node, list[Value]], Value]) -> Iterator[tuple[Node, Value]]:
    """Run a graph node by node, the input first, and drop each value after its last use.

    Args:
        graph: what to run.
        image: the value of its input.
        apply: makes the value of a node out of those that it reads.
    """
    last_use = {source: node.name for node in graph.nodes for source in node.inputs}
    alive = {graph.input.name: image}
    yield graph.input, image
    del image
    for node in graph.nodes[1:]:
        value = apply(node, [alive[name] for name in node.inputs])
        for source in node.inputs:
            if last_use[source] == node.name:
                alive.pop(source, None)
        if node.name in last_use:
            alive[node.name] = value
        yield node, value


@dataclass(frozen=True)
class Step:
    """One child of a group: what it reads, what it makes, and which values nobody needs afterwards.

    `child` is the last part of the child's name; values are node names.
    """

    child: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    release: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A name prefix with its declared inputs and outputs and its children in running order."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]


def groups(graph: Graph) -> dict[str, Group]:
    """Every group by name; the whole network is the group `""`.

    Outputs of a group are the values read outside it, in the order of the nodes; for the whole network the graph's own
    outputs in their order.

    Raises:
        GraphError: two groups that each need the other's output, so that neither can run as one call.
    """
    members: dict[str, list[str]] = {"": []}
    for node in graph.nodes[1:]:
        parts = node.name.split(".")
        for depth in range(len(parts)):
            members.setdefault(".".join(parts[:depth]), []).append(node.name)
    interfaces = {name: _interface(graph, name, nodes) for name, nodes in members.items()}
    return {name: Group(name, *interfaces[name], _steps(graph, name, members[name], interfaces)) for name in members}


def _interface(graph: Graph, name: str, nodes: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inside = set(nodes)
    read = [source for node in nodes for source in graph.by_name[node].inputs if source not in inside]
    if name == "":
        return (graph.input.name,), tuple(node for _, node in graph.outputs)
    wanted = {source for node in graph.nodes if node.name not in inside for source in node.inputs}
    wanted.update(node for _, node in graph.outputs)
    return tuple(dict.fromkeys(read)), tuple(node for node in nodes if node in wanted)


def _steps(
    graph: Graph,
    name: str,
    nodes: list[str],
    interfaces: dict[str, tuple[tuple[str, ...], tuple[str, ...]]],
) -> tuple[Step, ...]:
    depth = len(name.split(".")) if name else 0
    children: dict[str, list[str]] = {}
    for node in nodes:
        children.setdefault(".".join(node.split(".")[: depth + 1]), []).append(node)
    calls = {
        child: interfaces[child] if child in interfaces else (graph.by_name[child].inputs, (child,))
        for child in children
    }
    inputs, outputs = interfaces[name]
    ready, order = set(inputs), list[str]()
    waiting = list(calls)
    while waiting:
        child = next((c for c in waiting if ready.issuperset(calls[c][0])), None)
        if child is None:
            raise GraphError(f"groups {', '.join(waiting)} need one another's outputs; name their nodes otherwise")
        waiting.remove(child)
        order.append(child)
        ready.update(calls[child][1])
    last_use = {value: i for i, child in enumerate(order) for value in (*calls[child][1], *calls[child][0])}
    return tuple(
        Step(
            child=child.split(".")[-1],
            inputs=calls[child][0],
            outputs=calls[child][1],
            release=tuple(v for v, last in last_use.items() if last == i and v not in outputs),
        )
        for i, child in enumerate(order)
    )
