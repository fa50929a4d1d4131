"""The graph: its rules, its plain data, its groups and the order in which they run."""

from __future__ import annotations

import json

import pytest
from helpers import python, small_spec

from deeplabzoo.core import ops
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph, GraphBuilder, Node
from deeplabzoo.core.schedule import groups
from deeplabzoo.core.spec import make_spec
from deeplabzoo.errors import GraphError
from deeplabzoo.zoo.models import PRESETS

EVERYTHING = {
    "v3": make_spec("v3", aux=True),
    "v3plus": make_spec("v3plus", aux=True, decoder={"dropout": (0.5, 0.1)}),
    "v3plus mobilenet_v2": make_spec("v3plus", backbone="mobilenet_v2", aux=True),
    "tapped inside a block": small_spec(decoder={"low_level": "stage2.block2.expand"}),
    "stride in the last unit": make_spec("v3plus", stride_in="last_unit"),
    "features": small_spec(output={"resize": "features", "values": "probabilities"}),
    "labels": small_spec(aux=True, output={"values": "labels"}),
    "separable post": small_spec("v3", aspp={"post_conv": "separable_bn", "bias": True}),
    **{name: preset.make() for name, preset in PRESETS.items()},
}
GRAPHS = {name: build_graph(spec) for name, spec in EVERYTHING.items()}
graphs = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)

RELU = ops.Activation(function="relu")
INPUT = Node("input", ops.Input(channels=3), ())


def graph_of(*names: str) -> Graph:
    return Graph((INPUT, *(Node(name, RELU, ("input",)) for name in names)), (("out", names[-1]),))


@pytest.mark.parametrize("name", ["a", "a.b", "stage1.block12.conv2", "low_level", "a1_b2.c"])
def test_good_names(name):
    assert graph_of(name).by_name[name].op == RELU


@pytest.mark.parametrize(
    "name", ["", "A", "a..b", ".a", "a.", "a__b", "_a", "a_", "1a", "a-b", "a/b", "a b", "ä", "a._b"]
)
def test_bad_names(name):
    with pytest.raises(GraphError, match="lower case words"):
        graph_of(name)


def test_rules():
    with pytest.raises(GraphError, match="'a' exists twice"):
        graph_of("a", "a")
    for names in (("a", "a.b"), ("a.b", "a"), ("a.b.c", "a.b")):
        with pytest.raises(GraphError, match="is also the name of a group"):
            graph_of(*names)
    assert graph_of("a", "ab", "b.a")  # no prefix: only whole parts count
    with pytest.raises(GraphError, match="reads 'b', which no earlier node makes"):
        Graph((INPUT, Node("a", RELU, ("b",)), Node("b", RELU, ("input",))), (("out", "b"),))
    with pytest.raises(GraphError, match="'nowhere', which does not exist"):
        Graph((INPUT,), (("out", "nowhere"),))


@graphs
def test_json_round_trip(graph):
    again = Graph.from_json(graph.to_json())
    assert again == graph
    assert hash(again) == hash(graph)
    assert again.to_json() == graph.to_json()
    assert again.digest() == graph.digest()
    assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph


def test_broken_json():
    data = GRAPHS["v3"].to_dict()
    for change, message in (
        ({"format": 99}, "format 99"),
        ({"nodes": [{"name": "input", "op": "input", "channels": 3}]}, "'inputs' is missing"),
        ({"nodes": [{"name": "input", "op": "imput", "inputs": [], "channels": 3}]}, "did you mean 'input'"),
        ({"nodes": [{"name": "input", "op": "input", "inputs": [], "chanels": 3}]}, "op input"),
    ):
        with pytest.raises(GraphError, match=message):
            Graph.from_dict({**data, **change})


BROKEN_NODES = {
    "stride 0": {"op": "max_pool", "kernel": 3, "stride": 0},
    "negative kernel": {"op": "conv2d", "in_channels": 3, "out_channels": 4, "kernel": -1},
    "groups that do not divide": {"op": "conv2d", "in_channels": 3, "out_channels": 4, "kernel": 1, "groups": 2},
    "padding in a word": {"op": "max_pool", "kernel": 3, "stride": 1, "padding": "valid"},
    "padding of two": {"op": "max_pool", "kernel": 3, "stride": 1, "padding": [1, 1]},
    "same average": {"op": "avg_pool", "kernel": 3, "stride": 1, "padding": "same"},
    "function": {"op": "activation", "function": "gelu"},
    "flag": {"op": "conv2d", "in_channels": 3, "out_channels": 4, "kernel": 1, "bias": "no"},
    "epsilon": {"op": "batch_norm", "channels": 3, "epsilon": -1, "momentum": 0.9},
    "rate": {"op": "dropout", "rate": 3},
    "one summand": {"op": "add"},
    "no gate": {"op": "multiply"},
    "no target": {"op": "resize", "align_corners": False},
    "a second input": {"op": "input", "channels": 3, "inputs": []},
    "a list for a kind": {"op": ["conv2d"]},
    "a number for a name": {"op": "argmax", "name": 3},
}


