"""The error of every node: a curve, drawn as SVG, and tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element

from deeplabzoo.parity.html_parts import add, cell, code, details, table, tag
from deeplabzoo.parity.trace import JUMP, NodeRow, Trace
from deeplabzoo.parity.words import number

STYLES = 6
"""Kinds of lines that the style sheet knows; more sides than that share them."""

_WIDTH, _LEFT, _RIGHT = 960, 72, 36
_PLOT, _LABEL, _GROUPS, _TEXT = 300, 17, 118, 14
_NO_NUMBER, _ZERO = "not finite", "0"


class _Scale:
    """Places in the drawing: nodes from left to right, errors on a log scale from the bottom up.

    Errors of zero lie on the lowest line, which is no number of the scale; those that are not finite on the highest.
    """

    def __init__(self, trace: Trace, top: int) -> None:
        self.nodes = {name: place for place, name in enumerate(dict.fromkeys(row.node for row in trace.rows))}
        known = [row.error for row in trace.rows if 0 < row.error < math.inf] + [trace.bound]
        self.low, self.high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
        self.zero = any(row.error == 0 for row in trace.rows)
        self.infinite = any(not math.isfinite(row.error) for row in trace.rows)
        self.top, self.bottom = top, top + _PLOT
        low, high = self.low - self.zero, self.high + self.infinite
        self._step = _PLOT / max(1, high - low)
        self._least = low

    def x(self, node: str) -> float:
        return self.at(self.nodes[node])

    def at(self, place: float) -> float:
        return _LEFT + (place + 0.5) / len(self.nodes) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, error: float) -> float:
        if not math.isfinite(error):
            return self.top
        if error == 0:
            return self.bottom
        return self._of_power(math.log10(error))

    def _of_power(self, power: float) -> float:
        return self.bottom - (power - self._least) * self._step

    def ticks(self) -> Iterator[tuple[float, str]]:
        every = math.ceil((self.high - self.low) / 12) or 1
        yield from ((self._of_power(power), f"1e{power}") for power in range(self.low, self.high + 1, every))
        if self.zero:
            yield self.bottom, _ZERO
        if self.infinite:
            yield self.top, _NO_NUMBER


def trace_section(trace: Trace) -> Iterator[Element]:
    """The curve, the nodes to blame, and all nodes as a table.

    Args:
        trace: with at least one row.
    """
    rule = f"A node is to blame where its error is over the bound and {JUMP:g} times that of what it reads."
    yield tag("p", f"Input {trace.case}, {trace.dtype}, each node against {trace.truth}. {rule}")
    drawing = tag("div", curve(trace), class_="scroll", tabindex=0, role="region", aria_label="Error of every node")
    yield tag("figure", drawing, tag("figcaption", _legend(trace)))
    rows = []
    for side in _sides(trace):
        blamed = trace.blamed.get(side)
        row = blamed or max((row for row in trace.rows if row.side == side), key=lambda row: row.error)
        state = cell(tag("span", "to blame", class_="chip OVER")) if blamed else cell("largest error, no jump")
        rows.append(tag("tr", cell(side, head="row"), state, cell(code(row.node)), *_node_cells(row)))
    heads = ["side", "state", "node", *_NODE_HEADS]
    yield table("The first node to blame in each side, or the one with the largest error", heads, [rows])
    nodes: dict[str, list[NodeRow]] = {}
    for row in trace.rows:
        nodes.setdefault(row.node, []).append(row)
    bodies = [_node(rows, trace) for rows in nodes.values()]
    everything = table("Every node, in the order of the graph", ["node", "side", *_NODE_HEADS], bodies)
    yield details(f"All {len(nodes)} nodes as a table", everything, class_="long")


_NODE_HEADS = ("error", "shape", "mean", "std", "max|a|", "what it is")


def _node(rows: Sequence[NodeRow], trace: Trace) -> list[Element]:
    made = []
    for place, row in enumerate(rows):
        name = [cell(code(row.node), head="rowgroup", rowspan=len(rows))] if place == 0 else []
        guilty = trace.blamed.get(row.side)
        to_blame = guilty is not None and guilty.node == row.node
        made.append(tag("tr", *name, cell(row.side), *_node_cells(row), class_="blamed" if to_blame else None))
    return made


def _node_cells(row: NodeRow) -> list[Element]:
    values = [number(row.error), "x".join(map(str, row.shape)), *(f"{v:.4g}" for v in (row.mean, row.std, row.largest))]
    return [*(cell(value, class_="number") for value in values), cell(row.op, class_="words")]


def curve(trace: Trace) -> Element:
    """A drawing of the errors of all nodes in the order of the graph, one line a side.

    The bound is a dashed line, blamed nodes are marked with their names, and the groups of the network are told under
    the axis.

    Args:
        trace: with at least one row.
    """
    blamed: dict[str, list[str]] = {}
    for side, row in trace.blamed.items():
        if row is not None:
            blamed.setdefault(row.node, []).append(side)
    top = 24 + _LABEL * len(blamed)
    scale = _Scale(trace, top)
    drawing = tag(
        "svg",
        tag("title", "Error of every node, in the order of the graph", id="curve-title"),
        tag("desc", _in_words(trace), id="curve-desc"),
        viewBox=f"0 0 {_WIDTH} {scale.bottom + _GROUPS}",
        role="img",
        aria_labelledby="curve-title curve-desc",
        class_="curve",
    )
    add(drawing, *_groups(scale), *_grid(scale, trace.bound))
    for place, side in enumerate(_sides(trace)):
        rows = [row for row in trace.rows if row.side == side]
        points = " ".join(f"{scale.x(row.node):.1f},{scale.y(row.error):.1f}" for row in rows)
        add(drawing, tag("polyline", tag("title", side), points=points, class_=_line_class(place)))
    add(drawing, *_marks(scale, trace, blamed))
    return drawing


def _sides(trace: Trace) -> list[str]:
    return list(dict.fromkeys(row.side for row in trace.rows))


def _line_class(place: int) -> str:
    return f"line line{place % STYLES}"


def _legend(trace: Trace) -> Element:
    entries = [tag("li", _swatch(_line_class(place)), side) for place, side in enumerate(_sides(trace))]
    return tag("ul", *entries, tag("li", _swatch("bound"), f"bound {number(trace.bound)}"), class_="legend")


def _group_of(node: str) -> str:
    """The part of the network that a node belongs to: `backbone.stage2`, `aspp`."""
    parts = node.split(".")
    return ".".join(parts[:2] if parts[0] == "backbone" else parts[:1])


def _swatch(class_: str) -> Element:
    line = tag("line", x1=1, y1=5, x2=31, y2=5, class_=class_)
    return tag("svg", line, viewBox="0 0 32 10", width=32, height=10, aria_hidden="true")


def _groups(scale: _Scale) -> Iterator[Element]:
    """A band, a tick and a name for each run of nodes of one group; names that would overlap move to the right."""
    last, start = -math.inf, 0
    for place, (group, nodes) in enumerate(itertools.groupby(scale.nodes, _group_of)):
        end = start + len(list(nodes))
        left, right = scale.at(start - 0.5), scale.at(end - 0.5)
        if place % 2:
            yield tag("rect", x=f"{left:.1f}", y=scale.top, width=f"{right - left:.1f}", height=_PLOT, class_="band")
        x = max((left + right) / 2, last + _TEXT)
        foot = scale.bottom + 10
        yield tag("path", d=f"M{(left + right) / 2:.1f} {scale.bottom}L{x:.1f} {foot}", class_="tick")
        turn = f"translate({x:.1f} {foot + 4}) rotate(-60)"
        yield tag("text", group, transform=turn, text_anchor="end", dominant_baseline="middle", class_="group")
        last, start = x, end


def _grid(scale: _Scale, bound: float) -> Iterator[Element]:
    right = _WIDTH - _RIGHT
    for y, text in scale.ticks():
        yield tag("path", d=f"M{_LEFT} {y:.1f}H{right}", class_="grid")
        yield tag("text", text, x=_LEFT - 8, y=f"{y:.1f}", text_anchor="end", dominant_baseline="middle")
    y = scale.y(bound)
    yield tag("path", d=f"M{_LEFT} {y:.1f}H{right}", class_="bound")
    yield tag("text", f"bound {number(bound)}", x=_LEFT + 6, y=f"{y - 6:.1f}", class_="bound-text")


def _marks(scale: _Scale, trace: Trace, blamed: Mapping[str, list[str]]) -> Iterator[Element]:
    """A ring around each blamed node, and its name above the plot, one under another."""
    for place, node in enumerate(sorted(blamed, key=lambda name: scale.nodes[name])):
        x, text_y = scale.x(node), 16 + place * _LABEL
        ys = [scale.y(row.error) for row in trace.blamed.values() if row is not None and row.node == node]
        right = x > _WIDTH / 2
        yield tag("path", d=f"M{x:.1f} {text_y + 4}V{max(ys):.1f}", class_="blame-line")
        yield from (tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=5, class_="blame") for y in ys)
        words = f"{node} ({', '.join(blamed[node])})"
        text_x = f"{x + (6 if right else -6):.1f}"
        yield tag("text", words, x=text_x, y=text_y, text_anchor="end" if right else "start", class_="blame-text")


def _in_words(trace: Trace) -> str:
    """What the drawing shows, for those who do not see it."""

    def worst(side: str) -> NodeRow:
        return max((row for row in trace.rows if row.side == side), key=lambda row: row.error)

    parts = [f"{row.side}: largest error {number(row.error)} at {row.node}" for row in map(worst, _sides(trace))]
    parts += [f"{side}: first node to blame {row.node}" for side, row in trace.blamed.items() if row is not None]
    return f"Bound {number(trace.bound)}. " + ". ".join(parts) + "."
