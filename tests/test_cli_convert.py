"""`convert` and `inspect`: what they tell, what they keep, and what they ask for."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from helpers import digests, lively, small_spec
from test_cli import call, fails

from deeplabzoo.cli.types import LAYOUT_NAMES
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.models import canonical_model
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.convert import read_source, write_model
from deeplabzoo.weights_converter.layouts import LAYOUTS
from deeplabzoo.weights_converter.ledger import digest
from deeplabzoo.zoo.presets import pytorch, tensorflow

SPEC = tensorflow.template(width=0.35, num_classes=3)
COUNT = len(build_graph(SPEC).parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model as TensorFlow's checkpoint, and one of bubbliiiing as a wrapped `.pth`."""
    folder = tmp_path_factory.mktemp("convert")
    write_model(lively(SPEC), folder / "tf.ckpt", layout="tensorflow")
    (folder / "tf.ckpt.toml").unlink()
    write_model(lively(pytorch.bubbliiiing("mobilenet_v2", 4)), folder / "b.pth", layout="bubbliiiing")
    (folder / "b.pth.toml").unlink()
    return folder


def test_the_help_names_every_layout():
    assert set(LAYOUT_NAMES) == set(LAYOUTS)
    text = call("convert", "--help").stdout
    for name in LAYOUT_NAMES:
        assert name in text


def test_ledger(folder, tmp_path):
    """Foreign name, shape, type, transform, canonical name and digest of every tensor on both sides."""
    result = call("convert", folder / "tf.ckpt", tmp_path / "m.pth", "--ledger", tmp_path / "l.json")
    assert "kept aside: no network uses it: global_step" in result.stderr
    ledger = json.loads((tmp_path / "l.json").read_text())
    source = formats.read(folder / "tf.ckpt").tensors
    rows = {row["foreign"]: row for row in ledger["source"]["tensors"]}
    assert set(rows) == set(source)
    for name, row in rows.items():
        assert (tuple(row["shape"]), row["dtype"]) == (source[name].shape, str(source[name].dtype))
        assert row["sha256"] == digest(source[name])
    assert rows["MobilenetV2/Conv/weights"]["canonical"] == "backbone.stem.conv.weight"
    assert rows["MobilenetV2/Conv/weights"]["transform"] == "HWIO -> OIHW"
    assert rows["global_step"]["canonical"] == ""
    written = formats.read(tmp_path / "m.pth").tensors
    there = {row["foreign"]: row["sha256"] for row in ledger["output"]["tensors"] if row["foreign"] in written}
    assert there == {name: digest(array) for name, array in written.items()}
    assert ledger["assumed"]
    fails("convert", folder / "tf.ckpt", tmp_path / "n.pth", "--ledger", tmp_path / "l.json", code=1, match="exists")
    assert not (tmp_path / "n.pth").exists()


def test_to_a_hub_folder_and_back(tmp_path):
    from deeplabzoo.zoo.presets import smp

    model = lively(smp.template("v3plus", "resnet18", 3))
    write_model(model, tmp_path / "m.safetensors")
    call("convert", tmp_path / "m.safetensors", f"{tmp_path}/hub/", "--to-layout", "smp")
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert (config["encoder_name"], config["classes"], config["decoder_atrous_rates"]) == ("resnet18", 3, [12, 24, 36])
    read = read_source(tmp_path / "hub")
    assert (read.format, read.layout, read.model.spec) == ("hub-folder", "smp", model.spec)
    plain = {n: a for n, a in read.model.weights.items() if not n.endswith("tracked")}
    assert digests(plain) == digests(model.weights)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype(folder, tmp_path, dtype):
    result = call("convert", folder / "tf.ckpt", tmp_path / "m.safetensors", "--dtype", dtype, "--json")
    tensors = formats.read(tmp_path / "m.safetensors").tensors
    assert {str(a.dtype) for n, a in tensors.items() if not n.startswith("spare:")} == {dtype}
    rows = json.loads(result.stdout)["written_ledger"]
    assert all(row["transform"].endswith(f"float32 -> {dtype}") for row in rows if row["canonical"])
    full = read_source(folder / "tf.ckpt").model.weights["backbone.stem.conv.weight"]
    close = tensors["backbone.stem.conv.weight"].astype(np.float64)
    assert np.abs(close - full).max() <= np.abs(full).max() * {"float16": 1e-3, "bfloat16": 8e-3, "float64": 0}[dtype]


def test_dtype_that_can_not_hold_a_value(folder, tmp_path):
    tensors = {n: np.array(a) for n, a in formats.read(folder / "b.pth").tensors.items()}
    tensors["cls_conv.bias"][0] = 1e6
    formats.write(tmp_path / "big.pth", tensors)
    result = call("convert", tmp_path / "big.pth", tmp_path / "m.pth", "--dtype", "float16")
    assert "note: float16 can't hold values of classifier.conv.bias: they became infinite" in result.stderr


