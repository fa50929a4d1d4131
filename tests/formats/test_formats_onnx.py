"""ONNX: every way to store a tensor, weights from nodes, data beside the model, and files that lie."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from formats_samples import run_framework, table
from wire import counted, damaged, fixed, number, packed, survives

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats

FLOAT, INT64, HALF, BFLOAT = 1, 7, 10, 16


def tensor(name: str, code: int, shape: tuple[int, ...], values: bytes = b"", *, dims: bytes | None = None) -> bytes:
    dims = b"".join(number(1, size) for size in shape) if dims is None else dims
    return dims + number(2, code) + values + counted(8, name)


def raw(name: str, array: np.ndarray, code: int = FLOAT) -> bytes:
    return tensor(name, code, array.shape, counted(9, array.tobytes()))


def node(op: str, inputs: str, outputs: str, *attributes: bytes, name: str = "") -> bytes:
    fields = [counted(1, one) for one in inputs.split()] + [counted(2, one) for one in outputs.split()]
    return b"".join(fields) + counted(3, name) + counted(4, op) + b"".join(counted(5, one) for one in attributes)


def attribute(name: str, value: bytes) -> bytes:
    return counted(1, name) + value


def model(initializers: list[bytes], nodes: tuple[bytes, ...] = (), more: bytes = b"") -> bytes:
    graph = b"".join(counted(1, one) for one in nodes) + b"".join(counted(5, one) for one in initializers) + more
    return number(1, 9) + counted(2, "a test") + counted(7, counted(2, "graph") + graph) + counted(8, number(2, 17))


def read(tmp_path: Path, content: bytes) -> formats.Checkpoint:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert formats.detect(path) == "onnx"
    return formats.read(path)


SMALL = np.arange(6, dtype="f4").reshape(2, 3)
HALVES = np.array([1.5, -2, np.inf], "f2")
BFLOATS = np.array([0.5, -3, 1e30], ml_dtypes.bfloat16)
STORED = {
    "raw": (raw("w", SMALL), SMALL),
    "floats": (tensor("w", FLOAT, (2, 3), counted(4, SMALL.tobytes())), SMALL),
    "floats one by one": (tensor("w", FLOAT, (2, 3), b"".join(fixed(4, x) for x in SMALL.flat)), SMALL),
    "floats in two parts": (
        tensor("w", FLOAT, (2, 3), counted(4, SMALL[0].tobytes()) + counted(4, SMALL[1].tobytes())), SMALL,
    ),
    "packed shape": (tensor("w", FLOAT, (), counted(9, SMALL.tobytes()), dims=counted(1, packed([2, 3]))), SMALL),
    "doubles": (tensor("w", 11, (2,), fixed(10, 0.1, "d") + fixed(10, -1, "d")), np.array([0.1, -1.0])),
    "integers": (
        tensor("w", INT64, (4,), counted(7, packed([0, -1, 2**40, -(2**63)]))), np.array([0, -1, 2**40, -(2**63)]),
    ),
    "integers one by one": (tensor("w", INT64, (2,), number(7, 300) + number(7, -5)), np.array([300, -5])),
    "small integers": (tensor("w", 6, (3,), counted(5, packed([1, -1, 70000]))), np.array([1, -1, 70000], "i4")),
    "bytes": (tensor("w", 2, (2,), counted(5, packed([255, 0]))), np.array([255, 0], "u1")),
    "flags": (tensor("w", 9, (2,), counted(5, packed([1, 0]))), np.array([True, False])),
    "unsigned": (tensor("w", 13, (1,), counted(11, packed([2**64 - 1]))), np.array([2**64 - 1], "u8")),
    "halves": (tensor("w", HALF, (3,), counted(5, packed(HALVES.view("u2").tolist()))), HALVES),
    "raw halves": (raw("w", HALVES, HALF), HALVES),
    "bfloat16": (tensor("w", BFLOAT, (3,), counted(5, packed(BFLOATS.view("u2").tolist()))), BFLOATS),
    "complex": (tensor("w", 14, (1,), counted(4, struct.pack("<2f", 1, -2))), np.array([1 - 2j], "c8")),
    "scalar": (tensor("w", FLOAT, (), fixed(4, 2.5)), np.float32(2.5).reshape(())),
    "empty": (tensor("w", FLOAT, (0, 3)), np.empty((0, 3), "f4")),
    "a million integers": (
        tensor("w", INT64, (1_200_000,), counted(7, packed([5, 300]) * 600_000)), np.tile([5, 300], 600_000),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", STORED)
def test_every_way_to_store_a_tensor(tmp_path, way):
    stored, expected = STORED[way]
    checkpoint = read(tmp_path, model([stored, raw("other", SMALL)]))
    assert list(checkpoint.tensors) == ["w", "other"]
    assert table(checkpoint.tensors) == table({"w": expected, "other": SMALL})
    assert not checkpoint.tensors["w"].flags.writeable


EXPORT = """
import torch, warnings
from torch.onnx._internal.torchscript_exporter import onnx_proto_utils
# Only functions of users' own need the package `onnx`, which this project does without.
onnx_proto_utils._add_onnxscript_fn = lambda data, functions: data
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2, bias=False), torch.nn.BatchNorm2d(4, eps=1e-3),
    torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, groups=2), torch.nn.BatchNorm2d(4), torch.nn.UpsamplingBilinear2d((9, 9)))
