"""MMSegmentation 1.2: `deeplabv3` and `deeplabv3plus` on ResNet and MobileNetV2, with their auxiliary head.

Source: open-mmlab/mmsegmentation, mmseg/models (Apache-2.0), names as in the `state_dict` of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from deeplabzoo.core.backbones import ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.mmseg_config import with_config
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import resnet, resnet_stages
from deeplabzoo.zoo.presets import mmseg

_V1C: tuple[Rule, ...] = tuple(
    (rf"backbone\.stem\.{leaf}{n}", f"backbone.stem.{3 * (n - 1) + place}")
    for n in (1, 2, 3)
    for place, leaf in enumerate(("conv", "bn"))
)
_BLOCK = r"backbone\.stage(\d)\.block(\d+)"
_MOBILENET: tuple[Rule, ...] = (
    *units(r"backbone\.stem", "backbone.conv1", ".conv", ".bn"),
    # The first block of all does not expand, so its parts come one place earlier.
    *units(r"backbone\.stage1\.block1\.depthwise", "backbone.layer1.0.conv.0", ".conv", ".bn"),
    *units(r"backbone\.stage1\.block1\.project", "backbone.layer1.0.conv.1", ".conv", ".bn"),
    *(
        rule
        for n, part in enumerate(("expand", "depthwise", "project"))
        for rule in units(rf"{_BLOCK}\.{part}", rf"backbone.layer\1.{{\2}}.conv.{n}", ".conv", ".bn")
    ),
)
_HEAD: tuple[Rule, ...] = (
    *units(r"aspp\.image_pooling", "decode_head.image_pool.1", ".conv", ".bn"),
    *units(r"aspp\.branch(\d)\.(depthwise|pointwise)", r"decode_head.aspp_modules.\1.\2_conv", ".conv", ".bn"),
    *units(r"aspp\.branch(\d)", r"decode_head.aspp_modules.\1", ".conv", ".bn"),
    *units(r"aspp\.fusion", "decode_head.bottleneck", ".conv", ".bn"),
    *units(r"decoder\.low_level", "decode_head.c1_bottleneck", ".conv", ".bn"),
    *units(r"decoder\.conv(\d)\.(depthwise|pointwise)", r"decode_head.sep_bottleneck.{\1}.\2_conv", ".conv", ".bn"),
    (r"classifier\.conv", "decode_head.conv_seg"),
    *units(r"aux\.hidden", "auxiliary_head.convs.0", ".conv", ".bn"),
    (r"aux\.classifier", "auxiliary_head.conv_seg"),
)


def _v1d(arch: str, backbone: str) -> ArchSpec:
    """ResNetV1d: average pooling in the shortcuts. No published configuration has it, many of their users' do."""
    spec = mmseg.template(arch, backbone)
    return spec.replace(backbone=ResNet.from_dict({**spec.backbone.to_dict(), "shortcut": "avg_pool"}))


_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
_MORE: tuple[Callable[[], ArchSpec], ...] = (
    *(partial(mmseg.template, arch, "resnet34") for arch in ("v3", "v3plus")),
    *(
        partial(mmseg.template, arch, backbone, kind="b-d8")
        for arch in ("v3", "v3plus")
        for backbone in _RESNETS
        if arch == "v3plus" or backbone in ("resnet18", "resnet34")
    ),
    *(partial(_v1d, arch, backbone) for arch in ("v3", "v3plus") for backbone in _RESNETS),
)


def _without_aux(make: Callable[[], ArchSpec]) -> ArchSpec:
    """The network as some deploy it: mmseg's own tools can strip the auxiliary head."""
    return make().replace(aux=None)


class MMSegLayout(TableLayout):
    """Tensor names of MMSegmentation."""

    name = "mmseg"
    title = "mmsegmentation deeplabv3 and deeplabv3plus"
    writes = ("torch", "safetensors", "npz")
    presets = mmseg.PRESETS
    others = (*_MORE, *(partial(_without_aux, make) for make in (*(one.make for one in mmseg.PRESETS), *_MORE)))
    marks = (("decode_head.conv_seg.weight", "decode_head.image_pool.1.conv.weight"),)
    free = (*TableLayout.free, "decoder.align_corners", "output.align_corners")
    # A decode head makes its classifier first, and the pooling before the branches.
    moves = (
        Move(r"(decode_head\.)image_pool\."),
        Move(r"(decode_head\.)conv_seg\."),
        Move(r"(auxiliary_head\.)conv_seg\."),
    )

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone and stem."""
        backbone = spec.backbone
        if not isinstance(backbone, ResNet):
            return (*_MOBILENET, *_HEAD)
        if backbone.stem == "7x7":
            return (*resnet(), *_HEAD)
        # In V1d the pooling of the shortcut is the first module of it.
        places = (1, 2) if backbone.shortcut == "avg_pool" else (0, 1)
        return (*_V1C, *resnet_stages(shortcut=places), *_HEAD)

    def informed(self, spec: ArchSpec, facts: Mapping[str, Any]) -> tuple[ArchSpec, list[str]]:
        """The strides, dilations, multi-grid and `align_corners` of the configuration that its checkpoints hold."""
        spec, told, _ = with_config(spec, facts)
        return spec, told

    def remarks(self, checkpoint: Checkpoint, spec: ArchSpec) -> list[str]:
        """What that configuration says and no network here has."""
        return with_config(spec, checkpoint.facts)[2]

    def named(self, count: int, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The classes that the checkpoint names."""
        meta = facts.get("meta")
        meta = meta.get("dataset_meta", meta) if isinstance(meta, Mapping) else {}
        if not isinstance(meta, Mapping):
            return ()
        names = next((meta[key] for key in ("CLASSES", "classes") if isinstance(meta.get(key), list | tuple)), ())
        return tuple(names) if len(names) == count and all(isinstance(name, str) for name in names) else ()

    def classes(self, count: int) -> tuple[str, ...]:
        """VOC, Cityscapes, or ADE20K without a background."""
        from deeplabzoo.inference.classes import ADE20K_CLASSES, CITYSCAPES_CLASSES

        known = {len(CITYSCAPES_CLASSES): CITYSCAPES_CLASSES, len(ADE20K_CLASSES): ADE20K_CLASSES}
        return known.get(count) or super().classes(count)
