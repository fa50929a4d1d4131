"""A model of one's own against the referee: classes as users write them, right and with one fault each.

The classes and their faults are in `own_models`; each framework runs in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import python

import deeplabzoo as dz
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.errors import FormatError
from deeplabzoo.parity.cases import Case
from deeplabzoo.parity.own_model import ModelTrace, trace_model
from deeplabzoo.parity.trace import NodeRow, first_jump, nearest_seen

FOLDER = Path(__file__).parent / "own_models"
_RESULTS = {}


def said(framework, requested):
    """What the script of a framework found, run once."""
    if framework not in requested:
        pytest.skip(f"{framework} is not in DEEPLABZOO_TEST_BACKENDS")
    if framework not in _RESULTS:
        command = [sys.executable, "-W", "ignore", str(FOLDER / f"{framework}_model.py")]
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        _RESULTS[framework] = json.loads(done.stdout.splitlines()[-1])
    return _RESULTS[framework]


BLAMED = {
    ("torch", "dilation"): ("aspp.branch2.conv", "classifier.0.convs.2.0, Conv2d"),
    ("torch", "half with a rate"): ("aspp.branch2.conv", "classifier.0.convs.2.0, Conv2d"),
    ("torch", "epsilon"): ("backbone.stage3.block2.bn2", "backbone.layer3.1.bn2, BatchNorm2d"),
    ("torch", "float32 epsilon"): ("backbone.stage3.block2.bn2", "backbone.layer3.1.bn2, BatchNorm2d"),
    ("torch", "bias"): ("aspp.branch1.conv", "classifier.0.convs.1.0, Conv2d"),
    ("torch", "stride"): ("backbone.stage2.block1.conv1", "backbone.layer2.0.conv1, Conv2d"),
    ("torch", "corners"): ("output.resize", "what the model returns as out"),
    ("torch", "relu6"): ("backbone.stage2.block2.conv2", "backbone.layer2.1.conv2, Conv2d"),
    ("torch", "shift"): ("aspp.branch0.conv", "classifier.0.convs.0.0, Conv2d"),
    ("torch", "weights"): ("classifier.conv", "classifier.4, Conv2d"),
    ("torch", "published"): ("aspp.branch1.conv", "classifier.0.convs.1.0, Conv2d"),
    ("torch", "preset"): ("aspp.branch1.conv", "classifier.0.convs.1.0, Conv2d"),
    ("torch", "ours wrong"): ("decoder.conv1.depthwise.bn", "decoder.conv1.depthwise.bn, BatchNorm2d"),
    ("paddle", "dilation"): ("aspp.branch3.depthwise.conv", "head.aspp.aspp_blocks.3.depthwise_conv._conv, Conv2D"),
    ("paddle", "epsilon"): ("backbone.stage3.block4.bn2", "backbone.bb_2_3.conv1._batch_norm, BatchNorm2D"),
    ("paddle", "bias"): ("backbone.stage4.block1.conv1", "backbone.bb_3_0.conv0._conv, Conv2D"),
    ("paddle", "stride"): ("backbone.stage2.block1.conv1", "backbone.bb_1_0.conv0._conv, Conv2D"),
    ("paddle", "corners"): ("output.resize", "what the model returns as out"),
    ("paddle", "corners of the decoder"): ("decoder.conv1.depthwise.conv", "head.decoder.conv_bn_relu2.depthwise_conv._conv, Conv2D"),
    ("paddle", "relu6"): ("backbone.stage1.block1.conv2", "backbone.bb_0_0.conv1._conv, Conv2D"),
    ("keras", "dilation"): ("backbone.stage6.block3.depthwise.conv", "expanded_conv_15_depthwise, DepthwiseConv2D"),
    ("keras", "epsilon"): ("backbone.stage4.block4.depthwise.bn", "expanded_conv_9_depthwise_BN, BatchNormalization"),
    ("keras", "bias"): ("backbone.stage4.block1.project.conv", "expanded_conv_6_project, Conv2D"),
    ("keras", "stride"): ("backbone.stage3.block1.expand.conv", "expanded_conv_3_expand, Conv2D"),
    ("keras", "resize"): ("output.resize", "what the model returns as out"),
    ("keras", "relu"): ("backbone.stage3.block2.depthwise.conv", "expanded_conv_4_depthwise, DepthwiseConv2D"),
}  # fmt: skip
"""Node and module to blame, by fault."""

SUSPECTS = {
    ("torch", "relu6"): "backbone.stage2.block2.relu1",
    ("torch", "shift"): "backbone.stage4.block3.relu",
    ("paddle", "corners of the decoder"): "decoder.resize",
    ("paddle", "relu6"): "backbone.stage1.block1.relu1",
    ("keras", "relu"): "backbone.stage3.block2.expand.relu6",
}
"""Where the faulty node is no module: it must be named beside the first node after it."""


@pytest.mark.parametrize(("framework", "fault"), BLAMED)
def test_the_blame(framework, fault, requested):
    found = said(framework, requested)[fault]
    node, module = BLAMED[framework, fault]
    assert not found["passed"]
    assert not found["plain"]
    assert (found["node"], found["module"]) == (node, module)
    assert f"{node} ({module})" in found["line"]
    if (framework, fault) in SUSPECTS:
        assert SUSPECTS[framework, fault] in found["suspects"]
        assert SUSPECTS[framework, fault] in found["line"]
    assert len(found["suspects"]) <= 8


@pytest.mark.parametrize(
    ("framework", "way", "largest"),
    [
        ("torch", "right", 1e-13), ("torch", "float32", 1e-5), ("torch", "wrapped", 1e-13),
        ("torch", "half", 1e-2), ("torch", "around", 1e-13), ("torch", "compiled", 1e-13),
        ("torch", "in a training module", 1e-13), ("torch", "twice", 1e-13), ("torch", "ours", 1e-13),
        # Paddle's and TensorFlow's own resizes work in float32.
        ("paddle", "right", 1e-5), ("paddle", "wrapped", 1e-5), ("paddle", "scores alone", 1e-5), ("paddle", "around", 1e-5),
        ("keras", "right", 1e-6), ("keras", "no spec", 1e-6), ("keras", "float32", 1e-5),
        ("keras", "of a class", 1e-6), ("keras", "ours", 1e-12),
    ],
)  # fmt: skip
def test_models_that_are_right(framework, way, largest, requested):
    found = said(framework, requested)[way]
    assert found["passed"], found["line"]
    assert found["plain"]
    assert found["node"] is None
    assert 0 < found["worst"] < largest
    assert "no node is to blame" in found["line"]


@pytest.mark.parametrize(
    ("framework", "way"),
    [
        ("torch", "doubled around"),
        ("torch", "softmax around"),
        ("torch", "labels around"),
        ("paddle", "doubled around"),
    ],
)
def test_what_is_around_the_network_counts(framework, way, requested):
    """The network within is right; what the model makes of it is not what its weights say."""
    found = said(framework, requested)[way]
    assert not found["passed"]
    assert found["node"] == "output.resize"
    assert found["module"] == "what the model returns as out"


def test_what_is_around_the_network_runs(requested):
    found = said("torch", requested)
    assert found["nothing around"].startswith("GraphError: the model returns NoneType: expected an array")
    assert "the model does not run on images of" in found["fails around"]
    assert "ZeroDivisionError" in found["fails around"]
    for way, name in (("in a training module", "Lightning"), ("compiled", "OptimizedModule")):
        assert f"not run: {name}, which is around the network; give the model that you call" in found[way]["notes"]
    assert not any("not run" in note for note in found["around"]["notes"])


def test_every_module_with_tensors_is_a_node(requested):
    """Convolutions and batch norms of torchvision's network, and its two outputs."""
    found = said("torch", requested)["right"]
    spec = dz.spec("v3_resnet50.torchvision")
    assert found["rows"] == sum(bool(node.parameters()) for node in build_graph(spec).nodes) + 2
    assert found["outputs"] == ["output.resize", "aux.resize"]
    assert "backbone.maxpool" in found["unmatched"]
    assert "backbone.layer1.0.relu" in found["unmatched"]
    assert not found["notes"]
    assert not any(name.endswith(("conv1", "bn1")) for name in found["unmatched"])


