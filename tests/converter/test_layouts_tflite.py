"""The published TensorFlow Lite file: its wiring is read from its operators, and its answers are ours."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import digests, python
from PIL import Image

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import BatchNorm
from deeplabzoo.errors import LayoutError
from deeplabzoo.inference.datasets import find_pairs
from deeplabzoo.inference.images import read_image, read_mask
from deeplabzoo.inference.metrics import Scores, confusion
from deeplabzoo.inference.preprocessing import Preprocessing
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.convert import convert, read_source
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.tflite import TFLiteLayout
from deeplabzoo.weights_converter.ledger import Taken, to_canonical
from deeplabzoo.zoo.presets.tensorflow import template

LAYOUT = TFLiteLayout()
SIZE = 257


@pytest.fixture(scope="module")
def file(data):
    return data / "weights" / "deeplabv3_257_mv_gpu.tflite"


@pytest.fixture(scope="module")
def checkpoint(file) -> Checkpoint:
    return formats.read(file)


def take(checkpoint: Checkpoint) -> Taken:
    spec = LAYOUT.read_spec(checkpoint).spec
    return to_canonical(checkpoint.tensors, LAYOUT.bound(checkpoint), spec, checkpoint.format)


def test_the_network(checkpoint):
    assert LAYOUT.recognise(checkpoint) == "is TensorFlow Lite with 17 depthwise convolutions"
    reading = LAYOUT.read_spec(checkpoint)
    assert reading.spec == template(width=0.5)
    assert "output_stride = 8" in reading.told
    assert reading.assumed[:2] == ("aspp.epsilon = 1e-05", "backbone.epsilon = 0.001")
    assert {line.split(" = ")[0] for line in reading.assumed[2:]} <= {"classes", "preprocessing"}
    card = LAYOUT.card(reading.spec, checkpoint.facts)
    preprocessing = Preprocessing.from_dict(card.preprocessing)
    assert (preprocessing.size, preprocessing.pad_to, preprocessing.scale) == (SIZE, SIZE, 2 / 255)
    assert card.classes[15] == "person"


def test_every_tensor_is_accounted_for(checkpoint):
    taken = take(checkpoint)
    graph = build_graph(template(width=0.5))
    assert {name: array.shape for name, array in taken.weights.items()} == graph.parameters()
    assert {array.dtype for array in taken.weights.values()} == {np.dtype("f4")}
    assert sorted(row.foreign for row in taken.rows if row.foreign) == sorted(checkpoint.tensors)
    left = {row.foreign: row.transform for row in taken.rows if not row.canonical}
    assert set(left) == {"ResizeBilinear_1/size", "ResizeBilinear_2/size", "strided_slice_8"}
    assert set(left.values()) == {"left out: the size of a resize"}
    filled = [row for row in taken.rows if not row.foreign]
    assert len(filled) == 3 * sum(isinstance(node.op, BatchNorm) for node in graph.nodes)
    assert {row.transform for row in filled} == {"neutral: the file has this batch norm folded into its convolution"}


def test_filled_batch_norms_only_add_their_bias():
    spec = template(width=0.5)
    filled = LAYOUT.filled(spec)
    for node in build_graph(spec).nodes:
        if isinstance(node.op, BatchNorm):
            weight, mean, variance = (filled[f"{node.name}.{s}"][0] for s in ("weight", "running_mean", "running_var"))
            for kind in (np.float32, np.float64):
                factor = weight.astype(kind) / np.sqrt(variance.astype(kind) + kind(node.op.epsilon))
                assert np.abs(factor - 1).max() < 1e-7
            assert not mean.any()


def test_names_say_nothing(checkpoint):
    """With other names in another order the same constants go to the same places."""
    names = {name: f"t{index}" for index, name in enumerate(sorted(checkpoint.tensors, reverse=True))}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(one) for key, one in value.items()}
        return [renamed(one) for one in value] if isinstance(value, list) else names.get(value, value)

    tensors = {names[name]: array for name, array in sorted(checkpoint.tensors.items(), reverse=True)}
    facts = {
        "operators": renamed(checkpoint.facts["operators"]),
        **{k: checkpoint.facts[k] for k in ("inputs", "outputs")},
    }
    other = take(Checkpoint(tensors, "tflite", facts=facts))
    assert digests(other.weights) == digests(take(checkpoint).weights)


def test_half_precision(checkpoint):
    """Constants in float16 come with an operator each that widens them."""
    tensors, widen = {}, []
    for name, array in checkpoint.tensors.items():
        is_float = array.dtype == np.float32
        tensors[f"{name}/half" if is_float else name] = array.astype("f2") if is_float else array
        if is_float:
            widen.append({"op": "DEQUANTIZE", "inputs": [f"{name}/half"], "outputs": [name]})
    facts = {**checkpoint.facts, "operators": [*widen, *checkpoint.facts["operators"]]}
    taken = take(Checkpoint(tensors, "tflite", facts=facts))
    assert taken.weights["classifier.conv.weight"].dtype == np.float16


def _change(op: str, number: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        [one for one in facts["operators"] if one["op"] == op][number].update(fields)

    return change


def _swap(op: str) -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        next(one for one in facts["operators"] if one["op"] == op)["inputs"].reverse()

    return change


def _other_skip(facts: dict[str, Any]) -> None:
    sums = [one for one in facts["operators"] if one["op"] == "ADD"]
    sums[2]["inputs"][1] = sums[1]["inputs"][1]


def _one_more(facts: dict[str, Any]) -> None:
    facts["operators"].append({"op": "ARG_MAX", "inputs": [facts["outputs"][0]["name"]], "outputs": ["labels"]})


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "dilation": (_change("DEPTHWISE_CONV_2D", 7, dilation=[1, 1]), "stage4.block2.depthwise.conv: expected"),
    "first dilation": (_change("DEPTHWISE_CONV_2D", 6, dilation=[2, 2]), "stage4.block1.depthwise.conv: expected"),
    "padding": (_change("DEPTHWISE_CONV_2D", 3, padding="VALID"), "stage3.block1.depthwise.conv: expected"),
    "activation": (_change("CONV_2D", 1, activation="RELU6"), "stage1.block1.project.conv: expected"),
    "other activation": (_change("CONV_2D", -2, activation="RELU6"), "aspp.fusion.conv: expected"),
    "stride": (_change("CONV_2D", 0, stride=[1, 1]), "backbone.stem.conv: expected"),
    "order": (_swap("CONCATENATION"), "aspp.concat: expected"),
    "axis": (_change("CONCATENATION", 0, axis=1), "aspp.concat: expected"),
    "pooling": (_change("AVERAGE_POOL_2D", 0, filter=[32, 33]), "aspp.image_pooling.mean: expected"),
    "corners": (_change("RESIZE_BILINEAR", 2, align_corners=False), "output.resize: expected"),
    "half pixels": (_change("RESIZE_BILINEAR", 2, half_pixel_centers=True), "output.resize: expected"),
    "skip": (_other_skip, "stage3.block3.add: expected"),
    "argmax": (_one_more, "operators that the network does not have: ARG_MAX"),
    "input": (lambda facts: facts.update(inputs=[{"name": "sub_7", "shape": [1, -1, -1, 3]}]), "of a fixed size"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_wiring_is_seen(checkpoint, wrong):
    change, said = WRONG[wrong]
    facts = copy.deepcopy(dict(checkpoint.facts))
    change(facts)
    with pytest.raises(LayoutError, match=said):
        LAYOUT.read_spec(replace(checkpoint, facts=facts))


def test_other_files_are_refused(checkpoint):
    with pytest.raises(LayoutError, match="the file is torch"):
        LAYOUT.recognise(Checkpoint({}, "torch"))
    facts: Mapping[str, Any] = {**checkpoint.facts, "operators": checkpoint.facts["operators"][:30]}
    for function in (LAYOUT.recognise, LAYOUT.read_spec):
        with pytest.raises(LayoutError, match="of a MobileNetV2"):
            function(replace(checkpoint, facts=facts))
    with pytest.raises(LayoutError, match="can only be read from a"):
        LAYOUT.entries(template(width=0.5), "tflite")


def test_in_and_out_by_one_command(file, checkpoint, tmp_path):
    done = convert(file, tmp_path / "model.safetensors")
    assert (done.source.layout, done.source.format) == ("tflite", "tflite")
    back = read_source(tmp_path / "model.safetensors").model
    assert digests(back.weights) == digests(take(checkpoint).weights)
    assert back.card.provenance["assumed"].startswith("aspp.epsilon = 1e-05; backbone.epsilon = 0.001; classes")
    with pytest.raises(LayoutError, match="layout tflite can only be read"):
        convert(tmp_path / "model.safetensors", tmp_path / "model.pth", to_layout="tflite")
    with pytest.raises(LayoutError, match="the file is safetensors"):
        read_source(tmp_path / "model.safetensors", layout="tflite")


INTERPRETER = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf
interpreter = tf.lite.Interpreter(sys.argv[1])
interpreter.allocate_tensors()
given, made = (f()[0]["index"] for f in (interpreter.get_input_details, interpreter.get_output_details))
logits = []
for image in np.load(sys.argv[2]):
    interpreter.set_tensor(given, image.transpose(1, 2, 0)[None])
    interpreter.invoke()
    logits.append(interpreter.get_tensor(made)[0].transpose(2, 0, 1))
np.save(sys.argv[3], np.stack(logits))
"""