def test_fields_that_no_tensor_tells(folder, tmp_path):
    """--set and --preset change what is assumed, what was said is no longer called an assumption."""
    told = json.loads(call("inspect", folder / "b.pth", "--json").stdout)
    assert "output.align_corners = True" in told["assumed"]
    options = (
        "--set",
        "output.align_corners=false",
        "--set",
        "aspp.rates=[12,24,36]",
        "--set",
        "backbone.padding=same",
    )
    told = json.loads(call("inspect", folder / "b.pth", *options, "--json").stdout)
    assert told["spec"]["output"]["align_corners"] is False
    assert told["spec"]["aspp"]["rates"] == [12, 24, 36]
    assert told["spec"]["backbone"]["padding"] == "same"
    assert not [line for line in told["assumed"] if line.startswith(("output.align_corners", "aspp.rates"))]
    call("convert", folder / "b.pth", tmp_path / "m.safetensors", *options)
    assert read_source(tmp_path / "m.safetensors").model.spec.to_dict() == told["spec"]
    for option, said in (
        ("output.align_corner=true", "unknown field 'output.align_corner'.*did you mean 'output.align_corners'"),
        ("aspp.channels=7", "other tensors than the file"),
        ("output.align_corners=maybe", "expected true or false"),
    ):
        fails("convert", folder / "b.pth", tmp_path / "x.pth", "--set", option, code=2, match=said)
    fails("inspect", folder / "b.pth", "--set", "nothing", code=2, match="expected FIELD=VALUE")


def test_preset(tmp_path):
    """mmseg's stride 16 with multi-grid has the tensors of its stride 8."""
    from deeplabzoo.zoo.presets import mmseg

    narrow = mmseg.template("v3plus", "resnet101", 5, kind="d16-mg124").narrowed(8)
    write_model(lively(narrow), tmp_path / "m.pth", layout="mmseg")
    (tmp_path / "m.pth.toml").unlink()
    assert read_source(tmp_path / "m.pth").model.spec.output_stride == 8
    call("convert", tmp_path / "m.pth", tmp_path / "m.safetensors", "--preset", "v3plus_resnet101.mmseg_d16_mg124")
    spec = read_source(tmp_path / "m.safetensors").model.spec
    assert (spec.output_stride, spec.backbone.multi_grid) == (16, (1, 2, 4))
    assert spec.num_classes == 5
    message = "has other tensors than the file"
    fails("convert", tmp_path / "m.pth", tmp_path / "x.pth", "--preset", "v3_resnet50", code=2, match=message)
    fails("convert", tmp_path / "m.pth", tmp_path / "x.pth", "--preset", "v3_resnet51", code=2, match="did you mean")


def test_inspect_tells_what_is_odd(folder, tmp_path):
    tensors = {n: np.array(a) for n, a in formats.read(folder / "b.pth").tensors.items()}
    tensors["cls_conv.weight"][0, 0] = np.nan
    tensors["cat_conv.0.weight"][:] = 0
    tensors["cat_conv.1.running_var"][3] = -1
    tensors["shortcut_conv.0.bias"][1] = np.inf
    tensors["cat_conv.4.bias"] = tensors["cat_conv.4.bias"].astype(np.float16)
    formats.write(tmp_path / "odd.pth", tensors)
    odd = json.loads(call("inspect", tmp_path / "odd.pth", "--json").stdout)["odd"]
    assert "values that are no number: cls_conv.weight" in odd
    assert "infinite values: shortcut_conv.0.bias" in odd
    assert "all zero: cat_conv.0.weight" in odd
    assert "negative variance: cat_conv.1.running_var" in odd
    assert any(line.startswith("several element types: ") and "1 of float16" in line for line in odd)
    assert json.loads(call("inspect", folder / "b.pth", "--json").stdout)["odd"] == []


def test_inspect_tells_of_doubles_slots_and_dead_tensors(tmp_path):
    from deeplabzoo.zoo.presets import PRESETS

    write_model(lively(pytorch.jfzhang95("mobilenet_v2", 3)), tmp_path / "j.pth", layout="jfzhang95")
    write_model(lively(PRESETS["v3_mobilenet_v2.hf"].make()), tmp_path / "h.pth", layout="hf")
    assert "612 names for 306 tensors, stored twice" in call("inspect", tmp_path / "j.pth").stdout
    text = call("inspect", tmp_path / "h.pth").stdout
    assert "kept aside: no network uses it: mobilenet_v2.conv_1x1.convolution.weight" in text
    write_model(lively(SPEC), tmp_path / "t.ckpt", layout="tensorflow")
    tensors = dict(formats.read(tmp_path / "t.ckpt").tensors)
    tensors["logits/semantic/weights/Momentum"] = tensors["logits/semantic/weights"]
    formats.write(tmp_path / "slots.ckpt", tensors)
    text = call("inspect", tmp_path / "slots.ckpt").stdout
    assert "left out: optimizer slot: logits/semantic/weights/Momentum" in text


