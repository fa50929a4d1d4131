"""segmentation_models_pytorch: `DeepLabV3` and `DeepLabV3Plus`, on its own encoders and on timm's (`tu-`).

Source: qubvel-org/segmentation_models.pytorch, decoders/deeplabv3 and encoders (MIT), names as in their
`state_dict()`; huggingface/pytorch-image-models, models/xception_aligned.py (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

from deeplabzoo.core.backbones import MobileNetV2, ResNet
from deeplabzoo.core.backbones.base import OUTPUT_STRIDES
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import TORCHVISION_PLACES, mobilenet_v2, resnet
from deeplabzoo.zoo.presets import smp

_MIDDLE = 3
"""Blocks before the middle flow of an aligned Xception of three entry blocks."""


def _xception(spec: ArchSpec) -> tuple[Rule, ...]:
    """Timm numbers the blocks of all flows in a row, and flattens the dots before the number to underscores."""
    middle = {"xception41": 8}.get(spec.backbone.name, 16)
    entry = 5 if spec.backbone.name == "xception71" else _MIDDLE
    starts = {"entry": -1, "middle": entry - 1, "exit": entry + middle - 1}
    block = r"backbone\.(entry|middle|exit)\.block(\d+)"

    def name(match: Any, rest: str) -> str:
        return f"encoder.model.blocks_{starts[match[1]] + int(match[2])}.{match.expand(rest)}"

    return (
        (r"backbone\.stem\.(conv|bn)(\d)", r"encoder.model.stem_{\2}.\1"),
        (rf"{block}\.shortcut\.(conv|bn)", partial(name, rest=r"shortcut.\3")),
        (rf"{block}\.sep(\d)\.depthwise\.(conv|bn)", partial(name, rest=r"stack.conv\3.\4_dw")),
        (rf"{block}\.sep(\d)\.pointwise\.(conv|bn)", partial(name, rest=r"stack.conv\3.\4_pw")),
    )


def _head(aspp: str, post: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (
        *units(r"aspp\.branch(\d)", rf"{aspp}.convs.\1", ".0", ".1"),
        (r"aspp\.branch(\d)\.depthwise\.conv", rf"{aspp}.convs.\1.0.0"),
        *units(r"aspp\.branch(\d)\.pointwise", rf"{aspp}.convs.\1", ".0.1", ".1"),
        *units(r"aspp\.image_pooling", f"{aspp}.convs.4", ".1", ".2"),
        *units(r"aspp\.fusion", f"{aspp}.project", ".0", ".1"),
        *post,
        *units(r"decoder\.low_level", "decoder.block1", ".0", ".1"),
        (r"decoder\.conv1\.depthwise\.conv", "decoder.block2.0.0"),
        *units(r"decoder\.conv1\.pointwise", "decoder.block2", ".0.1", ".1"),
        (r"classifier\.conv", "segmentation_head.0"),
    )


_HEADS = {
    "v3": _head("decoder.aspp", units(r"aspp\.post", "decoder", ".conv", ".bn")),
    "v3plus": _head(
        "decoder.aspp.0",
        (
            (r"aspp\.post\.depthwise\.conv", "decoder.aspp.1.0"),
            *units(r"aspp\.post\.pointwise", "decoder.aspp", ".1.1", ".2"),
        ),
    ),
}
_OLD_V3 = {"decoder.0.": "decoder.aspp.", "decoder.1.": "decoder.conv.", "decoder.2.": "decoder.bn."}
"""Files of versions before 0.4 have v3's decoder as a plain list."""