torch.nn.init.normal_(net[1].weight)
mode = torch.onnx.TrainingMode.PRESERVE
torch.onnx.export(net.eval(), (torch.zeros(1, 3, 16, 16),), sys.argv[1], dynamo=False, training=mode,
                  do_constant_folding=False)
def one(t): return ["float32", list(t.shape), digest(t.detach().numpy().tobytes())]
print(json.dumps({k: one(t) for k, t in net.state_dict().items() if "num_batches" not in k}))
"""


def test_what_torch_exports(tmp_path):
    path = tmp_path / "net.onnx"
    state = run_framework("torch", EXPORT, path)
    checkpoint = formats.read(path)
    assert table(checkpoint.tensors) == state
    # The second batch norm is new: its tensors equal others, and torch wrote equal tensors once.
    assert any("copies made by Identity nodes" in note for note in checkpoint.notes)
    graph = checkpoint.facts["graph"]
    assert [(one["weights"], one["strides"], one["dilations"], one["group"]) for one in graph["convolutions"]] == [
        ("0.weight", [2, 2], [2, 2], 1),
        ("3.weight", [1, 1], [1, 1], 2),
    ]
    assert graph["convolutions"][0]["pads"] == [2, 2, 2, 2]
    assert [one["scale"] for one in graph["batch_norms"]] == ["1.weight", "4.weight"]
    assert [one["epsilon"] for one in graph["batch_norms"]] == [float(np.float32(1e-3)), float(np.float32(1e-5))]
    assert [(one["coordinate_transformation_mode"], one["mode"]) for one in graph["resizes"]] == [
        ("align_corners", "linear")
    ]


def test_weights_from_nodes(tmp_path):
    value = attribute("value", counted(5, raw("", SMALL)))
    whole = attribute("value", counted(5, tensor("", INT64, (1,), number(7, 1))))
    nodes = (
        node("Constant", "", "w", value),
        node("Constant", "", "free", value),
        node("Constant", "", "count", whole),
        node("Identity", "b", "bias"),
        node("Identity", "bias", "bias2"),
        node("Identity", "loop2", "loop1"),
        node("Identity", "loop1", "loop2"),
        node("Conv", "x w bias count", "y"),
        node("BatchNormalization", "y bias2 loop1 b", "z", name="norm"),
    )
    checkpoint = read(tmp_path, model([raw("b", SMALL[0])], nodes))
    assert table(checkpoint.tensors) == table({"b": SMALL[0], "w": SMALL, "bias": SMALL[0], "bias2": SMALL[0]})
    assert checkpoint.notes == (
        "1 tensors stand in Constant nodes, such as w",
        "2 tensors are copies made by Identity nodes, such as bias",
    )
    assert checkpoint.facts["graph"]["convolutions"][0]["name"] == "y"
    assert checkpoint.facts["graph"]["batch_norms"] == [{"name": "norm", "epsilon": 1e-5, "scale": "bias2"}]


def test_attributes_and_their_defaults(tmp_path):
    kernel = raw("w", np.ones((2, 3, 1, 1), "f4"))
    nodes = (
        node("Conv", "x w", "a", name="plain"),
        node(
            "Conv", "x w", "b", attribute("strides", number(8, 2) + number(8, 3)),
            attribute("pads", counted(8, packed([1, 1, 0, 0]))), attribute("auto_pad", counted(4, "SAME_UPPER")),
            attribute("group", number(3, 3)), attribute("dilations", counted(4, "nonsense")),
        ),
        node("Resize", "b", "c"),
        node("Resize", "b", "d", attribute("mode", counted(4, "linear"))),
        node("BatchNormalization", "b w", "e", attribute("epsilon", fixed(2, 0.5))),
        node("Unknown", "b", "f", attribute("anything", b"\x0f")),
    )  # fmt: skip
    facts = read(tmp_path, model([kernel], nodes)).facts["graph"]
    usual = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "group": 1, "auto_pad": "NOTSET"}
    given = {"strides": [2, 3], "dilations": [1, 1], "pads": [1, 1, 0, 0], "group": 3, "auto_pad": "SAME_UPPER"}
    assert facts["convolutions"] == [
        {"name": "plain", "weights": "w", **usual},
        {"name": "b", "weights": "w", **given},
    ]
    assert [(one["coordinate_transformation_mode"], one["mode"]) for one in facts["resizes"]] == [
        ("half_pixel", "nearest"),
        ("half_pixel", "linear"),
    ]
    assert facts["batch_norms"][0]["epsilon"] == 0.5


def test_what_is_left_out_is_told(tmp_path):
    text = tensor("words", 8, (1,), counted(6, "a"))
    checkpoint = read(tmp_path, model([raw("w", SMALL), text], more=counted(15, b"")))
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.notes == ("ignored 1 sparse initialisers", "ignored initialisers that are text: words")


# Data in other files.


def external(**said: str) -> bytes:
    pairs = b"".join(counted(13, counted(1, key) + counted(2, value)) for key, value in said.items())
    return tensor("w", FLOAT, (2, 3), pairs + number(14, 1))


def test_data_beside_the_model(tmp_path):
    (tmp_path / "model.data").write_bytes(b"\0" * 8 + SMALL.tobytes() + b"more")
    (tmp_path / "link.data").symlink_to(tmp_path / "model.data")
    for location in ("model.data", "link.data"):
        checkpoint = read(tmp_path, model([external(location=location, offset="8", length="24")]))
        assert table(checkpoint.tensors) == table({"w": SMALL})
    (tmp_path / "model.data").write_bytes(b"\0")
    with pytest.raises(FormatError, match="changed since it was opened"):
        checkpoint.tensors["w"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"location": "../secret"}, "in the folder of the model"),
        ({"location": "/etc/passwd"}, "in the folder of the model"),
        ({"location": "inner/secret"}, "in the folder of the model"),
        ({"location": "C:secret"}, "in the folder of the model"),
        ({"location": ".."}, "in the folder of the model"),
        ({"location": ""}, "in the folder of the model"),
        ({"location": "a\0b"}, "in the folder of the model"),
        ({}, "in the folder of the model"),
        ({"location": "link"}, "a link that leaves the folder"),
        ({"location": "nothing"}, "missing; put it beside"),
        ({"location": "pipe"}, "missing; put it beside"),
        ({"location": "data", "offset": "9"}, "ends at byte 33 of data, which has 32"),
        ({"location": "data", "offset": "-8"}, "offset of its external data is '-8'"),
        ({"location": "data", "offset": "9" * 5000}, "expected a whole number"),
        ({"location": "data", "length": "20"}, "takes 24 bytes, its external data have 20"),
        ({"location": "data", "length": "²"}, "expected a whole number"),
    ],
)
def test_data_elsewhere_are_refused(tmp_path, said, message):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for place in (tmp_path / "secret", folder / "inner" / "secret", folder / "data"):
        place.write_bytes(b"\0" * 32)
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    with pytest.raises(FormatError) as caught:
        read(folder, model([external(**said)]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Files that lie.


LIES = {
    "nothing": (model([]), "holds no initialisers"),
    "two graphs": (model([raw("w", SMALL)]) * 2, "expected one graph, found 2"),
    "two names": (model([raw("w", SMALL)] * 2), "two initialisers are called 'w'"),
    "type": (model([tensor("w", 23, (2,), counted(9, b"\0"))]), "element type 23 of ONNX is not known"),
    "too short": (model([tensor("w", FLOAT, (2, 3), counted(9, b"\0" * 20))]), "takes 24 bytes, it has 20"),
    "no values": (model([tensor("w", FLOAT, (2, 3))]), "takes 24 bytes, it has 0"),
    "negative": (model([tensor("w", FLOAT, (-1, -6), counted(9, SMALL.tobytes()))]), "impossible shape"),
    "huge": (model([tensor("w", FLOAT, (2**40,), counted(9, b""))]), "takes 4398046511104 bytes"),
    "huge numbers": (model([tensor("w", INT64, (2**40,), counted(7, packed([1])))]), "can't hold them"),
    "many axes": (model([tensor("w", FLOAT, (1,) * 33, counted(9, b"\0" * 4))]), "impossible shape"),
    "two ways": (model([tensor("w", FLOAT, (1,), fixed(4, 1) + counted(9, b"\0" * 4))]), "in several ways"),
    "two raws": (model([tensor("w", FLOAT, (2,), counted(9, b"\0" * 4) * 2)]), "can't be stored in field 9"),
    "wrong way": (model([tensor("w", FLOAT, (1,), number(7, 1))]), "can't be stored in field 7"),
    "segments": (model([tensor("w", FLOAT, (1,), number(3, 1) + counted(9, b"\0" * 4))]), "in segments"),
    "no end": (model([tensor("w", INT64, (2,), counted(7, b"\x80\x80"))]), "expected 2 numbers, found 0"),
    "long number": (model([tensor("w", INT64, (2,), counted(7, b"\x80" * 12 + b"\0\0"))]), "damaged number"),
    "wire type": (model([raw("w", SMALL)], (b"\x0b",)), "expected a protocol buffer"),
    "half a million fields": (model([raw("w", SMALL)], more=number(1, 0) * 500_000), "more than 400000 fields"),
    "half a million numbers": (
        model([raw("w", SMALL)], (node("Conv", "x w", "y", attribute("pads", counted(8, b"\0" * 500_000))),)),
        "more than 400000 fields",
    ),
    "long name": (model([raw("w", SMALL)], (counted(3, b"n" * (65 * 2**20)),)), "names take more than"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    content, message = LIES[lie]
    path = tmp_path / "lies.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        for value in formats.read(path).tensors.values():
            value.tobytes()
    assert "\n" not in str(caught.value)


def test_tensors_that_share_their_bytes_without_end(tmp_path):
    (tmp_path / "data").write_bytes(b"\0" * 2**20)
    pairs = counted(13, counted(1, "location") + counted(2, "data")) + number(14, 1)
    content = model([tensor(f"w{n}", FLOAT, (2**18,), pairs) for n in range(20)])
    path = tmp_path / "shared.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="they overlap"):
        formats.read(path)


def _whole() -> bytes:
    nodes = (node("Constant", "", "c", attribute("value", counted(5, raw("", SMALL)))), node("Conv", "x w c", "y"))
    return model([STORED["raw"][0], STORED["integers"][0].replace(b"w", b"i"), raw("v", HALVES, HALF)], nodes)


def test_truncation_at_any_point(tmp_path):
    whole = _whole()
    assert survives(tmp_path / "x", whole)
    end = len(whole) - len(counted(8, number(2, 17)))  # the list of operator sets, which is not read, may be absent
    for cut in range(len(whole)):
        assert survives(tmp_path / "x", whole[:cut]) == (cut == end), cut


def test_seeded_damage(tmp_path):
    whole = _whole()
    outcomes = {survives(tmp_path / "x", damaged(whole, seed)) for seed in range(600)}
    assert outcomes == {True, False}


def test_a_large_model_is_opened_in_little_memory(tmp_path):
    count, size = 48, 64 * 2**20
    starts = []
    for index in range(count):
        start = number(1, size // 4) + number(2, FLOAT) + counted(8, f"w{index}") + b"\x4a" + packed([size])
        starts.append(b"\x2a" + packed([len(start) + size]) + start)
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.write(number(1, 9) + b"\x3a" + packed([sum(map(len, starts)) + count * size]))
        for start in starts:
            file.write(start)
            file.seek(size, 1)
        file.truncate(file.tell())
    code = (
        "from pathlib import Path\nfrom deeplabzoo.weights_converter import formats\n"
        "tensors = formats.read(sys.argv[1]).tensors\nnames = list(tensors)\nshape = list(tensors[names[-1]].shape)\n"
        "lines = Path('/proc/self/status').read_text().splitlines()\n"
        "print(json.dumps([names, shape, next(int(one.split()[1]) for one in lines if one.startswith('VmHWM'))]))"
    )
    names, shape, kilobytes = run_framework("numpy", code, path)
    assert names == [f"w{index}" for index in range(count)]
    assert shape == [size // 4]
    assert kilobytes < 300 * 1024
