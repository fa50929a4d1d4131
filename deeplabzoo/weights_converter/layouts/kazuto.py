"""kazuto1011/deeplab-pytorch: v1, v2, v3 and v3+ on ResNet-101 in Caffe's style.

Source: kazuto1011/deeplab-pytorch, libs/models (MIT), names as in its `state_dict()`. Its multi-scale wrapper puts
`base.` before every name, old versions of it `scale.`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial

from deeplabzoo.core.backbones import ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.rules import Rule, TableLayout, units
from deeplabzoo.zoo.presets import pytorch

_UNIT = (".conv", ".bn")
_BLOCK = r"backbone\.stage(\d)\.block(\d+)"
_WRAPPERS = ("base.", "scale.")
_RULES: tuple[Rule, ...] = (
    *units(r"backbone\.stem", "layer1.conv1", *_UNIT),
    *units(rf"{_BLOCK}\.shortcut", r"layer{+\1}.block\2.shortcut", *_UNIT),
    *(
        (rf"{_BLOCK}\.{leaf}{n}", rf"layer{{+\1}}.block\2.{theirs}.{leaf}")
        for n, theirs in ((1, "reduce"), (2, "conv3x3"), (3, "increase"))
        for leaf in ("conv", "bn")
    ),
    (r"classifier\.branch(\d)", r"aspp.c{\1}"),
    *units(r"aspp\.branch(\d)", r"aspp.stages.c\1", *_UNIT),
    *units(r"aspp\.image_pooling", "aspp.stages.imagepool.conv", *_UNIT),
    *units(r"aspp\.fusion", "fc1", *_UNIT),
    *units(r"decoder\.low_level", "reduce", *_UNIT),
    *units(r"decoder\.conv(\d)", r"fc2.conv\1", *_UNIT),
)
_SCORES = {"v1": "fc", "v3": "fc2", "v3plus": "fc2.conv3"}


def _resnet50(arch: str) -> ArchSpec:
    """Its classes take the number of blocks; only its own factories are all of ResNet-101."""
    spec = pytorch.kazuto(arch)
    return spec.replace(backbone=ResNet.from_dict({**spec.backbone.to_dict(), "name": "resnet50"}))


class KazutoLayout(TableLayout):
    """Tensor names of kazuto1011's repository."""

    name = "kazuto"
    title = "kazuto1011/deeplab-pytorch"
    writes = ("torch", "safetensors", "npz")
    presets = tuple(preset for preset in pytorch.PRESETS if preset.name.endswith(".kazuto"))
    others = tuple(partial(_resnet50, arch) for arch in ("v1", "v2", "v3", "v3plus"))
    marks = (("layer1.conv1.conv.weight", "layer2.block1.reduce.conv.weight"),)
    free = (*TableLayout.free, "backbone.multi_grid")

    def standard(self, names: Collection[str]) -> Mapping[str, str]:
        """Names without what the multi-scale wrapper puts before them."""
        wrapper = next((w for w in _WRAPPERS if names and all(name.startswith(w) for name in names)), None)
        return {name: name.removeprefix(wrapper) for name in names} if wrapper else {}

    def remarks(self, checkpoint: Checkpoint, spec: ArchSpec) -> list[str]:
        """The multi-scale wrapper is no part of a spec."""
        if not self.standard(checkpoint.tensors):
            return []
        return [
            f"the file is of the multi-scale wrapper (MSC), which takes the greatest score over the image at several "
            f"scales; what is read is {spec.title} inside it, at one scale"
        ]

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By architecture: the head of v2 has a kernel a branch, the others one classifier."""
        scores = _SCORES.get(spec.arch)
        return (*_RULES, (r"classifier\.conv", scores)) if scores else _RULES
