"""segmentation_models_pytorch on encoders of timm (`tu-`).

Source: qubvel-org/segmentation_models.pytorch, encoders/timm_universal.py (MIT); huggingface/pytorch-image-models,
models/xception_aligned.py, models/efficientnet.py and models/mobilenetv3.py (Apache-2.0), names as in `state_dict()`.

Timm's `tf_` variants of its MobileNets have the same tensors, but pad as TensorFlow does, with another epsilon: only a
hub folder's `config.json` tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial

from deeplabzoo.core.backbones import MobileNetV2, MobileNetV3, ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, units
from deeplabzoo.weights_converter.layouts.smp import HEADS, SMPLayout, with_other_branches
from deeplabzoo.weights_converter.layouts.torch_names import resnet
from deeplabzoo.zoo.presets import smp

_ENTRY = 3
"""Blocks before the middle flow of an aligned Xception; Xception-71 has two more."""
_ENCODERS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "xception41", "xception65", "xception71", "mobilenet_v2",
    "mobilenet_v3_large",
)  # fmt: skip
_NETWORKS = tuple((arch, encoder) for arch in ("v3", "v3plus") for encoder in _ENCODERS)
_PRESETS = {preset.name for preset in smp.PRESETS}


def _template(arch: str, encoder: str) -> ArchSpec:
    """Smp's class; an Xception-71 that has all its shortcuts has stride 16: at 8 timm leaves out that of a block."""
    spec = smp.template(arch, encoder, timm=True)
    return spec.replace(output_stride=16) if encoder == "xception71" else spec


def _other_branches(arch: str, encoder: str) -> ArchSpec:
    return with_other_branches(_template(arch, encoder))


def _xception(spec: ArchSpec) -> tuple[Rule, ...]:
    """Timm numbers the blocks of all flows in a row, and flattens the dots before the number to underscores."""
    middle = {"xception41": 8}.get(spec.backbone.name, 16)
    entry = 5 if spec.backbone.name == "xception71" else _ENTRY
    starts = {"entry": -1, "middle": entry - 1, "exit": entry + middle - 1}
    block = r"backbone\.(entry|middle|exit)\.block(\d+)"

    def name(match: re.Match[str], rest: str) -> str:
        return f"encoder.model.blocks_{starts[match[1]] + int(match[2])}.{match.expand(rest)}"

    return (
        (r"backbone\.stem\.(conv|bn)(\d)", r"encoder.model.stem_{\2}.\1"),
        (rf"{block}\.shortcut\.(conv|bn)", partial(name, rest=r"shortcut.\3")),
        (rf"{block}\.sep(\d)\.depthwise\.(conv|bn)", partial(name, rest=r"stack.conv\3.\4_dw")),
        (rf"{block}\.sep(\d)\.pointwise\.(conv|bn)", partial(name, rest=r"stack.conv\3.\4_pw")),
    )


_MOBILE_PARTS = {
    ("expand", True): ("conv_pw", "bn1"),
    ("depthwise", True): ("conv_dw", "bn2"),
    ("project", True): ("conv_pwl", "bn3"),
    ("depthwise", False): ("conv_dw", "bn1"),
    ("project", False): ("conv_pw", "bn2"),
}
"""(Part, whether the block expands) -> convolution and batch norm. The one block of the first stage does not expand."""


def _mobilenet() -> tuple[Rule, ...]:
    """MobileNetV2 and V3, which timm builds of the same blocks."""
    block = r"backbone\.stage(\d)\.block(\d+)"

    def part(place: int) -> Callable[[re.Match[str]], str]:
        def name(match: re.Match[str]) -> str:
            theirs = _MOBILE_PARTS[match[3], match[1] != "1"][place]
            return f"encoder.model.blocks.{int(match[1]) - 1}.{int(match[2]) - 1}.{theirs}"

        return name

    return (
        *units(r"backbone\.stem", "encoder.model", ".conv_stem", ".bn1"),
        *units(r"backbone\.last", "encoder.model.blocks.6.0", ".conv", ".bn1"),
        (rf"{block}\.(expand|depthwise|project)\.conv", part(0)),
        (rf"{block}\.(expand|depthwise|project)\.bn", part(1)),
        (rf"{block}\.squeeze\.conv1", r"encoder.model.blocks.{\1}.{\2}.se.conv_reduce"),
        (rf"{block}\.squeeze\.conv2", r"encoder.model.blocks.{\1}.{\2}.se.conv_expand"),
    )


class SMPTimmLayout(SMPLayout):
    """Tensor names of segmentation_models_pytorch on timm's encoders, which dilate otherwise."""

    name = "smp-timm"
    title = "segmentation_models_pytorch with an encoder of timm"
    presets = tuple(preset for preset in smp.PRESETS if preset.name.endswith("_timm"))
    others = (
        *(partial(_template, a, encoder) for a, encoder in _NETWORKS if f"{a}_{encoder}.smp_timm" not in _PRESETS),
        *(partial(_other_branches, a, encoder) for a, encoder in _NETWORKS),
    )
    moves = (Move(r"(encoder\.model\.blocks_\d+\.)shortcut\."),)
    timm = True

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone and architecture."""
        if isinstance(spec.backbone, ResNet):
            backbone = resnet("encoder.model.")
        elif isinstance(spec.backbone, MobileNetV2 | MobileNetV3):
            backbone = _mobilenet()
        else:
            backbone = _xception(spec)
        return (*backbone, *HEADS[spec.arch])

    def encoder(self, spec: ArchSpec) -> str:
        """Smp's name of the encoder."""
        names = {"mobilenet_v2": "mobilenetv2", "mobilenet_v3_large": "mobilenetv3_large"}
        if spec.backbone.name not in names:
            return f"tu-{spec.backbone.name}"
        return f"tu-{names[spec.backbone.name]}_{round(100 * spec.backbone.width):03}"
