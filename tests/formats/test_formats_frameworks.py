"""Files written by the frameworks are read, and files written here are read by the frameworks, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from formats_samples import run_framework, same, sample, table

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats

TORCH = """
import torch
from collections import OrderedDict
folder = sys.argv[1] + "/"
def listing(state):
    def data(t): return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {k: [str(t.dtype).removeprefix("torch."), list(t.shape), digest(data(t))] for k, t in state.items()}
ours = torch.load(folder + "ours.pth", weights_only=True)
assert type(ours) is OrderedDict and all(t.is_contiguous() for t in ours.values())
assert listing(ours) == listing(torch.load(folder + "ours.pth", weights_only=True, mmap=True))
torch.manual_seed(0)
base = torch.randn(4, 6)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2).to(torch.bfloat16))
state = net.state_dict()
state.update(t=base.t(), part=base[1:3, ::2], row=base[2], p=torch.nn.Parameter(torch.ones(2)),
             h=base.half(), d=base.double(), b=base > 0, u=torch.arange(3, dtype=torch.uint8),
             i=torch.tensor(-5), e=torch.empty(0, 2), u32=torch.tensor([1, 2], dtype=torch.uint32), c=base.to(torch.complex64))
torch.save(state, folder + "zip.pth")
for protocol in (3, 4, 5):
    torch.save(state, folder + f"protocol{protocol}.pth", pickle_protocol=protocol)
old = {k: v for k, v in state.items() if k != "u32"}
torch.save(old, folder + "legacy.pth", _use_new_zipfile_serialization=False)
optimizer = torch.optim.Adam(net.parameters())
import argparse, collections, numpy, pathlib
torch.save({"epoch": 3, "model": {"module." + k: v for k, v in state.items()}, "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1), "best": numpy.float64(0.5), "losses": collections.defaultdict(list, a=[1]),
            "sched": collections.Counter([1, 2]), "out": pathlib.Path("a/b"), "tags": {1, 2}, "z": 1j,
            "seed": torch.get_rng_state()}, folder + "wrapped.pth")
torch.save({"state_dict": {"_orig_mod.module.a": base}}, folder + "compiled.pth")
torch.save({"generator": {"a": base}}, folder + "unknown.pth")
torch.save([base], folder + "list.pth")
torch.save(base, folder + "tensor.pth")
torch.save(net, folder + "module.pth")
torch.save({"a": base.to_sparse()}, folder + "sparse.pth")
torch.save({"a": torch.ones(1).expand(1000)}, folder + "expanded.pth")
torch.serialization.set_crc32_options(False)
torch.save(state, folder + "nocrc.pth")
import warnings
warnings.simplefilter("ignore")
torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder + "script.pth")
print(json.dumps({"ours": listing(ours), "state": listing(state)}))
"""


def test_torch(tmp_path):
    tensors = sample(unsigned=True)
    formats.write(tmp_path / "ours.pth", tensors)
    result = run_framework("torch", TORCH, tmp_path)
    assert result["ours"] == table(tensors)
    assert list(result["ours"]) == list(tensors)
    state = result["state"]
    for name in ("zip", "protocol3", "protocol4", "protocol5", "nocrc"):
        checkpoint = formats.read(tmp_path / f"{name}.pth")
        assert table(checkpoint.tensors) == state, name
        assert list(checkpoint.tensors) == list(state)
        assert (checkpoint.format, checkpoint.notes) == ("torch", ())
    legacy = formats.read(tmp_path / "legacy.pth")
    assert table(legacy.tensors) == {k: v for k, v in state.items() if k != "u32"}

    wrapped = formats.read(tmp_path / "wrapped.pth")
    assert table(wrapped.tensors) == state
    assert wrapped.notes[0] == "tensors found under 'model'"
    assert "optimizer (dict)" in wrapped.notes[1]
    assert "args (argparse.Namespace)" in wrapped.notes[1]
    assert wrapped.notes[2] == "'module.' prefix removed"
    compiled = formats.read(tmp_path / "compiled.pth")
    assert list(compiled.tensors) == ["a"]
    assert len(compiled.notes) == 3

    for name, said in {
        "unknown": "there are some under generator",
        "list": "holds a list; expected a dictionary",
        "tensor": "holds a tensor; expected a dictionary",
        "module": "refuses to call torch.nn.modules.container.Sequential",
        "sparse": "refuses to call torch",
        "expanded": "its storage has 1 elements",
        "script": "TorchScript",
    }.items():
        with pytest.raises(FormatError, match=said) as caught:
            formats.read(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)


PADDLE = """
import numpy as np, paddle, warnings
folder = sys.argv[1] + "/"
def listing(state):
    def one(t):
        kind = str(t.dtype).removeprefix("paddle.")
        return [kind, list(t.shape), digest(t.numpy().tobytes())]
    return {k: one(t) for k, t in state.items()}
ours = paddle.load(folder + "ours.pdparams")
plain = {k: v for k, v in paddle.load(folder + "ours.pdparams", return_numpy=True).items()}
assert all(isinstance(v, np.ndarray) for v in plain.values())
class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3)
        self.bn = paddle.nn.BatchNorm2D(4)
        self.big = paddle.nn.Linear(40, 50)
