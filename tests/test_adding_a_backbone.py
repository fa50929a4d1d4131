"""The backbone of docs/adding-a-backbone.md works as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from deeplabzoo.core import reference
from deeplabzoo.core.analysis import parameter_count, stride_differences
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import BACKBONES
from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.parity.compare import error

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adding-a-backbone.md"


@pytest.fixture
def mobilenet_v1(monkeypatch):
    """The page's class, registered as its entry in the registry would."""
    module = types.ModuleType("documented_backbone")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(BACKBONES, "mobilenet_v1", module.MobileNetV1)


@pytest.mark.usefixtures("mobilenet_v1")
def test_the_documented_backbone():
    """Keras counts 3,206,976 trainable parameters in its MobileNet without the top."""
    spec = make_spec("v3plus", backbone="mobilenet_v1", aux=True)
    assert parameter_count(build_graph(spec), "backbone.") == 3_206_976
    assert ArchSpec.from_toml(spec.to_toml()) == spec
    assert not stride_differences(build_graph(spec.at_output_stride(32)), build_graph(spec))


@pytest.mark.usefixtures("mobilenet_v1")
def test_the_documented_backbone_in_every_backend(worker, backend):
    graph = build_graph(make_spec("v3plus", backbone="mobilenet_v1", output_stride=8, rates=(2, 4, 6)).narrowed(8))
    weights = seeded_weights(graph, 2, statistics="lively")
    image = np.random.default_rng(1).standard_normal((2, 3, 97, 129))
    process = worker(backend)
    process.load(graph, weights, dtype="float64")
    assert error(process.forward(image)["out"], reference.forward(graph, weights, image)["out"]) <= 1e-11
