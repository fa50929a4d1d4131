"""Loss, gradients and training steps of a PyTorch model on numpy arrays, by PyTorch's own autograd and optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplabzoo.backends.torch.build import DeepLab
from deeplabzoo.backends.torch.weights import to_numpy
from deeplabzoo.core import ops
from deeplabzoo.core.training import EVALUATION, IGNORED, INPUT, Training, dropout_mask, loss_weights


def gradients(
    model: DeepLab, x: np.ndarray, labels: np.ndarray, training: Training = EVALUATION
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss, and its gradients by canonical parameter name and by the image (`input`), as `core.training.gradients`.

    Args:
        model: in any mode; left in it.
        x: preprocessed images N, C, H, W, cast to the model's dtype.
        labels: int64 N, H, W of the output.
        training: how batch norm and dropout behave.
    """
    parameter = next(model.parameters())
    image = torch.from_numpy(np.array(x)).to(device=parameter.device, dtype=parameter.dtype).requires_grad_()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with _mode(model, training, 0):
        loss = _loss(model, image, labels, training)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, [*parameters, image], allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
    return loss.item(), {name: to_numpy(value) for name, value in zip((*names, INPUT), found, strict=True)}


def train(model: DeepLab, x: np.ndarray, labels: np.ndarray, training: Training) -> Iterator[float]:
    """Take steps with `torch.optim.SGD`; the loss before each is told once it is taken. Arguments as for `gradients`."""
    parameter = next(model.parameters())
    image = torch.from_numpy(np.array(x)).to(device=parameter.device, dtype=parameter.dtype)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    for step in range(training.steps):
        with _mode(model, training, step):
            loss = _loss(model, image, labels, training)
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        optimiser.step()
        yield loss.item()


def _loss(model: DeepLab, image: Tensor, labels: np.ndarray, training: Training) -> Tensor:
    counted = loss_weights(model.graph, training)
    results = model(image)
    if not isinstance(results, dict):
        results = {"out": results}
    target = torch.from_numpy(np.array(labels)).to(image.device)
    parts = [counted[name] * functional.cross_entropy(y, target, ignore_index=IGNORED) for name, y in results.items()]
    return torch.stack(parts).sum()


@contextlib.contextmanager
def _mode(model: DeepLab, training: Training, step: int) -> Iterator[None]:
    """Training mode as `training` says it for a while."""
    before = {module: module.training for module in model.modules()}
    hooks = []
    model.train()
    for node in model.graph.nodes[1:]:
        layer = model.get_submodule(node.name)
        if isinstance(node.op, ops.BatchNorm) and training.batch_norm == "frozen":
            layer.eval()
        if isinstance(node.op, ops.Dropout):
            layer.eval()
            if training.dropout == "seeded":
                hooks.append(layer.register_forward_hook(_mask(node.name, node.op, training, step)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in before.items():
            module.training = mode


def _mask(name: str, op: ops.Dropout, training: Training, step: int) -> Any:
    def apply(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mask = dropout_mask(name, op, tuple(output.shape), training, step)
        return output * torch.from_numpy(mask).to(output)

    return apply
