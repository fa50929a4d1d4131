"""TensorFlow Lite: files of the converter, files by hand, and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_samples import run_framework, table
from wire import damaged, flat, survives

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats._flatbuffer import FlatBuffer

KERNEL = np.arange(36, dtype="f4").reshape(4, 3, 3, 1)
BIAS = np.array([1, -1, 0.5, 2], "f4")
F32, F16, I32, U8 = 0, 1, 2, 3


def tensor(name: str, shape: list[int], kind: int = F32, buffer: int = 0, **more: Any) -> dict[int, Any]:
    fields = {0: shape, 1: ("B", kind), 2: ("I", buffer), 3: name}
    return {**fields, **{int(key.strip("_")): value for key, value in more.items()}}


def operator(code: int, inputs: list[int], outputs: list[int], options: dict[int, Any] | None = None) -> dict[int, Any]:
    fields: dict[int, Any] = {0: ("I", code), 1: inputs, 2: outputs}
    return fields | ({4: options} if options is not None else {})


TENSORS = [
    tensor("image", [1, 8, 8, 1]),
    tensor("kernel", list(KERNEL.shape), buffer=1),
    tensor("bias", [4], buffer=2),
    tensor("map", [1, 4, 4, 4]),
    tensor("size", [2], I32, buffer=3),
    tensor("out", [1, 8, 8, 4]),
]
BUFFERS = [{}, {0: KERNEL.tobytes()}, {0: BIAS.tobytes()}, {0: np.array([8, 8], "i4").tobytes()}]
OPERATORS = [
    operator(0, [0, 1, 2], [3], {0: ("b", 0), 1: ("i", 2), 2: ("i", 3), 3: ("b", 3), 4: ("i", 5), 5: ("i", 4)}),
    operator(1, [3, 4], [5], {2: ("B", 1)}),
]
CODES = [{0: ("b", 3)}, {0: ("b", 23), 3: ("i", 23)}]


def model(
    tensors: list[dict[int, Any]] = TENSORS,
    buffers: list[dict[int, Any]] = BUFFERS,
    operators: list[dict[int, Any]] = OPERATORS,
    codes: list[dict[int, Any]] = CODES,
    more: tuple[dict[int, Any], ...] = (),
) -> bytes:
    graph = {0: tensors, 1: [0], 2: [len(tensors) - 1], 3: operators, 4: "main"}
    return flat({0: ("I", 3), 1: codes, 2: [graph, *more], 3: "by hand", 4: buffers})


def read(tmp_path: Path, content: bytes) -> formats.Checkpoint:
    path = tmp_path / "net.tflite"
    path.write_bytes(content)
    assert formats.detect(path) == "tflite"
    return formats.read(path)


def test_a_file_by_hand(tmp_path):
    checkpoint = read(tmp_path, model())
    assert table(checkpoint.tensors) == table({"kernel": KERNEL, "bias": BIAS, "size": np.array([8, 8], "i4")})
    assert list(checkpoint.tensors) == ["kernel", "bias", "size"]
    assert checkpoint.facts["operators"] == [
        {
            "op": "CONV_2D", "inputs": ["image", "kernel", "bias"], "outputs": ["map"], "padding": "SAME",
            "stride": [3, 2], "dilation": [4, 5], "activation": "RELU6",
        },
        {
            "op": "RESIZE_BILINEAR", "inputs": ["map", "size"], "outputs": ["out"], "align_corners": True,
            "half_pixel_centers": False,
        },
    ]  # fmt: skip
    assert checkpoint.facts["inputs"] == [{"name": "image", "shape": [1, 8, 8, 1], "dtype": "float32"}]
    assert checkpoint.facts["outputs"] == [{"name": "out", "shape": [1, 8, 8, 4], "dtype": "float32"}]


def test_options_of_other_operators(tmp_path):
    codes = [{0: ("b", code)} for code in (4, 1, 2, 0, 97, 17)] + [
        {0: ("b", 32), 1: "Mine"},
        {0: ("b", 127), 3: ("i", 150)},
    ]
    depthwise = {0: ("b", 1), 1: ("i", 1), 2: ("i", 2), 3: ("i", 2), 4: ("b", 1), 5: ("i", 3), 6: ("i", 4)}
    pool = {0: ("b", 1), 1: ("i", 1), 2: ("i", 2), 3: ("i", 3), 4: ("i", 4), 5: ("b", 99)}
    operators = [
        operator(0, [0, 1, -1], [3], depthwise), operator(1, [0], [3], pool), operator(2, [0], [3], {0: ("i", -1)}),
        operator(3, [0, 0], [3]), operator(4, [0], [3], {1: ("B", 1)}), operator(5, [0], [3]), operator(6, [0], [3]),
        operator(7, [0], [3]),
    ]  # fmt: skip
    found = read(tmp_path, model(operators=operators, codes=codes)).facts["operators"]
    assert [one["op"] for one in found] == [
        "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "CONCATENATION", "ADD", "RESIZE_NEAREST_NEIGHBOR", "MAX_POOL_2D", "Mine",
        "operator 150",
    ]  # fmt: skip
    assert found[0] == {
        "op": "DEPTHWISE_CONV_2D", "inputs": ["image", "kernel", None], "outputs": ["map"], "padding": "VALID",
        "stride": [2, 1], "dilation": [4, 3], "multiplier": 2, "activation": "RELU",
    }  # fmt: skip
    assert (found[1]["filter"], found[1]["stride"], found[1]["activation"]) == ([4, 3], [2, 1], "activation 99")
    assert found[2]["axis"] == -1
    assert found[3]["activation"] == "NONE"
    assert found[4]["half_pixel_centers"] is True


def test_names_that_are_missing_or_used_twice(tmp_path):
    tensors = [tensor("a", [4], buffer=2), tensor("a", [4], buffer=2), tensor("", [4], buffer=2), tensor("b", [4])]
    operators = [operator(0, [0, 1, 2], [3])]
    checkpoint = read(tmp_path, model(tensors, operators=operators, more=({}, {})))
    assert list(checkpoint.tensors) == ["a#0", "a#1", "#2"]
    assert checkpoint.facts["operators"][0]["inputs"] == ["a#0", "a#1", "#2"]
    assert checkpoint.notes == ("ignored 2 more subgraphs",)


def test_bytes_after_the_flat_buffer(tmp_path):
    """What files of more than two gigabytes do."""
    place = len(model(buffers=[{}, {1: ("Q", 2), 2: ("Q", 144)}, *BUFFERS[2:]]))
    content = model(buffers=[{}, {1: ("Q", place), 2: ("Q", 144)}, *BUFFERS[2:]])
    checkpoint = read(tmp_path, content + KERNEL.tobytes())
    assert table({"kernel": checkpoint.tensors["kernel"]}) == table({"kernel": KERNEL})
    with pytest.raises(FormatError, match="truncated: a buffer ends at byte"):
        read(tmp_path, content)


CONVERT = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf
kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 16)).astype("f4")
class Net(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([1, 9, 9, 3], tf.float32)])
    def __call__(self, x):
        return tf.nn.relu6(tf.nn.conv2d(x, kernel, [1, 2, 2, 1], "SAME") + np.arange(16, dtype="f4"))
for name in ("float32", "float16", "int8"):
    net = Net()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([net.__call__.get_concrete_function()], net)
    if name != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if name == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if name == "int8":
        converter.representative_dataset = lambda: [[np.random.rand(1, 9, 9, 3).astype("f4")]]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    open(f"{sys.argv[1]}/{name}.tflite", "wb").write(converter.convert())
print(json.dumps([digest(kernel.transpose(3, 0, 1, 2).tobytes()),
                  digest(kernel.transpose(3, 0, 1, 2).astype("f2").tobytes())]))
"""


