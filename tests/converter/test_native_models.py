"""A model in memory is converted as its file would be; each framework in a process of its own."""

from __future__ import annotations

import pytest
from helpers import digests, lively, python, small_spec

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter.convert import convert, read_source, write_model

SPEC = small_spec("v3", aux={"channels": 8}, output_stride=16, rates=(1, 2, 3))

OURS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import deeplabzoo as dz
source, target = sys.argv[1:3]
model = dz.load(source, backend="{backend}")
done = dz.convert(model, target)
print(json.dumps([done.source.format, done.source.layout, done.source.model.spec.to_dict()]))
"""

FOREIGN = """
import json, sys
import deeplabzoo as dz
from torch import nn
import torch

class Unit(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

try:
    dz.convert(Unit(), sys.argv[1])
except dz.DeepLabZooError as error:
    first = str(error)
model = dz.load(sys.argv[2], backend="torch").to(torch.bfloat16)
done = dz.convert(model, sys.argv[1])
half = {str(a.dtype) for n, a in done.source.model.weights.items() if not n.endswith("tracked")}
model.spec = model.spec.replace(num_classes=7)
try:
    dz.convert(model)
except dz.DeepLabZooError as error:
    second = str(error)
print(json.dumps([first, sorted(half), second]))
"""

BUILDS = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "torch"
import numpy as np, torch
import deeplabzoo as dz
model = dz.load(sys.argv[1], backend="torch", )
other = dz.convert(model, to="keras/torch")
x = np.random.default_rng(0).standard_normal((1, 3, 65, 49)).astype(np.float32)
with torch.no_grad():
    a = model(torch.from_numpy(x))["out"].numpy()
b = other(x.transpose(0, 2, 3, 1))["out"].detach().cpu().numpy().transpose(0, 3, 1, 2)
print(json.dumps([type(other).__mro__[-2].__name__, float(np.abs(a - b).max() / np.abs(a).max())]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "m.safetensors"
    write_model(lively(SPEC), path)
    return path


@pytest.mark.parametrize(("backend", "named"), [("torch", "torch"), ("paddle", "paddle"), ("keras", "keras2-h5")])
def test_our_own_model(source, tmp_path, requested, backend, named):
    """The spec is that of the model, stride and rates too, which no tensor tells."""
    if backend not in requested:
        pytest.skip(f"{backend} is not in DEEPLABZOO_TEST_BACKENDS")
    target = tmp_path / "back.safetensors"
    found, layout, spec = python(OURS.format(backend=backend), source, target)
    assert (found, layout) == (named, "deeplabzoo")
    back = read_source(target).model
    assert back.spec.to_dict() == spec == SPEC.to_dict()
    plain = {n: a for n, a in back.weights.items() if not n.endswith("tracked")}
    assert digests(plain) == digests(lively(SPEC).weights)


def test_models_of_pytorch(source, tmp_path, requested):
    if "torch" not in requested:
        pytest.skip("torch is not in DEEPLABZOO_TEST_BACKENDS")
    first, half, second = python(FOREIGN, tmp_path / "x.safetensors", source)
    assert first.startswith("the layout of 7 tensors can't be told")
    assert half == ["bfloat16"]
    assert "leave the attribute alone" in second


def test_built_anew_in_another_framework(source, requested):
    if not {"torch", "keras"} <= set(requested):
        pytest.skip("torch and keras are not both in DEEPLABZOO_TEST_BACKENDS")
    kind, error = python(BUILDS, source)
    assert kind
    assert error < 2e-5


def test_what_is_no_model(tmp_path):
    for strange in (3, object(), ["a"]):
        with pytest.raises(FormatError, match="expected a path, tensors by their foreign names, or a model"):
            convert(strange, tmp_path / "x.pth")
