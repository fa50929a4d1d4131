"""What a graph costs and sees: parameters, multiply-adds, receptive field, live taps, and what its stride may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deeplabzoo.core import ops
from deeplabzoo.core.graph import Graph
from deeplabzoo.errors import GraphError

STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Taps:
    """How many taps of a dilated kernel read at least one real pixel, for one input size.

    Attributes:
        node: name of the convolution.
        dilation: its rate.
        live: taps that read a real pixel somewhere.
        total: taps of the kernel.
    """

    node: str
    dilation: int
    live: int
    total: int


def parameter_count(graph: Graph, prefix: str = "") -> int:
    """Trainable parameters below a name prefix; running statistics do not count, as in every framework's own count."""
    return sum(
        math.prod(shape)
        for node in graph.nodes
        if node.name.startswith(prefix)
        for suffix, shape in node.op.parameters().items()
        if suffix not in STATISTICS
    )


def multiply_adds(graph: Graph, height: int, width: int, prefix: str = "") -> int:
    """Multiply-adds of the convolutions below a name prefix, for one image of `height` x `width` pixels.

    Taps that read padding count, as in the papers' own figures; batch norm, resizes and sums do not.
    """
    shapes = graph.shapes(height, width)
    total = 0
    for node in graph.nodes:
        if isinstance(node.op, ops.Conv2d) and node.name.startswith(prefix):
            _, _, out_h, out_w = shapes[node.name]
            total += math.prod(node.op.parameters()["weight"]) * out_h * out_w
    return total


def receptive_field(graph: Graph, node: str) -> int:
    """Side in pixels of the square of the image that one point of `node` sees, leaving image pooling aside.

    A resize counts as reading one point more on its source's grid; the padding of the border is not taken off.
    """
    fields: dict[str, tuple[float, float]] = {}  # side, and pixels between neighbouring points
    for current in graph.nodes:
        before = [fields[name] for name in current.inputs] or [(1.0, 1.0)]
        side, jump = max(before)
        op = current.op
        if isinstance(op, ops.Conv2d | ops.MaxPool | ops.AvgPool):
            dilation = op.dilation if isinstance(op, ops.Conv2d) else 1
            side, jump = side + (op.kernel - 1) * dilation * jump, jump * op.stride
        elif isinstance(op, ops.GlobalAvgPool):
            side, jump = 0.0, before[0][1]  # sees the whole image: left aside
        elif isinstance(op, ops.Resize):
            source = before[0]
            side, jump = source[0] + (source[1] if source[0] else 0), before[1][1]
        fields[current.name] = (side, jump)
    return round(fields[node][0])


def live_taps(graph: Graph, height: int, width: int) -> list[Taps]:
    """Taps of every dilated kernel, for one image size.

    A kernel whose outer taps read only padding is a 1x1 convolution: a parity check on such an input proves nothing
    about rate, orientation or layout of the kernel.
    """
    shapes = graph.shapes(height, width)
    found = []
    for node in graph.nodes:
        op = node.op
        if not isinstance(op, ops.Conv2d) or op.kernel == 1 or op.dilation == 1:
            continue
        size, out = shapes[node.inputs[0]][2:], shapes[node.name][2:]
        padding = ops.resolve_padding(op.padding, size, op.kernel, op.stride, op.dilation)
        rows = _live(op, size[0], out[0], padding[0])
        columns = _live(op, size[1], out[1], padding[2])
        found.append(Taps(node.name, op.dilation, rows * columns, op.kernel**2))
    return found


def all_taps_live(graph: Graph, height: int, width: int) -> bool:
    """Whether every tap of every dilated kernel reads a real pixel."""
    return all(taps.live == taps.total for taps in live_taps(graph, height, width))


def smallest_live_size(graph: Graph, stride: int) -> int:
    """The smallest square size of the form `stride * k + 1` at which every tap is live."""

    def live(steps: int) -> bool:
        try:
            return all_taps_live(graph, stride * steps + 1, stride * steps + 1)
        except GraphError:  # too small for a window without padding
            return False

    high = 1
    while not live(high):
        high *= 2
    low = high // 2  # a larger map never makes a live tap dead, so the size lies in (low, high]
    while high - low > 1:
        middle = (low + high) // 2
        if live(middle):
            high = middle
        else:
            low = middle
    return stride * high + 1


