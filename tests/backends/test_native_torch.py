"""A model of the PyTorch backend is what PyTorch users expect of any `nn.Module`."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import numpy as np
import pytest
from helpers import lively, small_spec, with_counters
from torch_common import AUX, SPEC, asked_for, build, torch, truth, x  # noqa: F401

import deeplabzoo
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core.weights import counters
from deeplabzoo.errors import WeightsError
from deeplabzoo.parity.compare import error
from deeplabzoo.weights_converter.convert import write_model


@pytest.fixture(scope="module")
def model():
    return build()


def test_state_dict(model):
    """Canonical names in canonical order, with torch's own counters after each variance."""
    graph = build_graph(SPEC)
    keys = list(model.state_dict())
    assert [k for k in keys if not k.endswith("num_batches_tracked")] == list(graph.parameters())
    assert [k for k in keys if k.endswith("num_batches_tracked")] == counters(graph)
    for name in counters(graph):
        assert keys[keys.index(name) - 1] == name.replace("num_batches_tracked", "running_var")
    assert {k: tuple(v.shape) for k, v in model.state_dict().items() if k in graph.parameters()} == graph.parameters()
    trainable = {n for n, _ in model.named_parameters()}
    assert trainable == {n for n in graph.parameters() if not n.endswith(("running_mean", "running_var"))}
    assert all(p.requires_grad for p in model.parameters())


def test_strict_load(model, tmp_path):
    other = deeplabzoo.build(SPEC, backend="torch", seed=3)
    other.load_state_dict(model.state_dict(), strict=True)
    images = x(1, 3, 33, 49)
    assert torch.equal(other(images), model(images))
    # A file of the converter is a state dict, without a wrapper.
    write_model(with_counters(lively(SPEC)), tmp_path / "m.pth")
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    third = deeplabzoo.build(SPEC, backend="torch", seed=4)
    assert not torch.equal(third(images), model(images))
    third.load_state_dict(state, strict=True)
    assert torch.equal(third(images), model(images))
    assert third.state_dict()["backbone.stem.bn.num_batches_tracked"] == 7
    # Without the counters, which a Keras or Paddle model has not, strict loading wants them as in every torch model.
    torch.save(model.state_dict(), tmp_path / "t.pth")
    loaded = deeplabzoo.load(tmp_path / "t.pth", spec=SPEC)
    assert torch.equal(loaded(images), model(images))


def test_seed_and_weights():
    a, b, c = (deeplabzoo.build(SPEC, backend="torch", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["classifier.conv.weight"], c["classifier.conv.weight"])
    cut = {n: w for n, w in lively(SPEC).weights.items() if n != "classifier.conv.bias"}
    with pytest.raises(WeightsError, match=r"1 missing \(classifier\.conv\.bias\)"):
        deeplabzoo.build(SPEC, weights=cut, backend="torch")
    # The model owns its memory: the arrays it was filled from stay as they were.
    arrays = lively(SPEC).weights
    before = arrays["classifier.conv.weight"].copy()
    native = deeplabzoo.build(SPEC, weights=arrays, backend="torch")
    with torch.no_grad():
        native.classifier.conv.weight.zero_()
    np.testing.assert_array_equal(arrays["classifier.conv.weight"], before)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(33, 49), (64, 96), (40, 57)])
def test_forward(model, batch, size):
    assert not model.training
    images = x(batch, 3, *size)
    y = model(images)
    assert isinstance(y, torch.Tensor)
    assert y.shape == (batch, 5, *size)
    assert error(y.detach().numpy(), truth(SPEC, images)["out"]) <= 2e-5


def test_auxiliary_output_is_a_dict():
    native = build(AUX, dtype="float64")
    images = x(2, 3, 33, 49, dtype=torch.float64)
    made = native(images)
    assert list(made) == ["out", "aux"]
    for name, values in truth(AUX, images).items():
        assert error(made[name].detach().numpy(), values) <= 1e-11