def test_a_shape_that_differs_is_told_with_the_right_one(requested):
    assert "the shape differs first" in said("torch", requested)["stride"]["line"]
    assert "1x8x5x6, expected 1x8x9x11" in said("torch", requested)["stride"]["line"]


def test_tensors_that_the_network_has_not(requested):
    names = {"torch": "classifier.0.convs.1.0.bias", "paddle": "backbone.bb_3_0.conv0._conv.bias", "keras": "expanded_conv_6_project/bias"}  # fmt: skip
    for framework in requested:
        (note,) = said(framework, requested)["bias"]["notes"]
        assert note == f"the model has tensors that the network has not: {names[framework]}"


def test_modules_called_twice_and_never(requested):
    found = said("torch", requested)["twice"]
    assert found["notes"] == [
        "the model never calls aux_classifier.0, aux_classifier.1, aux_classifier.4",
        "left out, because called more than once: classifier.0.convs.0.0 (2 times), classifier.0.convs.0.1 (2 times)",
        "not judged by themselves: aspp.branch0.conv, aspp.branch0.bn, aux.hidden.conv, aux.hidden.bn, aux.classifier",
    ]
    assert found["outputs"] == ["output.resize"]


def test_scores_before_the_last_resize(requested):
    found = said("paddle", requested)["scores alone"]
    assert found["notes"] == ["the model returns classifier.conv, before output.resize, which is not judged"]


