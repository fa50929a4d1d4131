"""KerasHub's `DeepLabV3ImageSegmenter` on ResNet: positional paths of a Keras 3 weights file.

Source: keras-team/keras-hub, keras_hub/src/models/deeplab_v3 and resnet (Apache-2.0); Keras, saving_lib: a layer's
place in the file is its class name and a count, in the order of the functional model's layers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.keras_paths import training_state
from deeplabzoo.weights_converter.layouts.base import (
    Entry,
    Layout,
    Reading,
    Shapes,
    require_labels,
    require_same_tensors,
    shapes_of,
)
from deeplabzoo.weights_converter.layouts.fit import fitted
from deeplabzoo.weights_converter.layouts.keras_facts import (
    end_assumed,
    inner,
    is_rate,
    values_after,
    without_activation,
)
from deeplabzoo.weights_converter.layouts.rules import Rule, TableLayout
from deeplabzoo.weights_converter.transforms import HWIO, IDENTITY
from deeplabzoo.zoo.presets import kerashub

_MODEL = "layers/deep_lab_v3_backbone/layers"
_ENCODER = f"{_MODEL}/functional/layers"
_POOLING = f"{_MODEL}/spatial_pyramid_pooling"
_FUSION = "spatial_pyramid_pooling/projection/layers/conv2d/vars/0"
_NORM = ("weight", "bias", "running_mean", "running_var")
_RESNETS = {20: "resnet18", 36: "resnet34", 53: "resnet50", 104: "resnet101"}
"""By the convolutions of the encoder."""

_LOW_LEVEL = {"stage1": "P2", "stage2": "P3", "stage3": "P4"}
"""Points where the decoder may take its low level, and KerasHub's names of them."""


def _template(backbone: str, branches: int = 3) -> ArchSpec:
    """The preset's network on another ResNet, with another number of atrous branches."""
    spec = kerashub.template()
    aspp = spec.required_aspp.replace(rates=tuple(6 * n for n in range(1, branches + 1)))
    return spec.replace(backbone=spec.backbone.replace(name=backbone), aspp=aspp)


class KerasHubLayout(TableLayout):
    """Paths of KerasHub's segmenter."""

    name = "kerashub"
    title = "KerasHub DeepLabV3ImageSegmenter"
    writes = ("keras-h5",)
    presets = kerashub.PRESETS
    others = tuple(partial(_template, name) for name in _RESNETS.values() if name != "resnet50")
    marks = ((f"{_MODEL}/{_FUSION}",), (f"layers/{_FUSION}",))
    free = (*TableLayout.free, "decoder.low_level", "output.values")

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        """Make the layout for any file, or for one whose groups are of layers of these names."""
        self._labels = labels or {}

    def bound(self, checkpoint: Checkpoint) -> Layout:
        """The layout that holds a file to the names of its layers."""
        return KerasHubLayout(checkpoint.labels)

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """None: the paths are counted."""
        del spec
        return ()

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """What counts and shapes tell: the encoder, the atrous branches, the point of the low level, the classes.

        Raises:
            LayoutError: the segmenter is built otherwise than any network here.
        """
        shapes = shapes_of(checkpoint)
        _check_encoder(shapes)
        reading = end_assumed(super().read_spec(checkpoint))
        spec = _with_low_level(reading.spec, shapes)
        field = "decoder.low_level"
        said = f"{field} = {spec.decoder.low_level}" if spec.decoder else field
        guesses = tuple(line for line in reading.assumed if line.split(" = ")[0] != field)
        return dataclasses.replace(reading, spec=spec, told=(*reading.told, said), assumed=guesses)

    def informed(self, spec: ArchSpec, facts: Mapping[str, Any]) -> tuple[ArchSpec, list[str]]:
        """What the configuration of a whole model or of a preset says of rates and output."""
        config = inner(facts.get("config"))
        backbone = inner(config.get("backbone"))
        _check_config(inner(backbone.get("image_encoder")))
        told = []
        rates = backbone.get("dilation_rates")
        if isinstance(rates, list) and len(rates) == len(spec.rates) and all(is_rate(rate) for rate in rates):
            spec, told = spec.replace(aspp=spec.required_aspp.replace(rates=tuple(rates))), ["aspp.rates"]
        values = values_after(config.get("activation"), spec.num_classes)
        if "activation" in config and values is not None:
            spec, told = spec.replace(output=spec.output.replace(values=values)), [*told, "output.values"]
        return spec, told

    def remarks(self, checkpoint: Checkpoint, spec: ArchSpec) -> list[str]:
        """An activation at the end that no spec has."""
        return without_activation(inner(checkpoint.facts.get("config")).get("activation"), spec.num_classes)

    def ignored(self, foreign: str) -> str | None:
        """KerasHub compiles its models as they are made, so that their files hold variables of an optimizer."""
        return training_state(foreign)

    def published(self, spec: ArchSpec) -> ArchSpec:
        """The segmenter with the encoder, the number of branches and the point of the low level of `spec`."""
        if spec.decoder is None or spec.aspp is None or spec.backbone.name not in _RESNETS.values():
            return super().published(spec)
        best = _template(spec.backbone.name, len(spec.rates))
        if best.decoder is not None and spec.decoder.low_level in _LOW_LEVEL:
            best = best.replace(decoder=best.decoder.replace(low_level=spec.decoder.low_level))
        best = fitted(best, build_graph(spec).parameters())
        require_same_tensors(spec, best, self.title)
        return best

    def _nearest(self, names: list[str]) -> ArchSpec:
        branch = rf"{_POOLING}/aspp_parallel_channels/sequential(_\d+)?/layers/conv2d/vars/0"
        branches = sum(re.fullmatch(branch, name) is not None for name in names)
        # One branch is a 1x1, and one pools; there are no more than a few, whatever a file says.
        return _template(_RESNETS[_encoder(names)[0]], min(max(branches - 2, 1), 16))

    def _table(self, spec: ArchSpec, names: Collection[str] = ()) -> list[Entry]:
        del names
        places = _places(spec)
        encoder = {place: node for node, place in places.items() if node.startswith("backbone.")}
        require_labels(self._labels, encoder, _node_named)
        entries = []
        for node in build_graph(spec).nodes:
            for canonical in node.parameters():
                suffix = canonical.rsplit(".", 1)[1]
                if isinstance(node.op, Conv2d):
                    variable, transform = int(suffix == "bias"), HWIO if suffix == "weight" else IDENTITY
                else:
                    variable, transform = _NORM.index(suffix), IDENTITY
                place = places.get(node.name)
                if place is None:
                    raise LayoutError(f"{self.title} has no counterpart of {node.name!r}; use --to-layout deeplabzoo")
                entries.append(Entry(f"{place}/vars/{variable}", canonical, transform))
        return entries