def test_parts_are_callable(model):
    images = x(1, 3, 64, 96)
    seen = []
    hook = model.backbone.stage3.register_forward_hook(lambda module, inputs, output: seen.append(output))
    low, deep = model.backbone(images)
    hook.remove()
    assert low.shape == (1, 48, 16, 24)
    assert deep.shape[2:] == (8, 12)
    assert len(seen) == 1
    assert model.backbone.outputs == ("backbone.stage2.block2.depthwise.relu6", "backbone.stage7.block1.project.bn")
    y = model.classifier(model.decoder(low, model.aspp(deep)))
    assert torch.equal(model.output(y, images), model(images))
    v3 = build(small_spec("v3"))
    feature = v3.backbone(images)
    assert isinstance(feature, torch.Tensor)
    assert torch.equal(v3.output(v3.classifier(v3.aspp(feature)), images), v3(images))
    part = model.backbone.stage3.block2.depthwise
    assert isinstance(part.conv, torch.nn.Conv2d)
    assert isinstance(part.bn, torch.nn.BatchNorm2d)


def test_hooks_see_each_stage(model):
    """A hook on a group fires in the model's own forward, with that group's values."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
        for name, module in (("stage4", model.backbone.stage4), ("fusion", model.aspp.fusion))
    ]
    model(x(1, 3, 64, 96))
    for hook in hooks:
        hook.remove()
    assert seen["fusion"].shape == (1, 16, 8, 12)
    assert seen["stage4"].shape[2:] == (8, 12)


def test_freezing_and_replacing_a_part():
    native = build()
    native.backbone.requires_grad_(False)
    native.classifier.conv = torch.nn.Conv2d(24, 2, 1)
    images = x(2, 3, 33, 33)
    native.train()
    native.backbone.eval()
    native(images).sum().backward()
    assert native(images).shape[1] == 2
    assert all(p.grad is None for p in native.backbone.parameters())
    assert all(p.grad is not None for p in native.decoder.parameters())


def test_deepcopy_and_pickle(model):
    images = x(1, 3, 33, 49)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), reloaded(model)):
        assert torch.equal(other(images), model(images))
        assert other.graph == model.graph
        with torch.no_grad():
            other.classifier.conv.weight.zero_()
        assert model.classifier.conv.weight.abs().sum() > 0
    assert "backbone" in repr(model)
    assert "align_corners" in repr(model)


def reloaded(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def test_train_and_eval():
    spec = small_spec(aspp={"dropout": 0.5})
    native = build(spec)
    images = x(2, 3, 33, 49)
    assert torch.equal(native(images), native(images))
    native.train()
    assert native.aspp.dropout.training
    before = native.backbone.stem.bn.running_mean.clone()
    assert not torch.equal(native(images), native(images))
    assert not torch.equal(native.backbone.stem.bn.running_mean, before)
    assert native.backbone.stem.bn.num_batches_tracked == 2
    native.eval()
    assert torch.equal(native(images), native(images))
    # One value a channel has no variance: PyTorch's own error, before anything is changed there.
    native.train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        native(images[:1])
    native.aspp.image_pooling.eval()
    assert native(images[:1]).shape == (1, 5, 33, 49)


def test_running_statistics_follow_the_formula():
    native = build(dtype="float64").train()
    images = x(2, 3, 33, 49, dtype=torch.float64)
    bn, kept = native.backbone.stem.bn, {}
    hook = bn.register_forward_hook(lambda module, inputs, output: kept.update(x=inputs[0].detach(), y=output.detach()))
    mean, var = bn.running_mean.clone(), bn.running_var.clone()
    native(images)
    hook.remove()
    momentum = build_graph(SPEC).by_name["backbone.stem.bn"].op.momentum
    assert momentum == float(np.float32(0.997))
    value = kept["x"]
    count = value.numel() / value.shape[1]
    batch_mean, biased = value.mean((0, 2, 3)), value.var((0, 2, 3), correction=0)
    unbiased = biased * count / (count - 1)
    torch.testing.assert_close(bn.running_mean, momentum * mean + (1 - momentum) * batch_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(bn.running_var, momentum * var + (1 - momentum) * unbiased, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(bn.running_var, momentum * var + (1 - momentum) * biased, rtol=1e-9, atol=0)
    normal = (value - batch_mean[:, None, None]) / torch.sqrt(biased + bn.eps)[:, None, None]
    expected = normal * bn.weight[:, None, None] + bn.bias[:, None, None]
    torch.testing.assert_close(kept["y"], expected.detach(), rtol=1e-10, atol=1e-12)


def test_one_optimizer_step():
    native = build(AUX).train()
    images, labels = x(2, 3, 33, 49), torch.zeros(2, 33, 49, dtype=torch.long)
    optimizer = torch.optim.SGD(native.parameters(), 0.01)
    losses = []
    for _ in range(5):
        made = native(images)
        loss = sum(torch.nn.functional.cross_entropy(made[name], labels) for name in ("out", "aux"))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in native.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["block", "conv"])
def test_values_are_dropped_after_their_last_use(name):
    """Only what a later part reads stays alive; a group's input lives as long as the call of the group, as everywhere."""
    native = build()
    alive, counts = [], {}
    watched = native.backbone.stem.conv if name == "conv" else native.backbone.stage1.block1
    watched.register_forward_hook(lambda module, inputs, output: alive.append(weakref.ref(output)))

    def count(module, inputs, output, part):
        gc.collect()
        counts[part] = sum(ref() is not None for ref in alive)

    for part in ("stage3", "stage5"):
        getattr(native.backbone, part).register_forward_hook(lambda m, i, o, part=part: count(m, i, o, part))
    with torch.inference_mode():
        native(x(1, 3, 33, 33))
    assert len(alive) == 1
    assert counts == {"stage3": 0, "stage5": 0}


