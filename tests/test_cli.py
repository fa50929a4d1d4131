"""The command line: what it prints, what it writes, and one line for everything that is wrong."""

from __future__ import annotations

import json
import pickle
import re
import sys
import tomllib
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import digests, lively, small_spec
from PIL import Image

from deeplabzoo.cli import COMMANDS, main
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import make_spec, read_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.weights_converter.canonical import Canonical, Card
from deeplabzoo.weights_converter.convert import read_source, write_model
from deeplabzoo.zoo.presets import PRESETS
from deeplabzoo.zoo.published import PUBLISHED

SPEC = small_spec()


def call(*arguments, code=0):
    """Run a command in this process; the frameworks live in their workers."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def fails(*arguments, code, match):
    """It fails with one line that begins with `Error:` on stderr, after click's own usage where it was wrong use."""
    result = call(*arguments, code=code)
    lines = result.stderr.strip().splitlines()
    assert [line.startswith("Error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("Error: ")
    assert all(line == "" or line.startswith(("Usage:", "Try ", "note: ", "Error: ")) for line in lines)
    assert re.search(match, lines[-1]), lines[-1]
    assert result.stdout == ""
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model file, its spec file and three photos with masks, flat and in VOC's form."""
    folder = tmp_path_factory.mktemp("cli")
    model = lively(SPEC)
    write_model(Canonical(model.spec, model.weights, Card(None, tuple("abcde"))), folder / "m.safetensors")
    (folder / "spec.toml").write_text(SPEC.to_toml())
    random = np.random.default_rng(0)
    photos = folder / "flat"
    voc = folder / "voc" / "VOC2012"
    for path in (photos, voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets" / "Segmentation"):
        path.mkdir(parents=True)
    for name in ("one", "two", "three"):
        image = Image.fromarray(random.integers(0, 255, (40, 57, 3), np.uint8))
        mask = random.integers(0, 5, (40, 57)).astype(np.uint8)
        mask[:3] = 255
        image.save(photos / f"{name}.png")
        image.save(voc / "JPEGImages" / f"{name}.jpg")
        for target in (photos / f"{name}_mask.png", voc / "SegmentationClass" / f"{name}.png"):
            Image.fromarray(mask).save(target)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("one\nthree\n")
    return folder


def test_help_names_every_command():
    text = call("--help").stdout
    assert all(f"  {name} " in text for name in COMMANDS)
    for name in COMMANDS:
        assert "Usage: " in call(name, "--help").stdout
    assert call("--version").stdout.startswith("deeplabzoo, version ")


def test_build_exactly_as_typed(requested):
    """`deeplabzoo build --backend paddle --arch v3plus`."""
    name = "paddle" if "paddle" in requested else requested[0]
    result = call("build", "--backend", name, "--arch", "v3plus")
    assert re.search(r"model +v3plus_resnet50, 21 classes", result.stdout)
    assert re.search(r"output stride +16, rates 6, 12, 18", result.stdout)
    assert re.search(r"parameters +26,696,133", result.stdout)
    assert re.search(r"multiply-adds +\d+\.\d\d G at 513x513", result.stdout)
    assert "1x21x513x513" in result.stdout
    for stage in ("backbone.stem", "backbone.stage4", "aspp", "decoder", "classifier"):
        assert re.search(rf"^{re.escape(stage)} ", result.stdout, re.M)
    assert "to save weights and spec add: --output model." in result.stderr


@pytest.mark.parametrize("word", ["torch", "paddle", "keras"])
def test_build_saves(requested, folder, tmp_path, word):
    if word not in requested:
        pytest.skip(f"{word} is not in DEEPLABZOO_TEST_BACKENDS")
    path = tmp_path / {"torch": "m.pth", "paddle": "m.pdparams", "keras": "m.weights.h5"}[word]
    result = call("build", "--backend", word, "--spec", folder / "spec.toml", "--seed", 3, "--output", path, "--json")
    data = json.loads(result.stdout)
    assert data["backend"].startswith(word)
    assert data["outputs"] == {"out": [1, 5, 513, 513]}
    assert data["spec"] == SPEC.to_dict()
    assert f"saved {path} and its spec {path}.toml" in result.stderr
    read = read_source(path)
    assert read.model.spec == SPEC
    assert digests(read.model.weights) == digests(seeded_weights(build_graph(SPEC), 3))
    fails("build", "--backend", word, "--spec", folder / "spec.toml", "--output", path, code=1, match="--force")
    if word != requested[0]:
        return
    call("build", "--backend", word, "--spec", folder / "spec.toml", "--output", path, "--force")
    assert digests(read_source(path).model.weights) == digests(seeded_weights(build_graph(SPEC), 0))


def test_build_words(requested, tmp_path):
    result = call(
        *("build", "--backend", requested[0], "--arch", "v3", "--backbone", "mobilenet_v2", "--width", 0.35),
        *("--output-stride", 32, "--num-classes", 4, "--size", "97x129", "--output", tmp_path / "m.safetensors"),
    )
    assert "which holds its spec" in result.stderr
    spec = read_source(tmp_path / "m.safetensors").model.spec
    assert spec == make_spec("v3", backbone="mobilenet_v2", width=0.35, output_stride=32, num_classes=4)
    assert "1x4x97x129" in result.stdout


def test_build_with_a_new_classifier(requested, folder, tmp_path):
    weights = ("--weights", folder / "m.safetensors")
    path = tmp_path / "m.safetensors"
    result = call(
        *("build", "--backend", requested[0], *weights, "--num-classes", 3, "--reset-classifier", "--output", path)
    )
    assert "initialised anew, seed 0: classifier.conv.weight, classifier.conv.bias" in result.stderr
    old, new = lively(SPEC).weights, read_source(path).model
    assert new.spec.num_classes == 3
    assert {n for n in old if not np.array_equal(old[n], new.weights[n])} == {
        "classifier.conv.weight",
        "classifier.conv.bias",
    }
    fails("build", "--backend", requested[0], *weights, "--num-classes", 3, code=1, match="--reset-classifier")
    fails("build", "--backend", requested[0], "--reset-classifier", code=2, match="needs --weights")


def test_convert_inspect_info(folder, tmp_path):
    result = call("convert", folder / "m.safetensors", tmp_path / "m.pth")
    assert "wrote" in result.stderr
    assert "layout deeplabzoo" in result.stderr
    assert read_spec(tmp_path / "m.pth.toml")[0] == SPEC
    data = json.loads(call("convert", tmp_path / "m.pth", tmp_path / "m.weights.h5", "--json").stdout)
    assert (data["format"], data["written_format"]) == ("torch", "keras-h5")
    assert len(data["ledger"]) == len(data["written_ledger"]) == len(lively(SPEC).weights)
    dry = call("convert", tmp_path / "m.weights.h5", "--dry-run").stdout
    assert re.search(r"layers/conv2d/vars/0 +\(3, 3, 3, 16\) +HWIO -> OIHW +backbone\.stem\.conv\.weight", dry)
    told = json.loads(call("inspect", tmp_path / "m.weights.h5", "--json", "--tensors").stdout)
    assert (told["format"], told["layout"], told["model"]) == ("keras-h5", "deeplabzoo", SPEC.title)
    assert told["spec"] == SPEC.to_dict()
    text = call("inspect", tmp_path / "m.pth", "--tensors").stdout
    assert re.search(r"format +torch", text)
    assert "classifier.conv.bias" in text
    info = json.loads(call("info", tmp_path / "m.pth", "--json", "--layers").stdout)
    assert info["spec"] == SPEC.to_dict()
    assert info["graph_sha256"] == build_graph(SPEC).digest()
    assert len(info["nodes"]) == info["layers"] + 1


def test_info():
    toml = call("info", "v3plus", "--backbone", "resnet101", "--output-stride", 8, "--toml").stdout
    assert tomllib.loads(toml) == make_spec("v3plus", backbone="resnet101", output_stride=8).to_dict()
    data = json.loads(call("info", "v3_resnet50.torchvision", "--json").stdout)
    assert data["parameters"] == 42_004_074
    assert data["smallest_size_all_live"] == 289
    assert (data["atrous_kernels"], data["atrous_kernels_all_live"]) == (11, 11)
    text = call("info", "v3", "--layers").stdout
    assert re.search(r"receptive field +427 px", text)
    assert "aspp.branch3.conv" in text
    fails("info", "v3pluss", code=2, match="did you mean 'v3plus'")


def test_list():
    text = call("list").stdout
    for word in ("v3plus_resnet50", "42,004,074", "v3_resnet101.torchvision_coco", "BSD-3-Clause", "67.4"):
        assert word in text
    data = json.loads(call("list", "*tf*", "--json").stdout)
    assert {p["name"] for p in data["presets"]} == {name for name in PRESETS if "tf" in name}
    assert {w["name"] for w in data["weights"]} == {name for name in PUBLISHED if "tf" in name}
    assert "no model matches 'xyz'" in call("list", "xyz").stderr


PARITY = ("parity", "--arch", "v3", "--backbone", "mobilenet_v2", "--width", 0.35, "--size", "33x49")


def test_parity(requested):
    names = ",".join(requested)
    result = call(*PARITY, "--backends", names, "--dtype", "float64")
    assert "passed" in result.stderr
    assert "OVER" not in result.stdout
    assert result.stdout.count("2x33x49") == len(requested) * (len(requested) + 1) // 2
    assert "no input makes every atrous tap read a real pixel" in result.stderr
    one = requested[0]
    over = call(*PARITY, "--backends", one, "--bound", "1e-30", code=1)
    assert "OVER" in over.stdout
    assert "FAILED" in over.stderr
    data = json.loads(call(*PARITY, "--backends", one, "--dtype", "float32", "--json").stdout)
    assert data["passed"]
    assert {row["bound"] for row in data["rows"]} == {2e-5}
    assert 0 < data["rows"][0]["error"] < 2e-5


def test_predict(requested, folder, tmp_path):
    """Whatever the picture's kind: grey, transparent, 16 bits, CMYK, a single pixel."""
    random = np.random.default_rng(1)
    pixels = random.integers(0, 255, (33, 50, 4), np.uint8)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.frombytes("CMYK", (50, 33), pixels.tobytes()).save(tmp_path / "cmyk.jpg")
    Image.new("RGB", (1, 1), (9, 99, 199)).save(tmp_path / "dot.png")
    files = [tmp_path / name for name in ("grey.png", "rgba.png", "deep.png", "cmyk.jpg", "dot.png")]
    options = ("--weights", folder / "m.safetensors", "--backend", requested[0], "--output", tmp_path / "out")
    data = json.loads(call("predict", *files, *options, "--json").stdout)
    assert [entry["image"] for entry in data] == [str(file) for file in files]
    for entry, file in zip(data, files, strict=True):
        with Image.open(file) as image, Image.open(entry["labels"]) as labels, Image.open(entry["overlay"]) as overlay:
            assert labels.mode == "P"
            assert labels.size == overlay.size == image.size
            assert np.asarray(labels).max() < 5
        assert sum(entry["classes"].values()) == pytest.approx(1)
        assert set(entry["classes"]) <= set("abcde")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 15
    # Grey in 8 and in 16 bits is the same photo.
    assert before[tmp_path / "out" / "grey_labels.png"] == before[tmp_path / "out" / "deep_labels.png"]
    fails("predict", files[0], *options, code=1, match="exists; give another name, or --force")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    text = call("predict", files[0], *options, "--force", "--output-stride", 16)
    assert "grey.png" in text.stdout
    assert "wrote 3 pictures" in text.stderr


def test_predict_refuses(requested, folder, tmp_path):
    good = folder / "flat" / "one.png"
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.new("F", (5, 5)).save(tmp_path / "float.tif")
    (tmp_path / "file").write_text("")
    options = ("--weights", folder / "m.safetensors", "--backend", requested[0], "--output", tmp_path / "out")
    for name, match in (
        ("broken.png", r"broken\.png"),
        ("text.png", r"text\.png"),
        ("empty.png", "empty"),
        ("float.tif", "mode F"),
        ("missing.png", r"missing\.png"),
        (".", "folder"),
    ):
        fails("predict", good, tmp_path / name, *options, code=1, match=match)
        assert not list((tmp_path / "out").glob("*")), "nothing is written where one image is bad"
    other = tmp_path / "one.jpg"
    Image.open(good).save(other)
    fails("predict", good, other, *options, code=1, match="two images are named 'one'")
    fails("predict", good, *options[:-1], tmp_path / "file" / "out", code=1, match="output folder .* can't be made")
    fails("predict", good, "--output", tmp_path, code=2, match="--weights")
    fails("predict", "--weights", "x", "--output", tmp_path, code=2, match="IMAGES")


def test_evaluate(requested, folder):
    options = ("--weights", folder / "m.safetensors", "--backend", requested[0])
    flat = json.loads(call("evaluate", "--data", folder / "flat", *options, "--json").stdout)
    assert flat["photos"] == 3
    assert set(flat["iou"]) <= set("abcde")
    assert flat["classes_in_truth"] == list("abcde")
    assert 0 <= flat["miou"] <= flat["pixel_accuracy"] + 1 <= 2
    voc = call("evaluate", "--data", folder / "voc", *options).stdout
    assert re.search(r"photos +2", voc)
    assert re.search(r"mIoU +0\.\d{4} over 5 classes present", voc)
    fails("evaluate", "--data", folder / "voc", "--split", "vall", *options, code=1, match="did you mean 'val'")
    fails("evaluate", "--data", folder / "nowhere", *options, code=1, match="missing: expected a folder")


@pytest.mark.slow
def test_backends(requested):
    data = json.loads(call("backends", "--json").stdout)
    assert [entry["backend"] for entry in data] == [
        "torch", "paddle", "keras/tensorflow", "keras/jax", "keras/torch", "onnx",
    ]  # fmt: skip
    for entry in data:
        if entry["backend"].split("/")[0] in requested and entry["backend"] != "keras/jax":
            assert entry["state"] == "works"
            assert "CPU" in entry["devices"]
    assert "torch" in call("backends").stdout


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def bad(folder, tmp_path_factory):
    """Files that are no checkpoints, by what they are."""
    place = tmp_path_factory.mktemp("bad")
    (place / "empty.pth").touch()
    (place / "garbage.pth").write_bytes(bytes(range(256)) * 8)
    (place / "truncated.safetensors").write_bytes((folder / "m.safetensors").read_bytes()[:-100])
    (place / "evil.pdparams").write_bytes(pickle.dumps({"a": Evil(place / "executed")}, protocol=2))
    with zipfile.ZipFile(place / "evil.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Evil(place / "executed")}, protocol=2))
        archive.writestr("archive/version", "3")
    return place


WRONG_FILES = {
    "missing.pth": r"missing\.pth",
    "empty.pth": "empty",
    "garbage.pth": r"garbage\.pth.*known formats: safetensors, torch, paddle, keras-h5, tf-checkpoint",
    "truncated.safetensors": "truncated",
    "evil.pdparams": r"(os|posix)[. ]system",
    "evil.pth": r"(os|posix)[. ]system",
    ".": r"folder|no checkpoint|TensorFlow",
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_files(bad, tmp_path, name, requested):
    path = bad / name
    match = WRONG_FILES[name]
    for command in (
        ("convert", path, tmp_path / "out.safetensors"),
        ("inspect", path),
        ("info", path),
        ("build", "--backend", requested[0], "--weights", path, "--output", tmp_path / "out.pth"),
        ("parity", "--backends", requested[0], "--weights", path),
        ("predict", path, "--weights", path, "--backend", requested[0], "--output", tmp_path / "pictures"),
    ):
        fails(*command, code=1, match=match)
    assert not (bad / "executed").exists()
    assert list(tmp_path.iterdir()) == []


WRONG_USE = [
    (("build", "--backend", "padle"), 2, "unknown backend 'padle'.*did you mean 'paddle'"),
    (("build", "--arch", "v3pluss"), 2, "did you mean 'v3plus'"),
    (("build", "--arch", "v3", "--backbone", "resnet5"), 2, "did you mean 'resnet50'"),
    (("build", "--arch", "v3", "--output-stride", "4"), 2, "output_stride = 4: expected one of 8, 16, 32"),
    (("build", "--arch", "v3", "--num-classes", "0"), 2, "num_classes = 0: expected a whole number of at least 1"),
    (("build", "--arch", "v3", "--num-classes", "many"), 2, "'many' is not a valid integer"),
    (("build", "--arch", "v3", "--width", "0"), 2, "backbone.width"),
    (("build", "--arch", "v2", "--output-stride", "32"), 2, "8 or 16"),
    (("info", "v3plus_resnet5"), 2, "did you mean 'v3plus_resnet50'"),
    (("parity", "--narrow", "0"), 2, "--narrow"),
    (("build", "--weights", "v3_resnet50"), 1, "is a preset, which has no weights"),
    (("build", "--weights", "v3_mobilenet_v2.tf_voc_trainvall"), 1, "did you mean 'v3_mobilenet_v2.tf_voc_trainval'"),
    (("build", "--arch", "v3", "--spec", "x.toml"), 2, "--spec and --arch both"),
    (("build", "--spec", "/nowhere/x.toml"), 2, "spec /nowhere/x.toml can't be read"),
    (("build", "--size", "0x5"), 2, "expected HEIGHTxWIDTH"),
    (("build", "--seed", "-1"), 2, "-1"),
    (("build", "--output", "/nowhere/m.pth"), 1, "there is no folder /nowhere"),
    (("build", "--device", "tpu"), 2, "tpu"),
    (("parity", "--backends", "torch,padle"), 2, "did you mean 'paddle'"),
    (("parity", "--backends", ""), 2, "'' names none"),
    (("parity", "--bound", "0"), 2, "'--bound'"),
    (("parity", "--device", "gpu", "--dtype", "float64"), 2, "use --dtype float32"),
    (("parity", "--dtype", "float8"), 2, "float16"),
    (("parity", "--size", "axb"), 2, "expected HEIGHTxWIDTH"),
    (("parity", "--size", "65", "--size", "65x65"), 2, "given twice"),
    (("parity", "--time-limit", "inf"), 2, "'inf': expected seconds"),
    (("parity", "--time-limit", "0.5"), 2, "expected seconds, at least 1"),
    (("parity", "--certificate", "a.saftensors"), 2, "expected a name that ends in .json or .safetensors"),
    (("parity", "--trace", "--node", "asp"), 2, "unknown node 'asp'.*did you mean 'aspp'"),
    (("parity", "--backends", "torch", "--python", f"paddle={sys.executable}"), 2, "paddle, which takes no part"),
    (("convert", "x.pth"), 2, "Missing argument 'DEST'"),
    (("convert", "x.pth", "y.mnn"), 1, "unknown suffix '.mnn'"),
    (("convert", "x.pth", "y.pth", "--to", "mnn"), 2, "mnn"),
    (("nothing",), 2, "No such command"),
    (("build", "--nothing"), 2, "No such option"),
]


@pytest.mark.parametrize(("arguments", "code", "match"), WRONG_USE, ids=[" ".join(w[0]) for w in WRONG_USE])
def test_wrong_use(arguments, code, match):
    fails(*arguments, code=code, match=match)


def test_outputs_that_can_not_be(folder, tmp_path):
    source = folder / "m.safetensors"
    (tmp_path / "file").write_text("")
    (tmp_path / "old.pth").write_bytes(b"precious")
    fails("convert", source, tmp_path / "old.pth", code=1, match="exists; give another name, or --force")
    fails("convert", source, tmp_path / "file" / "m.pth", code=1, match="there is no folder")
    fails("convert", source, tmp_path, code=1, match="suffix|folder")
    fails("convert", source, source, "--force", code=1, match="same file")
    fails(
        "convert",
        source,
        tmp_path / "x.pth",
        "--from-layout",
        "torchvison",
        code=2,
        match="unknown layout 'torchvison'.*did you mean 'torchvision'",
    )
    fails(
        "convert",
        source,
        tmp_path / "x.pth",
        "--from-layout",
        "torchvision",
        code=1,
        match="has no v3plus_mobilenet_v2",
    )
    fails("convert", source, tmp_path / "x.pth", "--spec", tmp_path / "file", code=2, match="missing")
    assert (tmp_path / "old.pth").read_bytes() == b"precious"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "old.pth"}
    call("convert", source, tmp_path / "old.pth", "--force")


def test_a_backend_that_is_not_installed(monkeypatch, folder):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "paddle" else real(name))
    for command in (
        ("build", "--backend", "paddle"),
        ("parity", "--backends", "paddle"),
        (
            "predict",
            folder / "flat" / "one.png",
            "--weights",
            folder / "m.safetensors",
            "--backend",
            "paddle",
            "--output",
            "x",
        ),
    ):
        fails(*command, code=1, match=r'needs paddle, not installed here: run pip install "deeplabzoo\[paddle\]"')


def test_parity_writes_over_nothing_that_it_reads(tmp_path):
    spec, photo = tmp_path / "spec.json", tmp_path / "photo.html"
    spec.write_text(json.dumps(small_spec().to_dict()))
    photo.write_bytes(b"a photo, let us say")
    before = spec.read_bytes()
    common = ("parity", "--spec", spec, "--backends", "onnx", "--size", "33x49")
    fails(*common, "--certificate", spec, code=2, match="--certificate: output .*spec.json is what is read")
    fails(*common, "--image", photo, "--report", photo, code=2, match="--report: output .*photo.html is what is read")
    assert (spec.read_bytes(), photo.read_bytes()) == (before, b"a photo, let us say")


def test_files_are_there_before_the_tables(tmp_path, monkeypatch):
    """A reader of the tables may be gone before their end."""
    from deeplabzoo.cli import parity_command

    def gone(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(parity_command, "print_table", gone)
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(small_spec().to_dict()))
    words = ["parity", "--spec", spec, "--backends", "onnx", "--size", "33x49", "--junit", tmp_path / "p.xml"]
    CliRunner().invoke(main, list(map(str, words)))
    assert (tmp_path / "p.xml").read_text().startswith("<?xml")