def test_what_tensorflow_converts(tmp_path):
    single, half = run_framework("tensorflow", CONVERT, tmp_path)
    checkpoint = formats.read(tmp_path / "float32.tflite")
    (convolution,) = [one for one in checkpoint.facts["operators"] if one["op"] == "CONV_2D"]
    assert (convolution["stride"], convolution["padding"], convolution["activation"]) == ([2, 2], "SAME", "RELU6")
    kernel, bias = convolution["inputs"][1:]
    assert table(checkpoint.tensors)[kernel] == ["float32", [16, 3, 3, 3], single]
    assert checkpoint.tensors[bias].tolist() == list(range(16))

    checkpoint = formats.read(tmp_path / "float16.tflite")
    widened = {
        one["outputs"][0]: one["inputs"][0] for one in checkpoint.facts["operators"] if one["op"] == "DEQUANTIZE"
    }
    (convolution,) = [one for one in checkpoint.facts["operators"] if one["op"] == "CONV_2D"]
    assert table(checkpoint.tensors)[widened[convolution["inputs"][1]]] == ["float16", [16, 3, 3, 3], half]

    with pytest.raises(FormatError, match=r"tensor '.+' is quantised .*convert it without quantisation"):
        formats.read(tmp_path / "int8.tflite")


def test_the_published_file(data):
    checkpoint = formats.read(data / "weights" / "deeplabv3_257_mv_gpu.tflite")
    assert len(checkpoint.tensors) == 113
    assert sum(array.size for array in checkpoint.tensors.values() if array.dtype == np.float32) == 688_357
    operators = checkpoint.facts["operators"]
    assert len(operators) == 70
    assert [one["filter"] for one in operators if one["op"] == "AVERAGE_POOL_2D"] == [[33, 33]]
    assert [one["dilation"][0] for one in operators if one["op"] == "DEPTHWISE_CONV_2D"] == [1] * 7 + [2] * 7 + [4] * 3
    assert checkpoint.facts["outputs"][0]["shape"] == [1, 257, 257, 21]


