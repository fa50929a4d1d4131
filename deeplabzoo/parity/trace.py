"""Trace parity: every node's value, by the node's name, from several sides at once, and the first node to blame."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deeplabzoo.core import reference
from deeplabzoo.core.graph import Graph, Node
from deeplabzoo.core.weights import Weights
from deeplabzoo.errors import BackendError, GraphError, WorkerError
from deeplabzoo.parity.cases import REFEREE, Case, Progress
from deeplabzoo.parity.compare import BOUNDS

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
        failures: why a side has no (further) values, in one line, by side.
        outputs: nodes whose values the network returns.
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
    failures: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no node of any side is to blame, what it returns is within the bound, and none failed."""
        return bool(self.rows) and not any(self.blamed.values()) and not self.grown and not self.failures

    @property
    def grown(self) -> dict[str, NodeRow]:
        """For each side that returns what is over the bound though no node is to blame, the worst of that."""
        over = [row for row in self.rows if row.node in self.outputs and not row.error <= self.bound]
        over = [row for row in over if self.blamed.get(row.side) is None]
        return {row.side: row for row in sorted(over, key=lambda row: row.error)}

    def lines(self) -> list[str]:
        """The outcome in words, a line a side."""
        told = []
        for side, first in self.blamed.items():
            rows = [row for row in self.rows if row.side == side]
            if first is not None:
                told.append(
                    f"{side}: the error jumps to {first.error:.1e} at {first.node}, {'x'.join(map(str, first.shape))}: "
                    f"{first.op}; mean {first.mean:.3g}, std {first.std:.3g}, largest {first.largest:.3g}"
                )
            elif rows:
                worst = max(rows, key=lambda row: row.error)
                told.append(
                    f"{side}: {slowly(self.grown[side])}"
                    if side in self.grown
                    else f"{side}: no node is to blame; largest error {worst.error:.1e} at {worst.node}"
                )
        return told

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
            "failures": self.failures,
            "outputs": list(self.outputs),
            "blamed": {side: None if row is None else vars(row) for side, row in self.blamed.items()},
            "rows": [vars(row) for row in self.rows],
        }


def trace_sides(
    graph: Graph,
    weights: Weights,
    question: tuple[Case, np.ndarray],
    sides: Mapping[str, Iterator[tuple[str, np.ndarray]]],
    *,
    dtype: str = "float64",
    run: Graph | None = None,
    title: str = "",
    bound: float | None = None,
    versions: Mapping[str, dict[str, str]] | None = None,
    progress: Progress = lambda line: None,
) -> Trace:
    """Compare the values that come from several sides with the referee's; a side that fails is left, the others go on.

    Args:
        graph: the network.
        weights: its canonical weights.
        question: the input, and its images N, C, H, W.
        sides: name and value of every node, in the order of the graph, by side.
        dtype: in which the sides compute.
        run: the graph that they run, of the same nodes; by default the network's own.
        title: of the model, for the report.
        bound: smallest error that counts; see `parity.compare.BOUNDS`.
        versions: of the packages, by side.
        progress: called with the name of each node.

    Raises:
        GraphError: the two networks have other nodes.
    """
    theirs = run or graph
    check_same_nodes(graph, theirs)
    floor = BOUNDS[dtype] if bound is None else bound
    case, image = question
    left = dict(sides)
    rows: list[NodeRow] = []
    failures: dict[str, str] = {}
    for name, truth in reference.trace(graph, weights, image):
        progress(name)
        for side in tuple(left):
            try:
                rows.append(node_row(theirs.by_name[name], side, _next(left[side], name), truth))
            except (BackendError, WorkerError) as error:
                failures[side] = str(error)
                del left[side]
    for side, values in left.items():
        try:
            for _ in values:  # lets the worker end its call
                pass
        except (BackendError, WorkerError) as error:
            failures[side] = str(error)
    blamed = {side: first_jump(theirs, [row for row in rows if row.side == side], floor) for side in sides}
    outputs = tuple(dict.fromkeys(node for _, node in graph.outputs))
    return Trace(
        title, graph.digest(), dtype, case, REFEREE, floor, dict(versions or {}), tuple(rows), blamed, failures, outputs
    )


def slowly(row: NodeRow, name: str = "") -> str:
    """What is to be said of a side that is over the bound though no node is to blame; `name` says more of the node."""
    return (
        f"errors grow slowly to {row.error:.1e} at {name or row.node}, which is over the bound, but no single node is to blame; "
        "in float64 one would show"
    )


def first_jump(graph: Graph, rows: Sequence[NodeRow], floor: float) -> NodeRow | None:
    """The first node whose error is above `floor` and more than `JUMP` times that of what it reads; none where none is.

    Where nodes have no row, the nearest before them that have one count.
    """
    errors: dict[str, float] = {}
    for row in rows:
        before = max((errors[name] for name in nearest_seen(graph, row.node, errors)[0]), default=0.0)
        errors[row.node] = row.error
        if row.error > max(floor, JUMP * before):
            return row
    return None


def nearest_seen(graph: Graph, node: str, seen: Collection[str]) -> tuple[list[str], list[str]]:
    """The nearest nodes before `node` that are in `seen`, and those passed on the way back to them, nearest first."""
    reached: dict[str, None] = {}
    passed: dict[str, None] = {}
    left = list(graph.by_name[node].inputs)
    while left:
        name = left.pop(0)
        if name in seen:
            reached[name] = None
        elif name not in passed:
            passed[name] = None
            left += graph.by_name[name].inputs
    return list(reached), list(passed)


def _next(values: Iterator[tuple[str, np.ndarray]], name: str) -> np.ndarray:
    made, value = next(values, ("the end", np.empty(0)))
    if made != name:
        raise WorkerError(f"the trace came to {made}, expected {name}: it runs another network")
    return value


def node_row(node: Node, side: str, value: np.ndarray, truth: np.ndarray) -> NodeRow:
    """What a side made of a node, against the truth; the error is infinite where shapes differ."""
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


def check_same_nodes(first: Graph, second: Graph) -> None:
    """`GraphError` where two networks have other nodes, so that their values can't be compared one by one."""
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
