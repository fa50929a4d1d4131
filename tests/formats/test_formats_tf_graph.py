"""Frozen graphs: constants that are weights, what else the graph says, and graphs that lie."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from formats_samples import run_framework, table

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats import tf_graph
from deeplabzoo.weights_converter.formats._leveldb import encoded

# A network in the style of slim: inverted residual blocks, the last of them dilated through SpaceToBatchND, a batch
# norm of single operations, an image that is scaled first, and two ways to resize.
FREEZE = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import logging; logging.disable(logging.WARNING)
import numpy as np, tensorflow as tf
tf1 = tf.compat.v1
rng = np.random.default_rng(0)
def variable(name, *shape):
    return tf1.get_variable(name, initializer=rng.normal(size=shape).astype("f4"), use_resource=False)
def norm(x, name, epsilon=1e-3):
    with tf1.variable_scope(name + "/BatchNorm"):
        parts = [variable(part, x.shape[-1]) for part in ("gamma", "beta", "moving_mean", "moving_variance")]
    return tf1.nn.fused_batch_norm(x, *parts, epsilon=epsilon, is_training=False, name=name + "/BatchNorm/FusedBatchNorm")[0]
def conv(x, name, out, size=1, stride=1):
    w = variable(name + "/weights", size, size, x.shape[-1], out)
    x = tf1.nn.conv2d(x, w, strides=[1, stride, stride, 1], padding="SAME", name=name + "/Conv2D")
    return norm(x, name)
def depthwise(x, name, rate):
    w = variable(name + "/depthwise_weights", 3, 3, x.shape[-1], 1)
    x = tf1.nn.depthwise_conv2d(x, w, strides=[1, 1, 1, 1], padding="SAME", rate=[rate, rate], name=name + "/depthwise")
    return norm(x, name)
with tf1.Graph().as_default() as graph, tf1.Session() as session:
    x = tf1.placeholder(tf.float32, [1, None, None, 3], name="ImageTensor") * (2.0 / 255.0) - 1.0
    x = tf1.subtract(x, tf.constant([0.1, 0.2, 0.3]), name="mean")
    x = conv(x, "MobilenetV2/Conv", 4, size=3, stride=2)
    for index in range(17):
        scope = "MobilenetV2/expanded_conv" + (f"_{index}" if index else "")
        y = conv(x, scope + "/expand", 8)
        y = depthwise(tf1.nn.relu6(y), scope + "/depthwise", 2 if index > 13 else 1)
        x = x + conv(tf1.nn.relu6(y), scope + "/project", 4)
    w = variable("aspp1/weights", 3, 3, 4, 6)
    x = tf1.nn.convolution(x, w, padding="SAME", dilation_rate=[6, 12], name="aspp1/convolution")
    parts = [variable("aspp1/BatchNorm/" + part, 6) for part in ("moving_mean", "moving_variance", "beta", "gamma")]
    x = tf1.nn.batch_normalization(x, *parts, 1e-5, name="aspp1/batchnorm")
    x = tf1.nn.conv2d(x, variable("logits/semantic/weights", 1, 1, 6, 5), strides=1, padding="VALID", name="logits/semantic/Conv2D")
    x = tf1.nn.bias_add(x, variable("logits/semantic/biases", 5))
    x = tf1.image.resize_bilinear(x, [33, 65], align_corners=True, name="ResizeBilinear")
    x = tf1.image.resize_nearest_neighbor(x, tf1.shape(x)[1:3] * 2, name="Up")
    tf1.argmax(x, 3, name="SemanticPredictions")
    session.run(tf1.global_variables_initializer())
    frozen = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["SemanticPredictions"])
    values = {v.op.name: session.run(v) for v in tf1.global_variables()}
open(sys.argv[1] + "/plain.pb", "wb").write(graph.as_graph_def().SerializeToString())
open(sys.argv[1] + "/frozen.pb", "wb").write(frozen.SerializeToString())
open(sys.argv[1] + "/frozen.pbtxt", "w").write(str(frozen))
print(json.dumps([{k: [v.dtype.name, list(v.shape), digest(v.tobytes())] for k, v in values.items()},
                  sum(node.op == "Const" for node in frozen.node)]))
"""


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    return folder, *run_framework("tensorflow", FREEZE, folder)


