"""The Paddle backend as Paddle users know it.

Each test that is `in_paddle` runs in a process of Paddle's own, because pytest's may hold other frameworks, whose
native libraries crash beside Paddle's.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from apart import in_paddle
from paddle_common import EVEN, FLOAT64, ODD, RATES, SLIM, SMALL, error, image, judge, lively, make, network

from deeplabzoo.backends import resolve
from deeplabzoo.core import reference
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import BACKBONES
from deeplabzoo.core.schedule import groups
from deeplabzoo.core.spec import ARCHITECTURES, make_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, WeightsError


@pytest.mark.slow  # `test_parity.py` has the same matrix with a narrower head
@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("arch", ["v3", "v3plus"])
@in_paddle
def test_the_forward_pass_agrees_with_the_reference(arch, backbone):
    for output_stride, size in ((8, ODD), (16, ODD), (16, EVEN)):
        graph = build_graph(make_spec(arch, backbone=backbone, output_stride=output_stride, rates=RATES))
        judge(graph, image(size), float32=size == ODD)


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
    "separable decoder": ("v3plus", {"backbone": SMALL, "decoder": {"conv": "separable", "convs": 1}}),
    "separable decoder with norms": (
        "v3plus",
        {
            "backbone": SMALL,
            "decoder": {"conv": "separable_bn", "align_corners": True, "order": ["low_level", "aspp"]},
            "output": {"align_corners": True},
        },
    ),
    "biases and a wide fusion": (
        "v3",
        {
            "backbone": SMALL,
            "aspp": {"rates": RATES, "bias": True, "pool_bias": True, "fusion_kernel": 3, "post_conv": "separable"},
            "classifier": {"bias": False},
        },
    ),
    "features resized": ("v3plus", {"backbone": SMALL, "output": {"resize": "features"}}),
    "small map": ("v3", {"backbone": SMALL, "output": {"size": "feature"}}),
    "labels": ("v3", {"backbone": SMALL, "output": {"values": "labels"}}),
    "probabilities": ("v3plus", {"backbone": SMALL, "output": {"values": "probabilities"}, "aux": True}),
    "image pooling alone": (
        "v3",
        {"backbone": SMALL, "aspp": {"rates": [], "order": ["image_pooling", "conv1x1"]}, "output_stride": 8},
    ),
}


@pytest.mark.parametrize("odd", [True, False])
@in_paddle
def test_every_option_agrees_with_the_reference(odd):
    for name, (arch, options) in VARIANTS.items():
        options = options if "aspp" in options else {"rates": RATES, **options}
        graph = network(arch, **options)
        judge(graph, image(ODD if odd else EVEN), float32=odd and name != "labels")


@in_paddle
def test_one_model_takes_every_size_and_batch():
    run = resolve("paddle").module("run")
    graph = build_graph(make_spec("v3plus", backbone="mobilenet_v2", rates=RATES))
    model, weights = make(graph, "float64"), lively(graph)
    for size, batch in ((ODD, 1), (EVEN, 2), ((65, 80), 1)):
        x = image(size, batch)
        assert error(run.forward(model, x)["out"], reference.forward(graph, weights, x)["out"]) <= FLOAT64


@in_paddle
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
        expected = lively(graph)
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


@in_paddle
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


@in_paddle
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


@in_paddle
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


@in_paddle
def test_an_auxiliary_head_makes_a_dictionary():
    import paddle

    model = make(build_graph(make_spec("v3", backbone="mobilenet_v2", aux=True)))
    results = model(paddle.to_tensor(image((65, 65)), dtype="float32"))
    assert {name: list(value.shape) for name, value in results.items()} == {
        "out": [2, 21, 65, 65],
        "aux": [2, 21, 65, 65],
    }


@in_paddle
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


@in_paddle
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


@in_paddle
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


@in_paddle
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
        "assert 'paddle' not in sys.modules and 'float64' in flags.DTYPES and flags.WEIGHTS_SUFFIX == '.pdparams'"
    )
    subprocess.run([sys.executable, "-Werror", "-c", code], check=True, timeout=60)
