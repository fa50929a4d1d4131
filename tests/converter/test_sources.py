"""What comes into the converter: wrapped networks, live modules, quantised weights, several networks in one file."""

from __future__ import annotations

import json
import threading
import zipfile

import numpy as np
import pytest
from helpers import digests, lively, python, small_spec, with_counters

from deeplabzoo.errors import FormatError, WeightsError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.convert import convert, read_source
from deeplabzoo.weights_converter.formats import _tf_writer, tf_checkpoint
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.weights_converter.ledger import to_foreign

SPEC = small_spec("v3", aux={"channels": 8}, output_stride=16, rates=(1, 2, 3))
MODEL = with_counters(lively(SPEC))


def wrapped(prefix="module.", file_format="torch"):
    tensors, _ = to_foreign(MODEL.weights, get_layout("deeplabzoo"), SPEC, file_format)
    return {prefix + name: np.array(array) for name, array in tensors.items()}


def of_hub(folder, tensors):
    formats.write(folder / "whole.safetensors", tensors)
    hub = folder / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "a.bin")}))
    formats.write(folder / "a.pth", tensors)
    (folder / "a.pth").rename(hub / "a.bin")
    return hub


@pytest.mark.parametrize("kind", ["x.safetensors", "x.npz", "x.pth", "x.pdparams", "hub", "memory"])
def test_prefixes_go_from_every_state_dict(tmp_path, kind):
    source = wrapped("module._orig_mod.", "paddle" if kind.endswith("pdparams") else "torch")
    if kind == "hub":
        source = of_hub(tmp_path, source)
    elif kind != "memory":
        formats.write(tmp_path / kind, source)
        source = tmp_path / kind
    read = read_source(source)
    assert read.layout == "deeplabzoo"
    counted = {n: a for n, a in MODEL.weights.items() if not (n.endswith("tracked") and kind.endswith("pdparams"))}
    assert digests(read.model.weights) == digests(counted)
    assert [note for note in read.notes if "prefix" in note] == [
        "'module.' prefix removed",
        "'_orig_mod.' prefix removed",
    ]


def test_names_without_a_prefix_stay():
    tensors = wrapped("")
    assert read_source(tensors).notes == ()
    with pytest.raises(FormatError, match="the tensors in memory: holds several networks, student and teacher"):
        read_source(wrapped("student.") | wrapped("teacher."))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool"])
def test_whole_numbers_are_no_weights(tmp_path, dtype):
    tensors = wrapped("")
    name = "backbone.stem.conv.weight"
    tensors[name] = tensors[name].astype(dtype)
    formats.write(tmp_path / "x.safetensors", tensors)
    for source in (tensors, tmp_path / "x.safetensors"):
        with pytest.raises(WeightsError, match=f"{name} is of {dtype}, expected floating point: quantised weights"):
            convert(source)


def test_another_network_under_a_name_that_tells_nothing(tmp_path):
    import pickle

    state = {f"{n}.weight": np.ones(2, "f4") for n in range(4)}
    value = {
        "state_dict": state,
        "swa_state_dict": {name: array * 2 for name, array in state.items()},
        "discriminator": {"module": state | {"x": np.ones(1)}},
        "optimizer": state,
        "prototypes": {"a": np.ones(1)},
    }
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, 2))
    notes = formats.read(tmp_path / "x.pth").notes
    assert notes[1] == (
        "another network left out, found under 'swa_state_dict', 'discriminator': save it alone to have it read"
    )
    assert "optimizer (dict), prototypes (dict)" in notes[2]


@pytest.mark.parametrize("there", [False, True])
def test_of_two_writers_of_a_checkpoint_one_waits(tmp_path, monkeypatch, there):
    prefix = tmp_path / "m.ckpt"
    old, one, two = ({"a": np.full(50, value, "f4")} for value in (0, 1, 2))
    if there:
        formats.write(prefix, old)
    at_work = _tf_writer._replace if there else _tf_writer._place
    other = threading.Thread(target=formats.write, args=(prefix, two), kwargs={"force": True})
    waited = []

    def interrupted(new, target):
        monkeypatch.undo()
        other.start()
        other.join(0.5)
        waited.append(other.is_alive())
        at_work(new, target)

    monkeypatch.setattr(_tf_writer, at_work.__name__, interrupted)
    formats.write(prefix, one, force=True)
    other.join()
    assert waited == [True]
    assert formats.read(prefix).tensors["a"][0] == 2
    assert sorted(tmp_path.iterdir()) == sorted(formats.outputs(prefix))


def test_a_reader_never_mixes_two_checkpoints(tmp_path, monkeypatch):
    prefix = tmp_path / "m.ckpt"
    formats.write(prefix, {"a": np.zeros(5, "f4")})
    found = tf_checkpoint._shard
    versions = [1, 2]

    def late(path):
        if versions:
            formats.write(prefix, {"a": np.full(5, versions.pop(0), "f4")}, force=True)
        return found(path)

    monkeypatch.setattr(tf_checkpoint, "_shard", late)
    assert formats.read(prefix).tensors["a"].tolist() == [2] * 5


LIVE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
import deeplabzoo as dz
from torch import nn
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import BatchNorm, Conv2d
from deeplabzoo.weights_converter.convert import read_source
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.weights_converter.native import checkpoint_of
from deeplabzoo.zoo.models import named_spec

