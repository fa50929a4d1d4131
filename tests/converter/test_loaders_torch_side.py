"""What users of the PyTorch and Paddle projects really hold: wrappers, options of their classes, near relatives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import digests, lively

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import ResNet
from deeplabzoo.errors import FormatError, LayoutError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.convert import convert, read_source, write_model
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts import detect_layout, get_layout
from deeplabzoo.weights_converter.layouts.base import hollow
from deeplabzoo.weights_converter.ledger import to_foreign
from deeplabzoo.zoo.presets import mmseg, paddleseg, pytorch, smp, torchvision


def tensors_of(spec, layout):
    """The tensors of a network without values, as the project's file would name them."""
    shapes = build_graph(spec).parameters()
    return {e.foreign: hollow(shapes.get(e.canonical, ())) for e in get_layout(layout).entries(spec, "torch")}


def small(arch, **changes):
    """Smp's class at an eighth of the width, so that files of it are small."""
    spec = smp.template(arch, "resnet18", **changes)
    return spec.replace(backbone=spec.backbone.replace(width=0.125), aspp=spec.aspp.replace(channels=8))


def hub(folder, spec, **config):
    """A hub folder as smp's `save_pretrained` leaves it, with other arguments in its `config.json`."""
    write_model(lively(spec), f"{folder}/", layout="smp")
    folder.with_name(f"{folder.name}.toml").unlink()
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    return folder


def with_resnet(spec, **options):
    """Another ResNet with the same options but these."""
    return spec.replace(backbone=ResNet.from_dict({**spec.backbone.to_dict(), **options}))


MORE = {
    "r18b": ("mmseg", mmseg.template("v3", "resnet18", kind="b-d8")),
    "r34": ("mmseg", mmseg.template("v3plus", "resnet34", 5)),
    "r34 without auxiliary head": ("mmseg", mmseg.template("v3", "resnet34").replace(aux=None)),
    "r18d": ("mmseg", with_resnet(mmseg.template("v3", "resnet18"), shortcut="avg_pool")),
    "v2 r50": ("kazuto", with_resnet(pytorch.kazuto("v2"), name="resnet50")),
    "v3plus r50": ("kazuto", with_resnet(pytorch.kazuto("v3plus", 5), name="resnet50")),
}


@pytest.mark.parametrize("case", MORE)
def test_networks_without_published_weights(case):
    name, spec = MORE[case]
    checkpoint = Checkpoint(tensors_of(spec, name), "torch")
    layout = detect_layout(checkpoint)[0]
    assert layout.name == name
    assert layout.read_spec(checkpoint).spec == spec
    assert spec.title in layout.networks()
    assert layout.differences(spec) == []


def test_paddleseg_xception71_is_refused():
    """Equal tensors, but a stride of 64 that no spec has."""
    with pytest.raises(LayoutError, match=r"has no v3plus_xception71, but v3_resnet101, .*v3plus_xception65"):
        tensors_of(paddleseg.template("v3plus", "xception71"), "paddleseg")


@pytest.mark.parametrize(
    ("encoder", "name", "tap"),
    [
        ("xception41", "encoder.model.blocks_11.stack.conv2.conv_pw.weight", "entry.block2.relu3"),
        ("xception65", "encoder.model.blocks_19.stack.conv2.conv_pw.weight", "entry.block2.relu3"),
        ("xception71", "encoder.model.blocks_21.stack.conv2.conv_pw.weight", "entry.block3.relu3"),
        ("mobilenet_v2", "encoder.model.blocks.5.2.conv_pwl.weight", "stage2"),
        ("mobilenet_v3_large", "encoder.model.blocks.6.0.conv.weight", "stage2"),
    ],
)
def test_encoders_of_timm(encoder, name, tap):
    tensors = tensors_of(smp.template("v3plus", encoder, 5, timm=True), "smp-timm")
    assert name in tensors
    read = read_source(tensors)
    assert (read.layout, read.model.spec.backbone.name) == ("smp-timm", encoder)
    assert (read.model.spec.decoder.low_level, read.model.spec.num_classes) == (tap, 5)


def test_xception71_with_all_its_shortcuts_has_stride_16():
    layout = get_layout("smp-timm")
    tensors = tensors_of(smp.template("v3", "xception71", timm=True), "smp-timm")
    assert layout.read_spec(Checkpoint(tensors, "torch")).spec.output_stride == 16
    without = {name: array for name, array in tensors.items() if "blocks_4.shortcut" not in name}
    with pytest.raises(LayoutError, match=r"with v3_xception71, first encoder\.model\.blocks_4\.shortcut"):
        read_source(without)


