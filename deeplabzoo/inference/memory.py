"""How much memory a network needs for an image, how much there is, and windows that fit."""

from __future__ import annotations

import math

import psutil

from deeplabzoo.core.graph import Graph
from deeplabzoo.errors import ImageError

SAFETY = 4.0
"""What frameworks take over the maps that the graph holds: work space of convolutions, reordered copies of maps and
kernels, maps freed late. Measured as the growth of the worker's largest resident size over `peak_bytes` without this
factor, in float32 on the CPU at 513 and 769 (MobileNetV2 v3, ResNet-50 v3 and v3+): 1.4 to 3.6 in torch 2.13, 1.6 to
3.7 in Paddle 3.3, 1.6 to 3.3 in Keras 3.15 on TensorFlow 2.21."""

_FLOAT32 = 4
"""Bytes of the numbers that prediction computes in."""

LEAST_WINDOW, MOST_WINDOW = 257, 1025
"""Sides of the windows taken where a photo does not fit: below, context is lost; beyond, nothing is gained."""


def peak_bytes(graph: Graph, height: int, width: int) -> int:
    """Estimate the most memory that a network's maps take at once while it runs on one image.

    The graph is walked in order: a map is there from the node that makes it until the last node that reads it has run.

    Args:
        graph: the network.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        bytes, `SAFETY` included; weights are not.

    Raises:
        GraphError: the image does not fit the network.
    """
    sizes = {name: math.prod(shape) for name, shape in graph.shapes(height, width).items()}
    last_use = {node.name: number for number, node in enumerate(graph.nodes)}
    for number, node in enumerate(graph.nodes):
        last_use |= dict.fromkeys(node.inputs, number)
    last_use |= {name: len(graph.nodes) for _, name in graph.outputs}
    alive = peak = 0
    for number, node in enumerate(graph.nodes):
        alive += sizes[node.name]
        peak = max(peak, alive)
        alive -= sum(sizes[name] for name in {node.name, *node.inputs} if last_use[name] == number)
    return math.ceil(peak * _FLOAT32 * SAFETY)


def available_bytes() -> int:
    """Memory that can be had without swapping, in bytes, as the operating system tells it.

    A limit of a container that is lower than the machine's memory is not seen.
    """
    return int(psutil.virtual_memory().available)


def window_that_fits(graph: Graph, stride: int, limit: float) -> int:
    """The largest window of `stride * k + 1` pixels, from 257 to 1025, whose maps fit.

    Args:
        graph: the network.
        stride: its output stride.
        limit: bytes that may be taken.

    Returns:
        side in pixels.

    Raises:
        ImageError: not even the smallest fits.
    """
    low, high = math.ceil((LEAST_WINDOW - 1) / stride), (MOST_WINDOW - 1) // stride
    if (least := _bytes_of_window(graph, stride * low + 1)) > limit:
        raise ImageError(
            f"{_megabytes(limit)} of memory for a network that needs about {_megabytes(least)} for a window of "
            f"{stride * low + 1} x {stride * low + 1}: expected at least that; free memory, or take a larger output "
            f"stride or a smaller backbone"
        )
    while low < high:
        middle = (low + high + 1) // 2
        if _bytes_of_window(graph, stride * middle + 1) <= limit:
            low = middle
        else:
            high = middle - 1
    return stride * low + 1


def too_large(graph: Graph, size: tuple[int, int], limit: float) -> str:
    """Say why an image of `size` (height, width) can't be shown in one piece, in a few words; empty where it can.

    Raises:
        GraphError: the image is too small for the network.
    """
    needed = peak_bytes(graph, *size)
    if needed <= limit:
        return ""
    return (
        f"an input of {size[0]} x {size[1]} pixels needs about {_megabytes(needed)} in one piece, and "
        f"{_megabytes(limit)} are there"
    )


def _bytes_of_window(graph: Graph, side: int) -> int:
    return peak_bytes(graph, side, side)


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
