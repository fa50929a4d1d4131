"""Graph to `torch.nn.Module`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deeplabzoo.backends.torch.ops import make_layer
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.schedule import Group, groups

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class GroupModule(nn.Module):
    """A part of the network as a module: calls its children in order and drops each value after its last use.

    Takes the group's inputs in the order of `inputs` (node names) and returns its single output, or a tuple in the
    order of `outputs`. Children are reachable by name: `model.backbone.stage3.block5.conv2`.
    """

    def __init__(self, group: Group, children: dict[str, nn.Module]) -> None:
        super().__init__()
        self.inputs, self.outputs = group.inputs, group.outputs
        self._steps = group.steps
        for step in group.steps:
            self.add_module(step.child, children[step.child])

    def forward(self, *values: Tensor) -> Any:
        """Run the group on tensors N, C, H, W."""
        alive = dict(zip(self.inputs, values, strict=True))
        del values
        for step in self._steps:
            made = self._modules[step.child](*[alive[name] for name in step.inputs])
            if len(step.outputs) == 1:
                alive[step.outputs[0]] = made
            else:
                alive.update(zip(step.outputs, made, strict=True))
            del made
            for name in step.release:
                alive.pop(name, None)
        results = tuple(alive[name] for name in self.outputs)
        return results[0] if len(results) == 1 else results


class DeepLab(GroupModule):
    """A DeepLab as a PyTorch module.

    `forward` takes preprocessed images N, C, H, W and returns the output N, classes, H, W, or, where the spec has an
    auxiliary head, a dict with `out` and `aux` as torchvision does. `graph` is the description it was built from.
    """

    def __init__(self, graph: Graph, group: Group, children: dict[str, nn.Module]) -> None:
        super().__init__(group, children)
        self.graph = graph

    def forward(self, *images: Tensor) -> Any:
        """Run the network on images N, C, H, W."""
        results = super().forward(*images)
        names = [name for name, _ in self.graph.outputs]
        return dict(zip(names, results, strict=True)) if len(names) > 1 else results


def build(graph: Graph, *, dtype: str = "float32", device: str = "cpu") -> DeepLab:
    """The native model in evaluation mode, with the framework's own random weights.

    Args:
        graph: what to build.
        dtype: `float64`, `float32`, `float16` or `bfloat16`.
        device: `cpu`, or `gpu` for CUDA.
    """
    plans = groups(graph)

    def children(group: Group) -> dict[str, nn.Module]:
        made = {}
        for step in group.steps:
            name = f"{group.name}.{step.child}".lstrip(".")
            made[step.child] = (
                GroupModule(plans[name], children(plans[name])) if name in plans else make_layer(graph.by_name[name].op)
            )
        return made

    model = DeepLab(graph, plans[""], children(plans[""]))
    model.to(device=torch_device(device), dtype=DTYPES[dtype])
    model.eval()
    return model


def torch_device(device: str) -> torch.device:
    """`cpu`, or CUDA for `gpu`."""
    return torch.device("cuda" if device == "gpu" else device)
