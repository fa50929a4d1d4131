"""What files tell beside their tensors is taken, and no longer called an assumption."""

from __future__ import annotations

import json

import pytest
from helpers import lively

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import BatchNorm, Conv2d
from deeplabzoo.weights_converter.convert import read_source, write_model
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.weights_converter.layouts.base import hollow
from deeplabzoo.zoo.presets import PRESETS, smp, tensorflow


def test_smp_hub_folder(tmp_path):
    spec = smp.template("v3plus", "resnet18", 3)
    spec = spec.replace(output_stride=8, aspp=spec.aspp.replace(rates=(6, 12, 18)))
    write_model(lively(spec), f"{tmp_path}/hub/", layout="smp")
    (tmp_path / "hub.toml").unlink()
    read = read_source(tmp_path / "hub")
    assert read.model.spec == spec
    assert {"output_stride = 8", "aspp.rates = [6, 12, 18]"} <= set(read.told)
    assert not [line for line in read.assumed if line.startswith(("output_stride", "aspp.rates"))]
    config = json.loads((tmp_path / "hub/config.json").read_text())
    config |= {"encoder_output_stride": 7, "decoder_atrous_rates": [6, "12"]}
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    assert read_source(tmp_path / "hub").model.spec == smp.template("v3plus", "resnet18", 3)


def test_hugging_face_folder(tmp_path):
    spec = PRESETS["v3_mobilenet_v2.hf"].make().replace(output_stride=16, num_classes=3)
    write_model(lively(spec), f"{tmp_path}/hub/", layout="hf")
    (tmp_path / "hub.toml").unlink()
    assert read_source(tmp_path / "hub").model.card.classes == ()  # LABEL_0 is no name
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert (config["output_stride"], config["tf_padding"], config["layer_norm_eps"]) == (16, True, 1e-3)
    config |= {"tf_padding": False, "id2label": {"0": "sky", "1": "road", "2": "tree"}}
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    read = read_source(tmp_path / "hub")
    assert read.model.spec == spec.replace(backbone=spec.backbone.replace(padding="symmetric"))
    assert read.model.card.classes == ("sky", "road", "tree")
    assert "output_stride = 16" in read.told


def graph_of(spec, layout, **changes):
    """The tensors of a network without values, and what the reader of a frozen graph says of it."""
    entries = {e.canonical: e for e in get_layout(layout).entries(spec, "tf-checkpoint") if e.canonical}
    convolutions, norms = [], []
    for node in build_graph(spec).nodes:
        if isinstance(node.op, Conv2d):
            dilation = changes.get(node.name, node.op.dilation)
            name = entries[f"{node.name}.weight"].foreign
            convolutions.append({"name": node.name, "weights": name, "dilations": [dilation] * 2})
        elif isinstance(node.op, BatchNorm):
            epsilon = changes.get("epsilon", node.op.epsilon)
            norms.append({"name": node.name, "scale": entries[f"{node.name}.weight"].foreign, "epsilon": epsilon})
    shapes = build_graph(spec).parameters()
    tensors = {e.foreign: e.transform.inverse(hollow(shapes[e.canonical])) for e in entries.values()}
    return Checkpoint(tensors, "tf-graph", facts={"graph": {"convolutions": convolutions, "batch_norms": norms}})


@pytest.mark.parametrize("stride", [8, 16])
def test_frozen_graph(stride):
    spec = tensorflow.xception("xception65", num_classes=19, output_stride=stride)
    reading = get_layout("tensorflow").read_spec(graph_of(spec, "tensorflow"))
    assert reading.spec == spec
    for line in (f"output_stride = {stride}", "backbone.epsilon = 0.001", "decoder.epsilon = 1e-05"):
        assert line in reading.told
        assert line not in reading.assumed


def test_frozen_graph_that_agrees_with_no_stride():
    spec = tensorflow.xception("xception65", output_stride=8)
    odd = graph_of(spec, "tensorflow", **{"backbone.middle.block3.sep1.depthwise.conv": 3, "epsilon": 2e-3})
    reading = get_layout("tensorflow").read_spec(odd)
    assert reading.spec.output_stride == 16
    assert "output_stride = 16" in reading.assumed
    assert reading.spec.aspp.rates == (12, 24, 36)  # what the branches themselves have
    assert {reading.spec.backbone.epsilon, reading.spec.aspp.epsilon} == {2e-3}
