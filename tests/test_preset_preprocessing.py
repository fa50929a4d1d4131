"""Each project's way with a photo, as its presets carry it."""

from __future__ import annotations

import numpy as np
import pytest

from deeplabzoo.inference.plane import prepare
from deeplabzoo.inference.preprocessing import Preprocessing
from deeplabzoo.models import canonical_model
from deeplabzoo.zoo.presets import PRESETS

# layouts.md: what a white and a black pixel become in the first channel, and the order of the channels.
IMAGENET = ((1 - 0.485) / 0.229, -0.485 / 0.229, "rgb")
RANGE = (1.0, -1.0, "rgb")
CAFFE = (255 - 104.008, -104.008, "bgr")
WAYS = {
    "torchvision": IMAGENET, "torchvision_no_aux": IMAGENET, "smp": IMAGENET, "mmseg": IMAGENET, "vainf": IMAGENET,
    "jfzhang95": IMAGENET, "mmseg_b": IMAGENET, "mmseg_d16_mg124": IMAGENET, "paddleseg": RANGE, "paddleseg_769": RANGE,
    "tf": RANGE, "tf_dm05": RANGE, "tf_ade20k": RANGE, "tf_beta": RANGE, "bonlime": RANGE, "ryanccc": RANGE, "hf": RANGE,
    "kerashub": (255.0, 0.0, "rgb"), "bubbliiiing": (1.0, 0.0, "rgb"), "kazuto": CAFFE,
}  # fmt: skip
OWN = {
    "v3plus_resnet50.tf": (255 - 123.15, -123.15, "rgb"),
    "v3plus_resnet101.tf": (255 - 123.15, -123.15, "rgb"),
    "v3_xception65.smp_timm": RANGE,
    "v3plus_xception65.smp_timm": RANGE,
}


@pytest.mark.parametrize("name", [name for name in PRESETS if "." in name])
def test_preprocessing_of_presets(name):
    tag = name.split(".")[1]
    wanted = OWN.get(name) or WAYS.get(tag) or (IMAGENET if tag == "smp_timm" else None)
    if wanted is None:  # the papers' own variants take the backbone's usual way
        assert PRESETS[name].preprocessing is None
        return
    assert PRESETS[name].preprocessing is not None
    way = PRESETS[name].preprocessing
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[:, 5:] = 255
    x, _ = prepare(pixels, way.replace(resize="none", size=None, pad_to=None))
    assert np.allclose((x[0, 0, 0, -1], x[0, 0, 0, 0]), wanted[:2], atol=1e-5)
    assert way.channel_order == wanted[2]


def test_the_card_of_a_preset_holds_it():
    model, _ = canonical_model("v2_resnet101.kazuto")
    assert Preprocessing.from_dict(model.card.preprocessing) == PRESETS["v2_resnet101.kazuto"].preprocessing
    plain, _ = canonical_model("v2")
    assert plain.card.preprocessing["channel_order"] == "bgr"
