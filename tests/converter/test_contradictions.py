"""What files say of their own network is taken or told, and never passed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import lively, small_spec

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import Conv2d, Resize
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.convert import read_source, write_model
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.weights_converter.layouts.base import hollow
from deeplabzoo.weights_converter.ledger import to_canonical
from deeplabzoo.zoo.presets import PRESETS, kerashub, mmseg, smp, tensorflow, torchvision


def hollow_tensors(spec: ArchSpec, layout: str, file_format: str) -> dict:
    """The tensors of a network without values, by the project's names."""
    shapes = build_graph(spec).parameters()
    entries = get_layout(layout).entries(spec, file_format)
    return {e.foreign: e.transform.inverse(hollow(shapes[e.canonical])) for e in entries if e.canonical in shapes}


def exported(spec: ArchSpec, layout: str, **changes: list[int]) -> Checkpoint:
    """What the reader of ONNX makes of an export: each convolution with its strides and dilations, and the resizes."""
    names = {e.canonical: e.foreign for e in get_layout(layout).entries(spec, "torch")}
    convolutions, resizes = [], []
    for node in build_graph(spec).nodes:
        if isinstance(node.op, Conv2d):
            dilations = changes.get(node.name, [node.op.dilation] * 2)
            strides = [node.op.stride] * 2
            weights = names[f"{node.name}.weight"]
            convolutions.append({"weights": weights, "strides": strides, "dilations": dilations})
        elif isinstance(node.op, Resize):
            mode = "align_corners" if node.op.align_corners else "half_pixel"
            resizes.append({"name": node.name, "coordinate_transformation_mode": mode, "mode": "linear"})
    graph = {"convolutions": convolutions, "batch_norms": [], "resizes": resizes}
    return Checkpoint(hollow_tensors(spec, layout, "torch"), "onnx", facts={"graph": graph})


def full(spec: ArchSpec) -> ArchSpec:
    return spec.replace(backbone=spec.backbone.replace(first_block_dilation="full"))


def gridded(spec: ArchSpec, *grid: int) -> ArchSpec:
    return spec.replace(backbone=spec.backbone.replace(multi_grid=grid))


def aligned(spec: ArchSpec) -> ArchSpec:
    spec = spec.replace(output=spec.output.replace(align_corners=True))
    return spec if spec.decoder is None else spec.replace(decoder=spec.decoder.replace(align_corners=True))


EXPORTS = {
    "mmseg d16": ("mmseg", aligned(mmseg.template("v3", "resnet101", kind="d16-mg124"))),
    "mmseg d16 with a decoder": ("mmseg", mmseg.template("v3plus", "resnet101", kind="d16-mg124")),
    "mmseg another grid": (
        "mmseg", gridded(mmseg.template("v3", "resnet50").replace(output_stride=16), 1, 2, 1),
    ),
    "xception grid": ("tensorflow", gridded(tensorflow.xception("xception65"), 1, 2, 4)),
    "torchvision full": ("torchvision", full(torchvision.template("resnet50", 21, aux=True))),
    "our own": ("deeplabzoo", gridded(full(aligned(torchvision.template("resnet50", 21, aux=False))), 1, 2, 4)),
    "torchvision 16": ("torchvision", torchvision.template("resnet50", 21, aux=True).replace(output_stride=16)),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPORTS)
def test_a_graph_tells_strides_dilations_and_resizes(case):
    layout, spec = EXPORTS[case]
    reading = get_layout(layout).read_spec(exported(spec, layout))
    assert reading.spec == spec
    assert reading.notes == ()
    fields = {line.split(" = ")[0] for line in reading.told}
    assert {"output_stride", "aspp.rates", "output.align_corners"} <= fields
    assert not fields & {line.split(" = ")[0] for line in reading.assumed}


@pytest.mark.parametrize("dilations", [[3, 3], [2, 4]])
def test_a_graph_that_no_network_has_is_told(dilations):
    spec = torchvision.template("resnet50", 21, aux=True)
    odd = exported(spec, "torchvision", **{"backbone.stage3.block3.conv2": dilations})
    reading = get_layout("torchvision").read_spec(odd)
    (note,) = reading.notes
    assert (
        f"in 1 of its convolutions, first backbone.layer3.2.conv2.weight: strides [1, 1] and dilations {dilations}"
        in note
    )


def test_unlike_resizes():
    mixed = mmseg.template("v3plus", "resnet18")
    mixed = mixed.replace(output=mixed.output.replace(align_corners=True))
    checkpoint = exported(mixed, "mmseg")
    del checkpoint.facts["graph"]["resizes"][0]  # of the pooling, which is constant
    assert get_layout("mmseg").read_spec(checkpoint).spec == mixed
    spec = PRESETS["v3plus_resnet50.smp"].make()
    checkpoint = exported(spec, "smp")
    reading = get_layout("smp").read_spec(checkpoint)  # half pixels in the pooling alone
    assert reading.spec == spec
    assert "decoder.align_corners = True" in reading.told
    resizes = checkpoint.facts["graph"]["resizes"]
    resizes += resizes[:2]
    assert "the file resizes 5 times" in get_layout("smp").read_spec(checkpoint).notes[0]
    resizes[:] = [{"name": "up", "mode": "linear", "coordinate_transformation_mode": "asymmetric"}]
    assert "neither by corners nor by half pixels" in get_layout("smp").read_spec(checkpoint).notes[0]