@pytest.mark.parametrize("node", BROKEN_NODES.values(), ids=BROKEN_NODES)
def test_broken_nodes(node):
    first = {"name": "input", "op": "input", "inputs": [], "channels": 3}
    data = {"format": 1, "nodes": [first, {"name": "x", "inputs": ["input"], **node}], "outputs": {"out": "x"}}
    with pytest.raises(GraphError) as caught:
        Graph.from_dict(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "3", "[]", "{}", "null", '{"format": 1, "nodes": [], "outputs": {}}', None])
def test_no_graph(text):
    with pytest.raises(GraphError):
        Graph.from_json(text)


def test_shapes_name_the_node():
    graph = GRAPHS["v3plus"]
    shapes = graph.shapes(97, 129, batch=2)
    assert shapes["output.resize"] == (2, 21, 97, 129)
    assert shapes["backbone.stage4.block3.relu"] == (2, 2048, 7, 9)
    assert shapes["decoder.concat"] == (2, 304, 25, 33)
    builder = GraphBuilder()
    x = builder.conv("a.conv", builder.input(3), 4, 5, padding=(0, 0, 0, 0))
    with pytest.raises(GraphError, match=r"a\.conv: an input of 4x9 is too small for a window of 5x5"):
        builder.finish({"out": x}).shapes(4, 9)


@graphs
def test_rows(graph):
    rows = graph.rows(129, 161)
    assert [row[0] for row in rows] == [node.name for node in graph.nodes]
    assert all(len(row) == 4 for row in rows)


def test_only_what_an_output_needs():
    """An auxiliary head on stage 3 does not read stage 4, and what nobody reads is left out."""
    builder = GraphBuilder()
    image = builder.input(3)
    used = builder.apply("used", RELU, image)
    builder.apply("unused", RELU, used)
    assert [node.name for node in builder.finish({"out": used}).nodes] == ["input", "used"]


@graphs
def test_every_group_can_run(graph):
    """Running the groups as a backend does visits every node once, with its inputs there, and frees every value."""
    plans = groups(graph)
    prefixes = {".".join(n.name.split(".")[:k]) for n in graph.nodes[1:] for k in range(len(n.name.split(".")))}
    assert set(plans) == prefixes
    visited = []

    def run(name: str, values: dict[str, int]) -> dict[str, int]:
        group = plans[name]
        assert tuple(values) == group.inputs
        alive = dict(values)
        for step in group.steps:
            child = f"{name}.{step.child}".lstrip(".")
            read = {source: alive[source] for source in step.inputs}
            if child in plans:
                made = run(child, read)
            else:
                assert step.inputs == graph.by_name[child].inputs
                visited.append(child)
                made = {child: len(visited)}
            assert tuple(made) == step.outputs
            alive.update(made)
            for value in step.release:
                del alive[value]
        # What is left is the result: nothing lives longer than it must.
        assert set(alive) == set(group.outputs)
        return {value: alive[value] for value in group.outputs}

    results = run("", {graph.input.name: 0})
    assert list(results) == [node for _, node in graph.outputs]
    assert sorted(visited) == sorted(node.name for node in graph.nodes[1:])


def test_groups_declare_what_they_read_and_make():
    plans = groups(GRAPHS["v3plus mobilenet_v2"])
    assert plans["backbone"].inputs == ("input",)
    assert plans["backbone"].outputs == (
        "backbone.stage2.block2.depthwise.relu6",
        "backbone.stage5.block3.add",
        "backbone.stage7.block1.project.bn",
    )
    assert plans["decoder"].inputs == ("backbone.stage2.block2.depthwise.relu6", "aspp.dropout")
    assert plans["aspp"].inputs == ("backbone.stage7.block1.project.bn",)
    assert plans["aspp"].outputs == ("aspp.dropout",)
    assert plans["backbone.stage3.block2"].inputs == ("backbone.stage3.block1.project.bn",)
    assert plans[""].inputs == ("input",)
    assert plans[""].outputs == ("output.resize", "aux.resize")


def test_groups_that_need_one_another():
    nodes = [INPUT, Node("a.x", RELU, ("input",)), Node("b.x", RELU, ("a.x",)), Node("a.y", RELU, ("b.x",))]
    nodes.append(Node("b.y", ops.Add(), ("a.y", "b.x")))
    with pytest.raises(GraphError, match="need one another's outputs"):
        groups(Graph(tuple(nodes), (("out", "b.y"),)))


CLASSES = {
    "torch": "from torch.nn import Module as Base",
    "paddle": "from paddle.nn import Layer as Base",
}


