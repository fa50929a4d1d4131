"""Caffe's layer names: the three published networks, batch norms in two layers and three blobs, copies for scales."""

from __future__ import annotations

import re

import numpy as np
import pytest

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.core.weights import check_weights, seeded_weights
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.convert import read_source
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.base import hollow
from deeplabzoo.weights_converter.layouts.caffe import CaffeLayout
from deeplabzoo.weights_converter.ledger import to_canonical

LAYOUT = CaffeLayout()
SPECS = {preset.name: preset.make() for preset in LAYOUT.presets}


def published(name: str) -> str:
    """The name of a blob as the authors' files have it, with the data set."""
    return re.sub(r"^(fc8|fc1(?=_c\d))", r"\1_voc12", name)


def blobs(spec: ArchSpec, factor: float = 0.0) -> dict[str, np.ndarray]:
    """Blobs as a file has them: of no memory without a factor, else seeded, statistics times the factor."""
    shapes = build_graph(spec).parameters()
    weights = seeded_weights(build_graph(spec), 3, statistics="lively") if factor else None
    made = {}
    for entry in LAYOUT.entries(spec, "caffemodel"):
        array = hollow(shapes[entry.canonical]) if weights is None else weights[entry.canonical]
        is_statistic = entry.canonical.endswith(("running_mean", "running_var"))
        made[published(entry.foreign)] = array * np.float32(factor) if factor and is_statistic else array
        if entry.canonical.endswith("running_var"):
            made[entry.foreign[:-1] + "2"] = np.full(1, factor, np.float32)
    return made


def test_names_of_the_published_files():
    assert set(SPECS) == {"v1_vgg16", "v2_vgg16", "v2_resnet101"}
    names = {name: [published(e.foreign) for e in LAYOUT.entries(spec, "caffemodel")] for name, spec in SPECS.items()}
    assert names["v1_vgg16"][:3] == ["conv1_1/0", "conv1_1/1", "conv1_2/0"]
    assert names["v1_vgg16"][-6:] == ["fc6/0", "fc6/1", "fc7/0", "fc7/1", "fc8_voc12/0", "fc8_voc12/1"]
    assert {"conv5_3/1", "fc6_1/0", "fc7_4/1", "fc8_voc12_1/0", "fc8_voc12_4/1"} <= set(names["v2_vgg16"])
    resnet = set(names["v2_resnet101"])
    assert {
        "conv1/0", "bn_conv1/1", "scale_conv1/1", "res2a_branch1/0", "bn2a_branch1/0", "scale2a_branch1/0",
        "res2c_branch2c/0", "res3a_branch1/0", "res3b3_branch2a/0", "res4b22_branch2c/0", "scale4b22_branch2b/1",
        "res5c_branch2b/0", "bn5c_branch2c/1", "fc1_voc12_c0/0", "fc1_voc12_c3/1",
    } <= resnet  # fmt: skip
    assert not {"conv1/1", "res3b_branch2a/0", "res4b23_branch2a/0", "res5b1_branch2a/0"} & resnet


@pytest.mark.parametrize("name", SPECS)
def test_each_network_is_told_from_names_and_shapes(name):
    checkpoint = Checkpoint(blobs(SPECS[name]), "caffemodel")
    assert LAYOUT.recognise(checkpoint).startswith("has conv1")
    reading = LAYOUT.read_spec(checkpoint)
    assert reading.spec == SPECS[name]
    taken = to_canonical(checkpoint.tensors, LAYOUT, reading.spec, "caffemodel")
    assert sorted(row.foreign for row in taken.rows) == sorted(checkpoint.tensors)
    check_weights(build_graph(reading.spec), taken.weights)
    if name == "v1_vgg16":
        assert sum(array.size for array in taken.weights.values()) == 20_505_429
    if name == "v2_vgg16":
        assert sum(array.size for array in taken.weights.values()) == 37_877_652


@pytest.mark.parametrize("suffix", ["", "_coco", "_voc12_more", "_1"])
def test_any_data_set_in_the_names_of_the_scores(suffix):
    for name, spec in SPECS.items():
        renamed = {re.sub("_voc12", suffix, key): array for key, array in blobs(spec).items()}
        assert LAYOUT.read_spec(Checkpoint(renamed, "caffemodel")).spec == spec, name
        assert to_canonical(renamed, LAYOUT, spec, "caffemodel").weights


SMALL = make_spec("v2", backbone="resnet101", num_classes=4)


@pytest.fixture(scope="module")
def small() -> ArchSpec:
    return SMALL.replace(backbone=SMALL.backbone.replace(width=0.125))


def test_statistics_are_divided_by_the_third_blob(small):
    weights = seeded_weights(build_graph(small), 3, statistics="lively")
    given = blobs(small, factor=4.0)
    taken = to_canonical(given, LAYOUT, small, "caffemodel")
    for name, array in taken.weights.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, weights[name]), name
    read = read_source(given)
    assert (read.layout, read.model.spec) == ("caffe", small)
    rows = {row.foreign: (row.transform, row.canonical) for row in taken.rows}
    assert rows["bn_conv1/1"] == ("divided by the layer's third blob", "backbone.stem.bn.running_var")
    assert rows["bn_conv1/2"] == ("left out: the factor by which mean and variance were divided", "")
    assert rows["scale_conv1/1"] == ("as is", "backbone.stem.bn.bias")
    given["bn_conv1/2"] = np.zeros(1, np.float32)  # a network that has seen no image
    taken = to_canonical(given, LAYOUT, small, "caffemodel")
    assert not taken.weights["backbone.stem.bn.running_var"].any()


def test_layers_of_other_scales_are_left_out_by_name(small):
    given = blobs(small, factor=4.0)
    copies = {f"{key[:-2]}_res{scale}{key[-2:]}": array for key, array in given.items() for scale in ("05", "075")}
    taken = to_canonical({**given, **copies}, LAYOUT, small, "caffemodel")
    assert len(taken.rows) == 3 * len(given)
    left = [row for row in taken.rows if row.foreign in copies and not row.foreign.endswith("/2")]
    assert {row.transform for row in left} == {"left out: shared with the layer of the full scale"}


def test_other_networks_are_refused():
    tensors = blobs(SPECS["v1_vgg16"])
    with pytest.raises(LayoutError, match="no tensor 'fc6/0'"):
        LAYOUT.recognise(Checkpoint({"conv1_1/0": tensors["conv1_1/0"]}, "caffemodel"))
    del tensors["conv3_2/1"]
    spec = LAYOUT.read_spec(Checkpoint(tensors, "caffemodel")).spec
    with pytest.raises(LayoutError, match="1 missing: conv3_2/1"):
        to_canonical(tensors, LAYOUT, spec, "caffemodel")
