"""KerasHub's `DeepLabV3ImageSegmenter` on ResNet: positional paths of a Keras 3 weights file.

Source: keras-team/keras-hub, keras_hub/src/models/deeplab_v3 and resnet (Apache-2.0); Keras, saving_lib: a layer's
place in the file is its class name and a count, in the order of the functional model's layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import partial

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.base import Entry
from deeplabzoo.weights_converter.layouts.rules import Rule, TableLayout
from deeplabzoo.weights_converter.transforms import HWIO, IDENTITY
from deeplabzoo.zoo.presets import kerashub

_MODEL = "layers/deep_lab_v3_backbone/layers"
_ENCODER = f"{_MODEL}/functional/layers"
_POOLING = f"{_MODEL}/spatial_pyramid_pooling"
_NORM = ("weight", "bias", "running_mean", "running_var")
_POOL_BRANCH = 4


def _resnet(backbone: str) -> ArchSpec:
    spec = kerashub.template()
    return spec.replace(backbone=spec.backbone.replace(name=backbone))


class KerasHubLayout(TableLayout):
    """Paths of KerasHub's segmenter."""

    name = "kerashub"
    title = "KerasHub DeepLabV3ImageSegmenter"
    writes = ("keras-h5",)
    presets = kerashub.PRESETS
    others = (partial(_resnet, "resnet101"),)
    marks = ((f"{_MODEL}/conv2d_1/vars/0", "layers/conv2d/vars/0", f"{_POOLING}/projection/layers/conv2d/vars/0"),)
    free = (*TableLayout.free, "output.values")

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """None: the paths are counted."""
        del spec
        return ()

    def _table(self, spec: ArchSpec, names: Collection[str] = ()) -> list[Entry]:
        del names
        places = _places(spec)
        entries = []
        for node in build_graph(spec).nodes:
            for canonical in node.parameters():
                suffix = canonical.rsplit(".", 1)[1]
                if isinstance(node.op, Conv2d):
                    variable, transform = int(suffix == "bias"), HWIO if suffix == "weight" else IDENTITY
                else:
                    variable, transform = _NORM.index(suffix), IDENTITY
                entries.append(Entry(f"{places[node.name]}/vars/{variable}", canonical, transform))
        return entries


def _places(spec: ArchSpec) -> dict[str, str]:
    """Group of every node: the encoder counted through, the pooling by branch, the rest by name."""
    graph = build_graph(spec)
    places: dict[str, str] = {}
    counts = {"conv2d": 0, "batch_normalization": 0}

    def count(node: str) -> None:
        kind = "conv2d" if isinstance(graph.by_name[node].op, Conv2d) else "batch_normalization"
        number = counts[kind]
        counts[kind] += 1
        places[node] = f"{_ENCODER}/{kind}{f'_{number}' if number else ''}"

    encoder = [node.name for node in graph.nodes if node.parameters() and node.name.startswith("backbone.")]
    # Keras lists layers by depth, and at one depth by creation: the shortcut comes just before the last convolution.
    for name in sorted(encoder, key=lambda name: _depth(encoder, name)):
        count(name)
    for node in graph.nodes:
        if match := re.fullmatch(r"aspp\.(branch(\d)|image_pooling|fusion)\.(conv|bn)", node.name):
            branch = _POOL_BRANCH if match[1] == "image_pooling" else int(match[2] or 0)
            kind = "conv2d" if match[3] == "conv" else "batch_normalization"
            where = (
                "projection"
                if match[1] == "fusion"
                else f"aspp_parallel_channels/sequential{f'_{branch}' if branch else ''}"
            )
            places[node.name] = f"{_POOLING}/{where}/layers/{kind}"
    return places | {
        "decoder.low_level.conv": f"{_MODEL}/conv2d",
        "decoder.low_level.bn": f"{_MODEL}/batch_normalization",
        "decoder.conv1.conv": f"{_MODEL}/conv2d_1",
        "decoder.conv1.bn": f"{_MODEL}/batch_normalization_1",
        "classifier.conv": "layers/conv2d",
    }


def _depth(encoder: list[str], name: str) -> tuple[int, int]:
    """Where a node comes: its place in the list, a shortcut that of the last convolution (batch norm) before it."""
    match = re.fullmatch(r"(.*)\.shortcut\.(conv|bn)", name)
    if match is None:
        return encoder.index(name), 1
    last = max(i for i, other in enumerate(encoder) if re.fullmatch(rf"{re.escape(match[1])}\.{match[2]}\d", other))
    return last, 0
