"""Training of Keras models, and the graphs and compiled programs that TensorFlow makes of them.

Run by `test_native_keras.py` in a process of the engine, by name.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import op_cases
import pytest
from keras_common import ENGINE, FLOAT64, SMALL, assert_equals_truth, built, images, network
from keras_layer_checks import window_graphs

from deeplabzoo.backends.keras import run, weights
from deeplabzoo.core import reference
from deeplabzoo.core.graph import Graph


def check_training() -> None:
    graph = network("v3", backbone=SMALL, aux=True)
    model, _ = built(graph)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss={"out": loss, "aux": loss})
    before = weights.read_weights(model)
    for height, width in ((65, 81), (64, 96)):
        x = images(2, height, width, "float32").transpose(0, 2, 3, 1)
        y = np.random.default_rng(0).integers(0, 5, x.shape[:3])
        history = model.fit(x, {"out": y, "aux": y}, batch_size=2, verbose=0)
        assert np.isfinite(history.history["loss"][0])
    after = weights.read_weights(model)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    # The next batch norm takes a shift out again, so some biases stay; every kernel, scale and statistic moves.
    assert all(name.endswith(".bias") for name in still), still
    assert all(np.isfinite(value).all() for value in after.values())
    assert np.isfinite(run.forward(model, images(1, 65, 65))["out"]).all()


def check_one_value() -> None:
    """Image pooling at batch 1 leaves one value a channel: an error, and no trainable variable has moved."""
    graph = network("v3", backbone=SMALL)
    model, _ = built(graph)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss)
    x = images(1, 65, 65, "float32").transpose(0, 2, 3, 1)
    before = weights.read_weights(model)
    with pytest.raises(Exception, match="aspp__image_pooling__bn: expected more than 1 value a channel in training"):
        model.fit(x, np.zeros(x.shape[:3], int), verbose=0)
    if ENGINE != "jax":  # there Keras gives the variables away to `fit`, and loses them by any error
        after = weights.read_weights(model)
        moved = [name for name in before if not np.array_equal(before[name], after[name])]
        assert not [name for name in moved if "running" not in name], moved
    model, _ = built(graph)
    with pytest.raises(ValueError, match="expected more than 1 value a channel in training"):
        model(keras.ops.convert_to_tensor(x), training=True)


def check_tensorflow_graphs() -> None:
    assert_right_in_graphs("v3plus", network("v3plus", backbone=SMALL, output={"values": "probabilities"}))
    assert_right_in_graphs("every op", op_cases.every_op())


def check_tensorflow_graphs_of_windows() -> None:
    for title, graph in window_graphs():
        assert_right_in_graphs(title, graph)


def check_tensorflow_graphs_with_corners() -> None:
    corners = {"align_corners": True}
    assert_right_in_graphs("corners", network("v3plus", backbone=SMALL, output=corners, decoder=corners))


def assert_right_in_graphs(title: str, graph: Graph) -> None:
    """Known and free sizes, plain and compiled by XLA, one trace for all sizes where they are free."""
    import tensorflow as tf

    model, values = built(graph, "float64")
    free = [tf.TensorSpec((None, None, None, 3), "float64")]
    ways = {
        "free": tf.function(lambda x: model(x, training=False), input_signature=free),
        "XLA": tf.function(lambda x: model(x, training=False), jit_compile=True),
    }
    for batch, height, width in ((2, 65, 81), (1, 64, 84)):
        x = images(batch, height, width)
        truth = reference.forward(graph, values, x)
        for way, call in ways.items():
            made = call(x.transpose(0, 2, 3, 1))
            made = made if isinstance(made, dict) else {"out": made}
            found = {name: made[name].numpy().transpose(0, 3, 1, 2) for name in truth}
            assert_equals_truth(f"{title} {way}", found, truth, FLOAT64)
    assert ways["free"].experimental_get_tracing_count() == 1
    for size in range(20, 30):
        run.forward(model, images(1, size, size + 3))
    assert model.predict_function.experimental_get_tracing_count() <= 3


def check_tensorflow_free_sizes_in_training() -> None:
    import tensorflow as tf

    def examples() -> Any:
        for height, width in ((65, 81), (97, 64), (70, 70)):
            yield images(2, height, width, "float32").transpose(0, 2, 3, 1), np.zeros((2, height, width), "int32")

    graph = network("v3plus", backbone={"name": "resnet50", "pool_ceil": True}, rates=(1, 2, 3))
    model, _ = built(graph)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(1e-4), loss=loss)
    assert model.jit_compile is False  # XLA would drop the check of `check_one_value`
    free = (tf.TensorSpec((None, None, None, 3), "float32"), tf.TensorSpec((None, None, None), "int32"))
    data = tf.data.Dataset.from_generator(examples, output_signature=free)
    assert np.isfinite(model.fit(data, verbose=0).history["loss"][0])
