"""bonlime/keras-deeplab-v3-plus and RyanCCC/DeeplabV3Plus: TensorFlow's names, flattened to names of Keras 2 layers.

Source: bonlime/keras-deeplab-v3-plus, model.py and extract_weights.py (MIT); RyanCCC/DeeplabV3Plus, nets. The two
share their layer names and differ in the last layer's, and in the wiring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ClassVar

from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.base import require
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout
from deeplabzoo.weights_converter.layouts.tensorflow import HEAD, backbone_rules
from deeplabzoo.zoo.presets import tensorflow


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


class BonlimeLayout(TableLayout):
    """Layer names of bonlime's models."""

    name = "bonlime"
    title = "bonlime/keras-deeplab-v3-plus"
    writes = ("keras2-h5", "safetensors", "npz")
    presets = tuple(preset for preset in tensorflow.PRESETS if preset.name.endswith(".bonlime"))
    marks: ClassVar[tuple[tuple[str, ...], ...]] = (("concat_projection/kernel", "logits_semantic/kernel"),)
    spelling = "keras"
    moves = (Move("image_pooling", before="aspp0"),)
    last = "logits_semantic"
    custom = r"custom_logits_semantic"

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """TensorFlow's, flattened; the classifier is called otherwise where the classes are not the published ones."""
        return ((r"classifier\.conv", self.last), *_flattened((*backbone_rules(spec), *HEAD)))

    def standard(self, names: Collection[str]) -> Mapping[str, str]:
        """The classifier under its usual name, and depthwise kernels under Keras 2's, where Keras 3 saved them."""
        found = {name: match for name in names if (match := re.fullmatch(rf"{self.custom}/(kernel|bias)", name))}
        return {name: f"{self.last}/{match[1]}" for name, match in found.items()} | {
            name: f"{name.removesuffix('/kernel')}/depthwise_kernel"
            for name in names
            if name.endswith("depthwise/kernel")
        }

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
    last = "conv2d"
    custom = r"conv2d(?:_\d+)?"

    def recognise(self, checkpoint: Checkpoint) -> str:
        """As bonlime's, with a numbered classifier."""
        require([*self._standard_names(checkpoint.tensors)], "concat_projection/kernel")
        return super().recognise(checkpoint)
