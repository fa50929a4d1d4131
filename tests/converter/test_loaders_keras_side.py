"""What users of KerasHub, bonlime, RyanCCC and transformers hold: optimizers, presets, other shapes, other ends."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from helpers import digests, lively, small_spec

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import FormatError, LayoutError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.convert import read_source, write_model
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.weights_converter.layouts.base import hollow
from deeplabzoo.weights_converter.ledger import to_foreign
from deeplabzoo.zoo.presets import PRESETS, kerashub, tensorflow

_MODEL = "layers/deep_lab_v3_backbone/"
_ENCODER = f"{_MODEL}layers/functional/layers/"
_CLASSIFIER = "layers/conv2d/vars/0"
OPTIMIZER = {"optimizer/vars/0": np.array(7), "optimizer/vars/1": np.array(1e-3, np.float32)}


def hub(
    backbone: str = "resnet50", rates: tuple[int, ...] = (6, 12, 18), low_level: str = "stage1", **changes
) -> ArchSpec:
    spec = kerashub.template()
    return spec.replace(
        backbone=spec.backbone.replace(name=backbone),
        aspp=spec.aspp.replace(rates=rates),
        decoder=spec.decoder.replace(low_level=low_level, **changes.pop("decoder", {})),
        **changes,
    )


def foreign(spec: ArchSpec, layout: str, file_format: str) -> dict[str, np.ndarray]:
    """A file's tensors without memory of their own."""
    weights = {name: hollow(shape) for name, shape in build_graph(spec).parameters().items()}
    return dict(to_foreign(weights, get_layout(layout), spec, file_format)[0])


kerashub_tensors = partial(foreign, layout="kerashub", file_format="keras-h5")

HUB_SPECS = {
    "resnet18, 5 classes": hub("resnet18", num_classes=5),
    "resnet34, 19 classes": hub("resnet34", num_classes=19),
    "resnet101, grey": hub("resnet101", num_classes=2, in_channels=1),
    "four channels": hub(in_channels=4),
    "projection of 64": hub(decoder={"low_level_channels": 64}),
    "low level P3": hub(low_level="stage2"),
    "low level P4 of basic blocks": hub("resnet18", low_level="stage3"),
    "one rate": hub("resnet18", (6,)),
    "four rates": hub("resnet18", (6, 12, 18, 24)),
}


@pytest.mark.parametrize("spec", HUB_SPECS.values(), ids=HUB_SPECS)
def test_kerashub_variants(spec):
    tensors = {**kerashub_tensors(spec), **OPTIMIZER}
    read = read_source(tensors, lazy=True)
    assert (read.layout, read.model.spec) == ("kerashub", spec)
    assert f"decoder.low_level = {spec.decoder.low_level}" in read.told
    assert "output.values = logits" in read.assumed  # an activation leaves no tensor
    left = {row.foreign: row.transform for row in read.ledger if not row.canonical}
    assert left == dict.fromkeys(OPTIMIZER, "left out: optimizer slot")
    assert get_layout("kerashub").differences(spec) == []


def resnet152(tensors):
    extra = {
        f"{_ENCODER}{kind}_{n}/vars/0": np.zeros(1)
        for n in range(53, 155)
        for kind in ("conv2d", "batch_normalization")
    }
    return {**tensors, **extra}