@pytest.mark.parametrize("framework", CLASSES)
def test_no_part_of_a_name_is_an_attribute_of_a_module(requested, framework):
    """A child named `train` or `type` would hide the method of that name."""
    if framework not in requested:
        pytest.skip(f"{framework} is not in DEEPLABZOO_TEST_BACKENDS")
    code = f"""
import json, warnings
warnings.simplefilter("ignore")
{CLASSES[framework]}
from deeplabzoo.backends.{framework}.build import DeepLab
print(json.dumps(sorted({{*dir(Base()), *dir(DeepLab), "inputs", "outputs", "graph"}})))
"""
    taken = set(python(code))
    assert {"train", "forward", "register_forward_pre_hook"} <= taken
    parts = {part for graph in GRAPHS.values() for node in graph.nodes[1:] for part in node.name.split(".")}
    assert {"backbone", "aspp", "block1", "conv"} <= parts
    assert not parts & taken


def test_no_layer_name_is_an_attribute_of_a_keras_model(requested):
    """Keras reaches layers by name and not as attributes; a clash would still make a confusing model."""
    if not any(name.startswith("keras") for name in requested):
        pytest.skip("keras is not in DEEPLABZOO_TEST_BACKENDS")
    code = """
import json, os
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
print(json.dumps(sorted(dir(keras.Model))))
"""
    taken = set(python(code))
    names = {node.name.replace(".", "__") for graph in GRAPHS.values() for node in graph.nodes[1:]}
    assert "predict" in taken
    assert not names & taken


def dilations(spec) -> dict[str, list[int]]:
    """Dilation of the 3x3 of each block, by stage."""
    found: dict[str, list[int]] = {}
    for node in build_graph(spec).nodes:
        parts = node.name.split(".")
        if parts[0] == "backbone" and isinstance(node.op, ops.Conv2d) and node.op.kernel == 3 and parts[1] != "stem":
            found.setdefault(parts[1], []).append(node.op.dilation)
    return found


def resnet(stride, **options):
    return dilations(make_spec("v3", output_stride=stride, backbone={"name": "resnet50", **options}))


def mobilenet(stride, **options):
    found = dilations(make_spec("v3", output_stride=stride, backbone={"name": "mobilenet_v2", **options}))
    return [rate for stage in sorted(found) for rate in found[stage]]


def test_dilations_of_resnet():
    """The measured tables of layouts.md, section 0.1."""
    torchvision = resnet(8)
    assert torchvision["stage2"] == [1, 1, 1, 1]
    assert torchvision["stage3"] == [1, 2, 2, 2, 2, 2]
    assert torchvision["stage4"] == [2, 4, 4]
    assert resnet(16)["stage3"] == [1] * 6
    assert resnet(16)["stage4"] == [1, 2, 2]
    assert resnet(32)["stage4"] == [1, 1, 1]
    full = resnet(8, first_block_dilation="full")  # smp, kazuto
    assert (full["stage3"], full["stage4"]) == ([2] * 6, [4] * 3)
    assert resnet(16, first_block_dilation="full")["stage4"] == [2, 2, 2]
    grid = {"first_block_dilation": "full", "multi_grid": (1, 2, 4)}
    assert resnet(8, **grid)["stage4"] == [4, 8, 16]  # PaddleSeg, jfzhang95
    assert resnet(16, **grid)["stage4"] == [2, 4, 8]  # the paper, jfzhang95
    assert resnet(16, **grid, multi_grid_mode="replace")["stage4"] == [1, 2, 4]  # mmseg D16-MG124
    slim = resnet(8, stride_in="last_unit")  # the stride is gone before the stage begins: all its units are dilated
    assert (slim["stage2"], slim["stage3"], slim["stage4"]) == ([1] * 4, [2] * 6, [4] * 3)


def test_strides_of_resnet():
    def strided(**options):
        graph = build_graph(make_spec("v3", output_stride=32, backbone={"name": "resnet50", **options}))
        return [n.name for n in graph.nodes if getattr(n.op, "stride", 1) > 1 and "shortcut" not in n.name][2:]

    assert strided() == [f"backbone.stage{n}.block1.conv2" for n in (2, 3, 4)]
    assert strided(stride_in="conv1") == [f"backbone.stage{n}.block1.conv1" for n in (2, 3, 4)]
    assert strided(stride_in="last_unit") == [
        f"backbone.stage{stage}.block{last}.{part}"
        for stage, last in ((1, 3), (2, 4), (3, 6))
        for part in ("conv2", "subsample")
    ]


def test_dilations_of_mobilenet_v2():
    assert mobilenet(32) == [1] * 17
    assert mobilenet(16) == [1] * 14 + [2] * 3  # rate 2 on expanded_conv_14 to 16, 13 keeps 1
    assert mobilenet(8) == [1] * 7 + [2] * 7 + [4] * 3  # rate 2 on 7 to 13, 4 on 14 to 16
    # mmseg: dilations (1, 1, 1, 2, 2, 4, 4) on the first block of each layer, 1 on the others.
    assert mobilenet(8, first_block_dilation="first_only") == [
        *[1] * 6, *[2, 1, 1, 1], *[2, 1, 1], *[4, 1, 1], 4,
    ]  # fmt: skip
    assert mobilenet(8, first_block_dilation="full") == [1] * 6 + [2] * 7 + [4] * 4  # smp
