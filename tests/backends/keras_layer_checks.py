"""Layers of the Keras backend, each for itself.

Run by `test_native_keras.py` in a process of the engine, by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import op_cases
from keras_common import ENGINE, assert_equals_reference, built, images

from deeplabzoo.backends.keras import ops as layers
from deeplabzoo.backends.keras import weights
from deeplabzoo.core import ops
from deeplabzoo.core.graph import Graph, GraphBuilder


def window_graphs() -> Iterator[tuple[str, Graph]]:
    """Windows, paddings and groups that no DeepLab here combines, after a convolution that names the channels."""
    conv: Any = ops.Conv2d
    for op in (
        conv(in_channels=4, out_channels=6, kernel=3, stride=2, padding=(0, 1, 0, 1)),
        conv(in_channels=4, out_channels=6, kernel=3, stride=2, dilation=2, padding="same", bias=True),
        conv(in_channels=4, out_channels=6, kernel=3, stride=3, dilation=2, padding=(3, 1, 2, 0)),
        conv(in_channels=4, out_channels=6, kernel=3, groups=2, padding=(1, 1, 1, 1)),
        conv(in_channels=4, out_channels=8, kernel=3, groups=4, stride=2, padding=(1, 0, 2, 1), bias=True),
        conv(in_channels=4, out_channels=8, kernel=3, groups=4, stride=2, dilation=2, padding="same"),
        conv(in_channels=4, out_channels=4, kernel=5, groups=4, dilation=2, padding=(4, 4, 4, 4)),
        ops.MaxPool(kernel=3, stride=2, padding="same"),
        ops.MaxPool(kernel=3, stride=2, ceil_mode=True),
        ops.MaxPool(kernel=3, stride=2, padding=(1, 1, 1, 1), ceil_mode=True),
        ops.MaxPool(kernel=2, stride=3, padding=(1, 0, 0, 1), ceil_mode=True),
        ops.MaxPool(kernel=1, stride=2),
    ):
        builder = GraphBuilder()
        x = builder.conv("first", builder.input(3), 4, 1)
        if isinstance(op, ops.Conv2d):
            options = {key: getattr(op, key) for key in ("stride", "dilation", "padding", "groups", "bias")}
            x = builder.conv("second", x, op.out_channels, op.kernel, **options)
        else:
            x = builder.apply("second", op, x)
        graph = builder.finish({"out": x})
        yield str(op), graph


def check_window_layers() -> None:
    """Sizes that hit every rounding."""
    for title, graph in window_graphs():
        model, values = built(graph, "float64")
        for height, width in ((13, 14), (15, 16), (17, 18), (11, 12))[: 2 if ENGINE == "jax" else 4]:
            assert_equals_reference(title, model, graph, values, images(2, height, width), 1e-13)


def computed(op: ops.Op, values: list[np.ndarray], parameters: dict[str, np.ndarray]) -> np.ndarray:
    """What the op's layer makes of the values, in float64; its shape is the one it says."""
    layer = layers.make_layer(op, dtype="float64")
    given = [keras.ops.convert_to_tensor(value.transpose(0, 2, 3, 1), dtype="float64") for value in values]
    merges = isinstance(op, ops.Add | ops.Multiply | ops.Concat)
    made = layer(given) if merges else layer(*given)
    said = (
        layer.compute_output_shape([tuple(v.shape) for v in given])
        if merges
        else layer.compute_output_shape(*[tuple(v.shape) for v in given])
    )
    assert tuple(said) == tuple(made.shape), f"{op}: {tuple(made.shape)}, expected {tuple(said)}"
    return keras.ops.convert_to_numpy(made).transpose(0, 3, 1, 2)


def check_pooling_layers() -> None:
    found = op_cases.judge(op_cases.pooling_cases((4, 5) if ENGINE == "jax" else range(3, 10)), computed)
    print(f"{found} poolings")


def check_pointwise_layers() -> None:
    assert op_cases.judge(op_cases.pointwise_cases(), computed) == 20


def check_stock_layers() -> None:
    """Where Keras' own layer means the same it is taken, and the others keep its name."""
    stock = {
        ops.AvgPool(kernel=2, stride=2): True,
        ops.AvgPool(kernel=3, stride=1, padding=(1, 1, 1, 1)): True,
        ops.AvgPool(kernel=3, stride=1, ceil_mode=True): True,
        ops.AvgPool(kernel=2, stride=2, ceil_mode=True): False,
        ops.AvgPool(kernel=3, stride=1, padding=(1, 1, 1, 1), count_padding=True): False,
        ops.AvgPool(kernel=3, stride=2, padding=(1, 1, 1, 1)): False,
        ops.Multiply(): True,
        ops.Activation(function="hard_sigmoid"): False,  # the float64 gradient of Keras' own is wrong on torch
        ops.Activation(function="hard_swish"): True,
        ops.Activation(function="sigmoid"): True,
    }
    for op, expected in stock.items():
        layer = layers.make_layer(op)
        assert type(layer).__module__.startswith("keras.") is expected, op
        assert hasattr(keras.layers, type(layer).__name__), op


def check_argmax_of_equals() -> None:
    x = np.array([-0.0, 0.0, -1.0, 2.0, 1.0, 2.0]).reshape(1, 1, 2, 3)
    labels = keras.ops.convert_to_numpy(layers.Argmax(dtype="float64")(x))
    assert labels.tolist() == [[[[0], [0]]]]


def small_norm(momentum: float = 0.75) -> Graph:
    builder = GraphBuilder()
    x = builder.batch_norm("bn", builder.input(3), epsilon=1e-3, momentum=momentum)
    return builder.finish({"out": x})


def check_batch_norm() -> None:
    graph = small_norm()
    epsilon, kept = graph.by_name["bn"].op.epsilon, 0.75
    x = images(2, 5, 7).transpose(0, 2, 3, 1) * 3 + 1
    mean, count = x.mean((0, 1, 2)), 2 * 5 * 7
    variance = ((x - mean) ** 2).mean((0, 1, 2))
    ways = {"eager": lambda model, x: model(x, training=True)}
    if ENGINE == "tensorflow":
        import tensorflow as tf

        free = tf.TensorSpec((None, None, None, 3), "float64")
        ways["graph"] = lambda model, x: tf.function(lambda x: model(x, training=True), input_signature=[free])(x)
    for title, way in ways.items():
        model, values = built(graph, "float64")
        found = keras.ops.convert_to_numpy(way(model, keras.ops.convert_to_tensor(x)))
        expected = (x - mean) / np.sqrt(variance + epsilon) * values["bn.weight"] + values["bn.bias"]
        assert np.abs(found - expected).max() < 1e-14, title
        after = weights.read_weights(model)
        moved_mean = kept * values["bn.running_mean"] + (1 - kept) * mean
        moved_variance = kept * values["bn.running_var"] + (1 - kept) * variance * count / (count - 1)
        assert np.abs(after["bn.running_mean"] - moved_mean).max() < 1e-15, title
        assert np.abs(after["bn.running_var"] - moved_variance).max() < 1e-15, title
    layer = model.get_layer("bn")
    layer.trainable = False
    frozen = weights.read_weights(model)
    model(keras.ops.convert_to_tensor(x), training=True)
    assert all(np.array_equal(frozen[name], value) for name, value in weights.read_weights(model).items())