def test_names_add_modules(requested):
    """A block that ends in the right ReLU clears what lies before the fault."""
    with_names, without = said("torch", requested)["taps"], said("torch", requested)["relu6"]
    assert with_names["rows"] == without["rows"] + 2
    assert "classifier.0.project.2" not in with_names["unmatched"]
    assert "classifier.0.project.2" in without["unmatched"]


def test_a_class_of_no_known_layout(requested):
    """Spec, weights and names say all that the converter would; what the model lacks shows at the output."""
    found = said("torch", requested)["unknown names"]
    assert found["rows"] == 3
    assert found["node"] == "output.resize"
    assert "and 1" in found["line"]  # so many may be at fault that they are not all listed


def test_the_model_is_left_as_it_was(requested):
    assert said("torch", requested)["modes"] == [True, True, False]
    assert said("torch", requested)["hooks"] == 0
    if "paddle" in requested:
        assert said("paddle", requested)["modes"] == [True, False]
        assert said("paddle", requested)["hooks"] == 0
    if "keras" in requested:
        assert said("keras", requested)["left as it was"]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("no module", "GraphError: unknown module 'classifier.0.projekt'"),
        ("no module", "did you mean 'classifier.0.project'?"),
        ("no node", "did you mean 'aspp.fusion.relu'?"),
        ("too narrow", "LayoutError: the layout of 1 tensors can't be told"),
        ("does not run", "BackendError: the model does not run on images of (1, 3, 33, 41): RuntimeError: "),
    ],
)
def test_what_can_not_be_traced(case, text, requested):
    message = said("torch", requested)[case]
    assert text in message
    assert "\n" not in message


RETURNS = """
import collections, json, types
import torch
import deeplabzoo as dz
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.backends.torch.build import build
from deeplabzoo.parity.own_model import trace_model

spec = dz.spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3)).narrowed(8)
graph = build_graph(spec)
model = build(graph, dtype="float64")
weights = seeded_weights(graph, 0, statistics="lively")
model.load_state_dict({name: torch.from_numpy(array).double() for name, array in weights.items()}, strict=False)

def attempt(returned, factor=1, **options):
    def hook(module, inputs, output):
        scores = output["out"] if isinstance(output, dict) else output
        return returned(scores * factor)
    handle = model.register_forward_hook(hook)
    try:
        found = trace_model(model, spec=spec, size=(49, 65), **options)
        return [found.passed, list(found.outputs)]
    except dz.DeepLabZooError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        handle.remove()

Pair = collections.namedtuple("Pair", "loss logits")
ways = {
    "itself": lambda x: x,
    "object": lambda x: types.SimpleNamespace(logits=x),
    "object with out": lambda x: types.SimpleNamespace(out=x),
    "none first": lambda x: {"loss": None, "logits": x},
    "number first": lambda x: {"loss": x.mean(), "scores": x},
    "named tuple": lambda x: Pair(None, x),
    "aux alone": lambda x: {"aux": x},
    "nothing": lambda x: {},
    "strange object": lambda x: types.SimpleNamespace(prediction=x),
    "none in a tuple": lambda x: (None, x),
}
right = {name: attempt(way) for name, way in ways.items()}
wrong = {name: attempt(way, 1.001) for name, way in ways.items()}
bounds = [attempt(ways["itself"], bound=float(bound)) for bound in ("inf", "nan", "-1", "0")]
try:
    trace_model(torch.nn.Linear(3, 4))
except dz.DeepLabZooError as error:
    stranger = str(error)
print(json.dumps([right, wrong, bounds, stranger]))
"""


