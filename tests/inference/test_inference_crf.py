"""The fully connected CRF on pictures whose answer is clear."""

import importlib.util
import sys

import numpy as np
import pytest

from deeplabzoo.errors import BackendError, DataError, ImageError, SpecError
from deeplabzoo.inference import CRF, CRF_PRESETS
from deeplabzoo.inference.crf import named_crf

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None, reason='no pydensecrf2: pip install "deeplabzoo[crf]"'
)


def block():
    """A red block on blue, 40 x 50, and probabilities that are sure of it 4 pixels too low, with a stray pixel."""
    image = np.zeros((40, 50, 3), np.uint8)
    image[:, :, 2] = 200
    image[10:30, 15:40] = (220, 10, 10)
    truth = (image[:, :, 0] > 100).astype(np.uint8)
    late = np.roll(truth, 4, axis=0)
    late[5, 5] = 1
    probabilities = np.where(np.stack([1 - late, late]) > 0, 0.7, 0.3).astype(np.float32)
    return image, truth, probabilities


@NEEDED
def test_labels_follow_the_edges():
    image, truth, probabilities = block()
    before = (probabilities.argmax(axis=0) != truth).sum()
    refined = CRF_PRESETS["v2_resnet101"].refine(image, probabilities)
    assert refined.dtype == np.float32
    assert refined.shape == probabilities.shape
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-4)
    assert before > 150
    assert (refined.argmax(axis=0) != truth).sum() == 0


@NEEDED
def test_without_colours_there_is_no_edge_to_follow():
    _, truth, probabilities = block()
    refined = CRF_PRESETS["v2_resnet101"].refine(np.zeros((40, 50, 3), np.uint8), probabilities)
    assert (refined.argmax(axis=0) != truth).sum() > 50


@NEEDED
def test_without_weights_nothing_changes():
    image, _, probabilities = block()
    plain = CRF(bilateral_weight=0, bilateral_xy_std=67, bilateral_rgb_std=3, position_weight=0)
    np.testing.assert_allclose(plain.refine(image, probabilities), probabilities, atol=1e-5)


@NEEDED
def test_height_and_width_are_not_swapped():
    """A stripe on a photo wider than high; read the other way round it would be torn."""
    image = np.zeros((8, 60, 3), np.uint8)
    image[:, 30:] = 255
    probabilities = np.full((2, 8, 60), 0.45, np.float32)
    probabilities[1, :, 30:], probabilities[0, :, :30] = 0.55, 0.55
    refined = CRF_PRESETS["v1"].refine(image, probabilities)
    assert (refined.argmax(axis=0) == image[:, :, 0] // 255).all()


@NEEDED
def test_certainty_has_a_logarithm():
    image, truth, _ = block()
    certain = np.stack([1 - truth, truth]).astype(np.float32)
    assert np.isfinite(CRF_PRESETS["v2_vgg16"].refine(image, certain)).all()


def test_presets():
    """Bilateral weight, xy and rgb deviation; position weight and xy deviation: layouts of the published scripts."""
    told = {
        "v1": (5, 50, 10, 3, 3),
        "v1_largefov": (4, 121, 5, 3, 3),
        "v1_msc_largefov": (4, 83, 5, 3, 3),
        "v1_coco_largefov": (5, 69, 5, 3, 3),
        "v2_vgg16": (4, 65, 3, 2, 2),
        "v2_resnet101": (4, 67, 3, 3, 1),
    }
    made = {
        name: (c.bilateral_weight, c.bilateral_xy_std, c.bilateral_rgb_std, c.position_weight, c.position_xy_std)
        for name, c in CRF_PRESETS.items()
    }
    assert made == told
    assert {crf.iterations for crf in CRF_PRESETS.values()} == {10}
    for crf in CRF_PRESETS.values():
        assert CRF.from_dict(crf.to_dict()) == crf


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bilateral_weight": -1}, r"crf\.bilateral_weight = -1"),
        ({"bilateral_rgb_std": 0}, r"crf\.bilateral_rgb_std = 0\.0: expected a number > 0"),
        ({"position_xy_std": float("nan")}, "nan"),
        ({"iterations": 0}, r"crf\.iterations = 0"),
        ({"iteration": 5}, "did you mean 'iterations'"),
    ],
)
def test_wrong_fields_are_named(change, match):
    with pytest.raises(SpecError, match=match):
        CRF.from_dict({**CRF_PRESETS["v1"].to_dict(), **change})


def test_unknown_presets():
    with pytest.raises(SpecError, match=r"unknown crf 'v2_resnet10': .* did you mean 'v2_resnet101'"):
        named_crf("v2_resnet10")
    with pytest.raises(SpecError, match="unknown crf"):
        named_crf(["v1"])


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(BackendError, match=r'run pip install "deeplabzoo\[crf\]"') as caught:
        named_crf("v1")
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused():
    image, _, probabilities = block()
    with pytest.raises(DataError, match=r"\(2, 40, 49\) for a photo of shape \(40, 50, 3\)"):
        CRF_PRESETS["v1"].refine(image, probabilities[:, :, 1:])
    with pytest.raises(ImageError, match="uint8"):
        CRF_PRESETS["v1"].refine(image / 255, probabilities)
