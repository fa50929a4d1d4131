"""The referee's training: loss, gradients and steps of stochastic gradient descent, in numpy.

Everything that decides a step is said here once (`Training`), seeded where it is random, and read by every backend, so
that all of them take the same step.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deeplabzoo.core import ops, reference
from deeplabzoo.core.backward import backward, batch_norm_of_batch, batch_norm_of_batch_backward
from deeplabzoo.core.graph import Graph, Node
from deeplabzoo.core.weights import Weights, check_weights
from deeplabzoo.errors import GraphError, SpecError, unknown

Array = np.ndarray[Any, Any]

IGNORED = -1
"""Label of pixels that the loss leaves out: no class, whatever their number (255 would be one of 256)."""

INPUT = "input"
"""Name of the image among gradients."""

_ANY_SIZE = (513, 513)
"""An image that every network can take, to ask for the number of classes."""

_LEGAL = {"batch_norm": ("batch", "frozen"), "dropout": ("off", "seeded")}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained. Numbers are rounded to float32, because some frameworks store them so.

    The small default rate is for parity: at 1e-4 a difference in the last bit grows tenfold a step in a deep network with
    batch norm, at 1e-2 a thousandfold.

    Attributes:
        steps: how many, all on the same images.
        learning_rate: of every step.
        momentum: v = momentum * v + gradient; parameter -= learning_rate * v (PyTorch's and Paddle's form).
        weight_decay: times the parameter, added to its gradient; for every parameter.
        batch_norm: `batch` takes the statistics of the batch and moves the running ones; `frozen` takes the running
            ones and leaves them, while scale and shift still learn (`fine_tune_batch_norm=False` of TensorFlow's
            DeepLab; v3 paper, section 4.1).
        dropout: `off`, or `seeded`: masks drawn by `dropout_mask`, the same in every backend.
        aux_weight: what the loss of an auxiliary head counts (0.4 in PSPNet, section 3.3, and in mmsegmentation).
        seed: of the dropout masks.
    """

    steps: int = 10
    learning_rate: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_norm: Literal["batch", "frozen"] = "batch"
    dropout: Literal["off", "seeded"] = "off"
    aux_weight: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, legal in _LEGAL.items():
            if getattr(self, name) not in legal:
                raise SpecError(unknown(name, getattr(self, name), legal))
        if self.steps < 1:
            raise SpecError(f"steps = {self.steps}: expected a whole number of at least 1")
        for name in ("learning_rate", "momentum", "weight_decay", "aux_weight"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise SpecError(f"{name} = {value!r}: expected a finite number of at least 0")
            object.__setattr__(self, name, ops.float32_exact(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and for `Training(**data)`."""
        return dataclasses.asdict(self)


EVALUATION = Training(steps=1, batch_norm="frozen", dropout="off")
"""Gradients in evaluation mode: running statistics, no dropout."""


def loss_weights(graph: Graph, training: Training) -> dict[str, float]:
    """What the loss of each output counts, by the output's name.

    Raises:
        GraphError: the network returns labels or probabilities, of which the loss can't be taken.
    """
    for name, node in graph.outputs:
        op = graph.by_name[node].op
        if isinstance(op, ops.Argmax) or (isinstance(op, ops.Activation) and op.function == "softmax"):
            raise GraphError(f"output {name} ({op.kind}) has no logits for a loss: use output.values = 'logits'")
    if graph.shapes(*_ANY_SIZE)[dict(graph.outputs)["out"]][1] < 2:
        raise GraphError("a network of one class has a loss of 0 whatever it does: expected two classes or more")
    return {name: 1.0 if name == "out" else training.aux_weight for name, _ in graph.outputs}


def dropout_mask(node: str, op: ops.Dropout, shape: tuple[int, ...], training: Training, step: int) -> Array:
    """What a dropout multiplies its input by in a step: 0 or 1 / (1 - rate), float64, N, C, H, W.

    It depends on seed, step and the node's name alone. With `channelwise`, and H = W = 1 then, whole channels go.

    Args:
        node: name.
        op: the dropout.
        shape: of its input, N, C, H, W.
        training: has the seed.
        step: from 0.
    """
    drawn = (*shape[:2], 1, 1) if op.channelwise else shape
    random = np.random.default_rng([training.seed, step, zlib.crc32(node.encode())])
    kept = random.random(drawn) >= op.rate
    return kept / (1 - op.rate) if op.rate < 1 else kept * 0.0


def seeded_labels(graph: Graph, batch: int, height: int, width: int, seed: int) -> Array:
    """Labels of seeded classes for images of a size, int64 N, H, W of the output; a tenth of the pixels is `IGNORED`."""
    output = dict(graph.outputs)["out"]
    n, classes, h, w = graph.shapes(height, width, batch)[output]
    random = np.random.default_rng([seed, zlib.crc32(b"labels")])
    labels = random.integers(0, classes, (n, h, w))
    labels[random.random((n, h, w)) < 0.1] = IGNORED
    return labels


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean cross entropy over the pixels that are not `IGNORED`, and its gradient by the logits.

    Args:
        logits: N, classes, H, W.
        labels: int64, N, H, W.

    Raises:
        GraphError: shapes that do not fit, a label that is no class, or no pixel that counts.
    """
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise GraphError(f"labels of shape {labels.shape} do not fit logits of shape {logits.shape}: expected N, H, W")
    counts = labels != IGNORED
    if not counts.any():
        raise GraphError("every pixel is ignored: expected at least one label")
    chosen = np.where(counts, labels, 0)
    if chosen.min() < 0 or chosen.max() >= logits.shape[1]:
        raise GraphError(f"labels {chosen.min()}..{chosen.max()}: expected 0..{logits.shape[1] - 1}, or {IGNORED}")
    shifted = logits - logits.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    picked = np.take_along_axis(logarithms, chosen[:, None], axis=1)[:, 0]
    gradient = np.exp(logarithms)
    np.put_along_axis(gradient, chosen[:, None], np.exp(picked)[:, None] - 1, axis=1)
    count = int(counts.sum())
    return float(-(picked * counts).sum() / count), gradient * (counts[:, None] / count)


@np.errstate(all="ignore")  # of what is not finite the values themselves tell
def gradients(
    graph: Graph, weights: Weights, image: Array, labels: Array, training: Training = EVALUATION, *, step: int = 0
) -> tuple[float, dict[str, Array], dict[str, Array]]:
    """Loss, gradients of every parameter and of the image (`input`), and moved running statistics, all in float64.

    The loss is the mean cross entropy of the main output, plus `aux_weight` times that of the auxiliary one, whose
    labels are the same.

    Args:
        graph: the network.
        weights: canonical.
        image: N, C, H, W.
        labels: int64 N, H, W of the output; `IGNORED` pixels do not count.
        training: how batch norm and dropout behave.
        step: of the dropout masks.

    Raises:
        GraphError: no logits, or images or labels that do not fit.
        WeightsError: weights that do not fit.
    """
    check_weights(graph, weights)
    graph.shapes(image.shape[2], image.shape[3], image.shape[0])
    counted = loss_weights(graph, training)
    own: dict[str, dict[str, Array]] = {}
    moved: dict[str, Array] = {}
    values = {graph.input.name: np.asarray(image, np.float64)}
    for node in graph.nodes[1:]:
        own[node.name] = {s: np.asarray(weights[f"{node.name}.{s}"], np.float64) for s in node.op.parameters()}
        values[node.name] = _forward(
            node, [values[name] for name in node.inputs], own[node.name], training, step, moved
        )

    loss = 0.0
    waiting: dict[str, Array] = {}
    for name, output in graph.outputs:
        part, by_logits = cross_entropy(values[output], labels)
        loss += counted[name] * part
        waiting[output] = waiting.get(output, 0) + counted[name] * by_logits
    found: dict[str, Array] = {}
    for node in reversed(graph.nodes[1:]):
        gradient = waiting.pop(node.name, None)
        made = values.pop(node.name)
        if gradient is None:
            found.update({f"{node.name}.{s}": np.zeros(a.shape) for s, a in own[node.name].items()})
            continue
        inputs = [values[name] for name in node.inputs]
        by_inputs, by_own = _backward(node, inputs, made, gradient, own[node.name], training, step)
        for name, by_input in zip(node.inputs, by_inputs, strict=True):
            waiting[name] = waiting[name] + by_input if name in waiting else by_input
        found.update({f"{node.name}.{suffix}": value for suffix, value in by_own.items()})
    found[INPUT] = waiting[graph.input.name]
    names = [name for name in graph.parameters() if trainable(name)]
    return loss, {name: found[name] for name in (*names, INPUT)}, moved


def train(
    graph: Graph, weights: Weights, image: Array, labels: Array, training: Training
) -> Iterator[tuple[float, dict[str, Array]]]:
    """Loss before each step, and all canonical weights after it, in float64; arguments and errors as for `gradients`."""
    now = {name: np.asarray(weights[name], np.float64) for name in graph.parameters()}
    speed: dict[str, Array] = {}
    for step in range(training.steps):
        loss, found, moved = gradients(graph, now, image, labels, training, step=step)
        for name in found.keys() - {INPUT}:
            push = found[name] + training.weight_decay * now[name]
            speed[name] = training.momentum * speed[name] + push if step else push
            now[name] = now[name] - training.learning_rate * speed[name]
        now.update(moved)
        yield loss, dict(now)


def trainable(name: str) -> bool:
    """Whether a canonical tensor learns; running statistics move on their own."""
    return not name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def _forward(
    node: Node, inputs: list[Array], own: dict[str, Array], training: Training, step: int, moved: dict[str, Array]
) -> Array:
    op = node.op
    if isinstance(op, ops.BatchNorm) and training.batch_norm == "batch":
        y, statistics = batch_norm_of_batch(op, inputs[0], own)
        moved.update({f"{node.name}.{suffix}": value for suffix, value in statistics.items()})
        return y
    if isinstance(op, ops.Dropout) and training.dropout == "seeded":
        return np.asarray(inputs[0] * dropout_mask(node.name, op, inputs[0].shape, training, step))
    return np.asarray(reference.evaluate(op, inputs, own))


def _backward(
    node: Node,
    inputs: list[Array],
    made: Array,
    gradient: Array,
    own: dict[str, Array],
    training: Training,
    step: int,
) -> tuple[list[Array], dict[str, Array]]:
    op = node.op
    if isinstance(op, ops.BatchNorm) and training.batch_norm == "batch":
        return batch_norm_of_batch_backward(op, inputs[0], gradient, own)
    if isinstance(op, ops.Dropout) and training.dropout == "seeded":
        return [gradient * dropout_mask(node.name, op, inputs[0].shape, training, step)], {}
    return backward(op, inputs, made, gradient, own)
