"""Thirty faults, each in one place: in weights, in the graph, in the way back, in the training step.

Those of weights and graph are given to a worker instead of the right ones. The others sabotage a torch worker: lines of
Python that run there once its model is built.
"""

from __future__ import annotations

import dataclasses

import numpy as np

import deeplabzoo as dz
from deeplabzoo.backends import bootstrap
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.parity.cases import case_of


def network():
    """A narrow v3+ whose rates are small, so that every tap is live on a small image."""
    spec = dz.spec("v3plus").narrowed(8)
    return spec.replace(aspp=spec.aspp.replace(rates=(2, 3, 4)))


GRAPH = build_graph(network())
WEIGHTS = seeded_weights(GRAPH, 1, statistics="lively")
CASE = case_of(GRAPH, 1, 97, 129)


def with_op(name, **changes):
    """The graph with one node's attributes changed."""
    nodes = (
        dataclasses.replace(node, op=dataclasses.replace(node.op, **changes)) if node.name == name else node
        for node in GRAPH.nodes
    )
    return Graph(tuple(nodes), GRAPH.outputs), WEIGHTS


def with_tensor(name, change):
    """The weights with one tensor changed."""
    return GRAPH, {**WEIGHTS, name: change(WEIGHTS[name])}


def swapped_statistics(norm):
    mean, var = WEIGHTS[f"{norm}.running_mean"], WEIGHTS[f"{norm}.running_var"]
    return GRAPH, {**WEIGHTS, f"{norm}.running_mean": var, f"{norm}.running_var": np.abs(mean) + 0.1}


FAULTS = {
    "a kernel transposed": ("backbone.stage2.block2.conv2", lambda n: with_tensor(f"{n}.weight", lambda a: a.swapaxes(0, 1))),
    "a kernel mirrored": ("backbone.stage1.block1.conv2", lambda n: with_tensor(f"{n}.weight", lambda a: a[..., ::-1])),
    "a kernel off by 1e-4": ("backbone.stage4.block1.conv1", lambda n: with_tensor(f"{n}.weight", lambda a: a * (1 + 1e-4))),
    "one value off": ("classifier.conv", lambda n: with_tensor(f"{n}.weight", lambda a: a + 1e-3 * (a == a.max()))),
    "two classes exchanged": ("classifier.conv", lambda n: with_tensor(f"{n}.weight", lambda a: a[[1, 0, *range(2, 21)]])),
    "a bias off": ("classifier.conv", lambda n: with_tensor(f"{n}.bias", lambda a: a + 1e-3)),
    "a scale off": ("backbone.stem.bn", lambda n: with_tensor(f"{n}.weight", lambda a: a * (1 + 1e-4))),
    "a shift off": ("aspp.fusion.bn", lambda n: with_tensor(f"{n}.bias", lambda a: a + 1e-3)),
    "an epsilon": ("backbone.stage3.block2.bn1", lambda n: with_op(n, epsilon=float(np.float32(1e-3)))),
    "mean and variance exchanged": ("backbone.stage3.block1.bn3", swapped_statistics),
    "a rate": ("aspp.branch2.depthwise.conv", lambda n: with_op(n, dilation=4, padding=(4, 4, 4, 4))),
    "a dilation in the backbone": ("backbone.stage4.block2.conv2", lambda n: with_op(n, dilation=1, padding=(1, 1, 1, 1))),
    "padding on the other side": ("backbone.stage2.block1.conv2", lambda n: with_op(n, padding=(0, 2, 0, 2))),
    "padding of the pooling": ("backbone.stem.pool", lambda n: with_op(n, padding=(0, 1, 0, 1))),
    "the corners of the decoder": ("decoder.resize", lambda n: with_op(n, align_corners=True)),
    "the corners of the output": ("output.resize", lambda n: with_op(n, align_corners=True)),
    "a variance halved": ("backbone.stage2.block3.bn2", lambda n: with_tensor(f"{n}.running_var", lambda a: a / 2)),
    "means left at zero": ("aspp.branch1.pointwise.bn", lambda n: with_tensor(f"{n}.running_mean", np.zeros_like)),
    "channels in another order": ("decoder.low_level.conv", lambda n: with_tensor(f"{n}.weight", lambda a: a[::-1])),
    "another activation": ("backbone.stage1.block2.relu1", lambda n: with_op(n, function="relu6")),
}  # fmt: skip
"""Fault: the node that it is in, and what a worker is given. Found by the trace."""

