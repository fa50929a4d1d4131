"""The Paddle backend as Paddle users know it.

Each test runs in a process of its own (`apart`), because pytest's process may hold other frameworks, whose native
libraries crash beside Paddle's.
"""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplabzoo.backends import resolve
from deeplabzoo.core import ops, reference
from deeplabzoo.core.analysis import all_taps_live
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import BACKBONES
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.interpolation import interpolation_matrix
from deeplabzoo.core.schedule import groups
from deeplabzoo.core.spec import ARCHITECTURES, make_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, WeightsError

FLOAT64, FLOAT32 = 1e-11, 2e-5
ODD, EVEN = (81, 97), (80, 96)
RATES = (1, 2, 3)
PADDLES_OWN = ("No ccache found", "Tensor do not have 'place' interface for pir graph mode")
"""Warnings that Paddle raises about itself, on import and in `to_static`'s backward; every other one is an error."""


def apart(check: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process of its own; its arguments must be plain data."""

    @functools.wraps(check)
    def test(**arguments: Any) -> None:
        ignored = [f"-Wignore:{start}" for start in PADDLES_OWN]
        call = [sys.executable, "-Werror", *ignored, __file__, check.__name__, json.dumps(arguments, default=str)]
        done = subprocess.run(call, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-25:])

    test.check = check
    return test


def make(graph: Graph, dtype: str = "float32", seed: int = 1) -> Any:
    """A Paddle model with lively weights."""
    model = resolve("paddle").module("build").build(graph, dtype=dtype)
    weights = seeded_weights(graph, seed, statistics="lively", dtype="float64")
    resolve("paddle").module("weights").load_weights(model, weights)
    return model


def image(size: tuple[int, int], batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, *size))


def error(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def judge(graph: Graph, x: np.ndarray, *, float32: bool) -> None:
    """The Paddle model against the numpy referee."""
    assert all_taps_live(graph, *x.shape[2:])
    run = resolve("paddle").module("run")
    truth = reference.forward(graph, seeded_weights(graph, 1, statistics="lively", dtype="float64"), x)
    for dtype, bound in (("float64", FLOAT64), ("float32", FLOAT32))[: 1 + float32]:
        found = run.forward(make(graph, dtype), x)
        assert list(found) == list(truth)
        for name, value in truth.items():
            assert found[name].dtype == (value.dtype if value.dtype == np.int64 else dtype)
            assert error(found[name], value) <= bound, (name, dtype)


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("arch", ["v3", "v3plus"])
@apart
def test_the_forward_pass_agrees_with_the_reference(arch, backbone):
    for output_stride, size in ((8, ODD), (16, ODD), (16, EVEN)):
        graph = build_graph(make_spec(arch, backbone=backbone, output_stride=output_stride, rates=RATES))
        judge(graph, image(size), float32=size == ODD)


SLIM = {"name": "resnet50", "stride_in": "last_unit", "padding": "same"}
VARIANTS = {
    "stride in the last unit, same padding, auxiliary head": ("v3", {"backbone": SLIM, "aux": True}),
    "strided and dilated with same padding": (
        "v3plus",
        {
            "backbone": {**SLIM, "stride_in": "conv2", "multi_grid": [2, 2, 2]},
            "output_stride": 32,
            "rates": [1, 2],
            "low_level": "stage2",
        },
    ),
    "multi-grid at stride 32": (
        "v3",
        {"backbone": {"name": "resnet50", "multi_grid": [1, 2, 2]}, "output_stride": 32, "rates": [1, 2], "aux": True},
    ),
    "pooling rounded up, plain decoder": (
        "v3plus",
        {"backbone": {"name": "resnet50", "pool_ceil": True}, "decoder": {"conv": "plain", "bias": True}},
    ),
    "separable decoder": ("v3plus", {"backbone": "mobilenet_v2", "decoder": {"conv": "separable", "convs": 1}}),
    "separable decoder with norms": (
        "v3plus",
        {
            "backbone": "mobilenet_v2",
            "decoder": {"conv": "separable_bn", "align_corners": True, "order": ["low_level", "aspp"]},
            "output": {"align_corners": True},
        },
    ),
    "biases and a wide fusion": (
        "v3",
        {
            "backbone": "mobilenet_v2",
            "aspp": {"rates": RATES, "bias": True, "pool_bias": True, "fusion_kernel": 3, "post_conv": "separable"},
            "classifier": {"bias": False},
        },
    ),
    "features resized": ("v3plus", {"backbone": "mobilenet_v2", "output": {"resize": "features"}}),
    "small map": ("v3", {"backbone": "mobilenet_v2", "output": {"size": "feature"}}),
    "labels": ("v3", {"backbone": "mobilenet_v2", "output": {"values": "labels"}}),
    "probabilities": ("v3plus", {"backbone": "mobilenet_v2", "output": {"values": "probabilities"}, "aux": True}),
    "image pooling alone": (
        "v3",
        {"backbone": "mobilenet_v2", "aspp": {"rates": [], "order": ["image_pooling", "conv1x1"]}, "output_stride": 8},
    ),
}


@pytest.mark.parametrize("odd", [True, False])
@apart
def test_every_option_agrees_with_the_reference(odd):
    for name, (arch, options) in VARIANTS.items():
        options = options if "aspp" in options else {"rates": RATES, **options}
        graph = build_graph(make_spec(arch, **options))
        judge(graph, image(ODD if odd else EVEN), float32=odd and name != "labels")


@apart
def test_layers_mean_what_their_ops_say():
    import paddle

    make_layer = resolve("paddle").module("ops").make_layer
    random = np.random.default_rng(0)

    def check(op, *shapes):
        try:
            op.infer(shapes)
        except Exception:
            return 0  # too small for the window: not an input of this op
        values = [random.standard_normal(shape) - 5 for shape in shapes]
        parameters = {name: random.standard_normal(shape) for name, shape in op.parameters().items()}
        paddle.set_default_dtype("float64")
        layer = make_layer(op)
        for name, value in parameters.items():
            getattr(layer, name).set_value(value)
        found = layer(*[paddle.to_tensor(value) for value in values]).numpy()
        assert error(found, reference.evaluate(op, values, parameters)) <= FLOAT64, op
        return 1

    checked = 0
    for height in range(3, 14):
        shape = (2, 4, height, height + 3)
        for kernel, stride, padding in (
            (3, 2, (1, 1, 1, 1)),
            (3, 2, (0, 1, 0, 1)),
            (3, 2, "same"),
            (2, 2, (1, 1, 1, 1)),
            (2, 3, (1, 0, 0, 1)),
            (1, 2, (0, 0, 0, 0)),
        ):
            for ceil_mode in (False, True):
                checked += check(ops.MaxPool(kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode), shape)
        for kernel, stride, dilation, groups_, padding in (
            (3, 2, 1, 1, "same"),
            (3, 2, 2, 4, "same"),
            (3, 3, 4, 1, "same"),
            (2, 4, 2, 1, "same"),
            (3, 1, 3, 4, "same"),
            (2, 1, 3, 1, "same"),
            (3, 2, 2, 1, (0, 1, 2, 3)),
        ):
            checked += check(
                ops.Conv2d(
                    in_channels=4,
                    out_channels=8,
                    kernel=kernel,
                    stride=stride,
                    dilation=dilation,
                    groups=groups_,
                    padding=padding,
                    bias=True,
                ),
                shape,
            )
        for align_corners in (False, True):
            for size in ((1, 1), (1, 7), (5, 4), (29, 31)):
                checked += check(ops.Resize(align_corners=align_corners), (2, 3, *size), shape)
                checked += check(ops.Resize(align_corners=align_corners), shape, (2, 3, *size))
    assert checked > 350
    with pytest.raises(TypeError, match="no Paddle layer for op 'input'"):
        make_layer(ops.Input(channels=3))


@apart
def test_the_interpolation_matrix_is_that_of_the_core():
    matrix = resolve("paddle").module("ops").interpolation_matrix
    for source in (1, 2, 5, 33, 65):
        for target in (1, 2, 17, 129, 513):
            for align_corners in (False, True):
                expected = interpolation_matrix(source, target, align_corners=align_corners)
                np.testing.assert_allclose(matrix(source, target, align_corners).numpy(), expected, rtol=0, atol=2e-14)


@apart
def test_dropout_scales_in_training_and_vanishes_in_evaluation():
    import paddle

    make_layer = resolve("paddle").module("ops").make_layer
    x = paddle.ones([4, 8, 16, 16])
    for channelwise in (False, True):
        layer = make_layer(ops.Dropout(rate=0.5, channelwise=channelwise))
        y = layer(x).numpy()
        assert set(np.unique(y)) == {0.0, 2.0}
        assert channelwise == all(len(np.unique(part)) == 1 for part in y.reshape(32, -1))
        layer.eval()
        assert np.array_equal(layer(x).numpy(), x.numpy())


@apart
def test_one_model_takes_every_size_and_batch():
    run = resolve("paddle").module("run")
    graph = build_graph(make_spec("v3plus", backbone="mobilenet_v2", rates=RATES))
    model, weights = make(graph, "float64"), seeded_weights(graph, 1, statistics="lively", dtype="float64")
    for size, batch in ((ODD, 1), (EVEN, 2), ((65, 80), 1)):
        x = image(size, batch)
        assert error(run.forward(model, x)["out"], reference.forward(graph, weights, x)["out"]) <= FLOAT64


@apart
def test_the_state_dict_follows_the_canonical_names(tmp_path):
    import paddle

    to_and_fro = resolve("paddle").module("weights")
    graph = build_graph(make_spec("v3plus", backbone="mobilenet_v2", aux=True))
    for dtype in ("float32", "float64"):
        model = make(graph, dtype)
        state = model.state_dict()
        renamed = [
            name.replace("running_mean", "_mean").replace("running_var", "_variance") for name in graph.parameters()
        ]
        assert sorted(state) == sorted(renamed)
        assert {str(tensor.dtype) for tensor in state.values()} == {f"paddle.{dtype}"}
        expected = seeded_weights(graph, 1, statistics="lively", dtype="float64")
        back = to_and_fro.read_weights(model)
        assert back.keys() == expected.keys()
        assert all(np.array_equal(back[name], expected[name].astype(dtype)) for name in expected)

        path = str(Path(tmp_path) / f"{dtype}.pdparams")
        paddle.save(state, path)
        other = resolve("paddle").module("build").build(graph, dtype=dtype)
        missing, unexpected = other.set_state_dict(paddle.load(path))
        assert (missing, unexpected) == ([], [])
        again = to_and_fro.read_weights(other)
        assert all(np.array_equal(again[name], back[name]) for name in back)


@apart
def test_weights_must_fit_and_may_be_read_only():
    to_and_fro = resolve("paddle").module("weights")
    graph = build_graph(make_spec("v3", backbone="mobilenet_v2"))
    model, weights = make(graph), seeded_weights(graph, 2)
    for array in weights.values():
        array.flags.writeable = False
    weights["backbone.stem.bn.num_batches_tracked"] = np.array(7)
    to_and_fro.load_weights(model, weights)
    assert np.array_equal(to_and_fro.read_weights(model)["classifier.conv.weight"], weights["classifier.conv.weight"])
    weights.pop("classifier.conv.bias")
    with pytest.raises(WeightsError, match=r"1 missing \(classifier.conv.bias\)"):
        to_and_fro.load_weights(model, weights)


@apart
def test_parts_are_layers_that_can_be_called_hooked_and_copied():
    import paddle

    graph = build_graph(make_spec("v3plus", backbone="resnet50"))
    model = make(graph)
    assert isinstance(model, paddle.nn.Layer)
    assert not model.training
    x = paddle.to_tensor(image((65, 65)), dtype="float32")
    seen = []
    handle = model.backbone.stage3.register_forward_post_hook(lambda layer, inputs, output: seen.append(output.shape))
    with paddle.no_grad():
        expected = model(x)
        assert seen == [[2, 1024, 5, 5]]
        handle.remove()
        made = dict(zip(model.backbone.outputs, model.backbone(x), strict=True))
        assert [list(value.shape) for value in made.values()] == [[2, 256, 17, 17], [2, 2048, 5, 5]]
        assert len(seen) == 1

        other = copy.deepcopy(model)
        assert np.array_equal(other(x).numpy(), expected.numpy())
        other.classifier.conv.weight.set_value(paddle.zeros_like(other.classifier.conv.weight))
        assert np.array_equal(model(x).numpy(), expected.numpy())
    with pytest.raises(TypeError, match="received 2 tensors, expected 1: input"):
        model.backbone(x, x)

    assert isinstance(model.backbone.stem.conv, paddle.nn.Conv2D)
    assert isinstance(model.backbone.stem.bn, paddle.nn.BatchNorm2D)
    assert model.backbone.stem.conv.bias is None
    model.train()
    assert all(layer.training for layer in model.sublayers())
    model.backbone.eval()
    assert not model.backbone.stem.bn.training
    assert model.aspp.training


@apart
def test_a_value_is_dropped_after_its_last_use():
    import paddle

    graph = build_graph(make_spec("v3plus", backbone="resnet50"))
    model = make(graph)
    made, alive = [], []

    def note(layer, inputs, output):
        made.append(weakref.ref(output))
        alive.append(sum(ref() is not None for ref in made))

    for name, layer in model.named_sublayers():
        if name in graph.by_name:
            layer.register_forward_post_hook(note)
    with paddle.no_grad():
        model(paddle.to_tensor(image((65, 65)), dtype="float32"))
    assert len(alive) == len(graph.nodes) - 1
    assert max(alive) <= 8  # the low level, and what ASPP joins


@apart
def test_an_auxiliary_head_makes_a_dictionary():
    import paddle

    model = make(build_graph(make_spec("v3", backbone="mobilenet_v2", aux=True)))
    results = model(paddle.to_tensor(image((65, 65)), dtype="float32"))
    assert {name: list(value.shape) for name, value in results.items()} == {
        "out": [2, 21, 65, 65],
        "aux": [2, 21, 65, 65],
    }


@pytest.mark.parametrize("full_graph", [True, False])
@apart
def test_to_static_computes_the_same(full_graph):
    import paddle

    model = make(build_graph(make_spec("v3", backbone="mobilenet_v2", aux=True)))
    static = paddle.jit.to_static(copy.deepcopy(model), full_graph=full_graph)
    x = paddle.to_tensor(image(ODD), dtype="float32")
    with paddle.no_grad():
        expected, found = model(x), static(x)
    assert list(found) == ["out", "aux"]
    for name, value in expected.items():
        assert error(found[name].numpy(), value.numpy()) <= 1e-6
    part = paddle.jit.to_static(copy.deepcopy(model.aspp), full_graph=full_graph)
    features = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 320, 6, 7)), dtype="float32")
    assert error(part(features).numpy(), model.aspp(features).numpy()) <= 1e-6


def check_export(graph: Graph, path: Path, dtype: str = "float32", bound: float = 1e-5) -> None:
    import paddle

    model = make(graph, dtype)
    paddle.jit.save(model, str(path), input_spec=[paddle.static.InputSpec([None, 3, None, None], dtype)])
    loaded = paddle.jit.load(str(path))
    loaded.eval()
    for size, batch in ((ODD, 2), (EVEN, 1)):
        x = paddle.to_tensor(image(size, batch), dtype=dtype)
        with paddle.no_grad():
            assert error(loaded(x).numpy(), model(x).numpy()) <= bound


@apart
def test_an_exported_mobilenet_takes_every_size(tmp_path):
    check_export(build_graph(make_spec("v3plus", backbone="mobilenet_v2")), Path(tmp_path) / "model")
    aligned = make_spec("v3", backbone="mobilenet_v2", output={"align_corners": True})
    check_export(build_graph(aligned), Path(tmp_path) / "aligned", "float64", FLOAT64)


@apart
def test_an_exported_resnet_with_strided_dilated_same_padding_takes_every_size(tmp_path):
    backbone = {**SLIM, "stride_in": "conv2", "multi_grid": [2, 2, 2], "pool_ceil": True}
    check_export(build_graph(make_spec("v3", backbone=backbone, output_stride=32)), Path(tmp_path) / "model")


@apart
def test_exported_windows_take_every_size(tmp_path):
    import paddle

    pool = ops.MaxPool(kernel=2, stride=2, padding=(1, 1, 1, 1), ceil_mode=True)
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 3, 1), resolve("paddle").module("ops").make_layer(pool))
    path = str(Path(tmp_path) / "pool")
    paddle.jit.save(layer, path, input_spec=[paddle.static.InputSpec([None, 3, None, None], "float32")])
    loaded = paddle.jit.load(path)
    for size in (ODD, EVEN):
        x = paddle.to_tensor(image(size), dtype="float32")
        assert np.array_equal(loaded(x).numpy(), layer(x).numpy())


@apart
def test_a_training_step_learns():
    import paddle

    graph = build_graph(make_spec("v3plus", backbone="mobilenet_v2", aux=True, num_classes=5))
    model = make(graph)
    model.train()
    before = resolve("paddle").module("weights").read_weights(model)
    optimizer = paddle.optimizer.Momentum(0.001, parameters=model.parameters())
    x = paddle.to_tensor(image((65, 65)), dtype="float32")
    labels = paddle.to_tensor(np.random.default_rng(0).integers(0, 5, (2, 65, 65)))
    losses = []
    paddle.seed(0)
    for _ in range(4):
        results = model(x)
        loss = sum(paddle.nn.functional.cross_entropy(y, labels, axis=1) for y in results.values())
        loss.backward()
        trainable = [p for p in model.parameters() if p.trainable]
        assert len(trainable) == sum(not name.endswith(("running_mean", "running_var")) for name in before)
        assert all(p.grad is not None for p in trainable)
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = resolve("paddle").module("weights").read_weights(model)
    # Not all biases: before another batch norm their gradient is zero.
    assert [name for name in before if np.array_equal(after[name], before[name]) and not name.endswith(".bias")] == []


@apart
def test_running_statistics_take_the_unbiased_variance():
    import paddle

    make_layer = resolve("paddle").module("ops").make_layer
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 5)) * 2 + 1
    count = x.size / 3
    mean, biased = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    for momentum in (0.9, 0.1, 0.9997, 0.0):
        momentum = ops.float32_exact(momentum)
        epsilon = ops.float32_exact(1e-3)
        paddle.set_default_dtype("float64")
        layer = make_layer(ops.BatchNorm(channels=3, epsilon=epsilon, momentum=momentum))
        layer._mean.set_value(np.array([0.5, -1.0, 2.0]))
        layer._variance.set_value(np.array([0.3, 1.0, 7.0]))
        old_mean, old_variance = layer._mean.numpy().copy(), layer._variance.numpy().copy()
        given = paddle.to_tensor(x, stop_gradient=False)
        y = layer(given)
        expected = (x - mean[:, None, None]) / np.sqrt(biased + epsilon)[:, None, None]
        assert error(y.numpy(), expected) <= 1e-12
        new_mean = momentum * old_mean + (1 - momentum) * mean
        new_variance = momentum * old_variance + (1 - momentum) * biased * count / (count - 1)
        assert error(layer._mean.numpy(), new_mean) <= 1e-12
        assert error(layer._variance.numpy(), new_variance) <= 1e-12
        assert layer._variance.stop_gradient

        upstream = np.random.default_rng(1).standard_normal(x.shape)
        (y * paddle.to_tensor(upstream)).sum().backward()
        centred = upstream - upstream.mean(axis=(0, 2, 3), keepdims=True)
        centred = centred - expected * (upstream * expected).mean(axis=(0, 2, 3), keepdims=True)
        gradient = centred / np.sqrt(biased + epsilon)[:, None, None]
        assert error(given.grad.numpy(), gradient) <= 1e-12

        layer.eval()
        layer(given)
        assert error(layer._variance.numpy(), new_variance) <= 1e-12
        layer.train()
        layer._use_global_stats = True  # Paddle's own way to freeze them
        with pytest.warns(UserWarning, match="we now always track"):
            frozen = layer(given)
        assert error(layer._variance.numpy(), new_variance) <= 1e-12
        assert (
            error(frozen.numpy(), (x - new_mean[:, None, None]) / np.sqrt(new_variance + epsilon)[:, None, None])
            <= 1e-12
        )


@pytest.mark.parametrize("full_graph", [True, False])
@apart
def test_to_static_trains_the_same(full_graph):
    import paddle

    graph = build_graph(make_spec("v3", backbone="mobilenet_v2", aspp={"dropout": 0.0}))
    dynamic = make(graph, "float64")
    static = paddle.jit.to_static(copy.deepcopy(dynamic), full_graph=full_graph)
    x = paddle.to_tensor(image((65, 65)))
    states = []
    for model in (dynamic, static):
        model.train()
        optimizer = paddle.optimizer.SGD(0.001, parameters=model.parameters())
        model(x).square().mean().backward()
        optimizer.step()
        states.append(resolve("paddle").module("weights").read_weights(model))
    for name, value in states[0].items():
        assert error(states[1][name], value) <= 1e-9, name


@apart
def test_one_value_a_channel_is_refused_in_training():
    import paddle

    model = make(build_graph(make_spec("v3", backbone="mobilenet_v2")))
    x = paddle.to_tensor(image((65, 65), batch=1), dtype="float32")
    model(x)
    model.train()
    with pytest.raises(
        ValueError, match=r"256 channels in training mode received one value a channel.*use a batch of 2"
    ):
        model(x)


@apart
def test_building_leaves_the_process_as_it_was():
    import paddle

    backend = resolve("paddle")
    graph = build_graph(make_spec("v3", backbone="mobilenet_v2"))
    paddle.set_default_dtype("float64")
    model = backend.module("build").build(graph)
    assert paddle.get_default_dtype() == "float64"
    assert paddle.get_device() == "cpu"
    assert {str(p.dtype) for p in model.parameters()} == {"paddle.float32"}
    assert all(p.place.is_cpu_place() for p in model.parameters())
    with pytest.raises(BackendError, match=r"'float16'.*builds float64 or float32.*auto_cast"):
        backend.module("build").build(graph, dtype="float16")
    assert paddle.get_default_dtype() == "float64"

    run = backend.module("run")
    assert run.devices()[0] == "cpu"
    run.configure("cpu")
    if "gpu" not in run.devices():
        run.configure("gpu")  # left to the caller to refuse
        assert paddle.get_device() == "cpu"
    assert run.device_name("cpu") == "CPU"


@apart
def test_no_part_of_a_name_is_an_attribute_of_paddles_layer():
    import paddle

    taken = set(dir(paddle.nn.Layer())) | {"inputs", "outputs", "graph"}
    for family in BACKBONES:
        for arch in ARCHITECTURES:
            graph = build_graph(make_spec(arch, backbone=family, aux=True))
            parts = {part for name in (*groups(graph), *graph.by_name) for part in name.split(".")}
            assert not parts & taken


def test_the_flags_need_no_paddle():
    code = (
        "import sys; from deeplabzoo.backends.paddle import flags; "
        "assert 'paddle' not in sys.modules and flags.FLOAT64 and flags.WEIGHTS_SUFFIX == '.pdparams'"
    )
    subprocess.run([sys.executable, "-Werror", "-c", code], check=True, timeout=60)


if __name__ == "__main__":
    globals()[sys.argv[1]].check(**json.loads(sys.argv[2]))