def test_inspect_of_an_unknown_layout(tmp_path):
    """What is known is told all the same."""
    formats.write(tmp_path / "x.npz", {"a": np.ones(3, np.float32)})
    result = call("inspect", tmp_path / "x.npz", code=1)
    assert result.stdout.splitlines()[0].split() == ["format", "npz"]
    assert "1 of float32" in result.stdout
    assert "the layout of 1 tensors can't be told" in result.stderr
    told = json.loads(call("inspect", tmp_path / "x.npz", "--json", "--tensors", code=1).stdout)
    assert told["ledger"] == [{"foreign": "a", "shape": [3], "dtype": "float32"}]
    assert "can't be told" in told["error"]


def test_names_that_would_speak_to_the_terminal(tmp_path):
    """Cursor movements, line breaks and half characters are shown, never sent."""
    names = ("a\x1b[31mred", "b\ud800", "c\nnew")
    header = json.dumps(
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}
    ).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    told = call("inspect", "--tensors", path, code=1).stdout
    assert r"a\x1b[31mred" in told
    assert r"b\ud800" in told
    assert r"c\nnew" in told
    assert "\x1b" not in told


def test_verify(folder, tmp_path, requested):
    backends = ",".join(requested[:2])
    result = call("convert", folder / "tf.ckpt", tmp_path / "m.pth", "--verify", backends)
    assert f"{COUNT} tensors are bit for bit the source's" in result.stderr
    assert "passed" in result.stderr
    data = json.loads(
        call(
            "convert", folder / "tf.ckpt", tmp_path / "h.pth", "--dtype", "float16", "--verify", requested[0], "--json"
        ).stdout
    )
    assert data["verified"]["cast"] == COUNT
    assert data["verified"]["parity"]["passed"]
    fails("convert", folder / "tf.ckpt", "--dry-run", "--verify", "torch", code=2, match="leave --dry-run out")
    fails("convert", folder / "tf.ckpt", tmp_path / "k.pth", "--verify", "tensorflow", code=2, match="backend")
    assert not (tmp_path / "k.pth").exists()


def test_verification_finds_a_changed_tensor(folder, tmp_path):
    from deeplabzoo.errors import WeightsError
    from deeplabzoo.verification import verify
    from deeplabzoo.weights_converter.convert import convert

    done = convert(folder / "tf.ckpt", tmp_path / "m.pth")
    tensors = {n: np.array(a) for n, a in formats.read(tmp_path / "m.pth").tensors.items()}
    tensors["classifier.conv.bias"][0] += 1e-6
    formats.write(tmp_path / "m.pth", tensors, force=True)
    with pytest.raises(WeightsError, match=r"classifier\.conv\.bias is not the source's tensor"):
        verify(tmp_path / "m.pth", done.source.model, ["torch"])
    del tensors["classifier.conv.bias"]
    formats.write(tmp_path / "m.pth", tensors, force=True)
    with pytest.raises(Exception, match=r"1 missing: classifier\.conv\.bias"):
        verify(tmp_path / "m.pth", done.source.model, ["torch"])


def test_an_output_that_is_the_source(folder):
    fails(
        "convert", folder / "tf.ckpt", folder / "tf.ckpt", "--to-layout", "tensorflow", "--force", code=1, match="same"
    )
    fails("convert", folder / "tf.ckpt", folder / "tf.ckpt", "--to-layout", "tensorflow", code=1, match="exists")


def test_what_the_caller_says_is_no_longer_assumed(tmp_path):
    """And rates that follow the stride are told at their present values."""
    write_model(lively(small_spec()), tmp_path / "a.pth")
    (tmp_path / "a.pth").rename(tmp_path / "bare.pth")
    assumed = canonical_model(weights=tmp_path / "bare.pth")[0].card.provenance["assumed"].split("; ")
    model, _ = canonical_model(weights=tmp_path / "bare.pth", output_stride=8)
    said = model.card.provenance["assumed"].split("; ")
    assert "output_stride = 16" in assumed
    assert not [line for line in said if line.startswith("output_stride")]
    assert len(said) == len(assumed) - 1
    assert set(assumed) - set(said) > {"output_stride = 16"}  # the rates
