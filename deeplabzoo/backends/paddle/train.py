"""Loss, gradients and training steps of a Paddle model on numpy arrays, by Paddle's own autograd and optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from deeplabzoo.backends.paddle.build import DeepLab
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
    image = _image(model, x)
    image.stop_gradient = False
    # Paddle keeps running statistics as parameters that do not learn.
    statistics = [(parameter, parameter.clone()) for parameter in model.parameters() if not parameter.trainable]
    with _mode(model, training, 0):
        loss = _loss(model, image, labels, training)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.trainable}
    found = paddle.grad(loss, [*named.values(), image], allow_unused=True)
    for parameter, old in statistics:
        parameter.set_value(old)
    arrays = {}
    for name, parameter, gradient in zip((*named, INPUT), (*named.values(), image), found, strict=True):
        arrays[name] = (paddle.zeros_like(parameter) if gradient is None else gradient).numpy()
    return float(loss), arrays


def train(model: DeepLab, x: np.ndarray, labels: np.ndarray, training: Training) -> Iterator[float]:
    """Take steps with `paddle.optimizer.Momentum`; the loss before each is told once it is taken.

    Arguments as for `gradients`.
    """
    image = _image(model, x)
    optimiser = paddle.optimizer.Momentum(
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        parameters=model.parameters(),
        weight_decay=training.weight_decay,
    )
    for step in range(training.steps):
        with _mode(model, training, step):
            loss = _loss(model, image, labels, training)
        loss.backward()
        optimiser.step()
        optimiser.clear_grad()
        yield float(loss)


def _image(model: DeepLab, x: np.ndarray) -> Tensor:
    parameter = model.parameters()[0]
    return paddle.to_tensor(np.ascontiguousarray(x), dtype=parameter.dtype, place=parameter.place)


def _loss(model: DeepLab, image: Tensor, labels: np.ndarray, training: Training) -> Tensor:
    counted = loss_weights(model.graph, training)
    results = model(image)
    if not isinstance(results, dict):
        results = {"out": results}
    counts = labels != IGNORED
    chosen = paddle.to_tensor(np.where(counts, labels, 0)[:, None], place=image.place)
    shares = paddle.to_tensor((counts / counts.sum())[:, None], dtype=image.dtype, place=image.place)
    total = paddle.zeros([], image.dtype)
    for name, logits in results.items():
        # Not Paddle's cross_entropy, whose mean counts pixels whose ignored label is negative; and in it as in
        # log_softmax no logarithm is below -64.
        shifted = logits - paddle.max(logits, axis=1, keepdim=True).detach()
        logarithms = shifted - paddle.log(paddle.sum(paddle.exp(shifted), axis=1, keepdim=True))
        total = total - counted[name] * paddle.sum(paddle.take_along_axis(logarithms, chosen, axis=1) * shares)
    return total


@contextlib.contextmanager
def _mode(model: DeepLab, training: Training, step: int) -> Iterator[None]:
    """Training mode as `training` says it for a while."""
    layers = dict(model.named_sublayers(include_self=True))
    before = {name: layer.training for name, layer in layers.items()}
    hooks = []
    model.train()
    for node in model.graph.nodes[1:]:
        layer = layers[node.name]
        if isinstance(node.op, ops.BatchNorm) and training.batch_norm == "frozen":
            layer.eval()
        if isinstance(node.op, ops.Dropout):
            layer.eval()
            if training.dropout == "seeded":
                hooks.append(layer.register_forward_post_hook(_mask(node.name, node.op, training, step)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.training = before[name]


def _mask(name: str, op: ops.Dropout, training: Training, step: int) -> Any:
    def apply(layer: nn.Layer, inputs: Any, output: Tensor) -> Tensor:
        mask = dropout_mask(name, op, tuple(output.shape), training, step)
        return output * paddle.to_tensor(mask, dtype=output.dtype, place=output.place)

    return apply
