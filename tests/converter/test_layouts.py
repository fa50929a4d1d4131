"""Layouts: which one, which spec, every tensor accounted for."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import digests, lively, small_spec, with_counters

from deeplabzoo.core.spec import make_spec
from deeplabzoo.errors import LayoutError, SpecError
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.weights_converter.convert import convert, read_source
from deeplabzoo.weights_converter.layouts import LAYOUTS, get_layout
from deeplabzoo.weights_converter.ledger import to_canonical, to_foreign
from deeplabzoo.zoo.presets import tensorflow, torchvision

TF_SPECS = {
    "published": tensorflow.template(),
    "width 0.35": tensorflow.template(width=0.35, num_classes=3),
    "width 0.5": tensorflow.template(width=0.5, num_classes=19),
    "width 1.4": tensorflow.template(width=1.4, num_classes=151),
    "one class, grey": tensorflow.template(num_classes=1, in_channels=1, channels=64),
    "atrous": tensorflow.template(width=0.5, order=("image_pooling", "conv1x1", "atrous")),
    "decoder": tensorflow.template(width=0.5, decoder=True, output_stride=16),
    "decoder and atrous": tensorflow.template(width=0.5, order=("image_pooling", "conv1x1", "atrous"), decoder=True),
    "no image pooling": tensorflow.template(width=0.35, order=("conv1x1",)),
}
TV_SPECS = {
    "50": torchvision.template("resnet50", 21, aux=False, channels=(3, 32, 0)),
    "50 aux": torchvision.template("resnet50", 7, aux=True, channels=(4, 16, 8)),
}


def foreign(model: Canonical, layout: str, file_format: str = "torch") -> dict[str, np.ndarray]:
    return to_foreign(model.weights, get_layout(layout), model.spec, file_format)[0]


@pytest.fixture(scope="module")
def torchvision_small() -> Canonical:
    return lively(TV_SPECS["50 aux"])


@pytest.mark.parametrize("spec", TF_SPECS.values(), ids=TF_SPECS)
def test_tensorflow_layout(spec):
    model = lively(spec)
    tensors = foreign(model, "tensorflow", "safetensors")
    read = read_source(tensors)
    assert read.layout == "tensorflow"
    assert read.model.spec == spec
    assert digests(read.model.weights) == digests(model.weights)
    assert list(read.model.weights) == list(model.weights)
    # The ledger: each tensor in exactly one row, and no parameter filled twice.
    assert sorted(row.foreign for row in read.ledger) == sorted(tensors)
    assert sorted(row.canonical for row in read.ledger if row.canonical) == sorted(model.weights)
    assert tensors["MobilenetV2/Conv/weights"].shape[:2] == (3, 3)
    transforms = {row.transform for row in read.ledger if row.canonical}
    assert transforms == {"as is", "HWIO -> OIHW", "HWCM -> (C*M)1HW"}


def test_tensorflow_ignores_training_state_and_nothing_else():
    model = lively(TF_SPECS["width 0.35"])
    tensors = foreign(model, "tensorflow", "safetensors")
    extra = {
        "global_step": np.array(30000),
        "MobilenetV2/Conv/weights/Momentum": np.zeros(1),
        "logits/semantic/biases/Adam": np.zeros(1),
        "logits/semantic/biases/ExponentialMovingAverage": np.zeros(1),
    }
    read = read_source({**tensors, **extra})
    left = {row.foreign: row.transform for row in read.ledger if not row.canonical}
    assert set(left) == set(extra)
    assert left["global_step"] == "kept aside: no network uses it"
    assert left["MobilenetV2/Conv/weights/Momentum"] == "left out: optimizer slot"
    with pytest.raises(LayoutError, match="1 unexpected: MobilenetV2/Conv/bias"):
        read_source({**tensors, "MobilenetV2/Conv/bias": np.zeros(8)})


@pytest.mark.parametrize("case", TV_SPECS)
def test_torchvision_layout(case, torchvision_small):
    model = torchvision_small if case == "50 aux" else lively(TV_SPECS[case])
    tensors = foreign(model, "torchvision")
    read = read_source(tensors)
    assert (read.layout, read.model.spec) == ("torchvision", model.spec)
    counted = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert len(counted) == (61 if model.spec.aux else 60)
    assert all(tensors[name] == 0 and tensors[name].dtype == np.int64 for name in counted)
    back = {name: a for name, a in read.model.weights.items() if not name.endswith("num_batches_tracked")}
    assert digests(back) == digests(model.weights)
    assert sorted(row.foreign for row in read.ledger) == sorted(tensors)
    told = " ".join(read.told)
    assert "backbone.name = resnet50" in told
    assert f"num_classes = {model.spec.num_classes}" in told
    assumed = " ".join(read.assumed)
    for line in ("output_stride = 8", "aspp.rates = [12, 24, 36]", "first_block_dilation = previous"):
        assert line in assumed


def test_resnet101_in_torchvision_layout():
    spec = torchvision.template("resnet101", 21, aux=True)
    entries = get_layout("torchvision").entries(spec, "torch")
    assert len(entries) == 676
    assert len({entry.foreign for entry in entries}) == len({entry.canonical for entry in entries}) == 676
    assert entries[-1].foreign == "aux_classifier.4.bias"
    hollow = {e.foreign: np.broadcast_to(np.float32(0), (21, 1, 1, 1)) for e in entries}
    with pytest.raises(LayoutError, match="v3_resnet101"):  # recognised by its 23 blocks, then refused by shape
        read_source(hollow)


def test_missing_unexpected_and_misshapen(torchvision_small):
    tensors = foreign(torchvision_small, "torchvision")
    missing = ["backbone.layer2.3.bn2.running_var", "backbone.bn1.bias"]
    broken = {name: a for name, a in tensors.items() if name not in missing}
    broken |= {"zz.weight": np.zeros(1), "backbone.layer9.weight": np.zeros(1)}
    broken["classifier.1.weight"] = broken["classifier.1.weight"][:, :, :1]
    with pytest.raises(LayoutError) as caught:
        read_source(broken)
    message = str(caught.value)
    assert "first backbone.bn1.bias" in message
    assert "2 missing: backbone.bn1.bias, backbone.layer2.3.bn2.running_var" in message
    assert "2 unexpected: backbone.layer9.weight, zz.weight" in message
    assert "1 of the wrong shape: classifier.1.weight (16, 16, 1, 3), expected (16, 16, 3, 3)" in message
    assert "\n" not in message
    many = {name: a for name, a in tensors.items() if ".layer3." not in name or ".bn" not in name}
    with pytest.raises(LayoutError, match=r"72 missing: .* and 69 more"):
        read_source(many)


def test_wrong_number_of_axes(torchvision_small):
    tensors = foreign(torchvision_small, "torchvision")
    with pytest.raises(LayoutError, match=r"backbone\.bn1\.bias \(\), expected \(64,\)"):
        read_source({**tensors, "backbone.bn1.bias": np.zeros(())})
    with pytest.raises(LayoutError, match=r"classifier\.conv\.weight' has shape \(\)"):
        read_source({**tensors, "classifier.4.weight": np.zeros(())})
    slim = foreign(lively(TF_SPECS["width 0.35"]), "tensorflow", "safetensors")
    with pytest.raises(LayoutError, match=r"concat_projection/weights \(3,\), expected \(1, 1, 512, 256\)"):
        read_source({**slim, "concat_projection/weights": np.zeros(3)})


def test_class_count_that_does_not_fit(torchvision_small):
    tensors = foreign(torchvision_small, "torchvision")
    other = torchvision_small.spec.replace(num_classes=19)
    with pytest.raises(LayoutError, match=r"class counts differ \(the spec has 19\)"):
        read_source(tensors, spec=other)
    # Another wrong shape is no matter of classes.
    with pytest.raises(LayoutError) as caught:
        read_source({**tensors, "backbone.bn1.bias": np.zeros(1)}, spec=other)
    assert "class counts" not in str(caught.value)


def test_vainf_v3_is_not_torchvision(torchvision_small):
    """VainF's v3 has torchvision's backbone names and another head: told apart by that."""
    tensors = foreign(torchvision_small, "torchvision")
    renamed = {
        name.replace("classifier.", "classifier.classifier.") if name.startswith("classifier.") else name: a
        for name, a in tensors.items()
        if not name.startswith("aux")
    }
    assert read_source(renamed).layout == "vainf"
    half = {name: a for name, a in renamed.items() if "convs.0.0" not in name}
    with pytest.raises(LayoutError) as caught:
        read_source(half)
    message = str(caught.value)
    assert message.startswith(f"the layout of {len(half)} tensors can't be told (backbone.conv1.weight, ")
    for layout in LAYOUTS:
        assert layout in message
    assert "--from-layout" in message


def test_naming_the_layout():
    tensors = foreign(lively(TF_SPECS["width 0.35"]), "tensorflow", "safetensors")
    assert read_source(tensors, layout="tensorflow").evidence == "named by the caller"
    with pytest.raises(
        LayoutError, match=r"layout torchvision: .* of no network that torchvision deeplabv3 has here: the nearest, v3_"
    ):
        read_source(tensors, layout="torchvision")
    with pytest.raises(LayoutError, match=r"did you mean 'torchvision'"):
        read_source(tensors, layout="torchvison")


def test_layouts_say_what_they_can_not_hold(tmp_path, torchvision_small):
    plus = lively(small_spec())
    for layout, suffix in (("torchvision", ".pth"), ("tensorflow", ".safetensors")):
        with pytest.raises(LayoutError, match="--to-layout deeplabzoo"):
            convert(foreign(lively(make_narrow_v3()), "deeplabzoo"), tmp_path / f"a{suffix}", to_layout=layout)
    with pytest.raises(
        LayoutError, match="layout tensorflow is not written as torch: expected tf-checkpoint or safetensors"
    ):
        convert(foreign(plus, "deeplabzoo"), tmp_path / "a.pth", to_layout="tensorflow")
    with pytest.raises(LayoutError, match="not written as paddle"):
        convert(foreign(torchvision_small, "torchvision"), tmp_path / "a.pdparams", to_layout="torchvision")
    assert list(tmp_path.iterdir()) == []


def make_narrow_v3():
    """A head that neither torchvision nor TF has: no 3x3 after the fusion, plain branches, on a MobileNetV2."""
    return small_spec("v3", aspp={"post_conv": "separable", "bias": True})


def test_what_a_foreign_class_computes_otherwise(tmp_path):
    """Equal names, another function: the note says so."""
    spec = torchvision.template("resnet50", 3, aux=False, channels=(3, 16, 0))
    ours = spec.replace(output_stride=16, backbone=spec.backbone.replace(epsilon=1e-3))
    tensors = foreign(lively(ours), "deeplabzoo")
    done = convert(tensors, tmp_path / "a.pth", spec=ours, to_layout="torchvision", dry_run=True)
    notes = " ".join(done.notes)
    assert "output_stride = 16" in notes
    assert "backbone.epsilon = 0.001" in notes
    same = convert(
        foreign(lively(spec), "deeplabzoo"), tmp_path / "a.pth", spec=spec, to_layout="torchvision", dry_run=True
    )
    assert same.notes == ()


OWN = {
    "v3 mobilenet": small_spec("v3"),
    "v3plus": small_spec(),
    "v3plus plain, one convolution": small_spec(aspp={"branch": "plain"}, decoder={"conv": "plain", "convs": 1}),
    "separable without anything": small_spec(aspp={"branch": "separable"}, decoder={"conv": "separable", "kernel": 1}),
    "fusion 3, bias": small_spec(aspp={"fusion_kernel": 3, "bias": True, "pool_bias": True}, decoder={"bias": True}),
    "aux, no classifier bias": small_spec(aux={"channels": 12}, classifier={"bias": False}),
    "width 1.4, 2 classes, 4 channels": small_spec(backbone="mobilenet_v2", width=1.4, num_classes=2, in_channels=4),
    "no atrous": small_spec("v3", aspp={"order": ("conv1x1", "image_pooling")}),
    "separable post": small_spec("v3", aspp={"post_conv": "separable"}),
    "resnet50": make_spec("v3plus", num_classes=3, aspp={"channels": 16}, decoder={"channels": 16}),
}


@pytest.mark.parametrize("spec", OWN.values(), ids=OWN)
@pytest.mark.parametrize("file_format", ["safetensors", "torch", "paddle"])
def test_own_layout_tells_the_spec(spec, file_format):
    """Without a spec beside it, a file tells the names; the defaults that were filled in are said."""
    from deeplabzoo.weights_converter.formats import Checkpoint

    layout = get_layout("deeplabzoo")
    tensors, _ = to_foreign(lively(spec).weights, layout, spec, file_format)
    reading = layout.read_spec(Checkpoint(tensors, file_format, {}))
    assert {line.split(" = ")[0] for line in reading.told} & {line.split(" = ")[0] for line in reading.assumed} == set()
    assumed = " ".join(reading.assumed)
    for field in ("output_stride", "backbone.first_block_dilation", "backbone.epsilon", "output.align_corners"):
        assert field in assumed
    # What was read fits the tensors, and everything shapes can tell is right.
    assert digests(to_canonical(tensors, layout, reading.spec, file_format).weights) == digests(lively(spec).weights)
    assert reading.spec.to_dict()["backbone"]["name"] == spec.backbone.name
    for field in ("channels", "fusion_kernel", "bias", "pool_bias", "branch", "post_conv", "order"):
        assert getattr(reading.spec.aspp, field) == getattr(spec.aspp, field), field
    assert (reading.spec.decoder is None) == (spec.decoder is None)
    if spec.decoder:
        for field in ("conv", "convs", "kernel", "channels", "low_level_channels", "bias", "low_level"):
            assert getattr(reading.spec.decoder, field) == getattr(spec.decoder, field), field
    assert (reading.spec.arch, reading.spec.num_classes) == (spec.arch, spec.num_classes)
    assert (reading.spec.in_channels, reading.spec.classifier) == (spec.in_channels, spec.classifier)


def test_own_layout_says_what_two_readings_share():
    """`separable_bn` and `separable_bn_relu` have the same tensors, so the kind is an assumption."""
    read = read_source(foreign(lively(small_spec(aspp={"branch": "separable_bn"})), "deeplabzoo"))
    assert read.model.spec.aspp.branch == "separable_bn_relu"
    assert "aspp.branch = separable_bn_relu" in read.assumed
    assert "decoder.conv = separable_bn_relu" in read.assumed
    plain = read_source(foreign(lively(small_spec(aspp={"branch": "plain"})), "deeplabzoo"))
    assert "aspp.branch = plain" in plain.told


def test_own_layout_that_describes_no_network():
    tensors = foreign(lively(small_spec(rates=(1, 2), aspp={"channels": 16})), "deeplabzoo")
    with pytest.raises(LayoutError, match="--spec"):
        read_source(tensors)
    assert read_source(tensors, spec=small_spec(rates=(1, 2))).model.spec.aspp.rates == (1, 2)
    with pytest.raises(LayoutError, match=r"those of none of vgg16, resnet18, .*--spec"):
        read_source(
            {n: a for n, a in tensors.items() if not n.startswith("backbone")}
            | {"backbone.stem.conv.weight": np.zeros((8, 3, 3, 3))}
        )


def test_counters_may_be_there_or_not():
    model = with_counters(lively(small_spec("v3")))
    read = read_source(foreign(model, "deeplabzoo"))
    assert read.model.weights["backbone.stem.bn.num_batches_tracked"] == 7
    # Paddle has none: they are left out and the ledger says so.
    tensors, rows = to_foreign(model.weights, get_layout("deeplabzoo"), model.spec, "paddle")
    assert not any("num_batches" in name for name in tensors)
    assert sum(not row.canonical for row in rows) == sum(name.endswith("tracked") for name in model.weights)
    with pytest.raises(SpecError):
        small_spec("v3", num_classes=0)