def _node_named(layer: str) -> str | None:
    """The node of a layer of KerasHub's encoder; none for another name."""
    if match := re.fullmatch(r"conv1_(conv|bn)", layer):
        return f"backbone.stem.{match[1]}"
    match = re.fullmatch(r"stack(\d)_block(\d+)_(\d)_(conv|bn)", layer)
    if match is None:
        return None
    leaf = f"{match[4]}{match[3]}" if match[3] != "0" else f"shortcut.{match[4]}"
    return f"backbone.stage{int(match[1]) + 1}.block{int(match[2]) + 1}.{leaf}"


def _encoder(names: Iterable[str]) -> tuple[int, int]:
    """How many convolutions and batch norms the encoder has."""
    found = [re.fullmatch(rf"{_ENCODER}/(conv2d|batch_normalization)(_\d+)?/vars/0", name) for name in names]
    kinds = [match[1] for match in found if match]
    return kinds.count("conv2d"), kinds.count("batch_normalization")


def _check_encoder(shapes: Shapes) -> None:
    """`LayoutError` in one line where the tensors are those of a segmenter that no spec describes."""
    supported = "supported are ResNet-18, -34, -50 and -101 (v1) as encoder"
    if f"{_MODEL}/{_FUSION}" not in shapes:
        raise LayoutError(
            "these are the weights of a backbone alone, as a preset keeps them: give the folder in which this file "
            "lies, with config.json and task.weights.h5, or what save_weights of the whole segmenter wrote"
        )
    if "layers/conv2d/vars/0" not in shapes:
        raise LayoutError(
            "there is no classifier: this is a preset of a backbone alone; give one of a segmenter, whose folder holds "
            "task.weights.h5 too"
        )
    if f"{_MODEL}/conv2d_1/vars/0" not in shapes:
        raise LayoutError(
            "the backbone was made without low_level_feature_key, and its features are resized before and after a "
            "1x1 convolution: that network is not supported; supported is one with low_level_feature_key P2, P3 or P4"
        )
    convolutions, norms = _encoder(shapes)
    if convolutions in _RESNETS and norms == convolutions:
        return
    if convolutions in _RESNETS:
        raise LayoutError(
            f"the encoder has {norms} batch norms for {convolutions} convolutions, like a ResNet that normalises "
            f"before it convolves (ResNetV2), which is not supported; {supported}"
        )
    raise LayoutError(
        f"the encoder has {convolutions} convolutions{', like ResNet-152' if convolutions == 155 else ''}, which is "
        f"not supported; {supported}, with {', '.join(map(str, _RESNETS))} convolutions"
    )


def _with_low_level(spec: ArchSpec, shapes: Shapes) -> ArchSpec:
    """The spec with the low level at the point of the encoder that has as many channels as its kernel reads."""
    pooled = shapes.get(f"{_POOLING}/aspp_parallel_channels/sequential/layers/conv2d/vars/0", ())
    read = shapes.get(f"{_MODEL}/conv2d/vars/0", ())
    if spec.decoder is None or len(pooled) != 4 or len(read) != 4:
        return spec  # the conversion complains of the shape
    deepest = build_graph(spec).parameters()["aspp.branch0.conv.weight"][1]
    if pooled[2] < deepest:
        raise LayoutError(
            f"the pooling reads {pooled[2]} channels of the encoder, not the last {deepest}: another "
            "spatial_pyramid_pooling_key than P5 is not supported"
        )
    for tap in _LOW_LEVEL:
        candidate = spec.replace(decoder=spec.decoder.replace(low_level=tap))
        if build_graph(candidate).parameters()["decoder.low_level.conv.weight"][1] == read[2]:
            return candidate
    return spec


def _check_config(encoder: Mapping[str, Any]) -> None:
    """`LayoutError` where the encoder's configuration says what no tensor tells and no spec has."""
    strides = encoder.get("stackwise_num_strides")
    if isinstance(strides, list) and strides != [1, 2, 2, 2]:
        raise LayoutError("the encoder's stackwise_num_strides are not 1, 2, 2, 2, and no others are supported")


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
            branch = len(spec.rates) + 1 if match[1] == "image_pooling" else int(match[2] or 0)
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