@pytest.mark.parametrize(("arch", "branch"), [("v3", "separable"), ("v3plus", "plain")])
@pytest.mark.parametrize("layout", ["smp", "smp-timm"])
def test_kind_of_smp_branches_is_read(arch, branch, layout):
    spec = smp.template(arch, "resnet18", timm=layout == "smp-timm")
    other = spec.replace(aspp=spec.aspp.replace(branch=branch))
    read = read_source(tensors_of(other, layout))
    assert read.model.spec == other


def test_image_level_head_is_kept_aside_and_given_back(tmp_path):
    spec = small("v3plus", num_classes=3)
    head = {
        "classification_head.3.weight": np.arange(256, dtype=np.float32).reshape(4, 64),
        "classification_head.3.bias": np.arange(4, dtype=np.float32),
    }
    tensors = {**to_foreign(lively(spec).weights, get_layout("smp"), spec, "torch")[0], **head}
    read = read_source(tensors)
    assert digests(read.model.spares) == digests(head)
    convert(tensors, tmp_path / "ours.safetensors")
    for output in ("back.pth", "back/"):
        convert(tmp_path / "ours.safetensors", f"{tmp_path}/{output}", to_layout="smp")
        assert digests(formats.read(tmp_path / output.rstrip("/")).tensors) == digests(tensors)
    assert list(formats.read(tmp_path / "back.pth").tensors) == list(tensors)
    assert json.loads((tmp_path / "back/config.json").read_text())["aux_params"] == {"classes": 4}
    convert({name: a for name, a in tensors.items() if name not in head}, f"{tmp_path}/bare/", to_layout="smp")
    assert json.loads((tmp_path / "bare/config.json").read_text())["aux_params"] is None


@pytest.mark.parametrize(
    ("classes", "activation", "values"),
    [
        (3, None, "logits"),
        (3, "identity", "logits"),
        (3, "softmax", "probabilities"),
        (3, "softmax2d", "probabilities"),
        (1, "sigmoid", "probabilities"),
    ],
)
def test_activation_of_a_hub_folder(tmp_path, classes, activation, values):
    folder = hub(tmp_path / "hub", small("v3", num_classes=classes), activation=activation)
    done = convert(folder, f"{tmp_path}/back/", to_layout="smp")
    assert done.source.model.spec.output.values == values
    assert done.notes == ()
    assert f"output.values = {values}" in done.source.told or values == "logits"
    assert json.loads((tmp_path / "back/config.json").read_text())["activation"] == activation


@pytest.mark.parametrize(("classes", "activation"), [(3, "sigmoid"), (1, "softmax"), (3, "tanh"), (3, ["sigmoid"])])
def test_activation_that_no_spec_says(tmp_path, classes, activation):
    folder = hub(tmp_path / "hub", small("v3", num_classes=classes), activation=activation)
    done = convert(folder, f"{tmp_path}/back/", to_layout="smp")
    assert done.source.model.spec.output.values == "logits"
    assert [note for note in done.notes if note.startswith("config.json says activation = ")] == list(done.notes)
    assert len(done.notes) == 1
    assert json.loads((tmp_path / "back/config.json").read_text())["activation"] == activation


def test_activation_asked_for_reaches_the_folder(tmp_path):
    folder = hub(tmp_path / "hub", small("v3", num_classes=3), activation="softmax2d")
    convert(folder, f"{tmp_path}/logits/", to_layout="smp", changes={"output.values": "logits"})
    assert json.loads((tmp_path / "logits/config.json").read_text())["activation"] is None
    convert(tmp_path / "logits", f"{tmp_path}/a/", to_layout="smp", changes={"output.values": "probabilities"})
    assert json.loads((tmp_path / "a/config.json").read_text())["activation"] == "softmax2d"


def test_other_arguments_of_a_hub_folder(tmp_path):
    said = {"upsampling": 4, "encoder_name": "resnet18.a1_in1k", "aux_params": None, "library": "theirs"}
    folder = hub(tmp_path / "hub", small("v3"), **said)
    done = convert(folder, f"{tmp_path}/back/", to_layout="smp")
    (note,) = done.notes
    assert "upsampling = 4, which is not taken along" in note
    assert "as upsampling = 8 does" in note
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert {name: back[name] for name in said} == said
    other = hub(tmp_path / "other", small("v3plus"), upsampling=4, encoder_name="tf_resnet18")
    (note,) = read_source(other).notes
    assert note.startswith("config.json says encoder_name = tf_resnet18, which has the tensors of resnet18")