own = dz.build("v3_mobilenet_v2", backbone={"name": "mobilenet_v2", "width": 0.35}, backend="torch", output_stride=16)

class Training(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = own
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(21))

same = []
for wrapper in (nn.DataParallel(own), torch.compile(own), Training()):
    read = read_source(wrapper)
    same.append([read.model.spec == own.spec, *[note for note in read.notes if "prefix" in note]])

half = {f"module.{name}": nn.Parameter(tensor.bfloat16()) if tensor.is_floating_point() else tensor
        for name, tensor in own.state_dict().items()}
dtypes = sorted({str(a.dtype) for a in read_source(half).model.weights.values()})

spec = named_spec("v3_mobilenet_v3_large.torchvision")
foreign = {e.canonical: e.foreign for e in get_layout("torchvision").entries(spec, "torch") if e.canonical}
network = nn.Module()
for node in build_graph(spec).nodes:
    op, path = node.op, foreign.get(f"{node.name}.weight", "").rpartition(".")[0]
    rate = {"aspp.branch1.conv": 6, "aspp.branch2.conv": 12, "aspp.branch3.conv": 18}.get(node.name)
    if isinstance(op, Conv2d):
        shapes = node.parameters()
        o, i, *_ = shapes[f"{node.name}.weight"]
        made = nn.Conv2d(i * op.groups, o, op.kernel, op.stride, dilation=rate or op.dilation, groups=op.groups,
                         padding="same" if rate else 0, bias=f"{node.name}.bias" in shapes)
    elif isinstance(op, BatchNorm):
        made = nn.BatchNorm2d(node.parameters()[f"{node.name}.weight"][0], eps=op.epsilon)
    else:
        continue
    *folders, last = path.split(".")
    here = network
    for folder in folders:
        here.add_module(folder, nn.Module()) if not hasattr(here, folder) else None
        here = getattr(here, folder)
    here.add_module(last, made)
facts = checkpoint_of(nn.DataParallel(network))[0].facts["graph"]
branch = next(c for c in facts["convolutions"] if c["weights"] == foreign["aspp.branch2.conv.weight"])
print(json.dumps([same, dtypes, branch, len(facts["batch_norms"]), list(read_source(network).model.spec.aspp.rates)]))
"""


def test_live_modules_of_torch(requested):
    if "torch" not in requested:
        pytest.skip("torch is not in DEEPLABZOO_TEST_BACKENDS")
    same, dtypes, branch, norms, rates = python(LIVE)
    assert same == [[True, f"'{prefix}.' prefix removed"] for prefix in ("module", "_orig_mod", "model")]
    assert dtypes == ["bfloat16", "int64"]
    assert {name: branch[name] for name in ("strides", "dilations", "pads", "group", "auto_pad")} == {
        "strides": [1, 1], "dilations": [12, 12], "pads": [12] * 4, "group": 1, "auto_pad": "NOTSET",
    }  # fmt: skip
    assert norms > 40
    assert rates == [6, 12, 18]


PADDLE = """
import json, warnings
warnings.simplefilter("ignore")
from paddle import nn
from deeplabzoo.weights_converter.native import checkpoint_of

net = nn.Sequential(
    nn.Conv2D(3, 4, 3, stride=2, padding=[1, 2, 3, 4], dilation=6), nn.Conv2D(4, 4, 3, padding="same", groups=4),
    nn.Conv2DTranspose(4, 4, 3), nn.BatchNorm2D(4, epsilon=1e-3),
)
print(json.dumps(checkpoint_of(net)[0].facts["graph"]))
"""

KERAS = """
import json, os
os.environ["KERAS_BACKEND"] = "torch"
import keras
from deeplabzoo.weights_converter.layouts.keras_facts import layers_of
from deeplabzoo.weights_converter.native import checkpoint_of

image = keras.Input((None, None, 3))
net = keras.Model(image, keras.layers.Conv2D(4, 3, dilation_rate=6, name="aspp")(image))

class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = net

own = Own()
own.build((None, None, None, 3))
print(json.dumps([layers_of(checkpoint_of(net)[0].facts["config"])[1], list(checkpoint_of(own)[0].tensors)]))
"""


def test_live_layers_of_paddle(requested):
    if "paddle" not in requested:
        pytest.skip("paddle is not in DEEPLABZOO_TEST_BACKENDS")
    usual = {"strides": [1, 1], "dilations": [1, 1], "auto_pad": "NOTSET"}
    assert python(PADDLE) == {
        "convolutions": [
            {**usual, "name": "0", "weights": "0.weight", "strides": [2, 2], "dilations": [6, 6], "pads": [1, 3, 2, 4], "group": 1},
            {**usual, "name": "1", "weights": "1.weight", "pads": [1, 1, 1, 1], "group": 4},
        ],
        "batch_norms": [{"name": "3", "epsilon": 1e-3, "scale": "3.weight"}],
        "resizes": [],
    }  # fmt: skip


def test_live_models_of_keras(requested):
    if "keras" not in requested:
        pytest.skip("keras is not in DEEPLABZOO_TEST_BACKENDS")
    (kind, made), names = python(KERAS)
    assert (kind, made["name"], made["dilation_rate"]) == ("Conv2D", "aspp", [6, 6])
    assert names == ["aspp/kernel", "aspp/bias"]
