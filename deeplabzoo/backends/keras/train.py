"""Loss, gradients and training steps of a Keras model on numpy arrays, by its engine's autograd and Keras' optimiser."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from deeplabzoo.backends.keras.build import DeepLab, takes_a_list
from deeplabzoo.backends.keras.run import on_device
from deeplabzoo.backends.keras.weights import trainable_variables
from deeplabzoo.core import ops
from deeplabzoo.core.graph import Node
from deeplabzoo.core.schedule import walk
from deeplabzoo.core.training import EVALUATION, IGNORED, INPUT, Training, dropout_mask, loss_weights
from deeplabzoo.weights_converter.keras_paths import from_keras, keras_layer_name

_Loss = Callable[[Any], Any]


def gradients(
    model: DeepLab, x: np.ndarray, labels: np.ndarray, training: Training = EVALUATION
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss, and its gradients by canonical parameter name and by the image (`input`), as `core.training.gradients`.

    Args:
        model: left as it was.
        x: preprocessed images N, C, H, W, cast to the model's dtype.
        labels: int64 N, H, W of the output.
        training: how batch norm and dropout behave.
    """
    named = list(trainable_variables(model))
    with on_device(model):
        statistics = [keras.ops.copy(variable.value) for variable in model.non_trainable_variables]
        loss, found = _differentiate(model, _image(model, x), labels, training, 0)
        for variable, old in zip(model.non_trainable_variables, statistics, strict=True):
            variable.assign(old)
    arrays = {}
    for (name, op, suffix, _), gradient in zip(named, found, strict=False):  # the image's comes last
        arrays[name] = np.array(from_keras(op, suffix, keras.ops.convert_to_numpy(gradient)))
    by_image = keras.ops.convert_to_numpy(found[-1]).transpose(0, 3, 1, 2)
    return float(loss), {**arrays, INPUT: np.ascontiguousarray(by_image)}


def train(model: DeepLab, x: np.ndarray, labels: np.ndarray, training: Training) -> Iterator[float]:
    """Take steps with `keras.optimizers.SGD`; the loss before each is told once it is taken.

    Keras takes decay from the parameter beside the step; here it is added to the gradient, as in the other backends.
    Arguments as for `gradients`.
    """
    variables = [variable for *_, variable in trainable_variables(model)]
    with on_device(model):
        optimiser = keras.optimizers.SGD(training.learning_rate, momentum=training.momentum)
        optimiser.build(variables)
        image = _image(model, x)
    for step in range(training.steps):
        with on_device(model):
            loss, found = _differentiate(model, image, labels, training, step)
            decayed = [g + training.weight_decay * v.value for g, v in zip(found, variables, strict=False)]
            optimiser.apply(decayed, variables)
        yield float(loss)


def _image(model: DeepLab, x: np.ndarray) -> Any:
    return keras.ops.convert_to_tensor(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), dtype=model.inputs[0].dtype)


def _differentiate(
    model: DeepLab, image: Any, labels: np.ndarray, training: Training, step: int
) -> tuple[float, list[Any]]:
    """The loss, and its gradients by the variables of `trainable_variables` and the image; statistics move."""

    def loss(pixels: Any) -> Any:
        return _loss(model, pixels, labels, training, step)

    variables = [variable for *_, variable in trainable_variables(model)]
    value, found = _ENGINES[keras.backend.backend()](model, loss, variables, image)
    return float(keras.ops.convert_to_numpy(value)), found


def _loss(model: DeepLab, image: Any, labels: np.ndarray, training: Training, step: int) -> Any:
    def apply(node: Node, values: list[Any]) -> Any:
        layer = model.get_layer(keras_layer_name(node.name))
        if isinstance(node.op, ops.Dropout):
            if training.dropout == "off":
                return values[0]
            return values[0] * _mask(node.name, node.op, values[0], training, step)
        mode = {"training": training.batch_norm == "batch"} if isinstance(node.op, ops.BatchNorm) else {}
        return layer(values, **mode) if takes_a_list(node.op) else layer(*values, **mode)

    wanted = {node: name for name, node in model.graph.outputs}
    counted, total = loss_weights(model.graph, training), None
    for node, value in walk(model.graph, image, apply):
        if node.name in wanted:
            part = counted[wanted[node.name]] * _cross_entropy(value, labels)
            total = part if total is None else total + part
    return total


def _mask(name: str, op: ops.Dropout, value: Any, training: Training, step: int) -> Any:
    n, h, w, c = value.shape
    mask = dropout_mask(name, op, (n, c, h, w), training, step).transpose(0, 2, 3, 1)
    return keras.ops.convert_to_tensor(mask, dtype=value.dtype)


def _cross_entropy(logits: Any, labels: np.ndarray) -> Any:
    """Mean over the pixels that count; by sums, because Keras' means are float32 on some engines."""
    counts = labels != IGNORED
    chosen = np.zeros(tuple(logits.shape))
    np.put_along_axis(chosen, np.where(counts, labels, 0)[..., None], (counts / counts.sum())[..., None], axis=-1)
    shifted = logits - keras.ops.stop_gradient(keras.ops.max(logits, axis=-1, keepdims=True))
    logarithms = shifted - keras.ops.log(keras.ops.sum(keras.ops.exp(shifted), axis=-1, keepdims=True))
    return -keras.ops.sum(logarithms * keras.ops.convert_to_tensor(chosen, dtype=logits.dtype))


def _by_tensorflow(model: DeepLab, loss: _Loss, variables: list[Any], image: Any) -> tuple[Any, list[Any]]:
    tf = importlib.import_module("tensorflow")
    sources = [*(variable.value for variable in variables), image]
    with tf.GradientTape() as tape:
        tape.watch(image)
        value = loss(image)
    return value, list(tape.gradient(value, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO))


def _by_jax(model: DeepLab, loss: _Loss, variables: list[Any], image: Any) -> tuple[Any, list[Any]]:
    jax = importlib.import_module("jax")
    moving = model.non_trainable_variables

    def pure(values: list[Any], pixels: Any) -> tuple[Any, list[Any]]:
        mapping = list(zip((*variables, *moving), (*values, *(v.value for v in moving)), strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            value = loss(pixels)
        return value, [scope.get_current_value(variable) for variable in moving]

    call = jax.value_and_grad(pure, argnums=(0, 1), has_aux=True)
    (value, moved), (by_variables, by_image) = call([variable.value for variable in variables], image)
    for variable, new in zip(moving, moved, strict=True):
        variable.assign(new)
    return value, [*by_variables, by_image]


def _by_torch(model: DeepLab, loss: _Loss, variables: list[Any], image: Any) -> tuple[Any, list[Any]]:
    torch = importlib.import_module("torch")
    pixels = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = loss(pixels)
    sources = [*(variable.value for variable in variables), pixels]
    return value.detach(), list(torch.autograd.grad(value, sources, allow_unused=True, materialize_grads=True))


_ENGINES = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
