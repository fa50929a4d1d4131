"""bonlime/keras-deeplab-v3-plus and RyanCCC/DeeplabV3Plus: TensorFlow's names, flattened to names of Keras 2 layers.

Source: bonlime/keras-deeplab-v3-plus, model.py and extract_weights.py (MIT); RyanCCC/DeeplabV3Plus, nets. The two
share their layer names and differ in the last layer's, and in the wiring.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar

from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.base import Entry, Reading, require, shapes_of
from deeplabzoo.weights_converter.layouts.graph_facts import informed_by_graph
from deeplabzoo.weights_converter.layouts.keras_facts import (
    end_assumed,
    graph_of,
    layers_of,
    values_after,
    without_activation,
)
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout
from deeplabzoo.weights_converter.layouts.tensorflow import HEAD, backbone_rules
from deeplabzoo.zoo.presets import tensorflow

_OTHER_STEM = "Conv_/kernel"
"""MobileNetV2's first kernel where the image has not three channels, so that loading by name leaves it out."""

_EXPANSION = "expanded_conv_1_expand/kernel"
_PUBLISHED_CHANNELS, _PUBLISHED_CLASSES = 3, (19, 21)


def _flat(module: str) -> str:
    """A scope of TensorFlow as a layer's name: `xception_65/entry_flow/conv1_1/BatchNorm` -> `entry_flow_conv1_1_BN`."""
    name = re.sub(r"^(MobilenetV2|xception_\d+|decoder)/", "", module)
    name = re.sub(r"(entry|exit)_flow/(block\d)/unit_1/xception_module", r"\1_flow_\2", name)
    name = re.sub(r"middle_flow/block1/(unit_\d+)/xception_module", r"middle_flow_\1", name)
    return name.replace("BatchNorm", "BN").replace("/", "_")


