"""The main job on real input: TensorFlow's own checkpoint, three frameworks, the same labels on real photos."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import digests

from deeplabzoo.inference.datasets import find_pairs
from deeplabzoo.inference.images import read_image, read_mask
from deeplabzoo.inference.metrics import Scores, agreement, confusion
from deeplabzoo.inference.preprocessing import TF_DEEPLAB
from deeplabzoo.prediction import Predictor, scores_dict
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.convert import convert, read_source


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory):
    """The checkpoint as canonical safetensors, and from there in every framework's own format."""
    folder = tmp_path_factory.mktemp("real")
    convert(checkpoint, folder / "m.safetensors")
    for name in ("m.pth", "m.pdparams", "m.weights.h5"):
        convert(folder / "m.safetensors", folder / name)
    return folder


@pytest.fixture(scope="module")
def photos(data):
    pairs = find_pairs(data / "photos")
    assert len(pairs) == 8
    return [(read_image(pair.image_path), read_mask(pair.mask_path)) for pair in pairs]


def test_reading(checkpoint):
    read = read_source(checkpoint)
    assert (read.format, read.layout) == ("tf-checkpoint", "tensorflow")
    assert len(read.model.weights) == 272
    assert sum(a.size for a in read.model.weights.values()) == 2_146_645
    assert {a.dtype for a in read.model.weights.values()} == {np.dtype("f4")}
    spec = read.model.spec
    assert (spec.title, spec.output_stride, spec.num_classes) == ("v3_mobilenet_v2", 8, 21)
    assert (spec.backbone.epsilon, spec.aspp.epsilon) == (1e-3, 1e-5)
    assert spec.aspp.order == ("image_pooling", "conv1x1")
    assert spec.output.align_corners
    assert read.model.card.preprocessing == TF_DEEPLAB.to_dict()
    assert read.model.card.classes[15] == "person"
    assert read.model.card.provenance["source"] == "model.ckpt-30000"
    # Each tensor in one row; what is left out says why.
    foreign = formats.read(checkpoint).tensors
    assert sorted(row.foreign for row in read.ledger) == sorted(foreign)
    aside = {row.foreign: row.transform for row in read.ledger if not row.canonical}
    assert aside == {"global_step": "kept aside: no network uses it"}


def test_every_format_holds_the_same_bits(checkpoint, files):
    truth = digests(read_source(checkpoint).model.weights)
    assert len(truth) == 272
    for name in ("m.safetensors", "m.pth", "m.pdparams", "m.weights.h5"):
        read = read_source(files / name)
        assert digests(read.model.weights) == truth, name
        assert read.model.spec == read_source(checkpoint).model.spec
        assert read.model.card.classes == read_source(checkpoint).model.card.classes


def test_the_way_back_to_tensorflow(checkpoint, files, tmp_path):
    """In TF's names again, every byte as in the checkpoint; a framework's own file has no room for the step counter."""
    truth = digests(formats.read(checkpoint).tensors)
    convert(files / "m.safetensors", tmp_path / "whole.safetensors", to_layout="tensorflow")
    assert digests(formats.read(tmp_path / "whole.safetensors").tensors) == truth
    convert(files / "m.pth", tmp_path / "through.safetensors", to_layout="tensorflow")
    through_torch = formats.read(tmp_path / "through.safetensors").tensors
    assert through_torch["global_step"] == 0
    assert {n: d for n, d in digests(through_torch).items() if n != "global_step"} == {
        n: d for n, d in truth.items() if n != "global_step"
    }


@pytest.fixture(scope="module")
def labels(files, photos, requested):
    """Labels of each photo by each backend, each from its own framework's file."""
    suffix = {"torch": ".pth", "paddle": ".pdparams", "keras": ".weights.h5"}
    made = {}
    for name in requested:
        model = read_source(files / f"m{suffix[name.split('/')[0]]}").model
        with Predictor(model, backend=name) as predictor:
            made[name] = [predictor.labels(image) for image, _ in photos]
    return made