def test_buffers_around_the_network_of_a_lightning_module(tmp_path):
    spec = small("v3plus")
    tensors = to_foreign(lively(spec).weights, get_layout("smp"), spec, "torch")[0]
    around = {"mean": np.zeros((1, 3, 1, 1)), "std": np.ones((1, 3, 1, 1)), "loss_fn.weight": np.ones(5)}
    formats.write(tmp_path / "a.pth", {**{f"model.{name}": tensors[name] for name in tensors}, **around})
    read = read_source(tmp_path / "a.pth")
    assert "'model.' prefix removed" in read.notes
    assert digests(read.model.weights) == digests(read_source(tensors).model.weights)
    assert {row.foreign: row.transform for row in read.ledger if not row.canonical} == {
        "mean": "left out: a buffer of the module around the network",
        "std": "left out: a buffer of the module around the network",
        "loss_fn.weight": "left out: of the loss",
    }


def test_prefix_that_would_make_two_names_one_stays(tmp_path):
    names = {f"model.{n}.weight": np.zeros(1) for n in range(30)}
    formats.write(tmp_path / "a.pth", {**names, "model.mean": np.zeros(1), "mean": np.ones(1)})
    assert list(formats.read(tmp_path / "a.pth").tensors) == [*names, "model.mean", "mean"]
    # Too many without it: then these are the network's.
    formats.write(tmp_path / "b.pth", {**names, **{f"b{n}": np.zeros(1) for n in range(4)}})
    assert "model.0.weight" in formats.read(tmp_path / "b.pth").tensors
    with pytest.raises(FormatError, match="several networks"):
        formats.write(tmp_path / "c.pth", {"student.a": np.zeros(1), "teacher.a": np.zeros(1), "mean": np.zeros(1)})
        formats.read(tmp_path / "c.pth")


def wide(tensors):
    """Wide ResNet: twice the channels inside every block, the names of ResNet-50."""
    inner = (".conv1.", ".conv2.", ".bn1.", ".bn2.")
    return {
        name: hollow((2 * array.shape[0], *array.shape[1:]))
        if ".layer" in name and any(part in name for part in inner) and array.ndim
        else array
        for name, array in tensors.items()
    }


def basic(tensors):
    """ResNet-34 under the names of ResNet-50: two convolutions a block."""
    return {name: array for name, array in tensors.items() if ".conv3." not in name and ".bn3." not in name}


def efficient(tensors):
    """Another encoder altogether."""
    return {
        f"encoder._blocks.{n}.weight" if name.startswith("encoder.") else name: array
        for n, (name, array) in enumerate(tensors.items())
    }


@pytest.mark.parametrize(
    ("layout", "spec", "change", "nearest"),
    [
        ("torchvision", torchvision.template("resnet50", 21, aux=False), wide, "v3_resnet50"),
        ("torchvision", torchvision.template("resnet50", 21, aux=False), basic, "v3_resnet50"),
        ("smp", smp.template("v3plus", "resnet50"), wide, "v3plus_resnet50"),
        ("smp", smp.template("v3plus", "resnet50"), efficient, "v3plus_resnet50"),
        ("mmseg", mmseg.template("v3", "resnet50"), wide, "v3_resnet50"),
    ],
)
def test_near_relatives_are_refused_in_one_short_line(layout, spec, change, nearest):
    with pytest.raises(LayoutError) as caught:
        read_source(change(tensors_of(spec, layout)))
    message = str(caught.value)
    assert f"layout {layout}" in message
    assert "\n" not in message
    assert len(message) < 900
    for known in get_layout(layout).networks():
        assert known in message
    assert nearest in message


def test_names_in_a_complaint_are_few_and_on_one_line():
    tensors = tensors_of(torchvision.template("resnet50", 21, aux=False), "torchvision")
    with pytest.raises(LayoutError) as caught:
        read_source({**tensors, "a\n\x1b[31m." + "x" * 500: hollow((1,))})
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 500
    assert "this layout has" not in message  # one tensor too many is no other network


def test_multi_scale_wrapper_is_told():
    tensors = tensors_of(pytorch.kazuto("v2"), "kazuto")
    assert read_source(tensors).notes == ()
    (note,) = read_source({f"base.{name}": array for name, array in tensors.items()}).notes
    assert "multi-scale wrapper" in note
    assert "v2_resnet101 inside it" in note


def test_rates_asked_for_outlast_another_stride():
    tensors = tensors_of(torchvision.template("resnet50", 21, aux=False), "torchvision")
    read = read_source(tensors, output_stride=16)
    assert read.model.spec.rates == (6, 12, 18)
    assert "aspp.rates = [6, 12, 18]" in read.assumed
    assert not [line for line in read.assumed if line.startswith("output_stride")]
    asked = read_source(tensors, output_stride=16, changes={"aspp.rates": [12, 24, 36]})
    assert (asked.model.spec.output_stride, asked.model.spec.rates) == (16, (12, 24, 36))
    assert not [line for line in asked.assumed if line.startswith(("output_stride", "aspp.rates"))]
