"""SavedModels of both TensorFlows, and the object graph that names the variables of TensorFlow 2."""

from __future__ import annotations

import contextlib
import random
import shutil

import numpy as np
import pytest
from formats_samples import run_framework, table

from deeplabzoo.errors import FormatError
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.formats import _tf_objects, saved_model
from deeplabzoo.weights_converter.formats._crc32c import crc32c, mask, unmask
from deeplabzoo.weights_converter.formats._guard import Flaw
from deeplabzoo.weights_converter.formats._leveldb import encoded

SAVE = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, keras, tensorflow as tf
tf1 = tf.compat.v1
folder = sys.argv[1] + "/"
def row(v): return [v.dtype.name, list(v.shape), digest(v.tobytes())]
def save_tf1(name, frozen):
    with tf1.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [1, 8, 8, 3])
        init = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype("f4")
        w = tf.constant(init, name="net/Conv/weights") if frozen else tf1.get_variable("net/Conv/weights", initializer=init)
        y = tf1.nn.conv2d(x, w, strides=[1, 1, 1, 1], padding="SAME", name="net/Conv/Conv2D")
        session.run(tf1.global_variables_initializer())
        signature = tf1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder = tf1.saved_model.Builder(folder + name)
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
        return {"net/Conv/weights": row(init)}
old, constant = save_tf1("old", False), save_tf1("constant", True)
layers = keras.layers
model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3, name="stem"), layers.BatchNormalization(name="bn"),
                          *[layers.Conv2D(4, 1, name=f"c{i}") for i in range(6)]], name="net")
for weight in model.weights:
    weight.assign(np.random.default_rng(len(weight.path)).normal(size=weight.shape))
model.export(folder + "keras", verbose=False)
print(json.dumps([old, constant, {w.path: row(np.asarray(w)) for w in model.weights}]))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return folder, run_framework("tensorflow", SAVE, folder)


def test_saved_models_of_tensorflow_1(saved):
    folder, (old, constant, _) = saved
    for path in (folder / "old", folder / "old/saved_model.pb"):
        checkpoint = formats.read(path)
        assert (checkpoint.format, formats.detect(path)) == ("saved-model", "saved-model")
        assert table(checkpoint.tensors) == old
        assert checkpoint.notes == ()
    frozen = formats.read(folder / "constant")
    assert table(frozen.tensors) == constant
    assert [layer["weights"] for layer in frozen.facts["graph"]["convolutions"]] == ["net/Conv/weights"]


def test_saved_models_of_keras(saved):
    folder, (_, _, variables) = saved
    checkpoint = formats.read(folder / "keras")
    assert table(checkpoint.tensors) == variables
    assert len(variables) == 18
    assert checkpoint.notes == (
        "tensors called by the names of their variables, not by their keys in the file: 18",
        "tensors under _all_variables/ left out, which the file holds twice with equal names and check sums: 18",
    )


def test_what_can_be_missing_of_a_saved_model(saved, tmp_path):
    folder, _ = saved
    shutil.copytree(folder / "old", tmp_path / "old")
    (tmp_path / "old/variables/variables.data-00000-of-00001").unlink()
    with pytest.raises(FormatError, match=r"variables\.data-00000-of-00001 is missing"):
        formats.read(tmp_path / "old")
    shutil.rmtree(tmp_path / "old/variables")
    with pytest.raises(
        FormatError, match=r"not frozen: its variables \(1, such as net/Conv/weights\) are in a checkpoint"
    ):
        formats.read(tmp_path / "old")
    file = tmp_path / "old/saved_model.pb"
    file.write_bytes(b"\x08\x01\x12\x02\x0a\x00")
    with pytest.raises(FormatError, match="copy the whole folder"):
        formats.read(file)


def test_damaged_saved_models(saved, tmp_path):
    folder, _ = saved
    path = tmp_path / "saved_model.pb"
    whole = (folder / "constant/saved_model.pb").read_bytes()
    choose = random.Random(0)
    refused = 0
    for attempt in range(400):
        content = bytearray(whole)
        for _ in range(choose.randint(1, 5)):
            content[choose.randrange(len(content))] = choose.randrange(256)
        path.write_bytes(content[: choose.randrange(len(content))] if attempt % 2 else content)
        try:
            for value in formats.read(path).tensors.values():
                value.tobytes()
        except FormatError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
    assert refused > 200  # each of those that were cut


@pytest.mark.parametrize(
    "start",
    [
        b"\x08\x0a\x12\x07pytorch\x1a\x05" + b"2.9.1" * 40,  # ONNX: its version, who wrote it
        b"\x08\x01\x12\x07pytorch" + b"\0" * 100,  # ONNX of 2017
        b"\x08\x01\x12\xff\x01\x0a\x02",  # a graph that ends after the file does
        b"\x08\x01",
        b"",
    ],
)
def test_what_is_no_saved_model(tmp_path, start):
    path = tmp_path / "saved_model.pb"
    path.write_bytes(start)
    assert not saved_model.sniff(path)
    assert not saved_model.sniff(tmp_path)


def _object_graph(*variables: tuple[bytes, bytes]) -> bytes:
    def message(field: int, content: bytes) -> bytes:
        return encoded(field << 3 | 2) + encoded(len(content)) + content

    attributes = (message(1, b"VARIABLE_VALUE") + message(2, name) + message(3, key) for name, key in variables)
    return b"".join(message(1, message(1, b"\x08\x01") + message(2, attribute)) for attribute in attributes)


def test_names_in_an_object_graph():
    graph = _object_graph((b"a/kernel", b"0/key"), (b"", b"1/key"), (b"b", b""), (b"\xff", b"2/key"))
    assert _tf_objects.names(graph) == {"0/key": "a/kernel", "2/key": "\\xff"}
    choose = random.Random(0)
    for _ in range(500):
        content = bytearray(graph)
        content[choose.randrange(len(content))] = choose.randrange(256)
        with contextlib.suppress(Flaw):
            assert len(_tf_objects.names(content[: choose.randrange(1, len(content))])) <= 4


def test_the_text_of_an_object_graph_is_checked():
    text = b"some text"
    length = mask(crc32c(np.array([len(text)], "<u4").view(np.uint8))).to_bytes(4, "little")
    stored = np.frombuffer(bytes([len(text)]) + length + text, np.uint8)
    checksum = crc32c(np.frombuffer(len(text).to_bytes(4, "little") + length + text, np.uint8))
    assert unmask(mask(checksum)) == checksum
    assert _tf_objects.string(stored, checksum) == text
    with pytest.raises(Flaw, match="damaged"):
        _tf_objects.string(stored, checksum ^ 1)
    for cut in (0, 1, 4, 5, len(stored) - 1):
        with pytest.raises(Flaw):
            _tf_objects.string(stored[:cut], checksum)
    huge = np.frombuffer(b"\xff\xff\xff\xff\xff\x0f" + length + text, np.uint8)
    with pytest.raises(Flaw, match="claims"):
        _tf_objects.string(huge, checksum)