REFUSED = {
    "a preset's backbone": (
        lambda t: {n.removeprefix(_MODEL): a for n, a in t.items() if n.startswith(_MODEL)}, "give the folder in which"
    ),
    "no classifier": (lambda t: {n: a for n, a in t.items() if n != _CLASSIFIER}, "no classifier"),
    "no low level": (
        lambda t: {n: a for n, a in t.items() if f"{_MODEL}layers/conv2d_1/" not in n}, "without low_level_feature_key"
    ),
    "resnet152": (resnet152, "155 convolutions, like ResNet-152, which is not supported"),
    "resnet v2": (
        lambda t: {n: a for n, a in t.items() if f"{_ENCODER}batch_normalization/" not in n}, r"52 batch norms .*ResNetV2"
    ),
    "pooling on P4": (
        lambda t: {**t, f"{_MODEL}layers/spatial_pyramid_pooling/aspp_parallel_channels/sequential/layers/conv2d/vars/0":
                   hollow((1, 1, 1024, 256))}, "reads 1024 channels .*not the last 2048"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_kerashub_networks_that_no_spec_has(change, words):
    with pytest.raises(LayoutError, match=words) as caught:
        read_source(change(kerashub_tensors(hub())), lazy=True)
    assert len(str(caught.value)) < 300


def segmenter(activation: object = None, rates: object = (6, 12, 18), **encoder: object) -> dict:
    made = {"class_name": "ResNetBackbone", "config": {"stackwise_num_strides": [1, 2, 2, 2], **encoder}}
    backbone = {"class_name": "DeepLabV3Backbone", "config": {"image_encoder": made, "dilation_rates": rates}}
    return {"class_name": "DeepLabV3ImageSegmenter", "config": {"backbone": backbone, "activation": activation}}


def test_kerashub_configuration():
    spec = hub("resnet18", num_classes=5)
    reading = partial(reading_of, "kerashub", kerashub_tensors(spec))
    told = reading(segmenter("softmax", [3, 6, 9]))
    assert told.spec.rates == (3, 6, 9)
    assert {"aspp.rates = [3, 6, 9]", "output.values = probabilities"} <= set(told.told)
    assert not [line for line in told.assumed if line.startswith(("aspp.rates", "output.values"))]
    noted = reading(segmenter("sigmoid"))
    assert noted.spec == spec
    assert "ends in sigmoid, which is not taken along" in noted.notes[0]
    for rates in ([1, 2], [0, 1, 2], "6", [True, 1, 2], [[1], 2, 3]):
        assert reading(segmenter(None, rates)).spec == spec
    for config in ({}, {"config": 3}, {"config": {"backbone": []}}, []):
        assert reading(config).spec == spec
    with pytest.raises(LayoutError, match="stackwise_num_strides"):
        reading(segmenter(stackwise_num_strides=[1, 2, 1, 1]))


def reading_of(layout: str, tensors: dict[str, np.ndarray], config: object):
    return get_layout(layout).read_spec(Checkpoint(tensors, "keras", facts={"config": config}))


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A narrow segmenter as `save_to_preset` leaves it: what is in the folder, and the model."""
    folder = tmp_path_factory.mktemp("preset")
    model = lively(hub("resnet18", num_classes=5).narrowed(8))
    tensors = dict(to_foreign(model.weights, get_layout("kerashub"), model.spec, "keras-h5")[0])
    inside = {n.removeprefix(_MODEL): a for n, a in tensors.items() if n.startswith(_MODEL)}
    formats.write(folder / "model.weights.h5", inside, metadata={"": "backbone", "layers/conv2d": "decoder_conv"})
    formats.write(folder / "task.weights.h5", {_CLASSIFIER: tensors[_CLASSIFIER], **OPTIMIZER})
    config = segmenter("softmax", [3, 6, 9])
    (folder / "task.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(config["config"]["backbone"]))
    return {path.name: path.read_bytes() for path in folder.iterdir()}, model, tensors


def unpacked(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_preset_folder(preset, tmp_path):
    files, model, tensors = preset
    folder = unpacked(tmp_path / "preset", files)
    held = formats.read(folder)
    assert (held.format, formats.detect(folder)) == ("keras-preset", "keras-preset")
    assert set(held.tensors) == {*tensors, *OPTIMIZER}
    assert held.labels[f"{_MODEL}layers/conv2d"] == "decoder_conv"
    read = read_source(folder)
    assert digests(read.model.weights) == digests(model.weights)
    assert (read.layout, read.model.spec.rates, read.model.spec.output.values) == (
        "kerashub",
        (3, 6, 9),
        "probabilities",
    )
    write_model(read.model, tmp_path / "back.weights.h5", layout="kerashub")
    assert digests(formats.read(tmp_path / "back.weights.h5").tensors) == digests(tensors)


def test_presets_that_are_no_segmenter(preset, tmp_path):
    files, _, _ = preset
    alone = unpacked(tmp_path / "a", {n: data for n, data in files.items() if not n.startswith("task.")})
    with pytest.raises(LayoutError, match="a preset of a backbone alone"):
        read_source(alone)
    named = unpacked(tmp_path / "b", {**files, "config.json": b'{"class_name": "../x"}'})
    with pytest.raises(FormatError, match=r"names the class \.\./x; expected"):
        formats.read(named)
    long = unpacked(tmp_path / "e", {**files, "config.json": json.dumps({"class_name": "A" * 200_000}).encode()})
    with pytest.raises(FormatError, match="names the class AAA"):
        formats.read(long)
    parts = {"config.json": files["config.json"], "model.weights.json": b"{}"}
    with pytest.raises(FormatError, match="in several files"):
        formats.read(unpacked(tmp_path / "c", parts))
    with pytest.raises(FormatError, match=r"config\.json is damaged"):
        formats.read(unpacked(tmp_path / "d", {**files, "config.json": b"{"}))


def test_a_compiled_model_of_our_own(tmp_path):
    model = lively(small_spec())
    write_model(model, tmp_path / "m.weights.h5")
    (tmp_path / "m.weights.h5.toml").unlink()
    held = formats.read(tmp_path / "m.weights.h5")
    slots = {**OPTIMIZER, "optimizer/vars/2": np.ones(3, np.float32)}
    formats.write(tmp_path / "t.weights.h5", {**held.tensors, **slots}, metadata={**held.labels, "optimizer": "adam"})
    read = read_source(tmp_path / "t.weights.h5")
    assert digests(read.model.weights) == digests(model.weights)
    assert {row.foreign for row in read.ledger if row.transform == "left out: optimizer slot"} == set(slots)


def bonlime(name: str = "v3_mobilenet_v2", **changes: object) -> ArchSpec:
    return PRESETS[f"{name}.bonlime"].make().replace(**changes)


@pytest.mark.parametrize(("channels", "classes"), [(3, 21), (3, 5), (4, 19), (1, 2)])
def test_bonlimes_other_names(channels, classes):
    """`Conv_` and `custom_logits_semantic` are what its class calls layers that published weights do not fit."""
    spec = bonlime(in_channels=channels, num_classes=classes)
    tensors = foreign(spec, "bonlime", "keras2-h5")
    assert ("Conv_/kernel" in tensors, "Conv/kernel" in tensors) == (channels != 3, channels == 3)
    assert ("custom_logits_semantic/bias" in tensors) == (classes == 5 or classes == 2)
    assert read_source(tensors, lazy=True).model.spec == spec
    # The usual names with other shapes are read too, and written back as they were.
    usual = {n.replace("custom_", "").replace("Conv_/", "Conv/"): a for n, a in tensors.items()}
    read = read_source(usual, lazy=True)
    assert read.model.spec == spec
    assert [row.foreign for row in read.ledger] == list(usual)


def keras2_config(spec: ArchSpec, layout: str, *last: dict) -> dict:
    """A whole model's configuration, as far as it is read."""
    layers = []
    for entry in get_layout(layout).entries(spec, "keras2-h5"):
        node = build_graph(spec).by_name[entry.canonical.rpartition(".")[0]]
        name, _, variable = entry.foreign.rpartition("/")
        if variable == "gamma":
            layers.append({"class_name": "BatchNormalization", "config": {"name": name, "epsilon": node.op.epsilon}})
        elif variable.endswith("kernel"):
            kind = "DepthwiseConv2D" if variable == "depthwise_kernel" else "Conv2D"
            layers.append({"class_name": kind, "config": {"name": name, "dilation_rate": [node.op.dilation] * 2}})
    return {"class_name": "Functional", "config": {"layers": [*layers, *last]}}


RESIZING, SOFTMAX = (
    {"class_name": "Resizing", "config": {}},
    {"class_name": "Activation", "config": {"activation": "softmax"}},
)


def test_bonlimes_whole_models():
    spec = bonlime("v3plus_xception65", num_classes=5).at_output_stride(8)
    reading = partial(reading_of, "bonlime", foreign(spec, "bonlime", "keras2-h5"))
    told = reading(keras2_config(spec, "bonlime", RESIZING))
    assert told.spec == spec
    assert {"output_stride = 8", "aspp.rates = [12, 24, 36]", "output.values = logits"} <= set(told.told)
    assert reading(keras2_config(spec, "bonlime", RESIZING, SOFTMAX)).spec.output.values == "probabilities"
    tanh = {"class_name": "Activation", "config": {"activation": "tanh"}}
    noted = reading(keras2_config(spec, "bonlime", RESIZING, tanh))
    assert noted.spec == spec
    assert "ends in tanh" in noted.notes[0]
    odd = {"class_name": "Conv2D", "config": {"name": "aspp1_depthwise", "dilation_rate": [[1], {}]}}
    unnamed = {"class_name": "DepthwiseConv2D", "config": {"name": ["a"], "dilation_rate": [1, 1]}}
    for config in ({"config": {"layers": [odd, unnamed, 3, None]}}, {"config": {"layers": {}}}, {}, None):
        assert reading(config).spec == bonlime("v3plus_xception65", num_classes=5)
    assert "output.values = logits" in reading(None).assumed


def test_ryanccc_at_another_alpha():
    """Its blocks expand the channels of width 1 whatever their own are."""
    tensors = foreign(PRESETS["v3plus_mobilenet_v2.ryanccc"].make(), "ryanccc", "keras2-h5")
    with pytest.raises(LayoutError, match=r"makes 96 channels of 8, .*supported is alpha = 1"):
        read_source({**tensors, "expanded_conv_1_expand/kernel": hollow((1, 1, 8, 96))}, lazy=True)


@pytest.mark.parametrize("scope", ["MobilenetV3/Conv", "nas_backbone/stem", "xception_65_dpc/a", "merge_branch0/a"])
def test_networks_of_research_deeplab_that_no_spec_has(scope):
    with pytest.raises(LayoutError, match="not supported; supported are v3_mobilenet_v2, ") as caught:
        read_source({f"{scope}/weights": np.zeros((3, 3, 3, 16)), "logits/semantic/weights": np.zeros((1, 1, 64, 5))})
    assert f"{scope}/weights" in str(caught.value)


@pytest.mark.parametrize("conv", ["plain", "separable_bn_relu"])
@pytest.mark.parametrize("branch", ["plain", "separable_bn_relu"])
def test_research_deeplab_without_separable_convolutions(branch, conv):
    """Flags of its training script: one for the branches, one for the decoder."""
    spec = tensorflow.xception("xception65", num_classes=5)
    spec = spec.replace(aspp=spec.aspp.replace(branch=branch), decoder=spec.decoder.replace(conv=conv))
    tensors = foreign(spec, "tensorflow", "tf-checkpoint")
    assert ("aspp1/weights" in tensors) == (branch == "plain")
    assert ("decoder/decoder_conv0/decoder_conv0_2/weights" in tensors) == (conv == "plain")
    assert read_source(tensors, lazy=True).model.spec == spec


def test_research_deeplab_without_multi_grid():
    """Another flag, so nothing that its class computes otherwise."""
    spec = tensorflow.resnet("resnet50", beta=True)
    plain = spec.replace(backbone=spec.backbone.replace(multi_grid=()))
    assert get_layout("tensorflow").differences(plain) == []


def test_tensorflows_old_checkpoints(tmp_path):
    """A table of LevelDB alone, which ends in that format's magic number."""
    (tmp_path / "model.ckpt").write_bytes(b"\0\0\xd7\x99\x01" + bytes(64) + bytes.fromhex("57fb808b247547db"))
    with pytest.raises(FormatError, match="in the format V1; restore it with"):
        formats.read(tmp_path / "model.ckpt")


@pytest.fixture
def hf_folder(tmp_path):
    """A narrow transformers model that uses what its configuration lets one choose."""
    spec = PRESETS["v3_mobilenet_v2.hf"].make()
    backbone = spec.backbone.replace(width=0.35, padding="symmetric", epsilon=1e-5)
    write_model(lively(spec.replace(backbone=backbone, num_classes=3)), f"{tmp_path}/hub/", layout="hf")
    (tmp_path / "hub.toml").unlink()
    return tmp_path / "hub"


def configured(folder, **changes: object) -> dict:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return config


def test_hugging_faces_configuration_goes_back(hf_folder, tmp_path):
    names = {"0": "sky", "1": "road", "2": "tree"}
    config = configured(
        hf_folder, id2label=names, label2id={"sky": 0, "road": 1, "tree": 2}, finegrained_output=False, min_depth=4
    )
    assert (config["tf_padding"], config["layer_norm_eps"]) == (False, 1e-5)
    read = read_source(hf_folder)
    assert get_layout("hf").differences(read.model.spec) == []
    write_model(read.model, f"{tmp_path}/back/", layout="hf")
    assert json.loads((tmp_path / "back/config.json").read_text()) == config
    assert digests(formats.read(tmp_path / "back").tensors) == digests(formats.read(hf_folder).tensors)


def test_hugging_faces_networks_that_no_spec_has(hf_folder):
    tensors = dict(formats.read(hf_folder).tensors)
    stem = "mobilenet_v2.conv_stem.expand_1x1.convolution.weight"
    with pytest.raises(LayoutError, match="first_layer_is_expansion = false"):
        read_source({**tensors, stem: np.zeros((16, 16, 1, 1))})
    block = "mobilenet_v2.layer.0.expand_1x1.convolution.weight"
    with pytest.raises(LayoutError, match="makes 32 channels of 8: another expand_ratio"):
        read_source({**tensors, block: np.zeros((32, 8, 1, 1), np.float32)})
    configured(hf_folder, hidden_act="relu")
    with pytest.raises(LayoutError, match="hidden_act = relu, which is not supported"):
        read_source(hf_folder)