def _with(tensor_fields: dict[int, Any], index: int = 1) -> bytes:
    return model([{**one, **tensor_fields} if at == index else one for at, one in enumerate(TENSORS)])


LIES: dict[str, tuple[bytes, str]] = {
    "no network": (flat({0: ("I", 3)}), "holds no network"),
    "no constants": (model([tensor("a", [4])], operators=[]), "holds no constants"),
    "bytes": (_with({1: ("B", U8)}), "tensor 'kernel' is quantised or of a type that weights are not .uint8"),
    "scale": (_with({4: {2: [1]}}), "tensor 'kernel' is quantised"),
    "sparse": (_with({6: {}}), "tensor 'kernel' is sparse"),
    "type": (_with({1: ("B", 200)}), "element type 200"),
    "shape": (_with({0: [4, 3, 3, 2]}), "takes 288 bytes, it has 144"),
    "huge": (_with({0: [2**31 - 1] * 4}), "takes"),
    "negative": (_with({0: [-4, -9]}), "impossible shape"),
    "many axes": (_with({0: [1] * 33}), "it has 33 axes"),
    "buffer": (_with({2: ("I", 9)}), "buffer 9 of 4"),
    "tensor": (model(operators=[operator(0, [0, 99], [3])]), "tensor 99 of 6 is used"),
    "minus two": (model(operators=[operator(0, [0, -2], [3])]), "tensor -2 of 6 is used"),
    "code": (model(operators=[operator(7, [0], [3])]), "operator 7 of 2 is used"),
    "same names": (
        model([tensor(n, [4], buffer=2) for n in ("a", "a", "a#0")], operators=[]), "two tensors have the same name",
    ),
    "shared": (
        model([tensor(f"t{n}", [36], buffer=1) for n in range(900)], operators=[]), "they overlap",
    ),
    "short": (b"\x20\0\0\0TFL3", "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    content, message = LIES[lie]
    with pytest.raises(FormatError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_vectors_and_tables_that_lead_astray(tmp_path):
    content = model()
    place, count = FlatBuffer(memoryview(content)).root().tables(2)[0].span(0, 4)
    assert count == len(TENSORS)
    for count in (2**32 - 1, 2**30, 10**6):  # more tables than bytes
        lie = bytearray(content)
        struct.pack_into("<I", lie, place - 4, count)
        assert not survives(tmp_path / "x", bytes(lie))
    for offset in (0, 2**32 - 1, 4, 2**31):  # into itself, and far away
        lie = bytearray(content)
        struct.pack_into("<I", lie, place, offset)
        assert not survives(tmp_path / "x", bytes(lie))


@pytest.mark.parametrize("what", ["tensors", "operators", "inputs"])
def test_references_that_cost_little_and_lead_to_much(tmp_path, what):
    """One table, or one long list, that a great many others share."""
    contents = {
        "tensors": lambda: model([TENSORS[1]] * 100_000, operators=[]),
        "operators": lambda: model(operators=[OPERATORS[0]] * 80_000),
        "inputs": lambda: model(operators=[operator(0, [0] * 10_000, [3])] * 1000),
    }
    with pytest.raises(FormatError, match="more than 500000 steps"):
        read(tmp_path, contents[what]())


def test_truncation_at_any_point(tmp_path):
    whole = model()
    assert survives(tmp_path / "x", whole)
    for cut in range(len(whole) - 8):
        assert not survives(tmp_path / "x", whole[:cut]), cut


def test_seeded_damage(tmp_path):
    whole = model()
    assert {survives(tmp_path / "x", damaged(whole, seed)) for seed in range(800)} == {True, False}