def test_the_weights_of_a_frozen_graph(frozen):
    folder, variables, constants = frozen
    checkpoint = formats.read(folder / "frozen.pb")
    assert table(checkpoint.tensors) == variables
    assert "MobilenetV2/expanded_conv_16/depthwise/depthwise_weights" in checkpoint.tensors
    assert checkpoint.format == "tf-graph"
    (note,) = checkpoint.notes
    # Scale, offset and mean of the image, and the epsilon.
    assert note.startswith(f"constants that are no weights left out: {constants - len(variables)} (")
    assert note.endswith(" int32, 4 float32)")
    assert [name for name, module in formats._MODULES.items() if module.sniff(folder / "frozen.pb")] == ["tf-graph"]


def test_what_a_frozen_graph_says_of_the_network(frozen):
    folder, variables, _ = frozen
    said = formats.read(folder / "frozen.pb").facts["graph"]
    layers = {layer["weights"]: layer for layer in said["convolutions"]}
    assert set(layers) == {name for name in variables if name.endswith("weights")}
    first = layers["MobilenetV2/Conv/weights"]
    assert first == {
        "name": "MobilenetV2/Conv/Conv2D", "op": "Conv2D", "weights": "MobilenetV2/Conv/weights", "strides": [2, 2],
        "dilations": [1, 1], "padding": "SAME", "space_to_batch": False,
    }  # fmt: skip
    rates = [layers[f"MobilenetV2/expanded_conv_{i}/depthwise/depthwise_weights"]["dilations"] for i in (1, 13, 14, 16)]
    assert rates == [[1, 1], [1, 1], [2, 2], [2, 2]]
    dilated = layers["aspp1/weights"]
    assert (dilated["dilations"], dilated["padding"], dilated["space_to_batch"]) == ([6, 12], "VALID", True)
    assert layers["logits/semantic/weights"]["padding"] == "VALID"
    assert len(said["batch_norms"]) == 53
    assert {norm["epsilon"] for norm in said["batch_norms"]} == {1e-3, 1e-5}
    scope = "MobilenetV2/expanded_conv/project/BatchNorm/"
    assert said["batch_norms"][3] == {
        "name": scope + "FusedBatchNorm", "op": "FusedBatchNormV3", "epsilon": 0.001, "scale": scope + "gamma",
        "offset": scope + "beta", "mean": scope + "moving_mean", "variance": scope + "moving_variance",
    }  # fmt: skip
    assert said["batch_norms"][-1] == {
        "name": "aspp1/batchnorm/Rsqrt", "op": "Rsqrt", "epsilon": 1e-5, "scale": None, "offset": None, "mean": None,
        "variance": "aspp1/BatchNorm/moving_variance",
    }  # fmt: skip
    assert said["resizes"] == [
        {
            "name": "ResizeBilinear", "op": "ResizeBilinear", "align_corners": True, "half_pixel_centers": False,
            "size": [33, 65],
        },
        {
            "name": "Up", "op": "ResizeNearestNeighbor", "align_corners": False, "half_pixel_centers": False,
            "size": None,
        },
    ]  # fmt: skip


def test_graphs_that_are_not_frozen_or_not_binary(frozen):
    folder, variables, _ = frozen
    with pytest.raises(FormatError, match=rf"not frozen: its variables \({len(variables)}, such as MobilenetV2/Conv/"):
        formats.read(folder / "plain.pb")
    with pytest.raises(FormatError, match="a TensorFlow graph as text"):
        formats.read(folder / "frozen.pbtxt")


def test_damaged_graphs(frozen, tmp_path):
    folder, _, _ = frozen
    path = tmp_path / "x.pb"
    whole = (folder / "frozen.pb").read_bytes()
    choose = random.Random(0)
    refused = 0
    for attempt in range(60):
        content = bytearray(whole)
        for _ in range(choose.randint(1, 30)):
            content[choose.randrange(len(content))] = choose.randrange(256)
        path.write_bytes(content[: choose.randrange(len(content))] if attempt % 2 else content)
        refused += not _readable(path)
    assert refused > 30


def _readable(path: Path) -> bool:
    try:
        for value in formats.read(path).tensors.values():
            value.tobytes()
    except FormatError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return False
    return True


# Graphs by hand.