net = Net()
loaded = paddle.load(folder + "net.pdparams")
with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert net.set_state_dict(loaded) == ([], [])
assert listing(net.state_dict()) == listing(loaded)
state = net.state_dict()
for protocol in (2, 3, 4):
    paddle.save(state, folder + f"state{protocol}.pdparams", protocol=protocol)
extra = dict(state, b=state["big.weight"].astype("bfloat16"), i=paddle.to_tensor(3), t=paddle.to_tensor([True]),
             h=state["big.bias"].astype("float16"), e=paddle.zeros([0, 3]))
for protocol in (2, 4):
    paddle.save({**extra, "epoch": 3}, folder + f"extra{protocol}.pdparams", protocol=protocol)
paddle.save({"model": state, "epoch": 1}, folder + "wrapped.pdparams")
kept = paddle.ones([2])
paddle.save({"model": {"a": kept.value().get_tensor()}}, folder + "static.pdparams")
print(json.dumps({"ours": listing(ours), "state": listing(state), "extra": listing(extra)}))
"""


def _net(random: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {
        "conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "bn.weight": (4,), "bn.bias": (4,), "bn._mean": (4,),
        "bn._variance": (4,), "big.weight": (40, 50), "big.bias": (50,),
    }  # fmt: skip
    return {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}


def test_paddle(tmp_path):
    tensors = sample()
    formats.write(tmp_path / "ours.pdparams", tensors)
    formats.write(tmp_path / "net.pdparams", _net(np.random.default_rng(1)))
    result = run_framework("paddle", PADDLE, tmp_path)
    expected = table(tensors)
    assert list(result["ours"]) == list(tensors)
    assert result["ours"] == expected
    for protocol in (2, 3, 4):
        checkpoint = formats.read(tmp_path / f"state{protocol}.pdparams")
        assert table(checkpoint.tensors) == result["state"]
        assert list(checkpoint.tensors) == list(result["state"])
        assert "StructuredToParameterName@@" in checkpoint.notes[0]
    for protocol in (2, 4):
        checkpoint = formats.read(tmp_path / f"extra{protocol}.pdparams")
        assert table(checkpoint.tensors) == result["extra"]
        assert any("epoch (int)" in note for note in checkpoint.notes)
    wrapped = formats.read(tmp_path / "wrapped.pdparams")
    assert table(wrapped.tensors) == result["state"]
    assert wrapped.notes[0] == "tensors found under 'model'"
    assert formats.read(tmp_path / "static.pdparams").tensors["a"].tolist() == [1, 1]


KERAS = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, h5py
folder = sys.argv[1] + "/"
def build():
    keras.utils.clear_session()
    return keras.Sequential([keras.layers.Input((8, 8, 3)), *[keras.layers.Conv2D(3, 1, name=f"c{i}") for i in range(11)],
        keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Conv2D(2, 1, dtype="bfloat16"),
        keras.Sequential([keras.layers.Dense(2)], name="inner")])
def values(model): return [digest(np.asarray(v).tobytes()) for v in model.weights]
if sys.argv[2] == "save":
    model = build()
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    model.save_weights(folder + "theirs.weights.h5")
    tree = {}
    with h5py.File(folder + "theirs.weights.h5") as file:
        file.visititems(lambda name, item: tree.update({name: dict(item.attrs)}))
        data = {name: [file[name].attrs.get("dtype", str(file[name].dtype)), list(file[name].shape),
                       digest(file[name][()].tobytes())] for name in tree if isinstance(file[name], h5py.Dataset)}
    model.save(folder + "whole.keras")
    print(json.dumps([tree, data, values(model)]))
else:
    model = build()
    model.load_weights(folder + "ours.weights.h5")
    first = values(model)
    model = build()
    model.load_weights(folder + "bare.weights.h5")
    print(json.dumps([first, values(model)]))
"""


def test_keras(tmp_path):
    import h5py

    tree, data, values = run_framework("keras", KERAS, tmp_path, "save")
    checkpoint = formats.read(tmp_path / "theirs.weights.h5")
    assert table(checkpoint.tensors) == data
    assert checkpoint.labels["layers/conv2d_10"] == "c10"
    assert [name for name in checkpoint.tensors if "conv2d_1" in name][-2:] == [
        "layers/conv2d_11/vars/0",
        "layers/conv2d_11/vars/1",
    ]
    formats.write(tmp_path / "ours.weights.h5", checkpoint.tensors, metadata=checkpoint.labels)
    formats.write(tmp_path / "bare.weights.h5", checkpoint.tensors)
    ours: dict[str, dict[str, str]] = {}
    with h5py.File(tmp_path / "ours.weights.h5") as file:
        file.visititems(lambda name, item: ours.update({name: dict(item.attrs)}))
    assert ours == tree
    assert run_framework("keras", KERAS, tmp_path, "load") == [values, values]
    same(checkpoint.tensors, formats.read(tmp_path / "ours.weights.h5").tensors)
    whole = formats.read(tmp_path / "whole.keras")
    same(checkpoint.tensors, whole.tensors)
    assert whole.labels == checkpoint.labels
