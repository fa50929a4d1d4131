"""Models of the Paddle backend in `paddle.jit.to_static` and as exported programs."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import numpy as np
import op_cases
import pytest
from apart import in_paddle
from paddle_common import EVEN, FLOAT64, ODD, SLIM, error, image, lively, make

from deeplabzoo.backends import resolve
from deeplabzoo.core import ops
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import make_spec


def modes(slow):
    """Both ways of `to_static`; they take seconds to follow a network, so that each network has one in `make test`."""
    marks = {slow: pytest.mark.slow}
    return pytest.mark.parametrize("full_graph", [pytest.param(m, marks=marks.get(m, ())) for m in (True, False)])


def check_values(graph, full_graph):
    import paddle

    model = make(graph)
    static = paddle.jit.to_static(copy.deepcopy(model), full_graph=full_graph)
    x = paddle.to_tensor(image(ODD), dtype="float32")
    with paddle.no_grad():
        expected, found = model(x), static(x)
    assert list(found) == ["out", "aux"]
    for name, value in expected.items():
        assert error(found[name].numpy(), value.numpy()) <= 1e-6
    return model


def check_training(graph, full_graph):
    import paddle

    dynamic = make(graph, "float64")
    static = paddle.jit.to_static(copy.deepcopy(dynamic), full_graph=full_graph)
    x = paddle.to_tensor(image((65, 65)))
    states = []
    for model in (dynamic, static):
        model.train()
        for layer in model.sublayers():
            if isinstance(layer, paddle.nn.Dropout):
                layer.eval()
        optimizer = paddle.optimizer.SGD(0.001, parameters=model.parameters())
        results = model(x)
        parts = results.values() if isinstance(results, dict) else [results]
        sum(part.square().mean() for part in parts).backward()
        optimizer.step()
        states.append(resolve("paddle").module("weights").read_weights(model))
    start = lively(graph)
    assert any(not np.array_equal(states[0][name], start[name]) for name in start)
    for name, value in states[0].items():
        assert error(states[1][name], value) <= 1e-9, name


@pytest.mark.parametrize("full_graph", [True, False])
@in_paddle
def test_to_static_follows_every_op(full_graph):
    check_values(op_cases.every_op(), full_graph)
    check_training(op_cases.every_op(), full_graph)


@modes(slow=False)
@in_paddle
def test_to_static_computes_the_same(full_graph):
    import paddle

    model = check_values(build_graph(make_spec("v3", backbone="mobilenet_v2", aux=True)), full_graph)
    part = paddle.jit.to_static(copy.deepcopy(model.aspp), full_graph=full_graph)
    features = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 320, 6, 7)), dtype="float32")
    assert error(part(features).numpy(), model.aspp(features).numpy()) <= 1e-6


@modes(slow=True)
@in_paddle
def test_to_static_trains_the_same(full_graph):
    check_training(build_graph(make_spec("v3", backbone="mobilenet_v2", aspp={"dropout": 0.0})), full_graph)


def check_export(graph: Graph, path: Path, dtype: str = "float32", bound: float = 1e-5) -> None:
    import paddle

    model = make(graph, dtype)
    sorts = pytest.warns(UserWarning, match="lexicographical") if len(graph.outputs) > 1 else contextlib.nullcontext()
    with sorts:
        paddle.jit.save(model, str(path), input_spec=[paddle.static.InputSpec([None, 3, None, None], dtype)])
    loaded = paddle.jit.load(str(path))
    loaded.eval()
    for size, batch in ((ODD, 2), (EVEN, 1), ((66, 79), 1)):
        x = paddle.to_tensor(image(size, batch), dtype=dtype)
        with paddle.no_grad():
            expected, found = model(x), loaded(x)
        expected = [expected[name] for name in sorted(expected)] if isinstance(expected, dict) else [expected]
        found = found if isinstance(found, list | tuple) else [found]
        for a, b in zip(found, expected, strict=True):
            assert error(a.numpy(), b.numpy()) <= bound


@in_paddle
def test_every_op_is_exported_for_every_size(tmp_path):
    check_export(op_cases.every_op(), Path(tmp_path) / "model", "float64", FLOAT64)


@in_paddle
def test_an_exported_mobilenet_takes_every_size(tmp_path):
    check_export(build_graph(make_spec("v3plus", backbone="mobilenet_v2")), Path(tmp_path) / "model")


@pytest.mark.slow
@in_paddle
def test_an_exported_resize_to_the_corners_takes_every_size(tmp_path):
    aligned = make_spec("v3", backbone="mobilenet_v2", output={"align_corners": True})
    check_export(build_graph(aligned), Path(tmp_path) / "aligned", "float64", FLOAT64)


@in_paddle
def test_an_exported_resnet_with_strided_dilated_same_padding_takes_every_size(tmp_path):
    backbone = {**SLIM, "stride_in": "conv2", "multi_grid": [2, 2, 2], "pool_ceil": True}
    check_export(build_graph(make_spec("v3", backbone=backbone, output_stride=32)), Path(tmp_path) / "model")


@in_paddle
def test_exported_windows_take_every_size(tmp_path):
    import paddle

    make_layer = resolve("paddle").module("ops").make_layer
    common = {"kernel": 2, "stride": 2, "ceil_mode": True}
    for index, pool in enumerate(
        (
            ops.MaxPool(padding=(1, 1, 1, 1), **common),
            ops.AvgPool(padding=(1, 1, 1, 1), **common),
            ops.AvgPool(padding=(0, 1, 0, 1), count_padding=True, **common),
        )
    ):
        layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 3, 1), make_layer(pool))
        path = str(Path(tmp_path) / f"pool{index}")
        paddle.jit.save(layer, path, input_spec=[paddle.static.InputSpec([None, 3, None, None], "float32")])
        loaded = paddle.jit.load(path)
        for size in (ODD, EVEN):
            x = paddle.to_tensor(image(size), dtype="float32")
            np.testing.assert_allclose(loaded(x).numpy(), layer(x).numpy(), rtol=1e-6, atol=1e-6)
