"""What `test_native_keras.py` runs in processes of their own, several checks at a time because importing is slow.

Keras takes its backend at import, and its backends don't live together in one process:
`KERAS_BACKEND=jax python tests/backends/keras_checks.py check_forward check_training`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import pytest

from deeplabzoo.core import ops, reference
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph, GraphBuilder
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError
from deeplabzoo.weights_converter import keras_paths

if __name__ == "__main__" and os.environ["KERAS_BACKEND"] != "tensorflow":
    # Keras looks for TensorFlow's objects when it saves and loads, wherever TensorFlow is installed; beside torch in
    # one process it may crash the interpreter.
    sys.modules["tensorflow"] = None  # type: ignore[assignment]

import keras

from deeplabzoo.backends.keras import build, run, weights
from deeplabzoo.backends.keras import ops as layers

ENGINE = keras.backend.backend()  # JAX compiles for each network and size, so it gets fewer of them
FLOAT64, FLOAT32 = 1e-11, 2e-5
SMALL = {"name": "mobilenet_v2", "width": 0.25}


def network(arch: str, **options: Any) -> Graph:
    """A graph with narrow heads, for speed."""
    options["aspp"] = {"channels": 32, **options.get("aspp", {})}
    if arch == "v3plus":
        options["decoder"] = {"channels": 32, "low_level_channels": 12, **options.get("decoder", {})}
    return build_graph(make_spec(arch, num_classes=5, **options))


def built(graph: Graph, dtype: str = "float32", seed: int = 1) -> tuple[Any, dict[str, np.ndarray]]:
    values = seeded_weights(graph, seed, statistics="lively", dtype="float64")
    model = build.build(graph, dtype=dtype)
    weights.load_weights(model, values)
    return model, values


def images(batch: int, height: int, width: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(height).standard_normal((batch, 3, height, width)).astype(dtype)


def assert_equals_reference(
    title: str, model: Any, graph: Graph, values: dict[str, np.ndarray], x: np.ndarray, bound: float
) -> None:
    assert_equals_truth(title, model, reference.forward(graph, values, x), x, bound)


def assert_equals_truth(title: str, model: Any, truth: dict[str, np.ndarray], x: np.ndarray, bound: float) -> None:
    found = run.forward(model, x)
    assert list(found) == list(truth), title
    for name, value in found.items():
        assert value.shape == truth[name].shape, f"{title}, {name}"
        error = np.abs(value.astype("float64") - truth[name]).max() / np.abs(truth[name]).max()
        assert error <= bound, f"{title}, {name}: error {error:.1e}, expected at most {bound:.0e}"
        print(f"{title} {name} {x.shape[2]}x{x.shape[3]} {value.dtype} {error:.1e}")


def check_forward() -> None:
    """Rates as small as the maps, so that every tap of every atrous kernel reads real pixels."""
    for arch in ("v3", "v3plus"):
        for backbone in ("resnet50", "mobilenet_v2"):
            for stride, rates in ((8, (2, 4, 6)), (16, (1, 2, 3))):
                graph = network(arch, backbone=backbone, output_stride=stride, rates=rates)
                title = f"{arch} {backbone} {stride}"
                model, values = built(graph, "float64")
                for height, width in ((96, 128), (97, 131)):
                    x = images(2, height, width)
                    truth = reference.forward(graph, values, x)
                    assert_equals_truth(title, model, truth, x, FLOAT64)
                assert_equals_truth(title, built(graph, "float32")[0], truth, x, FLOAT32)


def check_briefly() -> None:
    graph = network("v3plus", backbone=SMALL, aux=True)
    for dtype, bound in (("float64", FLOAT64), ("float32", FLOAT32)):
        model, values = built(graph, dtype)
        assert_equals_reference("brief", model, graph, values, images(2, 65, 82), bound)


def check_variants() -> None:
    last = {"name": "resnet50", "stride_in": "last_unit", "padding": "same"}
    grid = {"name": "resnet50", "multi_grid": (2, 2, 2)}
    decoders = [{"conv": kind, "bias": True} for kind in ("plain", "separable", "separable_bn")]
    for title, options in {
        "TF slim": {"arch": "v3", "backbone": last, "output_stride": 8, "rates": (1, 2, 3)},
        "TF slim at 32": {"arch": "v3", "backbone": last, "output_stride": 32, "rates": (1,)},
        "Caffe": {"arch": "v3", "backbone": {"name": "resnet50", "stride_in": "conv1", "pool_ceil": True}},
        "strided and dilated": {"arch": "v3", "backbone": grid, "output_stride": 32, "rates": (1,)},
        "the same with same": {"arch": "v3", "backbone": {**grid, "padding": "same"}, "output_stride": 32},
        "full dilation": {"arch": "v3", "backbone": {"name": "resnet50", "first_block_dilation": "full"}},
        "small map": {"arch": "v3", "backbone": SMALL, "output": {"size": "feature"}},
        "corners": {"arch": "v3plus", "backbone": SMALL, "output": {"align_corners": True}},
        "decoder corners": {"arch": "v3plus", "backbone": SMALL, "decoder": {"align_corners": True}},
        "features": {"arch": "v3plus", "backbone": SMALL, "output": {"resize": "features"}},
        "labels": {"arch": "v3plus", "backbone": SMALL, "output": {"values": "labels"}},
        "probabilities": {"arch": "v3plus", "backbone": SMALL, "output": {"values": "probabilities"}, "aux": True},
        "aux": {"arch": "v3", "backbone": SMALL, "aux": True},
        "aux on small maps": {"arch": "v3", "backbone": SMALL, "aux": True, "output": {"size": "feature"}},
        "bias": {"arch": "v3plus", "backbone": SMALL, "aspp": {"bias": True, "pool_bias": True}},
        "fusion": {"arch": "v3", "backbone": SMALL, "aspp": {"fusion_kernel": 3, "post_conv": "separable"}},
        "symmetric": {"arch": "v3plus", "backbone": {**SMALL, "padding": "symmetric"}},
        "one branch": {"arch": "v3", "backbone": SMALL, "aspp": {"order": ("conv1x1",)}},
        **{f"decoder {d['conv']}": {"arch": "v3plus", "backbone": SMALL, "decoder": d} for d in decoders},
    }.items():
        graph = network(**options)
        model, values = built(graph, "float64")
        for batch, height, width in ((2, 97, 131), (1, 96, 128)):
            x = images(batch, height, width)
            assert_equals_reference(title, model, graph, values, x, 0 if title == "labels" else FLOAT64)
        if title == "labels":
            assert run.forward(model, x)["out"].dtype == "int64"


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


def check_half_precision() -> None:
    graph = network("v3plus", backbone=SMALL)
    for dtype, bound in (("float16", 1e-2), ("bfloat16", 1e-1))[: 1 if ENGINE == "jax" else 2]:
        model, values = built(graph, dtype)
        assert {str(layer.dtype) for layer in model.layers} == {dtype}
        assert_equals_reference(dtype, model, graph, values, images(2, 65, 81), bound)


def check_argmax_of_equals() -> None:
    x = np.array([-0.0, 0.0, -1.0, 2.0, 1.0, 2.0]).reshape(1, 1, 2, 3)
    labels = keras.ops.convert_to_numpy(layers.Argmax(dtype="float64")(x))
    assert labels.tolist() == [[[[0], [0]]]]


def check_saving() -> None:
    grid = {"name": "resnet50", "multi_grid": (2, 2, 2), "stride_in": "last_unit", "pool_ceil": True}
    graphs = [
        network("v3plus", backbone=SMALL, aux=True, decoder={"dropout": (0.1, 0.2), "dropout_channels": True}),
        network("v3", backbone=grid, output_stride=32, output={"values": "labels"}),
    ]
    for graph in graphs if ENGINE == "tensorflow" else graphs[:1]:
        model, values = built(graph)
        lines: list[str] = []
        model.summary(print_fn=lambda *line, **_: lines.extend(map(str, line)), line_length=140)  # noqa: B023
        assert "backbone__stem__conv" in "".join(lines)
        assert model.count_params() == sum(np.prod(shape) for shape in graph.parameters().values())
        read = weights.read_weights(model)
        assert list(read) == list(graph.parameters())
        assert all(np.array_equal(read[name], values[name].astype("float32")) for name in read)
        x = images(2, 65, 81, "float32")
        expected = run.forward(model, x)
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model.keras")
            model.save_weights(f"{folder}/model.weights.h5")
            loaded = keras.saving.load_model(f"{folder}/model.keras", safe_mode=True)
            fresh, _ = built(graph, seed=2)
            fresh.load_weights(f"{folder}/model.weights.h5")
        assert type(loaded) is type(model)
        assert loaded.graph == graph
        assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
        for other in (loaded, fresh):
            found = run.forward(other, x)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
    tap = graph.by_name["classifier.conv"].inputs[0]
    part = keras.Model(model.input, model.get_layer(keras_paths.keras_layer_name(tap)).output)
    n, c, h, w = graph.shapes(64, 96)[tap]
    assert part(keras.ops.zeros((1, 64, 96, 3))).shape == (n, h, w, c)


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


def check_configuration() -> None:
    """A user's Keras configuration does not change the meaning of a model, and a build leaves it alone."""
    graph = network("v3plus", backbone=SMALL, aux=True)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, values = built(graph)
        assert_equals_reference("configured", model, graph, values, images(2, 65, 81, "float32"), FLOAT32)
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_dtype_policy("float32")
    with pytest.raises(BackendError, match="unknown dtype 'mixed_float16': expected one of float64, float32"):
        build.build(graph, dtype="mixed_float16")
    if ENGINE == "jax":
        import jax

        jax.config.update("jax_enable_x64", False)
        try:
            with pytest.raises(BackendError, match="64-bit types are switched off: run jax"):
                build.build(graph, dtype="float64")
            assert layers.Argmax()(np.zeros((1, 1, 1, 2), "float32")).dtype == "int32"
        finally:
            jax.config.update("jax_enable_x64", True)
    assert "cpu" in run.devices()
    assert run.device_name("cpu") == "CPU"


