"""What a TensorFlow graph says of the network besides its weights: strides, dilations, epsilon, ways to resize."""

from __future__ import annotations

from typing import Any

from deeplabzoo.weights_converter.formats._tf_nodes import Graph, Node

CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_RESIZES = ("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic")
_ROLES = ("scale", "offset", "mean", "variance")


def facts(graph: Graph) -> dict[str, list[dict[str, Any]]]:
    """Return what the nodes of a graph say, in the order of the graph.

    Returns:
        `convolutions`: name, op, weights (name of the constant, or None), strides and dilations ([rows, columns]),
        padding ("SAME", "VALID", "EXPLICIT"), space_to_batch. Where that is true, the dilation is the block shape of
        the SpaceToBatchND before the convolution, which is how TensorFlow 1 dilates, and which pads in its stead: then
        padding is "VALID" whatever the network's is. Dilations are None where the block shape is computed.
        `resizes`: name, op, align_corners, half_pixel_centers, size ([rows, columns], None where it is computed).
        `batch_norms`: name, op, epsilon, and the constants scale, offset, mean, variance (names, or None). A batch norm
        of single operations is told by its Rsqrt, of which epsilon and variance are known.
    """
    convolutions, resizes, batch_norms = [], [], []
    for node in graph.nodes.values():
        if node.op in CONVOLUTIONS:
            convolutions.append(_convolution(graph, node))
        elif node.op in _RESIZES:
            resizes.append(_resize(graph, node))
        elif node.op in BATCH_NORMS:
            constants = {role: _name(graph.constant(node, 1 + at)) for at, role in enumerate(_ROLES)}
            epsilon = graph.real(node, "epsilon", 1e-4)  # the operation's own default
            batch_norms.append({"name": node.name, "op": node.op, "epsilon": epsilon, **constants})
        elif node.op == "Rsqrt" and (found := _spelled_out(graph, node)) is not None:
            batch_norms.append(found)
    return {"convolutions": convolutions, "resizes": resizes, "batch_norms": batch_norms}


def _name(node: Node | None) -> str | None:
    return None if node is None else node.name


def _convolution(graph: Graph, node: Node) -> dict[str, Any]:
    rows = 2 if graph.text(node, "data_format", "NHWC") == "NCHW" else 1
    dilations: list[Any] | None = graph.integers(node, "dilations", [1, 1, 1, 1])[rows : rows + 2]
    before = graph.origin(node, 0)
    batched = before is not None and before.op == "SpaceToBatchND"
    if before is not None and batched:
        dilations = graph.small(before, 1)
    return {
        "name": node.name,
        "op": node.op,
        "weights": _name(graph.constant(node, 1)),
        "strides": graph.integers(node, "strides", [1, 1, 1, 1])[rows : rows + 2],
        "dilations": dilations,
        "padding": graph.text(node, "padding", ""),
        "space_to_batch": batched,
    }


def _resize(graph: Graph, node: Node) -> dict[str, Any]:
    flags = {flag: graph.flag(node, flag) for flag in ("align_corners", "half_pixel_centers")}
    return {"name": node.name, "op": node.op, **flags, "size": graph.small(node, 1)}


def _spelled_out(graph: Graph, node: Node) -> dict[str, Any] | None:
    """Return what is known of a batch norm written as 1 / sqrt(variance + epsilon) and so on, or None."""
    add = graph.origin(node, 0)
    if add is None or add.op not in ("Add", "AddV2"):
        return None
    for at in (0, 1):
        epsilon = graph.small(add, at)
        if epsilon is not None and len(epsilon) == 1:
            known = {"epsilon": epsilon[0], "variance": _name(graph.constant(add, 1 - at))}
            return {"name": node.name, "op": node.op, **dict.fromkeys(_ROLES), **known}
    return None