def test_what_a_model_returns_is_judged_or_refused(requested):
    if "torch" not in requested:
        pytest.skip("torch is not in DEEPLABZOO_TEST_BACKENDS")
    right, wrong, bounds, stranger = python(RETURNS)
    judged = ["itself", "object", "object with out", "none first", "number first", "named tuple"]
    assert [name for name, found in right.items() if found == [True, ["output.resize"]]] == judged
    assert [name for name, found in wrong.items() if found == [False, ["output.resize"]]] == judged
    expected = ": expected an array, or `out` or `logits` with one; wrap it in a model whose call returns its scores"
    for name, what in {
        "aux alone": "dict of aux (ndarray)",
        "nothing": "dict of nothing",
        "strange object": "SimpleNamespace",
        "none in a tuple": "list of NoneType, ndarray",
    }.items():
        assert right[name] == wrong[name] == f"GraphError: the model returns {what}{expected}"
    assert bounds == [
        f"BackendError: bound = {b}: expected a finite number above 0" for b in ("inf", "nan", "-1.0", "0.0")
    ]
    assert "layout=" in stranger
    assert "--from-layout" not in stranger


def test_what_is_no_model():
    with pytest.raises(FormatError, match="a ndarray can't be traced: expected a model of PyTorch, Paddle or Keras"):
        trace_model(np.zeros(3))


def test_errors_that_grow_slowly():
    """No node is to blame, but what the model returns is over the bound."""
    row = NodeRow("output.resize", "", (), "torch", 5e-5, 0, 0, 0)
    outcome = {"modules": {"output.resize": "what the model returns as out"}, "outputs": ("output.resize",)}
    case = Case(1, 33, 41, True)
    over = ModelTrace("m", "", "float32", case, "numpy float64", 2e-5, {}, (row,), {"torch": None}, **outcome)
    assert not over.passed
    assert "errors grow slowly to 5.0e-05 at output.resize (what the model returns as out)" in over.lines()[0]
    assert dataclasses.replace(over, bound=1e-4).passed
    assert not dataclasses.replace(over, bound=1e-4, outputs=()).passed  # nothing that it returns was judged
    assert not dataclasses.replace(over, bound=1e-4, outputs=("output.resize", "aux.resize")).passed


def test_the_nearest_nodes_that_were_seen():
    """Errors count against the nearest rows before a node, whatever lies between without one."""
    graph = build_graph(dz.spec("v3_resnet50.torchvision").narrowed(8))
    block = "backbone.stage1.block2"
    reached, passed = nearest_seen(graph, f"{block}.conv1", {"backbone.stage1.block1.bn3", "backbone.stem.bn"})
    assert reached == ["backbone.stage1.block1.bn3", "backbone.stem.bn"]
    assert passed[:2] == ["backbone.stage1.block1.relu", "backbone.stage1.block1.add"]
    assert nearest_seen(graph, "backbone.stem.bn", ["backbone.stem.conv"]) == (["backbone.stem.conv"], [])

    def rows(**errors):
        names = {"conv1": f"{block}.conv1", "bn3": "backbone.stage1.block1.bn3"}
        return [NodeRow(names[key], "", (), "x", error, 0, 0, 0) for key, error in errors.items()]

    assert first_jump(graph, rows(bn3=1e-3, conv1=5e-3), 1e-11).node.endswith("bn3")
    assert first_jump(graph, rows(bn3=1e-12, conv1=5e-12), 1e-11) is None
    assert first_jump(graph, rows(bn3=2e-12, conv1=1.5e-11), 1e-11) is None  # over the bound, but no jump
    assert first_jump(graph, rows(bn3=1e-12, conv1=1.5e-11), 1e-11).node.endswith("conv1")
