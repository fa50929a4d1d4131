"""Trace parity: every node's value, by the node's name, from several sides at once, and the first node to blame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deeplabzoo.backends import resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core import reference
from deeplabzoo.core.graph import Graph, Node
from deeplabzoo.core.weights import Weights
from deeplabzoo.errors import GraphError
from deeplabzoo.parity.compare import BOUNDS
from deeplabzoo.parity.forward import REFEREE, Case, Progress

JUMP = 10.0
"""How many times the largest error of what a node reads its own may be: rounding adds up slowly, a fault does not."""


@dataclass(frozen=True)
class NodeRow:
    """What one side made of a node.

    Attributes:
        node: its name.
        op: its kind, with the attributes that decide what it computes.
        shape: N, C, H, W.
        side: who made it.
        error: max|a - b| / max|b|, b the truth's value; against the largest value where the truth is zero everywhere.
        mean: of the values.
        std: of the values.
        largest: max|a|.
    """

    node: str
    op: str
    shape: tuple[int, ...]
    side: str
    error: float
    mean: float
    std: float
    largest: float


@dataclass(frozen=True)
class Trace:
    """Outcome of a trace.

    Attributes:
        model: title.
        digest: of the graph.
        dtype: what was judged.
        case: the input.
        truth: who the others were compared with.
        bound: the smallest error that counts.
        versions: of the packages, by side.
        rows: every node of every side, in the graph's order.
        blamed: for each side the first node whose error jumps, or none.
    """

    model: str
    digest: str
    dtype: str
    case: Case
    truth: str
    bound: float
    versions: dict[str, dict[str, str]]
    rows: tuple[NodeRow, ...] = field(repr=False)
    blamed: dict[str, NodeRow | None]

    @property
    def passed(self) -> bool:
        """Whether no node of any side is to blame."""
        return not any(self.blamed.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "graph_sha256": self.digest,
            "dtype": self.dtype,
            "input": str(self.case),
            "truth": self.truth,
            "bound": self.bound,
            "passed": self.passed,
            "versions": self.versions,
            "blamed": {side: None if row is None else vars(row) for side, row in self.blamed.items()},
            "rows": [vars(row) for row in self.rows],
        }


def trace(
    graph: Graph,
    weights: Weights,
    case: Case,
    backends: Sequence[str],
    *,
    dtype: str = "float64",
    other: tuple[Graph, Weights] | None = None,
    title: str = "",
    seed: int = 0,
    device: str = "cpu",
    bound: float | None = None,
    progress: Progress = lambda line: None,
) -> Trace:
    """Compare every node's value in each backend with the numpy referee's in float64, in the order of the graph.

    Values come one at a time from every side and go when they are compared, so that memory holds two nodes beside what
    the networks themselves need.

    Args:
        graph: the network.
        weights: its canonical weights.
        case: the input; seeded normal images.
        backends: names.
        dtype: in which the backends compute.
        other: another graph of the same nodes, and weights, for the backends to run against the first in the referee.
        title: of the model, for the report.
        seed: of the images.
        device: `cpu` or `gpu`.
        bound: smallest error that counts; 1e-11 in float64, 2e-5 in float32.
        progress: called with the name of each node.

    Raises:
        GraphError: the two networks have other nodes.
        BackendError, WorkerError: a backend is not there, or died.
    """
    run, values = other or (graph, weights)
    _check_same_nodes(graph, run)
    floor = BOUNDS[dtype] if bound is None else bound
    shape = (case.batch, graph.input.op.attributes()["channels"], case.height, case.width)
    image = np.random.default_rng([seed, 0]).standard_normal(shape)
    rows: list[NodeRow] = []
    versions: dict[str, dict[str, str]] = {}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(resolve(name).name, device=device)) for name in dict.fromkeys(backends)]
        for worker in workers:
            versions[worker.backend.name] = worker.versions
            worker.load(run, values, dtype=dtype)
        sides = [(worker.backend.name, worker.trace(image)) for worker in workers]
        for name, truth in reference.trace(graph, weights, image):
            progress(name)
            node = run.by_name[name]
            rows += [_row(node, side, _next(values, name), truth) for side, values in sides]
        for _, values_left in sides:
            for _ in values_left:  # lets the worker end its call
                pass
    blamed = {side: first_jump(run, [row for row in rows if row.side == side], floor) for side in versions}
    return Trace(title, graph.digest(), dtype, case, REFEREE, floor, versions, tuple(rows), blamed)


def first_jump(graph: Graph, rows: Sequence[NodeRow], floor: float) -> NodeRow | None:
    """The first node whose error is above `floor` and more than `JUMP` times that of what it reads; none where none is."""
    errors: dict[str, float] = {}
    for row in rows:
        before = max((errors[name] for name in graph.by_name[row.node].inputs), default=0.0)
        errors[row.node] = row.error
        if row.error > max(floor, JUMP * before):
            return row
    return None


def _next(values: Iterator[tuple[str, np.ndarray]], name: str) -> np.ndarray:
    made, value = next(values)
    if made != name:
        raise GraphError(f"a side of the trace came to {made}, expected {name}: it runs another network")
    return value


def _row(node: Node, side: str, value: np.ndarray, truth: np.ndarray) -> NodeRow:
    if value.shape != truth.shape:
        worst = float("inf")
    else:
        exact = truth.astype(np.float64)
        scale = float(np.abs(exact).max()) or float(np.abs(value).max()) or 1.0
        worst = float(np.abs(value.astype(np.float64) - exact).max()) / scale
    attributes = " ".join(f"{name}={item}" for name, item in node.op.attributes().items())
    return NodeRow(
        node.name,
        f"{node.op.kind} {attributes}".strip(),
        tuple(value.shape),
        side,
        worst if np.isfinite(worst) else float("inf"),
        float(value.mean(dtype=np.float64)),
        float(value.std(dtype=np.float64)),
        float(np.abs(value).max()),
    )


def _check_same_nodes(first: Graph, second: Graph) -> None:
    names, others = ([(node.name, node.inputs) for node in graph.nodes] for graph in (first, second))
    if names == others:
        return
    different = next((a or b for a, b in _pairs(names, others) if a != b), ("?", ()))[0]
    raise GraphError(
        f"the two networks can't be traced side by side: they differ at {different}; expected two of the same nodes, "
        "such as two weight files of one architecture"
    )


def _pairs(first: list[Any], second: list[Any]) -> Iterator[tuple[Any, Any]]:
    longest = max(len(first), len(second))
    for place in range(longest):
        yield (first[place] if place < len(first) else None, second[place] if place < len(second) else None)