def stride_differences(coarse: Graph, fine: Graph) -> list[str]:
    """Nodes that compute something else at a finer output stride, with the same weights: `node: why`.

    Where there is none, the maps of the coarse graph are the fine graph's maps on every second (or fourth) point, for
    images of any size: each convolution has lost its stride to the dilation of those after it (DeepLab v3, section
    3.1). Looks at the nodes up to the first that mixes the whole map on purpose: image pooling, concatenation, decoder
    and auxiliary head are left aside.

    Args:
        coarse: the graph at the larger output stride.
        fine: the graph of the same spec at the smaller one.

    Raises:
        GraphError: graphs that do not take the same weights, or not in this order.
    """
    if coarse.parameters() != fine.parameters():
        raise GraphError("two graphs that take other weights: expected one spec at two output strides")
    found: list[str] = []
    counterpart: dict[str, tuple[str, int]] = {coarse.input.name: (fine.input.name, 1)}
    for node in coarse.nodes[1:]:
        if not node.name.startswith(_STRIDED_PARTS) or node.name.startswith(_MIXING_PARTS):
            continue
        if any(name not in counterpart for name in node.inputs):
            continue  # behind a node that is told of already
        sources, ratios = zip(*(counterpart[name] for name in node.inputs), strict=True)
        twin = fine.by_name.get(node.name)
        if twin is None and isinstance(node.op, ops.MaxPool) and node.op.kernel == 1:
            counterpart[node.name] = sources[0], ratios[0] * node.op.stride  # subsampling loses no value
        elif twin is None or twin.inputs != sources or len(set(ratios)) > 1:
            found.append(f"{node.name}: is wired otherwise")
        elif why := _grid_difference(node.op, twin.op, ratios[0]):
            found.append(f"{node.name}: {why}")
        else:
            counterpart[node.name] = twin.name, ratios[0] * _stride(node.op) // _stride(twin.op)
            if counterpart[node.name][1] < 1:
                raise GraphError("the first graph has the finer stride: give the coarse one first")
    return found


_STRIDED_PARTS = ("backbone.", "aspp.branch", "head.")
_MIXING_PARTS = ("aspp.image_pooling",)


def _stride(op: ops.Op) -> int:
    return op.stride if isinstance(op, ops.Conv2d | ops.MaxPool | ops.AvgPool) else 1


def _grid_difference(coarse: ops.Op, fine: ops.Op, ratio: int) -> str:
    """Why two ops differ on the common grid, reading maps of which the fine one has `ratio` points for one; or ""."""
    if isinstance(coarse, ops.GlobalAvgPool):
        return "a mean over another grid" if ratio > 1 else ""
    if isinstance(coarse, ops.MaxPool | ops.AvgPool):
        same = ratio == 1 and coarse.kernel == fine.kernel and coarse.padding == fine.padding  # type: ignore[attr-defined]
        return "" if same or coarse.kernel == 1 else "a pooling window of another size in pixels"
    if not isinstance(coarse, ops.Conv2d) or not isinstance(fine, ops.Conv2d):
        return ""
    if coarse.kernel > 1 and fine.dilation != coarse.dilation * ratio:
        return f"dilation {fine.dilation} instead of {coarse.dilation * ratio}"
    if coarse == fine and ratio == 1:
        return ""
    if coarse.padding == "same" or fine.padding == "same":
        return "" if coarse.kernel == 1 else "`same` padding lays another grid where sizes are even"
    wanted = tuple(side * ratio for side in coarse.padding)
    return "" if fine.padding == wanted else f"padding {fine.padding} instead of {wanted}"


def _live(op: ops.Conv2d, size: int, out: int, before: int) -> int:
    """Taps along one axis that read inside [0, size) for some output point."""
    live = 0
    for tap in range(op.kernel):
        offset = tap * op.dilation - before
        first = max(0, -(offset // op.stride))  # the first point that reads at 0 or after
        live += first < out and first * op.stride + offset < size
    return live