IN_THE_WAY_BACK = {
    "the gradient of a kernel off by 1e-4": (
        "backbone.stage3.block4.conv2",
        "layer(NODE).weight.register_hook(lambda g: g * (1 + 1e-4))",
    ),
    "no gradient for a bias": ("classifier.conv", "layer(NODE).bias.register_hook(lambda g: g * 0)"),
    "a scale that learns from the wrong sign": (
        "backbone.stage1.block1.bn1",
        "layer(NODE).weight.register_hook(lambda g: -g)",
    ),
    "the way back through a batch norm": (
        "backbone.stage4.block2.bn1",
        "layer(NODE).register_full_backward_hook(lambda m, i, o: (i[0] * 1.001,))",
    ),
}
"""Found among gradients. What is before a batch norm shows a wrong way back through it: its own gradients are right."""
SHOWS_AT = {"the way back through a batch norm": "backbone.stage4.block2.conv1"}

IN_TRAINING = {
    "a momentum of batch norm": ("backbone.stage2.block2.bn3", "layer(NODE).momentum = 0.01"),
    "a biased variance": (
        "backbone.stage3.block1.bn2",
        """
class Biased(torch.nn.BatchNorm2d):
    def forward(self, x):
        old, y, n = self.running_var.clone(), super().forward(x), x.numel() // x.shape[1]
        with torch.no_grad():
            batch = (self.running_var - (1 - self.momentum) * old) / self.momentum
            self.running_var = (1 - self.momentum) * old + self.momentum * batch * (n - 1) / n
        return y
layer(NODE).__class__ = Biased""",
    ),
    "statistics that do not move": (
        "aspp.image_pooling.bn",
        """
class Still(torch.nn.BatchNorm2d):
    def forward(self, x):
        return torch.nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
layer(NODE).__class__ = Still""",
    ),
    "a parameter without decay": (
        "backbone.stage4.block3.conv2",
        """
step = torch.optim.SGD.step
def without(self, *a):
    weight = layer(NODE).weight
    weight.grad -= self.param_groups[0]["weight_decay"] * weight.detach()
    return step(self, *a)
torch.optim.SGD.step = without""",
    ),
    "a parameter that does not learn": (
        "decoder.conv1.pointwise.conv",
        "layer(NODE).weight.register_hook(lambda g: g * 0)",
    ),
    "momentum of the optimiser": (
        None,
        """
make = torch.optim.SGD.__init__
torch.optim.SGD.__init__ = lambda self, p, lr, momentum, weight_decay: make(
    self, p, lr=lr, momentum=0.8, weight_decay=weight_decay)""",
    ),
}
"""Found among training steps; a fault of the optimiser is in no node."""


class Sabotaged(Worker):
    """A torch worker that runs some lines whenever it has built a model; `layer` gives the layer of a node."""

    def __init__(self, lines: str, node: str | None) -> None:
        place = bootstrap.SOURCE.rindex("main(")
        body = "\n".join(f"    {line}" for line in lines.strip().splitlines())
        hook = f"""
import torch
from deeplabzoo.backends.torch import weights
fill, NODE = weights.load_weights, {node!r}
def sabotage(model, arrays):
    fill(model, arrays)
    layer = model.get_submodule
{body}
weights.load_weights = sabotage
"""
        self.bootstrap = bootstrap.SOURCE[:place] + hook + bootstrap.SOURCE[place:]
        super().__init__("torch")
