"""Our own tensors without their spec: what names and shapes tell of every preset."""

from __future__ import annotations

import numpy as np
import pytest

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.convert import convert, read_source
from deeplabzoo.zoo.presets import PRESETS

UNREADABLE = {"v3_resnet50.conv4": "none of"}
"""A network that is cut: no tensor tells of the blocks that are not there."""


def hollow(spec):
    """Tensors of the right names and shapes that take no memory."""
    shapes = build_graph(spec).parameters()
    return {name: np.broadcast_to(np.zeros((), np.float32), shape) for name, shape in shapes.items()}


def quarter(spec):
    return spec.replace(backbone=spec.backbone.replace(width=0.25))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [lambda spec: spec, quarter], ids=["whole", "quarter"])
def test_presets_without_their_spec(name, scale):
    spec = scale(PRESETS[name].make())
    tensors = hollow(spec)
    if name in UNREADABLE:
        with pytest.raises(LayoutError, match=UNREADABLE[name]):
            read_source(tensors, layout="deeplabzoo")
        return
    read = read_source(tensors)
    assert read.layout == "deeplabzoo"
    assert build_graph(read.model.spec).parameters() == build_graph(spec).parameters()
    assert read.model.spec.num_classes == spec.num_classes
    assert read.assumed
    assert not any(line.startswith("output_stride") for line in read.told)


def test_the_architecture_of_a_lone_classifier_is_a_guess():
    for spec in (make_spec("v1", backbone="resnet50"), make_spec("v3", head={}, cascade=3)):
        read = read_source(hollow(spec))
        assert read.model.spec.arch == spec.arch
        assert f"arch = {spec.arch}" in read.assumed
    assert "arch = v2" in read_source(hollow(make_spec("v2"))).told


def test_a_wrong_shape_names_the_way_out():
    tensors = hollow(make_spec("v3", backbone="resnet18"))
    name = "backbone.stage2.block1.conv1.weight"
    tensors[name] = np.zeros((7, *tensors[name].shape[1:]), np.float32)
    with pytest.raises(LayoutError, match=r"at any width.*--spec FILE\.toml"):
        read_source(tensors)


@pytest.mark.parametrize("name", ["v2_vgg16", "v2_resnet101", "v1_resnet101", "v3_resnet50.cascade"])
def test_keras_files_of_summed_heads(tmp_path, name):
    """Their classifier has other layer names; with and without the spec beside them."""
    spec = PRESETS[name].make().narrowed(16)
    tensors = {n: np.full(s, 0.5, np.float32) for n, s in build_graph(spec).parameters().items()}
    convert(tensors, tmp_path / "m.weights.h5", spec=spec)
    assert read_source(tmp_path / "m.weights.h5").model.spec == spec
    (tmp_path / "m.weights.h5.toml").unlink()
    if name.startswith("v2"):
        read = read_source(tmp_path / "m.weights.h5", layout="deeplabzoo", spec=spec)
        assert read.model.weights.keys() == tensors.keys()