D16 = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    pretrained='open-mmlab://resnet101_v1c (of (course',
    {}
    auxiliary_head=dict(type='FCNHead', align_corners=False, dilations=(9, 9)))
"""
PARTS = (
    "backbone=dict(type='ResNetV1c', dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1), contract_dilation=True, "
    "norm_cfg=dict(type='BN'), multi_grid=(1, 2, 4)),",
    "decode_head=dict(type='ASPPHead', sampler=dict(a=(1)), dilations=(1, 6, 12, 18), align_corners=True),",
)


def read_mmseg(config: object):
    tensors = hollow_tensors(mmseg.template("v3", "resnet101"), "mmseg", "torch")
    return get_layout("mmseg").read_spec(Checkpoint(tensors, "torch", facts={"meta": {"config": config}}))


@pytest.mark.parametrize("parts", [PARTS, PARTS[::-1]])
def test_the_configuration_of_mmsegmentation_is_read(parts):
    reading = read_mmseg(D16.format("".join(parts)))
    assert reading.spec == EXPORTS["mmseg d16"][1]
    assert reading.notes == ()
    for line in ("output_stride = 16", "aspp.rates = [6, 12, 18]", "output.align_corners = True"):
        assert line in reading.told
        assert line not in reading.assumed


@pytest.mark.parametrize(
    ("given", "wanted", "told"),
    [
        ("strides=(1, 2, 2, 1)", "strides=(1, 2, 1, 2)", "backbone.strides = (1, 2, 1, 2)"),
        ("strides=(1, 2, 2, 1)", "strides=(1, 2, 2)", "backbone.strides = (1, 2, 2)"),
        ("multi_grid=(1, 2, 4)", "multi_grid=(1, 2)", "backbone.multi_grid = (1, 2)"),
        ("multi_grid=(1, 2, 4)", "multi_grid=(01 2)", "backbone.multi_grid = (01 2)"),
        ("dilations=(1, 1, 1, 2)", "dilations=(1, 1, 2, 2)", "backbone.dilations = (1, 1, 2, 2)"),
        ("dilations=(1, 6, 12, 18)", "dilations=(1, 6, 12)", "decode_head.dilations = (1, 6, 12)"),
    ],
)
def test_a_configuration_that_no_network_has_is_told(given, wanted, told):
    notes = read_mmseg(D16.format("".join(PARTS)).replace(given, wanted)).notes
    assert [note for note in notes if told in note]


@pytest.mark.parametrize("config", [None, 7, "", "backbone=dict(", "backbone=dict(strides=__import__('os'))"])
def test_other_configurations_change_nothing(config):
    reading = read_mmseg(config)
    assert reading.spec == mmseg.template("v3", "resnet101")
    assert reading.notes == ()


def test_a_configuration_beyond_all_bounds_is_told():
    assert "is not read" in read_mmseg("(" * 2**20).notes[0]


KERASHUB = "layers/deep_lab_v3_backbone/layers/functional/layers"


def own_labels() -> tuple[ArchSpec, dict[str, str], tuple[str, str]]:
    spec = small_spec()
    entries = get_layout("deeplabzoo").entries(spec, "keras-h5")
    labels = {e.foreign.rpartition("/vars/")[0]: e.canonical.rpartition(".")[0].replace(".", "__") for e in entries}
    places = {label: group for group, label in labels.items()}
    alike = [places[f"backbone__stage4__block{n}__expand__conv"] for n in (2, 3)]
    return spec, labels, (alike[0], alike[1])


def swapped(labels: dict[str, str], one: str, other: str) -> dict[str, str]:
    return {**labels, one: labels[other], other: labels[one]}


def taken(layout: str, spec: ArchSpec, labels: dict[str, str]) -> int:
    """How many tensors are taken of a file whose layers have these names."""
    checkpoint = Checkpoint(hollow_tensors(spec, layout, "keras-h5"), "keras-h5", labels=labels)
    bound = get_layout(layout).bound(checkpoint)
    return len(to_canonical(checkpoint.tensors, bound, spec, "keras-h5").weights)


def test_our_layers_are_where_their_names_say():
    spec, labels, alike = own_labels()
    stock = {group: group.rpartition("/")[2] + "_7" for group in labels}
    assert taken("deeplabzoo", spec, labels) == taken("deeplabzoo", spec, stock) == len(build_graph(spec).parameters())
    with pytest.raises(
        LayoutError, match=r"is named .backbone__stage4__block3__expand__conv. .*by its place it is backbone"
    ):
        taken("deeplabzoo", spec, swapped(labels, *alike))


def test_layers_of_kerashub_are_where_their_names_say():
    spec = kerashub.template()
    labels = {f"{KERASHUB}/conv2d": "conv1_conv", f"{KERASHUB}/conv2d_1": "stack0_block0_1_conv"}
    labels |= {f"{KERASHUB}/conv2d_3": "stack0_block0_0_conv", f"{KERASHUB}/conv2d_4": "stack0_block0_3_conv"}
    assert taken("kerashub", spec, labels) == len(build_graph(spec).parameters())
    one, other = f"{KERASHUB}/conv2d_3", f"{KERASHUB}/conv2d_4"
    with pytest.raises(LayoutError, match=r"conv2d_3 is named .stack0_block0_3_conv. .*stage1.block1.shortcut.conv"):
        taken("kerashub", spec, swapped(labels, one, other))
    assert taken("kerashub", spec, {one: "conv2d_90"})


def reading_with(layout: str, spec: ArchSpec, **config: object):
    tensors = hollow_tensors(spec, layout, "torch")
    return get_layout(layout).read_spec(Checkpoint(tensors, "hub-folder", facts={"config": config}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("encoder_output_stride", "16", "'16'"),
        ("decoder_atrous_rates", [6, 12], "(6, 12)"),
        ("decoder_atrous_rates", "6,12,18", "'6,12,18'"),
        ("classes", 5, "5"),
        ("in_channels", True, "True"),
        ("encoder_depth", 4, "4"),
        ("_model_class", "Unet", "'Unet'"),
        ("decoder_aspp_separable", False, "False"),
    ],
)
def test_smp_says_what_contradicts(key, value, said):
    spec = smp.template("v3plus", "resnet18", 3)
    (note,) = reading_with("smp", spec, **{key: value}).notes
    assert note.startswith(f"config.json says {key} = {said}, but")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output_stride", 4),
        ("tf_padding", "false"),
        ("layer_norm_eps", "1e-3"),
        ("expand_ratio", 3.0),
        ("depth_multiplier", 0.5),
        ("model_type", "mobilevit"),
        ("id2label", {"0": "sky"}),
    ],
)
def test_hugging_face_says_what_contradicts(key, value):
    spec = PRESETS["v3_mobilenet_v2.hf"].make()
    (note,) = reading_with("hf", spec, **{key: value}).notes
    assert key in note
    assert reading_with("hf", spec, output_stride=spec.output_stride, expand_ratio=6, tf_padding=True).notes == ()


def test_smp_keeps_what_no_output_depends_on(tmp_path: Path):
    write_model(lively(smp.template("v3plus", "resnet18", 3)), f"{tmp_path}/hub/", layout="smp")
    (tmp_path / "hub.toml").unlink()
    config = json.loads((tmp_path / "hub/config.json").read_text())
    config |= {"decoder_aspp_dropout": 0.1, "encoder_weights": "imagenet"}
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    read = read_source(tmp_path / "hub")
    assert read.notes == ()
    write_model(read.model, f"{tmp_path}/back/", layout="smp")
    assert json.loads((tmp_path / "back/config.json").read_text()) == config


def test_classes_and_preprocessing_are_assumed_unless_named():
    spec = smp.template("v3", "resnet18", 21)
    assert {"classes = Pascal VOC", "preprocessing = the usual one of the project"} <= set(
        reading_with("smp", spec).assumed
    )
    assert not [line for line in reading_with("smp", spec.replace(num_classes=4)).assumed if line.startswith("classes")]
    named = {str(n): f"class {n}" for n in range(21)}
    hf = PRESETS["v3_mobilenet_v2.hf"].make()
    assert "classes = Pascal VOC" in reading_with("hf", hf).assumed
    assert not [line for line in reading_with("hf", hf, id2label=named).assumed if line.startswith("classes")]


def test_reasons_to_leave_out():
    layout = get_layout("tensorflow")
    assert layout.ignored("logits/semantic/weights/Momentum") == "optimizer slot"
    assert "moving average" in str(layout.ignored("logits/semantic/weights/ExponentialMovingAverage"))


def test_a_depthwise_kernel_of_other_channels_is_refused():
    spec = tensorflow.template(width=0.5)
    tensors = hollow_tensors(spec, "tensorflow", "tf-checkpoint")
    name = "MobilenetV2/expanded_conv/depthwise/depthwise_weights"
    height, width, channels, multiplier = tensors[name].shape
    tensors[name] = np.zeros((height, width, channels // 2, 2 * multiplier), np.float32)
    with pytest.raises(
        LayoutError, match=r"1 of the wrong shape: .*depthwise_weights \(3, 3, 8, 2\), expected \(3, 3, 16, 1\)"
    ):
        read_source(tensors)