class SMPLayout(TableLayout):
    """Tensor names of segmentation_models_pytorch, with its own encoders' dilation."""

    name = "smp"
    title = "segmentation_models_pytorch"
    writes = ("torch", "safetensors", "npz", "hub-folder")
    presets = tuple(preset for preset in smp.PRESETS if not preset.name.endswith("_timm"))
    marks = (
        ("segmentation_head.0.weight", "encoder.conv1.weight"),
        ("segmentation_head.0.weight", "encoder.features.0.0.weight"),
    )

    def standard(self, names: Collection[str]) -> Mapping[str, str]:
        """Old files have v3's decoder as a list."""
        if not any(name.startswith("decoder.0.") for name in names):
            return {}
        return {
            name: name.replace(old, new, 1) for name in names for old, new in _OLD_V3.items() if name.startswith(old)
        }

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone and architecture."""
        if isinstance(spec.backbone, ResNet):
            backbone = resnet("encoder.")
        elif isinstance(spec.backbone, MobileNetV2):
            backbone = mobilenet_v2("encoder.features.{}".format, TORCHVISION_PLACES)
        else:
            backbone = ()
        return (*backbone, *_HEADS[spec.arch])

    def ignored(self, foreign: str) -> str | None:
        """The image-level head is no part of the segmentation."""
        return "image-level classification head" if foreign.startswith("classification_head.") else None

    def informed(self, spec: ArchSpec, facts: Mapping[str, Any]) -> tuple[ArchSpec, list[str]]:
        """The arguments of the class, which a hub folder's `config.json` has."""
        config = facts.get("config")
        if not isinstance(config, Mapping):
            return spec, []
        told, stride = [], config.get("encoder_output_stride")
        if stride in OUTPUT_STRIDES:
            spec, told = spec.replace(output_stride=stride), ["output_stride"]
        rates = config.get("decoder_atrous_rates")
        if isinstance(rates, list) and len(rates) == len(spec.rates) and all(type(rate) is int for rate in rates):
            spec = spec.replace(aspp=spec.required_aspp.replace(rates=tuple(rates)))
            told.append("aspp.rates")
        return spec, told

    def config(self, spec: ArchSpec) -> Mapping[str, Any]:
        """Smp's `save_pretrained` writes these, so that its `from_pretrained` can build the class again."""
        aspp = spec.required_aspp
        return {
            "_model_class": "DeepLabV3" if spec.arch == "v3" else "DeepLabV3Plus",
            "encoder_name": self.encoder(spec),
            "encoder_depth": 5,
            "encoder_weights": None,
            "encoder_output_stride": spec.output_stride,
            "decoder_channels": aspp.channels,
            "decoder_atrous_rates": list(aspp.rates),
            "decoder_aspp_separable": aspp.branch == "separable",
            "decoder_aspp_dropout": aspp.dropout,
            "in_channels": spec.in_channels,
            "classes": spec.num_classes,
            "activation": None,
            "upsampling": None if spec.arch == "v3" else 4,
            "aux_params": None,
        }

    def encoder(self, spec: ArchSpec) -> str:
        """Smp's name of the encoder."""
        return spec.backbone.name


class SMPTimmLayout(SMPLayout):
    """Tensor names of segmentation_models_pytorch on timm's encoders, which dilate otherwise."""

    name = "smp-timm"
    title = "segmentation_models_pytorch with an encoder of timm"
    presets = tuple(preset for preset in smp.PRESETS if preset.name.endswith("_timm"))
    others = tuple(
        partial(smp.template, arch, encoder, timm=True)
        for arch in ("v3", "v3plus")
        for encoder in ("resnet34", "resnet101")
    )
    marks = (
        ("segmentation_head.0.weight", "encoder.model.conv1.weight"),
        ("segmentation_head.0.weight", "encoder.model.stem_0.conv.weight"),
    )
    moves = (Move(r"(encoder\.model\.blocks_\d+\.)shortcut\."),)

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone and architecture."""
        backbone = resnet("encoder.model.") if isinstance(spec.backbone, ResNet) else _xception(spec)
        return (*backbone, *_HEADS[spec.arch])

    def encoder(self, spec: ArchSpec) -> str:
        """Smp's name of the encoder."""
        return f"tu-{spec.backbone.name}"