def test_memory_of_a_pass():
    """Peak of live activations: a small multiple of the largest one, not the sum of all."""
    native, sizes, refs, peak = build(make_spec("v3", backbone="mobilenet_v2", rates=(1, 2, 3))), [], [], 0

    def note(module, inputs, output):
        nonlocal peak
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel())
            refs.append(weakref.ref(output))
            peak = max(peak, sum(t.numel() for ref in refs if (t := ref()) is not None))

    for module in native.modules():
        if not list(module.children()):
            module.register_forward_hook(note)
    with torch.inference_mode():
        native(x(1, 3, 97, 129))
    assert peak <= 4 * max(sizes)
    assert sum(sizes) > 4 * peak


def test_float_types():
    images = x(1, 3, 33, 49)
    exact = truth(SPEC, images)["out"]
    for dtype, low, high in (("float64", 0, 1e-11), ("float32", 1e-9, 2e-5), ("bfloat16", 1e-4, 0.2)):
        native = build(dtype=dtype)
        parameter = next(native.parameters())
        assert str(parameter.dtype) == f"torch.{dtype}"
        y = native(images.double().to(parameter.dtype))
        assert y.dtype == parameter.dtype
        exact_here = truth(SPEC, images.double())["out"] if dtype == "float64" else exact
        assert low <= error(y.detach().double().numpy(), exact_here) <= high


def test_channels_last_and_autocast(model):
    images = x(2, 3, 64, 96)
    expected = model(images)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    y = last(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(images)
    assert mixed.shape == expected.shape
    assert mixed.dtype == torch.bfloat16
    assert 1e-4 < error(mixed.detach().float().numpy(), expected.detach().numpy()) < 0.1


@pytest.mark.slow
def test_torchvision_loads_our_file(tmp_path):
    """Where torchvision is installed its own class takes our file strictly and answers the same."""
    models = pytest.importorskip("torchvision.models.segmentation", reason="torchvision is not installed")
    spec = deeplabzoo.spec("v3_resnet50.torchvision")
    write_model(lively(spec), tmp_path / "tv.pth", layout="torchvision")
    theirs = models.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    theirs.load_state_dict(torch.load(tmp_path / "tv.pth", weights_only=True), strict=True)
    images = x(1, 3, 97, 129)
    with torch.no_grad():
        made, ours = theirs(images), build(spec)(images)
    for name in ("out", "aux"):
        torch.testing.assert_close(made[name], ours[name], rtol=1e-4, atol=1e-4)
