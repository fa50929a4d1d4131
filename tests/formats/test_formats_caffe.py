"""Caffe's networks of both generations, and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from formats_samples import table
from wire import counted, damaged, fixed, number, packed, survives

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats import caffemodel

WEIGHT = np.arange(24, dtype="f4").reshape(2, 3, 2, 2)
BIAS = np.array([-1, 0.5], "f4")


def blob(array: np.ndarray, *, legacy: bool = False) -> bytes:
    """A blob with packed values, of the older kind with four axes."""
    if legacy:
        shape = b"".join(number(axis, size) for axis, size in enumerate(array.shape, start=1))
    else:
        shape = counted(7, counted(1, packed(list(array.shape))))
    return shape + counted(5, array.astype("f4").tobytes())


def layer(name: str, kind: str, *blobs: bytes, more: bytes = b"") -> bytes:
    fields = counted(1, name) + counted(2, kind) + counted(3, "data") + counted(4, name)
    return counted(100, fields + b"".join(counted(7, one) for one in blobs) + more)


def old_layer(name: str, kind: int, *blobs: bytes, more: bytes = b"") -> bytes:
    fields = counted(2, "data") + counted(3, name) + counted(4, name) + number(5, kind)
    return counted(2, fields + b"".join(counted(6, one) for one in blobs) + more)


def read(tmp_path: Path, content: bytes) -> formats.Checkpoint:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    assert formats.detect(path) == "caffemodel"
    return formats.read(path)


def test_layers_of_today(tmp_path):
    convolution = counted(106, number(1, 2) + number(3, 2) + number(4, 3) + number(6, 1) + number(18, 2))
    rectangular = counted(106, number(9, 1) + number(11, 3) + number(12, 5) + number(13, 2) + number(5, 4))
    content = counted(1, "a net") + counted(3, "data") + number(4, 1) + counted(8, b"")
    content += layer("data", "Input")
    content += layer("conv1", "Convolution", blob(WEIGHT), blob(BIAS), more=convolution)
    content += layer("side/way", "Convolution", blob(WEIGHT), more=rectangular)
    content += layer("bn1", "BatchNorm", blob(BIAS), blob(BIAS), blob(np.ones(1)), more=counted(139, fixed(3, 0.25)))
    content += layer("bn2", "BatchNorm", blob(BIAS))
    content += layer("sum", "Scale", blob(np.float32(3).reshape(())))
    checkpoint = read(tmp_path, content)
    assert table(checkpoint.tensors) == table(
        {
            "conv1/0": WEIGHT, "conv1/1": BIAS, "side/way/0": WEIGHT, "bn1/0": BIAS, "bn1/1": BIAS,
            "bn1/2": np.ones(1, "f4"), "bn2/0": BIAS, "sum/0": np.float32(3).reshape(()),
        }
    )  # fmt: skip
    assert checkpoint.facts["layers"] == [
        {"name": "data", "type": "Input"},
        {"name": "conv1", "type": "Convolution", "pad": [2], "kernel_size": [3], "stride": [1], "dilation": [2], "group": 1},
        {
            "name": "side/way", "type": "Convolution", "pad": [1, 0], "kernel_size": [3, 5], "stride": [2, 1],
            "dilation": [1], "group": 4,
        },
        {"name": "bn1", "type": "BatchNorm", "epsilon": 0.25},
        {"name": "bn2", "type": "BatchNorm", "epsilon": 1e-5},
        {"name": "sum", "type": "Scale"},
    ]  # fmt: skip


def test_layers_of_the_older_generation(tmp_path):
    hole = counted(10, number(4, 3) + number(3, 12) + number(17, 12))
    flag = counted(10, number(17, 1))
    content = counted(1, "VGG") + old_layer("pool", 17)
    content += old_layer("fc6", 4, blob(WEIGHT, legacy=True), blob(BIAS.reshape(1, 1, 1, 2), legacy=True), more=hole)
    content += old_layer("thin", 4, blob(BIAS.reshape(1, 1, 1, 2), legacy=True), more=flag)
    content += old_layer("new", 250)
    checkpoint = read(tmp_path, content)
    assert table(checkpoint.tensors) == table({"fc6/0": WEIGHT, "fc6/1": BIAS, "thin/0": BIAS.reshape(1, 1, 1, 2)})
    layers = checkpoint.facts["layers"]
    assert [(one["name"], one["type"], one.get("dilation")) for one in layers] == [
        ("pool", "Pooling", None),
        ("fc6", "Convolution", [12]),
        ("thin", "Convolution", [1]),
        ("new", "type 250", None),
    ]


def test_every_way_to_store_values(tmp_path):
    shape = counted(7, counted(1, packed([2])))
    single = b"".join(fixed(5, x) for x in BIAS)
    diffs = counted(6, b"\0" * 8)
    doubles = counted(8, struct.pack("<2d", 0.1, -2)) + counted(9, b"\0" * 16)
    apart = b"".join(fixed(8, x, "d") for x in (0.1, -2))
    unpacked_shape = counted(7, number(1, 2))
    blobs = [shape + single + diffs, unpacked_shape + doubles, shape + apart, counted(7, number(1, 0))]
    checkpoint = read(tmp_path, layer("a", "Custom", *blobs))
    wide = np.array([0.1, -2])
    assert table(checkpoint.tensors) == table({"a/0": BIAS, "a/1": wide, "a/2": wide, "a/3": np.empty(0, "f4")})


LIES = {
    "no blobs": (layer("a", "ReLU"), "holds 1 layers and no blobs"),
    "two layers": (layer("a", "Scale", blob(BIAS)) * 2, "two layers with blobs are called 'a'"),
    "of 2013": (counted(2, counted(1, counted(1, "conv1"))), "a Caffe of 2013"),
    "short": (layer("a", "Scale", counted(7, counted(1, packed([3]))) + counted(5, b"\0" * 8)), "takes 12 bytes, it has 8"),
    "huge": (layer("a", "Scale", counted(7, counted(1, packed([2**40]))) + counted(5, b"\0" * 8)), "takes 4398046511104"),
    "negative": (layer("a", "Scale", number(1, -1) + number(2, -2) + counted(5, b"\0" * 8)), "impossible shape"),
    "many axes": (layer("a", "Scale", counted(7, counted(1, b"\1" * 33)) + counted(5, b"\0" * 4)), "impossible shape"),
    "no shape": (layer("a", "Scale", counted(5, b"\0" * 4)), "takes 0 bytes, it has 4"),
    "many numbers": (layer("a", "Convolution", more=counted(106, counted(3, b"\1" * 500_000))), "more than 400000"),
    "many blobs": (layer("n" * 10_000, "Scale", *[blob(BIAS)] * 17), "more than 16 blobs"),
    "many layers": (layer("a", "Scale", blob(BIAS)) + counted(100, b"") * 500_000, "more than 400000 fields"),
    "cut": (layer("a", "Scale", blob(BIAS))[:-3], "ends early"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    content, message = LIES[lie]
    with pytest.raises(FormatError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


FIRST = counted(1, "net") + layer(
    "conv", "Convolution", blob(WEIGHT), blob(BIAS), more=counted(106, number(3, 2) + number(4, 3))
)
WHOLE = FIRST + layer("bn", "BatchNorm", blob(BIAS), blob(BIAS), blob(np.ones(1)), more=counted(139, fixed(3, 0.25)))


def test_truncation_at_any_point(tmp_path):
    """A file that ends with a layer is whole: nothing says how many there are."""
    for cut in range(len(WHOLE) + 1):
        assert survives(tmp_path / "x", WHOLE[:cut]) == (cut in (len(FIRST), len(WHOLE))), cut


def test_seeded_damage(tmp_path):
    assert {survives(tmp_path / "x", damaged(WHOLE, seed)) for seed in range(600)} == {True, False}


def test_other_files_are_not_taken_for_caffes(tmp_path):
    node = counted(1, counted(1, "w") + counted(2, "Const"))
    for content in (node * 2, counted(1, "name"), counted(1, "name") + counted(100, b"\x08\x01"), b"\x0a\x05hello you"):
        (tmp_path / "x").write_bytes(content)
        assert not caffemodel.sniff(tmp_path / "x"), content
