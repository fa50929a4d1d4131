"""Gradients of single layers and of the small graph with every op, against the numpy referee's; in the framework's process."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import op_cases

from deeplabzoo.backends import resolve
from deeplabzoo.core import ops, reference
from deeplabzoo.core.backward import backward
from deeplabzoo.core.training import EVALUATION, INPUT, Training, gradients, seeded_labels, train
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.parity.compare import gradient_errors, training_errors

EXACT = 1e-14


def cases() -> Any:
    """Every kind of op but those without a gradient."""
    random = np.random.default_rng(0)
    norm = ops.BatchNorm(channels=5, epsilon=ops.float32_exact(1e-3), momentum=ops.float32_exact(0.9))
    statistics = {name: random.random(5) + 0.5 for name in norm.parameters()}
    return itertools.chain(
        op_cases.pointwise_cases(),
        op_cases.pooling_cases((9, 10)),
        op_cases.convolution_cases((13, 16)),
        op_cases.resize_cases((6,)),
        [(norm, [random.standard_normal((2, 5, 7, 9))], statistics)],
    )


def check_layers(backend: str) -> None:
    """Each case: gradients by every input and parameter, in float64."""
    chosen = resolve(backend)
    _module(chosen, "run").configure("cpu")
    differentiate = _DIFFERENTIATE[chosen.folder]
    count = 0
    for op, values, parameters in cases():
        made = reference.evaluate(op, values, parameters)
        if _has_a_kink(op, values):
            continue
        gradient = np.random.default_rng(1).standard_normal(made.shape)
        by_inputs, by_own = backward(op, values, made, gradient, parameters)
        found = differentiate(chosen, op, values, parameters, gradient)
        expected = {**dict(enumerate(by_inputs)), **by_own}
        if isinstance(op, ops.Resize):
            del expected[1]  # it lends its size alone
        for name, truth in expected.items():
            scale = max(np.abs(truth).max(), np.abs(gradient).max())
            error = np.abs(found[name] - truth).max() / scale
            assert error <= EXACT, f"{op} of {[v.shape for v in values]}, by {name}: error {error:.1e}"
        count += 1
    assert count > 300


def check_graph(backend: str) -> None:
    """The small graph with every op, its softmax left off: gradients and three training steps of every kind."""
    chosen = resolve(backend)
    _module(chosen, "run").configure("cpu")
    whole = op_cases.every_op()
    graph = type(whole)(whole.nodes[:-1], (("out", "output.resize"), ("aux", "decoder.conv")))
    weights = seeded_weights(graph, 1, statistics="lively", dtype="float64")
    x = np.random.default_rng(0).standard_normal((4, 3, 40, 58))
    labels = seeded_labels(graph, 4, 40, 58, 0)
    # The auxiliary output is smaller, and labels are those of the main one: it is left out of the loss here.
    graph = type(graph)(graph.nodes, graph.outputs[:1])
    model = _module(chosen, "build").build(graph, dtype="float64")
    fill, read = _module(chosen, "weights").load_weights, _module(chosen, "weights").read_weights
    teach = _module(chosen, "train")
    for training in (
        EVALUATION,
        Training(steps=3, dropout="seeded", seed=5),
        Training(steps=3, batch_norm="frozen", learning_rate=0.01),
    ):
        fill(model, weights)
        loss, found = teach.gradients(model, x, labels, training)
        expected, truth, _ = gradients(graph, weights, x, labels, training)
        assert abs(loss / expected - 1) < EXACT
        assert max(gradient_errors(found, truth).values()) < 1e-12
        now = read(model)
        assert all(np.array_equal(now[name], weights[name]) for name in weights)
        losses = list(teach.train(model, x, labels, training))
        steps = list(train(graph, weights, x, labels, training))
        assert np.allclose(losses, [loss for loss, _ in steps], rtol=1e-13, atol=0)
        now = {name: read(model)[name] for name in weights}
        assert max(training_errors(now, steps[-1][1]).values()) < 1e-12
        moved = {name for name in weights if not np.array_equal(now[name], weights[name])}
        still = {name for name in weights if name.endswith(("running_mean", "running_var"))}
        assert still.isdisjoint(moved) == (training.batch_norm == "frozen")
        assert moved >= weights.keys() - still
        assert INPUT in found


def _module(chosen: Any, name: str) -> Any:
    """Not by `Backend.module`: Keras on torch may have loaded TensorFlow meanwhile, beside which nothing may start."""
    return importlib.import_module(f"deeplabzoo.backends.{chosen.folder}.{name}")


def _has_a_kink(op: ops.Op, values: list[np.ndarray]) -> bool:
    """Whether a value lies on a bend, where frameworks choose a side."""
    bends = {"relu": (0,), "relu6": (0, 6), "hard_sigmoid": (-3, 3), "hard_swish": (-3, 3)}
    return isinstance(op, ops.Activation) and any((values[0] == bend).any() for bend in bends.get(op.function, ()))


def _torch(chosen: Any, op: ops.Op, values: Any, parameters: Any, gradient: np.ndarray) -> dict[Any, np.ndarray]:
    torch = importlib.import_module("torch")
    layer = _module(chosen, "ops").make_layer(op).double().eval()
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if name in parameters:
                tensor.copy_(torch.from_numpy(parameters[name]))
    inputs = [torch.from_numpy(value.copy()).requires_grad_() for value in values]
    own = dict(layer.named_parameters())
    found = torch.autograd.grad(
        layer(*inputs), [*inputs, *own.values()], torch.from_numpy(gradient), allow_unused=True, materialize_grads=True
    )
    return dict(zip((*range(len(inputs)), *own), (g.numpy() for g in found), strict=True))


def _paddle(chosen: Any, op: ops.Op, values: Any, parameters: Any, gradient: np.ndarray) -> dict[Any, np.ndarray]:
    paddle = importlib.import_module("paddle")
    paddle.set_default_dtype("float64")
    layer = _module(chosen, "ops").make_layer(op)
    layer.eval()
    names = {"_mean": "running_mean", "_variance": "running_var"}
    for name, tensor in layer.state_dict().items():
        tensor.set_value(paddle.to_tensor(parameters[names.get(name, name)]))
    inputs = [paddle.to_tensor(value, stop_gradient=False) for value in values]
    own = {name: parameter for name, parameter in layer.named_parameters() if parameter.trainable}
    found = paddle.grad(layer(*inputs), [*inputs, *own.values()], paddle.to_tensor(gradient), allow_unused=True)
    return {name: None if g is None else g.numpy() for name, g in zip((*range(len(inputs)), *own), found, strict=True)}


def _keras(chosen: Any, op: ops.Op, values: Any, parameters: Any, gradient: np.ndarray) -> dict[Any, np.ndarray]:
    keras = importlib.import_module("keras")
    paths = importlib.import_module("deeplabzoo.weights_converter.keras_paths")
    variables = importlib.import_module("deeplabzoo.backends.keras.weights")._VARIABLES
    takes_a_list = importlib.import_module("deeplabzoo.backends.keras.build").takes_a_list
    engines = importlib.import_module("deeplabzoo.backends.keras.train")._ENGINES
    layer = _module(chosen, "ops").make_layer(op, dtype="float64")
    inputs = [keras.ops.convert_to_tensor(value.transpose(0, 2, 3, 1)) for value in values]

    def call(tensors: Any) -> Any:
        return layer(tensors) if takes_a_list(op) else layer(*tensors)

    call(inputs)  # makes the variables
    own = {suffix: getattr(layer, variables[type(op)][suffix]) for suffix in parameters}
    for suffix, variable in own.items():
        variable.assign(paths.to_keras(op, suffix, parameters[suffix]))
    weight = keras.ops.convert_to_tensor(gradient.transpose(0, 2, 3, 1))
    learning = {suffix: variable for suffix, variable in own.items() if not suffix.startswith("running")}
    found: dict[Any, np.ndarray] = {}
    for n, image in enumerate(
        inputs[:1] if isinstance(op, ops.Resize) else inputs
    ):  # one input at a time: what `train` differentiates by is one image

        def loss(pixels: Any, n: int = n) -> Any:
            return keras.ops.sum(call([*inputs[:n], pixels, *inputs[n + 1 :]]) * weight)

        holder = type("Holder", (), {"non_trainable_variables": layer.non_trainable_variables})
        _, gradients_found = engines[chosen.engine](holder, loss, list(learning.values()), image)
        arrays = [keras.ops.convert_to_numpy(g) for g in gradients_found]
        found[n] = arrays[-1].transpose(0, 3, 1, 2)
        found.update({s: np.array(paths.from_keras(op, s, a)) for s, a in zip(learning, arrays[:-1], strict=True)})
    return found


_DIFFERENTIATE = {"torch": _torch, "paddle": _paddle, "keras": _keras}