def _message(field: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return encoded(field << 3 | 2) + encoded(len(content)) + content


def _number(field: int, number: int) -> bytes:
    return encoded(field << 3) + encoded(number % 2**64)


def _node(name: str, op: str, *inputs: str, **attributes: bytes) -> bytes:
    parts = [_message(1, name.encode()), _message(2, op.encode()), *(_message(3, i.encode()) for i in inputs)]
    return _message(1, *parts, *(_message(5, _message(1, k.encode()), _message(2, v)) for k, v in attributes.items()))


def _shape(*sizes: int) -> bytes:
    return _message(2, *(_message(2, _number(1, size)) for size in sizes))


def _graph(path: Path, dtype: int, *value: bytes, more: bytes = b"") -> Path:
    """Write a graph of a convolution whose weights are a constant of this type and these parts."""
    weights = _node("w", "Const", value=_message(8, _number(1, dtype), *value))
    path.write_bytes(weights + _node("conv", "Conv2D", "x", "w") + more)
    return path


FLOAT, DOUBLE, HALF, BFLOAT16 = 1, 2, 19, 14


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (FLOAT, _message(4, struct.pack("<3f", 1, 2, 3)), np.array([1, 2, 3], "f4")),
        (FLOAT, _message(5, struct.pack("<3f", 1, 2, 3)), np.array([1, 2, 3], "f4")),
        (FLOAT, _message(5, struct.pack("<2f", 1, 2)), np.array([1, 2, 2], "f4")),
        (FLOAT, b"\x2d" + struct.pack("<f", 1) + b"\x2d" + struct.pack("<f", 2), np.array([1, 2, 2], "f4")),
        (FLOAT, b"", np.zeros(3, "f4")),
        (FLOAT, _message(4), np.zeros(3, "f4")),
        (DOUBLE, _message(6, struct.pack("<d", 0.1)), np.full(3, 0.1)),
        (HALF, _message(13, encoded(0x3C00), encoded(0xC000)), np.array([1, -2, -2], "f2")),
        (BFLOAT16, _message(13, encoded(0x3F80)), np.ones(3, ml_dtypes.bfloat16)),
        (HALF, _message(4, np.array([1, 2, 3], "<f2").tobytes()), np.array([1, 2, 3], "f2")),
    ],
)
def test_the_ways_to_write_values(tmp_path, dtype, value, expected):
    checkpoint = formats.read(_graph(tmp_path / "x.pb", dtype, _shape(3), value))
    assert table(checkpoint.tensors) == table({"w": expected})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ((_shape(4), _message(4, b"\0" * 12)), "takes 16 bytes, it has 12"),
        ((_shape(2), _message(4, b"\0" * 12)), "takes 8 bytes, it has 12"),
        ((_shape(2), _message(5, b"\0" * 12)), "takes 8 bytes, it has 12"),
        ((_shape(4), _message(5, b"\0" * 11)), "it has 11"),
        ((_shape(2**40), _message(5, b"\0" * 4)), "the most that is filled up"),
        ((_shape(2**62, 2**62), b""), "the most that is filled up"),
        ((_shape(-1), b""), "impossible shape"),
        ((_shape(*[1] * 33), b""), "more than 32 dimensions"),
        ((_message(2, b"\x18\x00" * 3000), b""), "takes 6000 bytes"),
        ((_shape(1), _number(5, 7)), "not packed"),
        ((_shape(0), b""), "without weights"),
        ((b"", b""), "without weights"),
        ((_shape(1), b"\x22\x7f"), "damaged|truncated"),
    ],
)
def test_constants_that_lie(tmp_path, value, said):
    path = _graph(tmp_path / "x.pb", FLOAT, *value)
    with pytest.raises(FormatError, match=said) as caught:
        formats.read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("values", [encoded(1) * 4, b"\x80" * 3, b"\x80" * 11 + b"\x01"])
def test_halves_that_are_none(tmp_path, values):
    checkpoint = formats.read(_graph(tmp_path / "x.pb", HALF, _shape(3), _message(13, values)))
    with pytest.raises(FormatError, match="damaged"):
        checkpoint.tensors["w"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (_node("w", "Const"), "two named 'w'"),
        (_node("", "Const"), "a node without a name"),
        (_node("y", "Conv2D", "x", "w", strides=_message(1, _message(3, b"\x01" * 17))), "strides of node 'y'"),
        (b"\x0a\x00" * 3, "a node without a name"),
        (_message(1, b"\x1a\x00" * 500_000), "fields"),
        (b"\x78\x00" * 500_000, "fields"),
        (_node("z" * 70_000_000, "Const"), "names take more"),
        (b"\x0b", "protocol buffer"),
    ],
)
def test_graphs_that_lie(tmp_path, more, said):
    path = _graph(tmp_path / "x.pb", FLOAT, _shape(1), more=more)
    start = time.monotonic()
    with pytest.raises(FormatError, match=said):
        formats.read(path)
    assert time.monotonic() - start < 20


