"""Named models: presets, and what is published of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from helpers import small_spec

from deeplabzoo.cli import main
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.errors import SpecError
from deeplabzoo.inference.label_sets import LABEL_SETS
from deeplabzoo.weights_converter.layouts import LAYOUTS, get_layout
from deeplabzoo.zoo.models import PRESETS, PUBLISHED, list_models, named_spec

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "weights.md"
DATASETS = {one.name for one in LABEL_SETS} | {"coco_stuff10k", "coco_stuff164k"}


def test_presets():
    for name, preset in PRESETS.items():
        assert preset.name == name
        spec = preset.make()
        assert name.split(".")[0] == spec.title
        assert spec == named_spec(name)
        assert preset.source


def test_names():
    assert len({*PRESETS, *PUBLISHED}) == len(PRESETS) + len(PUBLISHED)
    assert len({weights.url for weights in PUBLISHED.values()}) == len(PUBLISHED)
    for name, weights in PUBLISHED.items():
        assert weights.name == name
        assert re.fullmatch(r"v\d(plus)?_\w+\.\w+", name)
        assert name.startswith(f"{weights.preset}_")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name):
    weights = PUBLISHED[name]
    spec = weights.spec()
    assert spec.num_classes == weights.num_classes
    assert spec == named_spec(weights.preset, num_classes=weights.num_classes)
    assert weights.layout in LAYOUTS
    layout = get_layout(weights.layout)
    assert layout.entries(spec, layout.writes[0])
    scheme, host, path, query, fragment = urlsplit(weights.url)
    assert scheme == "https" or (scheme, host) == ("http", "download.tensorflow.org")
    assert re.fullmatch(r"/[\w./-]+", path)
    assert not query + fragment
    assert re.fullmatch(r"[0-9a-f]{8}|", weights.digest)
    assert weights.digest in weights.file_name  # both projects that publish digests write them there
    assert weights.licence in ("Apache-2.0", "BSD-3-Clause", "MIT", "other")
    assert weights.dataset in DATASETS
    assert len(weights.classes) == (0 if weights.dataset.startswith("coco") else weights.num_classes)
    assert weights.miou is None or (10 < weights.miou < 90 and weights.judged)
    assert weights.source.startswith("https://")
    assert weights.publisher.count("/") == 1
    # Float32 weights; up to three times that with an optimizer's slots, and the frozen graph beside them.
    size = 4e-6 * sum(math.prod(shape) for shape in build_graph(spec).parameters().values())
    assert size * 0.95 < weights.megabytes < size * 3.2


def test_published_figures():
    """As the projects' own pages have them."""
    figures = {
        "v3_resnet101.torchvision_coco": 67.4,
        "v3_mobilenet_v3_large.torchvision_coco": 60.3,
        "v3_mobilenet_v2.tf_voc_trainval": 80.25,
        "v3_mobilenet_v2.tf_dm05_voc_trainval": 71.83,
        "v3plus_mobilenet_v2.tf_ade20k_train": 32.04,
        "v3plus_xception65.tf_cityscapes": 78.79,
        "v3plus_xception65.bonlime_voc": None,
        "v3plus_resnet101.paddleseg_769_cityscapes": 81.53,
        "v3plus_resnet50.kerashub_voc": 63.0,
        "v3_resnet50.mmseg_cityscapes_40k": 79.09,
        "v3plus_resnet101.mmseg_ade20k_160k": 45.47,
        "v3_resnet101.mmseg_d16_mg124_cityscapes_80k": 78.36,
        "v2_resnet101.kazuto_voc": 76.65,
        "v3plus_xception65.bubbliiiing_voc": 76.95,
    }
    assert {name: PUBLISHED[name].miou for name in figures} == figures


def test_preprocessing():
    """The preset's, unless the weights' data set has its own way."""
    assert PUBLISHED["v3_resnet50.torchvision_coco"].prepares() == PRESETS["v3_resnet50.torchvision"].preprocessing
    assert PUBLISHED["v3plus_xception65.tf_voc_trainval"].prepares().size == 513
    assert PUBLISHED["v3plus_xception65.tf_cityscapes"].prepares().resize == "none"
    assert PUBLISHED["v3plus_mobilenet_v2.tf_ade20k_train"].prepares().size == 257
    assert PUBLISHED["v3_resnet50.mmseg_cityscapes_80k"].prepares().resize == "none"
    assert PUBLISHED["v3_resnet50.mmseg_ade20k_80k"].prepares().size == 512
    assert PUBLISHED["v3_resnet50.paddleseg_voc"].prepares().pad_to == 512


def test_documented():
    """docs/weights.md has a row for each, and says nothing else of them."""
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `v")]
    assert rows == [
        f"| `{w.name}` | {w.num_classes} | {w.megabytes:.0f} | {'-' if w.miou is None else w.miou} | "
        f"{w.judged or w.dataset} | {w.digest or 'pinned'} | [{w.file_name}]({w.url}) |"
        for w in PUBLISHED.values()
    ]


def test_listed():
    call = CliRunner().invoke
    text = call(main, ["list", "mmseg", "ade20k"]).stdout
    assert "open-mmlab/mmsegmentation, Apache-2.0" in text
    names = [line.split()[0] for line in text.splitlines() if line.startswith("v")]
    assert names == sorted(name for name in PUBLISHED if "mmseg" in name and "ade20k" in name)
    assert re.search(r"v3plus_resnet101\.mmseg_ade20k_160k +150 +251 MB +45\.47 +ADE20K val\n", text)
    names = json.loads(call(main, ["list", "kazuto", "--json"]).stdout)
    assert [one["name"] for one in names["presets"]] == [name for name in sorted(PRESETS) if "kazuto" in name]
    assert [one["miou"] for one in names["weights"]] == [34.8, 39.1, 76.65]
    only = json.loads(call(main, ["list", "--json", "--only", "weights"]).stdout)
    assert (only["presets"], len(only["weights"])) == ([], len(PUBLISHED))
    only = json.loads(call(main, ["list", "v3", "--json", "--only", "presets"]).stdout)
    assert only["presets"]
    assert only["weights"] == []


def test_list_models():
    assert list_models() == sorted({*PRESETS, *PUBLISHED})
    assert set(list_models("resnet101")) == {n for n in list_models() if "resnet101" in n}
    assert list_models("v1_*") == ["v1_resnet101", "v1_resnet101.kazuto", "v1_vgg16"]
    assert list_models("nothing") == []


def test_named_spec():
    assert named_spec("v3_resnet50.torchvision", num_classes=5).num_classes == 5
    assert named_spec("v3_resnet50.torchvision", output_stride=16).aspp.rates == (6, 12, 18)
    assert named_spec("v3_resnet50", output_stride=8) == named_spec("v3", backbone="resnet50", output_stride=8)
    assert named_spec(small_spec()) == small_spec()
    for name, options, message in (
        ("v3_resnet50.torchvison", {}, "did you mean 'v3_resnet50.torchvision'"),
        ("v3_resnet50.torchvision", {"backbone": "resnet101"}, "backbone = 'resnet101' was asked for"),
        ("v3_resnet50.torchvision", {"rates": (1, 2, 3)}, "rates can't be changed in a finished spec"),
    ):
        with pytest.raises(SpecError, match=message):
            named_spec(name, **options)