def check_tensorflow_graphs() -> None:
    """Known and free sizes, plain and compiled by XLA, one trace for all sizes where they are free."""
    import tensorflow as tf

    corners = {"align_corners": True}
    graphs = {
        "v3plus": network("v3plus", backbone="mobilenet_v2", output={"values": "probabilities"}),
        "corners": network("v3plus", backbone=SMALL, output=corners, decoder=corners),
        **dict(window_graphs()),
    }
    for title, graph in graphs.items():
        model, values = built(graph, "float64")
        free = [tf.TensorSpec((None, None, None, 3), "float64")]
        ways = {
            "free": tf.function(lambda x: model(x, training=False), input_signature=free),  # noqa: B023
            "XLA": tf.function(lambda x: model(x, training=False), jit_compile=True),  # noqa: B023
        }
        for batch, height, width in ((2, 65, 81), (1, 64, 84)):
            x = images(batch, height, width)
            truth = reference.forward(graph, values, x)["out"]
            for way, call in ways.items():
                found = call(x.transpose(0, 2, 3, 1)).numpy().transpose(0, 3, 1, 2)
                error = np.abs(found - truth).max() / np.abs(truth).max()
                assert error <= FLOAT64, f"{title} {way} {height}x{width}: {error:.1e}"
                print(f"{title} {way} {height}x{width} {error:.1e}")
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


