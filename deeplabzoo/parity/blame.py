"""Who is to blame where gradients or training steps differ while the forward pass agrees."""

from __future__ import annotations

from collections.abc import Sequence

from deeplabzoo.core.graph import Graph
from deeplabzoo.core.training import trainable
from deeplabzoo.parity.report import Check, Row


def blamed_parameter(graph: Graph, rows: Sequence[Row], check: Check, first: str, second: str) -> Row | None:
    """The row that a fault shows in first; None where all agree.

    A fault in the way back spoils the gradients of everything before it, so the last parameter of the graph that is
    over its bound is its nearest one. Running statistics follow the forward pass: there the first one is, at the
    earliest step that shows a fault. After the first step they also follow parameters, so a wrong parameter before the
    first wrong statistic comes before it.

    Args:
        graph: the network.
        rows: of a report.
        check: `gradients` or `training`.
        first: side that was judged.
        second: side it was judged against.
    """
    over = [row for row in rows if (row.check, row.first, row.second) == (check, first, second) and not row.passed]
    if not over:
        return None
    place = {name: n for n, name in enumerate(graph.parameters())}
    known = [row for row in over if row.name in place]
    earliest = min((row.step or 0 for row in known), default=0)
    known = [row for row in known if (row.step or 0) == earliest]
    statistics = [row for row in known if not trainable(row.name)]
    if not statistics:
        return max(known, key=lambda row: place[row.name], default=over[0])
    first_moved = min(statistics, key=lambda row: place[row.name])
    before = [row for row in known if trainable(row.name) and place[row.name] < place[first_moved.name]]
    if earliest == 1 or not before:
        return first_moved
    return max(before, key=lambda row: place[row.name])