@pytest.fixture(scope="module")
def scores(labels, photos):
    return {
        name: Scores.of(sum(confusion(truth, mine, 21) for (_, truth), mine in zip(photos, own, strict=True)))
        for name, own in labels.items()
    }


def test_scores(scores, backend, files):
    """An independent run gives 0.9965 and 0.9841."""
    own = scores[backend]
    assert own.pixel_accuracy >= 0.996
    assert own.miou >= 0.983
    table = scores_dict(own, read_source(files / "m.safetensors").model.card.classes)
    assert round(table["pixel_accuracy"], 4) == 0.9965
    assert round(table["miou"], 4) == 0.9841
    published = {"aeroplane": 0.969, "bird": 0.975, "car": 0.977, "person": 0.993, "sheep": 0.995}
    assert {name: round(table["iou"][name], 3) for name in published} == published


def test_backends_agree(scores, labels):
    figures = {(round(s.pixel_accuracy, 4), round(s.miou, 4)) for s in scores.values()}
    assert len(figures) == 1
    for first, second in itertools.combinations(labels, 2):
        pixels = [agreement(a, b) for a, b in zip(labels[first], labels[second], strict=True)]
        assert np.mean(pixels) >= 0.9999, (first, second)


ALL_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
WAYS = {
    "scales and flip": ({"scales": (0.75, 1.0), "flip": True}, 2, 0.96),
    "scales, maximum": ({"scales": (0.75, 1.0), "fusion": "max"}, 2, 0.96),
    "windows": ({"window": 385}, 2, 0.96),
    "CRF": ({"crf": "v2_resnet101"}, 2, 0.96),
    "all scales and flip": ({"scales": ALL_SCALES, "flip": True}, 8, 0.98),
    "CRF on all": ({"crf": "v2_resnet101"}, 8, 0.98),
}
"""Options, number of photos, least mIoU."""


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow) if WAYS[way][1] == 8 else way for way in WAYS]
)
def test_ways_to_show_a_photo(files, photos, requested, way):
    """Good labels, and the same from every backend; `benchmarks/inference.py` prints the figures."""
    options, count, least = WAYS[way]
    if "crf" in options:
        pytest.importorskip("pydensecrf", reason="the extra `crf` is not installed")
    model = read_source(files / "m.safetensors").model
    made = {}
    for name in requested:
        with Predictor(model, backend=name, **options) as predictor:
            made[name] = [predictor.labels(image) for image, _ in photos[:count]]
    for own in made.values():
        total = sum(confusion(truth, mine, 21) for (_, truth), mine in zip(photos, own, strict=False))
        assert Scores.of(total).miou >= least
    for first, second in itertools.combinations(made, 2):
        assert all(agreement(a, b) >= 0.9999 for a, b in zip(made[first], made[second], strict=True)), (first, second)


def test_another_output_stride_still_works(files, photos, requested, worker):
    """Stride 16 with the same weights, as TF's published mIoU has it."""
    model = read_source(files / "m.safetensors", output_stride=16).model
    with Predictor(model, backend=requested[0]) as predictor:
        image, truth = photos[0]
        accuracy = Scores.of(confusion(truth, predictor.labels(image), 21)).pixel_accuracy
    assert accuracy > 0.95


def test_a_wrong_network_is_seen(files, photos, requested):
    """The figures are a test: without TF's epsilon, or with another padding and an even size, they drop."""
    model = read_source(files / "m.safetensors").model
    spec = model.spec.replace(backbone=model.spec.backbone.replace(epsilon=0.1))
    broken = type(model)(spec, model.weights, model.card)
    image, truth = photos[0]
    with Predictor(broken, backend=requested[0]) as predictor:
        assert Scores.of(confusion(truth, predictor.labels(image), 21)).pixel_accuracy < 0.99
