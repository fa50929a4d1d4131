"""Files of Keras models: saved, loaded, and written without Keras.

Run by `test_native_keras.py` in a process of the engine, by name.
"""

from __future__ import annotations

import tempfile
from typing import Any

import h5py
import keras
import numpy as np
import op_cases
from keras_common import ENGINE, SMALL, built, images, network

from deeplabzoo.backends.keras import build, run, weights
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.weights_converter import keras_paths


def check_saving() -> None:
    grid = {"name": "resnet50", "multi_grid": (2, 2, 2), "stride_in": "last_unit", "pool_ceil": True}
    graphs = [
        network("v3plus", backbone=SMALL, aux=True, decoder={"dropout": (0.1, 0.2), "dropout_channels": True}),
        op_cases.every_op(),
        network("v3", backbone=grid, output_stride=32, output={"values": "labels"}),
    ]
    for graph in graphs if ENGINE == "tensorflow" else graphs[:2]:
        model, values = built(graph)
        lines: list[str] = []
        model.summary(print_fn=lambda *line, **_: lines.extend(map(str, line)), line_length=140)  # noqa: B023
        assert keras_paths.keras_layer_name(next(node.name for node in graph.nodes if node.parameters())) in "".join(
            lines
        )
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
    model, tap = built(graphs[0])[0], graphs[0].by_name["classifier.conv"].inputs[0]
    part = keras.Model(model.input, model.get_layer(keras_paths.keras_layer_name(tap)).output)
    n, c, h, w = graphs[0].shapes(64, 96)[tap]
    assert part(keras.ops.zeros((1, 64, 96, 3))).shape == (n, h, w, c)


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
        op_cases.every_op(),
        op_cases.every_op(labels=True),
    ]


def parameter(graph: Graph, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    node, suffix = name.rsplit(".", 1)
    return keras_paths.to_keras(graph.by_name[node].op, suffix, weights[name])


def check_paths() -> None:
    """Every dataset and every label of the real file is predicted, and each parameter is where it is said to be."""
    graphs = path_graphs()  # the same code of Keras on each of its backends: a few will do on the slower ones
    for graph in graphs if ENGINE == "tensorflow" else graphs[-3:]:
        model = build.build(graph, dtype="float16")
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