def path_graphs() -> list[Graph]:
    last = {"name": "resnet50", "stride_in": "last_unit", "padding": "same"}
    return [
        network("v3", backbone="resnet50", aux=True),
        network("v3plus", backbone="resnet101", output_stride=8, multi_grid=(1, 2, 4)),
        network("v3plus", backbone=last, decoder={"conv": "plain", "order": ("low_level", "aspp"), "bias": True}),
        network("v3", backbone="mobilenet_v2", output={"values": "labels"}),
        network("v3", backbone=SMALL, aspp={"order": ("conv1x1", "image_pooling")}, output={"size": "feature"}),
        network("v3", backbone=SMALL, aspp={"order": ("conv1x1",)}, aux=True, output={"size": "feature"}),
        network("v3plus", backbone=SMALL, output={"values": "probabilities", "resize": "features"}, aux=True),
        network("v3plus", backbone=SMALL, decoder={"dropout": (0.5, 0.1), "convs": 2}, aspp={"dropout": 0.0}),
        network("v3plus", backbone=SMALL, decoder={"conv": "separable", "convs": 1, "dropout": (0.2,)}),
        network(
            "v3plus", backbone=SMALL, decoder={"conv": "separable_bn", "dropout_channels": True, "dropout": (0.0, 0.1)}
        ),
        network("v3", backbone=SMALL, aspp={"bias": True, "branch": "separable", "dropout_channels": True}),
        network("v3", backbone=SMALL, aspp={"order": ("image_pooling", "atrous", "conv1x1"), "post_conv": "separable"}),
        network("v3", backbone=SMALL, classifier={"bias": False}, aux={"dropout": 0.0, "tap": "stage1"}),
    ]


def parameter(graph: Graph, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    node, suffix = name.rsplit(".", 1)
    return keras_paths.to_keras(graph.by_name[node].op, suffix, weights[name])


def check_paths() -> None:
    """Every dataset and every label of the real file is predicted, and each parameter is where it is said to be."""
    graphs = path_graphs()  # the same code of Keras on each of its backends: a few will do on the slower ones
    for graph in graphs if ENGINE == "tensorflow" else graphs[-3:]:
        model, _ = built(graph, "float16")
        values = seeded_weights(graph, 2, statistics="lively")
        weights.load_weights(model, values)
        datasets: dict[str, np.ndarray] = {}
        labels: dict[str, str] = {}

        def visit(path: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                datasets[path] = item[()]  # noqa: B023
            elif "name" in item.attrs:
                labels[path.removesuffix("vars").removesuffix("/")] = item.attrs["name"]  # noqa: B023

        with tempfile.TemporaryDirectory() as folder:
            model.save_weights(f"{folder}/model.weights.h5")
            with h5py.File(f"{folder}/model.weights.h5") as file:
                file.visititems(visit)
        paths = keras_paths.keras_variable_paths(graph)
        assert sorted(paths.values()) == sorted(datasets)
        assert set(paths) == set(graph.parameters())
        for name, path in paths.items():
            assert np.array_equal(datasets[path], parameter(graph, values, name).astype("float16")), name
        assert labels == keras_paths.keras_group_names(graph)


def check_weights_written_without_keras() -> None:
    graph = network("v3plus", backbone=SMALL, aux=True)
    model, values = built(graph)
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(f"{folder}/model.weights.h5", "w") as file:
            for name, path in keras_paths.keras_variable_paths(graph).items():
                file[path] = parameter(graph, values, name).astype("float32")
        other = build.build(graph)
        other.load_weights(f"{folder}/model.weights.h5")
    x = images(2, 65, 81)
    expected, found = run.forward(model, x), run.forward(other, x)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


if __name__ == "__main__":
    run.configure("cpu")
    for name in sys.argv[1:]:
        globals()[name]()
