"""Where Keras puts the weights of every preset, predicted without Keras, against the file that Keras writes."""

from __future__ import annotations

import importlib.util

import pytest
from helpers import python

from deeplabzoo.zoo.presets import PRESETS

QUICK = ("v2_vgg16", "v3_resnet50.copied_blocks", "v3_mobilenet_v3_large.torchvision", "v3plus_resnet50.paddleseg",
         "v3plus_resnet50.tf_beta", "v3plus_xception41.tf", "v3plus_xception.vainf")  # fmt: skip

CODE = """
import json, os, sys, tempfile
os.environ["KERAS_BACKEND"] = "tensorflow"
import h5py, numpy as np
from deeplabzoo.backends.keras import build, weights
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.weights_converter import keras_paths
from deeplabzoo.zoo.presets import PRESETS

wrong = {}
for name in sys.argv[1:]:
    graph = build_graph(PRESETS[name].make().narrowed(16))
    model = build.build(graph)
    values = seeded_weights(graph, 4, statistics="lively")
    weights.load_weights(model, values)
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(f"{folder}/model.weights.h5")
        with h5py.File(f"{folder}/model.weights.h5") as file:
            for parameter, path in keras_paths.keras_variable_paths(graph).items():
                node, suffix = parameter.rsplit(".", 1)
                wanted = keras_paths.to_keras(graph.by_name[node].op, suffix, values[parameter])
                if path not in file or not np.array_equal(file[path][()], wanted):
                    wrong.setdefault(name, []).append(parameter)
print(json.dumps(wrong))
"""


def check(names, requested):
    if not any(name.startswith("keras") for name in requested) or importlib.util.find_spec("tensorflow") is None:
        pytest.skip("keras is not in DEEPLABZOO_TEST_BACKENDS, or tensorflow is not installed")
    assert python(CODE, *names, timeout=800) == {}


def test_quick_presets(requested):
    check(QUICK, requested)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_all_presets(requested, part):
    check(list(PRESETS)[part::4], requested)