@pytest.fixture(scope="module")
def photos(data) -> tuple[np.ndarray, list[np.ndarray]]:
    """The photos and masks at the file's size, shrunk by Pillow."""
    images, masks = [], []
    for pair in find_pairs(data / "photos"):
        small = Image.fromarray(read_image(pair.image_path)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        images.append(np.asarray(small, np.float32).transpose(2, 0, 1) * np.float32(2 / 255) - 1)
        mask = Image.fromarray(read_mask(pair.mask_path)).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        masks.append(np.asarray(mask))
    assert len(images) == 8
    return np.stack(images), masks


@pytest.fixture(scope="module")
def interpreted(file, photos, tmp_path_factory) -> np.ndarray:
    """Logits of TensorFlow Lite's own interpreter."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    folder = tmp_path_factory.mktemp("interpreter")
    np.save(folder / "images.npy", photos[0])
    python(INTERPRETER, file, folder / "images.npy", folder / "logits.npy")
    return np.load(folder / "logits.npy")


def _miou(logits: np.ndarray, masks: list[np.ndarray]) -> float:
    labels = logits.argmax(1).astype(np.uint8)
    return Scores.of(sum(confusion(truth, mine, 21) for truth, mine in zip(masks, labels, strict=True))).miou


def test_answers_are_the_interpreters(checkpoint, photos, interpreted, backend, worker):
    images, masks = photos
    process = worker(backend)
    process.load(build_graph(LAYOUT.read_spec(checkpoint).spec), dict(take(checkpoint).weights))
    logits = np.concatenate([next(iter(process.forward(image[None]).values())) for image in images])
    assert np.abs(logits - interpreted).max() / np.abs(interpreted).max() < 2e-5
    assert np.mean(logits.argmax(1) == interpreted.argmax(1)) >= 0.999
    ours, theirs = _miou(logits, masks), _miou(interpreted, masks)
    print(f"mIoU at {SIZE} px: {ours:.4f} on {backend}, {theirs:.4f} by the interpreter")
    assert round(theirs, 4) == 0.9105
    assert ours >= 0.90
    assert abs(ours - theirs) < 1e-4