def test_odd_graphs_end(tmp_path):
    loop = _node("a", "Identity", "b") + _node("b", "Identity", "a") + _node("c", "Conv2D", "a", "a")
    nested = b"x"
    for _ in range(3000):
        nested = _message(5, nested)
    odd = loop + _node("d", "Conv2D") + _node("e", "BiasAdd", "^w", "") + _node("f", "Rsqrt", "f") + _message(2, nested)
    checkpoint = formats.read(_graph(tmp_path / "x.pb", FLOAT, _shape(1), more=odd))
    assert list(checkpoint.tensors) == ["w"]
    assert [layer["weights"] for layer in checkpoint.facts["graph"]["convolutions"]] == ["w", None, None]


def test_defaults_that_a_graph_leaves_out_and_channels_first(tmp_path):
    first = _node(
        "first", "Conv2D", "x", "w:0",
        data_format=_message(2, b"NCHW"),
        strides=_message(1, _message(3, bytes([1, 1, 3, 2]))),
        dilations=_message(1, _number(3, 1), _number(3, 1), _number(3, 4), _number(3, 5)),
    )  # fmt: skip
    more = first + _node("n", "FusedBatchNorm", "x", "w", "w", "w") + _node("r", "ResizeBicubic", "x", "w")
    checkpoint = formats.read(
        _graph(tmp_path / "x.pb", FLOAT, _shape(1), _message(5, struct.pack("<f", 0.1)), more=more)
    )
    said = checkpoint.facts["graph"]
    assert [(layer["strides"], layer["dilations"]) for layer in said["convolutions"]] == [
        ([1, 1], [1, 1]),
        ([3, 2], [4, 5]),
    ]
    assert said["batch_norms"][0]["epsilon"] == 1e-4
    assert (said["batch_norms"][0]["mean"], said["batch_norms"][0]["variance"]) == ("w", None)
    assert said["resizes"][0]["size"] == [0.1]


@pytest.mark.parametrize(
    "start",
    [
        b"\x08\x0a\x12\x07pytorch",  # ONNX
        _message(1, b"DeepLab-LargeFOV") + _message(100, _message(1, b"conv1_1"), _message(2, b"Convolution")),  # Caffe
        _message(2, _message(4, b"conv1_1")),  # Caffe of 2014
        _node("a name", "Const"),
        _message(1, _message(1, b"a"), _message(3, b"input")),
        _node("a", "Const")[:-1],
        b"\x0a",
        b"",
    ],
)
def test_what_is_no_graph(tmp_path, start):
    path = tmp_path / "x.pb"
    path.write_bytes(start)
    assert not tf_graph.sniff(path)


def test_a_large_graph_is_looked_at_within_little_memory(tmp_path):
    path = tmp_path / "x.pb"
    count, size = 8, 2**25  # floats: a gigabyte in a file with holes
    with path.open("wb") as file:
        for index in range(count):
            file.write(_hollow(f"w{index}", size * 4))
            file.seek(size * 4, 1)
            file.write(_node(f"conv{index}", "Conv2D", "x", f"w{index}"))
    code = (
        "import resource\nfrom deeplabzoo.weights_converter import formats\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "checkpoint = formats.read(sys.argv[1])\n"
        "print(json.dumps([len(checkpoint.tensors), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))"
    )
    found, grown = run_framework("deeplabzoo", code, path)
    assert found == count
    assert grown < 50_000  # kilobytes


def _hollow(name: str, size: int) -> bytes:
    """Return the start of a node whose constant has that many bytes, which are to follow.

    The lengths of the node, the attribute, its value and the tensor count them in, from the innermost outwards.
    """
    content = encoded(4 << 3 | 2) + encoded(size)
    start = _number(1, FLOAT) + _shape(size // 4) + content
    for field, before in (
        (8, b""),
        (2, _message(1, b"value")),
        (5, _message(1, name.encode()) + _message(2, b"Const")),
    ):
        start = before + encoded(field << 3 | 2) + encoded(len(start) + size) + start
    return encoded(1 << 3 | 2) + encoded(len(start) + size) + start