def _flattened(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    def target(old: str | Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
        def name(match: re.Match[str]) -> str:
            module = old(match) if callable(old) else match.expand(old)
            return _flat(re.sub(r"\{(\d+)\}", lambda number: str(int(number[1]) - 1), module))

        return name

    return tuple((pattern, target(old)) for pattern, old in rules)


def _end(layers: list[tuple[str, Mapping[str, Any]]]) -> str | None:
    """The activation in which a model of these layers ends; none where the last layer is no end of these projects."""
    kind, made = layers[-1] if layers else ("", {})
    if kind == "Activation":
        return str(made.get("activation"))
    return {"Resizing": "linear", "Softmax": "softmax"}.get(kind)


class BonlimeLayout(TableLayout):
    """Layer names of bonlime's models."""

    name = "bonlime"
    title = "bonlime/keras-deeplab-v3-plus"
    writes = ("keras2-h5", "safetensors", "npz")
    presets = tuple(preset for preset in tensorflow.PRESETS if preset.name.endswith(".bonlime"))
    marks: ClassVar[tuple[tuple[str, ...], ...]] = (("concat_projection/kernel", "logits_semantic/kernel"),)
    spelling = "keras"
    moves = (Move("image_pooling", before="aspp0"),)
    free = (*TableLayout.free, "output.values")
    last = "logits_semantic"
    custom = r"custom_logits_semantic"

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """TensorFlow's, flattened."""
        return ((r"classifier\.conv", self.last), *_flattened((*backbone_rules(spec), *HEAD)))

    def standard(self, names: Collection[str]) -> Mapping[str, str]:
        """First kernel and classifier under their usual names, and depthwise kernels under Keras 2's, for Keras 3's."""
        found = {name: match for name in names if (match := re.fullmatch(rf"{self.custom}/(kernel|bias)", name))}
        depthwise = [name for name in names if name.endswith("depthwise/kernel")]
        return {
            **{name: f"{self.last}/{match[1]}" for name, match in found.items()},
            **{name: f"{name.removesuffix('/kernel')}/depthwise_kernel" for name in depthwise},
            **{name: "Conv/kernel" for name in names if name == _OTHER_STEM},
        }

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """The network, with an activation at its end where the file says so."""
        return end_assumed(super().read_spec(checkpoint))

    def informed(self, spec: ArchSpec, facts: Mapping[str, Any]) -> tuple[ArchSpec, list[str]]:
        """What the configuration of a whole model says of dilations, epsilons and the end."""
        layers = layers_of(facts.get("config"))
        if not layers:
            return spec, []
        spec, told, _ = self._by_layers(spec, layers)
        if (end := _end(layers)) is None or (values := values_after(end, spec.num_classes)) is None:
            return spec, told
        return spec.replace(output=spec.output.replace(values=values)), [*told, "output.values"]

    def remarks(self, checkpoint: Checkpoint, spec: ArchSpec) -> list[str]:
        """An activation at the end that no spec has, and dilations that no network of the project has."""
        layers = layers_of(checkpoint.facts.get("config"))
        if not layers:
            return []
        end, (_, _, notes) = _end(layers), self._by_layers(spec, layers)
        return notes if end is None else [*notes, *without_activation(end, spec.num_classes)]

    def _by_layers(
        self, spec: ArchSpec, layers: list[tuple[str, Mapping[str, Any]]]
    ) -> tuple[ArchSpec, list[str], list[str]]:
        backbones = [one.backbone for one in self._variants()]
        return informed_by_graph(spec, {"graph": graph_of(layers)}, self._table(spec), backbones)

    def _table(self, spec: ArchSpec, names: Collection[str] = ()) -> list[Entry]:
        entries = super()._table(spec, names)
        return entries if names else [dataclasses.replace(e, foreign=self._fresh(e.foreign, spec)) for e in entries]

    def _fresh(self, foreign: str, spec: ArchSpec) -> str:
        """A name as in a model without published weights, whose layers of other shapes are called otherwise."""
        if foreign == "Conv/kernel" and spec.in_channels != _PUBLISHED_CHANNELS:
            return _OTHER_STEM
        if foreign.startswith(f"{self.last}/") and spec.num_classes not in _PUBLISHED_CLASSES:
            return f"custom_{foreign}"
        return foreign

    def classes(self, count: int) -> tuple[str, ...]:
        """VOC or Cityscapes."""
        from deeplabzoo.inference.classes import CITYSCAPES_CLASSES

        return CITYSCAPES_CLASSES if count == len(CITYSCAPES_CLASSES) else super().classes(count)


class RyanCCCLayout(BonlimeLayout):
    """Layer names of RyanCCC's models: the classifier has none of its own, so Keras numbers it."""

    name = "ryanccc"
    title = "RyanCCC/DeeplabV3Plus"
    presets = tuple(preset for preset in tensorflow.PRESETS if preset.name.endswith(".ryanccc"))
    others = ()
    marks = (("concat_projection/kernel", "feature_projection0/kernel", "conv2d/kernel"),)
    free = TableLayout.free
    last = "conv2d"
    custom = r"conv2d(?:_\d+)?"

    def recognise(self, checkpoint: Checkpoint) -> str:
        """As bonlime's, with a numbered classifier."""
        require([*self._standard_names(checkpoint.tensors)], "concat_projection/kernel")
        return super().recognise(checkpoint)

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """As bonlime's.

        Raises:
            LayoutError: a MobileNetV2 of another width, whose blocks here expand to the channels of width 1 all the same.
        """
        shape = shapes_of(checkpoint).get(_EXPANSION, ())
        if len(shape) == 4 and shape[3] != 6 * shape[2]:  # where it has no MobileNetV2, there is nothing to check
            raise LayoutError(
                f"{_EXPANSION} makes {shape[3]} channels of {shape[2]}, as RyanCCC's MobileNetV2 does with another alpha than "
                "1: that network is not supported; supported is alpha = 1"
            )
        return super().read_spec(checkpoint)

    def _fresh(self, foreign: str, spec: ArchSpec) -> str:
        """These models call their layers alike whatever their shapes."""
        del spec
        return foreign
