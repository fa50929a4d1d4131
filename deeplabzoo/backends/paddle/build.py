"""Graph to `paddle.nn.Layer`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import paddle
from paddle import Tensor, nn

from deeplabzoo.backends.paddle.flags import DTYPES
from deeplabzoo.backends.paddle.ops import make_layer
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.schedule import Group, groups
from deeplabzoo.errors import BackendError


class GroupLayer(nn.Layer):
    """A part of the network as a layer: calls its children in order and drops each value after its last use.

    Takes the group's inputs in the order of `inputs` (node names) and returns its single output, or a tuple in the
    order of `outputs`. Children are reachable by name: `model.backbone.stage3.block5.conv2`.
    """

    def __init__(self, group: Group, children: dict[str, nn.Layer]) -> None:
        super().__init__()
        self.inputs, self.outputs = group.inputs, group.outputs
        self._steps = tuple((step.child, step.inputs, step.outputs, step.release) for step in group.steps)
        for child, layer in children.items():
            self.add_sublayer(child, layer)

    def forward(self, x: Tensor, *others: Tensor) -> Any:  # the first by name: to_static counts named arguments only
        """Run the group on tensors N, C, H, W."""
        if len(others) + 1 != len(self.inputs):
            raise TypeError(
                f"received {len(others) + 1} tensors, expected {len(self.inputs)}: {', '.join(self.inputs)}"
            )
        alive = _by_name(self.inputs, (x, *others))
        del x, others
        for child, inputs, outputs, release in self._steps:
            made = self._sub_layers[child](*[alive[name] for name in inputs])
            alive.update(_by_name(outputs, (made,) if len(outputs) == 1 else made))
            del made
            for name in release:
                alive.pop(name, None)
        if len(self.outputs) == 1:
            return alive[self.outputs[0]]
        return tuple([alive[name] for name in self.outputs])


class DeepLab(GroupLayer):
    """A DeepLab as a Paddle layer.

    `forward` takes preprocessed images N, C, H, W and returns the output N, classes, H, W, or, where the spec has an
    auxiliary head, a dict with `out` and `aux`. `graph` is the description it was built from.
    """

    def __init__(self, graph: Graph, group: Group, children: dict[str, nn.Layer]) -> None:
        super().__init__(group, children)
        self.graph = graph
        self._names = tuple(name for name, _ in graph.outputs)

    def forward(self, images: Tensor) -> Any:  # one input, under the name that exports show
        """Run the network on images N, C, H, W."""
        results = super().forward(images)
        return results if len(self._names) == 1 else _by_name(self._names, results)


def build(graph: Graph, *, dtype: str = "float32", device: str = "cpu") -> DeepLab:
    """The native model in evaluation mode, with the framework's own random weights.

    Args:
        graph: what to build.
        dtype: `float64` or `float32`.
        device: `cpu`, or `gpu` for CUDA.

    Raises:
        BackendError: another dtype.
    """
    if dtype not in DTYPES:
        raise BackendError(
            f"dtype {dtype!r}: the Paddle backend builds {' or '.join(DTYPES)}; for half precision run a float32 model "
            "on a GPU under paddle.amp.auto_cast"
        )
    plans = groups(graph)

    def children(group: Group) -> dict[str, nn.Layer]:
        made = {}
        for step in group.steps:
            name = f"{group.name}.{step.child}".lstrip(".")
            made[step.child] = (
                GroupLayer(plans[name], children(plans[name])) if name in plans else make_layer(graph.by_name[name].op)
            )
        return made

    with _defaults(dtype, device):
        model = DeepLab(graph, plans[""], children(plans[""]))
    model.eval()
    return model


def _by_name(names: tuple[str, ...], values: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """A plain loop, which both modes of `paddle.jit.to_static` follow; `dict(zip(..., strict=True))` breaks them."""
    named = {}
    for i in range(len(names)):
        named[names[i]] = values[i]
    return named


@contextlib.contextmanager
def _defaults(dtype: str, device: str) -> Iterator[None]:
    """Paddle makes parameters of a global dtype on a global device; set both, and put them back."""
    old_dtype, old_device = paddle.get_default_dtype(), paddle.get_device()
    try:
        paddle.set_default_dtype(dtype)
        paddle.set_device(device)
        yield
    finally:
        paddle.set_device(old_device)
        paddle.set_default_dtype(old_dtype)
