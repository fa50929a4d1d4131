"""tensorflow/models research/deeplab: slim's variable names, on MobileNetV2, Xception and ResNet.

Source: tensorflow/models, research/deeplab/model.py and core/{feature_extractor,xception,resnet_v1_beta}.py,
research/slim/nets/mobilenet (Apache-2.0). Names of the head (`image_pooling`, `aspp0`, ...) stand at the top level, not
under the backbone's scope.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import numpy as np

from deeplabzoo.core.backbones import MobileNetV2, ResNet
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.formats import Checkpoint, shown
from deeplabzoo.weights_converter.layouts.base import Entry, Reading
from deeplabzoo.weights_converter.layouts.rules import Move, Rule, TableLayout, units
from deeplabzoo.weights_converter.layouts.torch_names import block_number
from deeplabzoo.zoo.presets import tensorflow

_UNIT = ("", "/BatchNorm")
_STRANGERS = ("MobilenetV3", "nas_backbone", "xception_65_dpc", "merge_branch")


def _expanded(match: re.Match[str]) -> str:
    """The first block has no number."""
    number = block_number(match) - 1
    return f"MobilenetV2/expanded_conv{f'_{number}' if number else ''}/{match[3]}"


def _expanded_bn(match: re.Match[str]) -> str:
    return f"{_expanded(match)}/BatchNorm"


_PART = r"backbone\.stage(\d)\.block(\d+)\.(expand|depthwise|project)"
_MOBILENET: tuple[Rule, ...] = (
    *units(r"backbone\.stem", "MobilenetV2/Conv", *_UNIT),
    (rf"{_PART}\.conv", _expanded),
    (rf"{_PART}\.bn", _expanded_bn),
)


def _xception(name: str) -> tuple[Rule, ...]:
    scope = f"xception_{name.removeprefix('xception')}"
    module = rf"{scope}/\1_flow/block\2/unit_1/xception_module"
    middle = rf"{scope}/middle_flow/block1/unit_\1/xception_module"
    return (
        (r"backbone\.stem\.conv(\d)", rf"{scope}/entry_flow/conv1_\1"),
        (r"backbone\.stem\.bn(\d)", rf"{scope}/entry_flow/conv1_\1/BatchNorm"),
        *units(r"backbone\.(entry|exit)\.block(\d)\.shortcut", f"{module}/shortcut", *_UNIT),
        *units(
            r"backbone\.(entry|exit)\.block(\d)\.sep(\d)\.(depthwise|pointwise)",
            rf"{module}/separable_conv\3_\4",
            *_UNIT,
        ),
        *units(
            r"backbone\.middle\.block(\d+)\.sep(\d)\.(depthwise|pointwise)", rf"{middle}/separable_conv\2_\3", *_UNIT
        ),
    )


def _resnet(name: str) -> tuple[Rule, ...]:
    """The beta variants have three convolutions at the root, and the same scope."""
    scope = f"resnet_v1_{name.removeprefix('resnet')}"
    unit = rf"{scope}/block\1/unit_\2/bottleneck_v1"
    block = r"backbone\.stage(\d)\.block(\d+)"
    return (
        *units(r"backbone\.stem", f"{scope}/conv1", *_UNIT),
        (r"backbone\.stem\.conv(\d)", rf"{scope}/conv1_\1"),
        (r"backbone\.stem\.bn(\d)", rf"{scope}/conv1_\1/BatchNorm"),
        *units(rf"{block}\.shortcut", f"{unit}/shortcut", *_UNIT),
        (rf"{block}\.conv(\d)", rf"{unit}/conv\3"),
        (rf"{block}\.bn(\d)", rf"{unit}/conv\3/BatchNorm"),
    )


HEAD: tuple[Rule, ...] = (
    *units(r"aspp\.image_pooling", "image_pooling", *_UNIT),
    *units(r"aspp\.branch(\d+)\.(depthwise|pointwise)", r"aspp\1_\2", *_UNIT),
    *units(r"aspp\.branch(\d+)", r"aspp\1", *_UNIT),
    *units(r"aspp\.fusion", "concat_projection", *_UNIT),
    *units(r"decoder\.low_level", "decoder/feature_projection0", *_UNIT),
    *units(r"decoder\.conv(\d+)\.(depthwise|pointwise)", r"decoder/decoder_conv{\1}_\2", *_UNIT),
    # The plain ones are made by a loop of slim's, which numbers what it makes from 1.
    *units(r"decoder\.conv(\d+)", r"decoder/decoder_conv0/decoder_conv0_\1", *_UNIT),
    (r"classifier\.conv", "logits/semantic"),
)


def backbone_rules(spec: ArchSpec) -> tuple[Rule, ...]:
    """By backbone."""
    backbone = spec.backbone
    if isinstance(backbone, MobileNetV2):
        return _MOBILENET
    return _resnet(backbone.name) if isinstance(backbone, ResNet) else _xception(backbone.name)


def _scope(backbone: str) -> str:
    """The variable scope of a backbone."""
    kind = "xception_" if backbone.startswith("xception") else "resnet_v1_"
    return "MobilenetV2" if backbone == "mobilenet_v2" else f"{kind}{backbone.removeprefix(kind.split('_')[0])}"


def _stranger(checkpoint: Checkpoint) -> str | None:
    """The first tensor of a network of the project that no spec here describes."""
    return next((name for name in checkpoint.tensors if name.startswith(_STRANGERS)), None)


def _branches() -> Iterable[tuple[tuple[str, ...], bool]]:
    """Flags of the training script: whether to pool, to have atrous branches, to have a decoder."""
    orders = (
        ("image_pooling", "conv1x1"),
        ("image_pooling", "conv1x1", "atrous"),
        ("conv1x1", "atrous"),
        ("conv1x1",),
    )
    return itertools.product(orders, (False, True))


_ALL = ("image_pooling", "conv1x1", "atrous")
_SEPARABLE = "separable_bn_relu"
_PLAIN = (
    (False, "plain", _SEPARABLE),
    (True, "plain", "plain"),
    (True, "plain", _SEPARABLE),
    (True, _SEPARABLE, "plain"),
)
"""With or without decoder, then the branches and the decoder where `aspp_with_separable_conv` or its own flag is off."""


def _with_flags(
    make: Callable[[], ArchSpec],
    order: tuple[str, ...],
    *,
    decoder: bool,
    branch: str = _SEPARABLE,
    conv: str = _SEPARABLE,
) -> ArchSpec:
    """A network of a preset with another set of branches, with or without its decoder, and with other convolutions."""
    spec = make()
    aspp = spec.required_aspp
    rates = aspp.rates if "atrous" in order else ()
    spec = spec.replace(aspp=aspp.replace(order=order, rates=rates, branch=branch))
    if spec.decoder is None or not decoder:
        return spec.replace(arch="v3", decoder=None)
    return spec.replace(decoder=spec.decoder.replace(conv=conv))


_MADE: tuple[Callable[[], ArchSpec], ...] = (
    partial(tensorflow.template, order=_ALL, decoder=True),
    *(preset.make for preset in tensorflow.PRESETS if ".tf" in preset.name and "mobilenet" not in preset.name),
)


class TensorFlowLayout(TableLayout):
    """Variable names of TensorFlow's DeepLab."""

    name = "tensorflow"
    title = "tensorflow/models research/deeplab"
    writes = ("tf-checkpoint", "safetensors", "npz")
    presets = tuple(preset for preset in tensorflow.PRESETS if ".tf" in preset.name)
    others = (
        *(partial(tensorflow.template, order=order, decoder=decoder) for order, decoder in _branches()),
        *(partial(_with_flags, make, order, decoder=decoder) for make in _MADE[1:] for order, decoder in _branches()),
        *(
            partial(_with_flags, make, _ALL, decoder=decoder, branch=branch, conv=conv)
            for make in _MADE
            for decoder, branch, conv in _PLAIN
        ),
    )
    marks = (("logits/semantic/weights", "aspp0/weights"),)
    spelling = "slim"
    moves = (Move("image_pooling/", before="aspp0/"),)
    free = (*TableLayout.free, "backbone.multi_grid")

    def recognise(self, checkpoint: Checkpoint) -> str:
        """Slim's names of the logits, or of a backbone or head of this project alone."""
        if checkpoint.format == "tflite":
            raise LayoutError("the names are its own, but batch norms are folded")
        stranger = _stranger(checkpoint)
        return f"has {stranger}" if stranger else super().recognise(checkpoint)

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """The network whose scopes the names are.

        Raises:
            LayoutError: a backbone or head of the project that this version does not have.
        """
        if stranger := _stranger(checkpoint):
            raise LayoutError(
                f"{shown(stranger)!r} belongs to a network that is not supported; supported are "
                f"{', '.join(self.networks())}"
            )
        return super().read_spec(checkpoint)

    def rules(self, spec: ArchSpec) -> Iterable[Rule]:
        """By backbone."""
        return (*backbone_rules(spec), *HEAD)

    def candidates(self, names: Collection[str]) -> Sequence[ArchSpec]:
        """Those of the backbone whose scope the names have; all where they have none."""
        scopes = {name.split("/", 1)[0] for name in names}
        variants = self._variants()
        return [one for one in variants if _scope(one.backbone.name) in scopes] or variants

    def unused(self, spec: ArchSpec) -> tuple[str, list[Entry]]:
        """The step counter, which TensorFlow's own scripts want to restore."""
        del spec
        return "", [Entry("global_step", "", spare=partial(np.zeros, (), np.int64))]

    def ignored(self, foreign: str) -> str | None:
        """Training state is not part of the network, nor are the moving averages of its weights."""
        last = foreign.rsplit("/", 1)[-1]
        if last == "ExponentialMovingAverage":
            return "moving average of a weight, which is taken as training left it"
        return "optimizer slot" if last in ("Momentum", "Adam", "Adam_1", "RMSProp") else None

    def classes(self, count: int) -> tuple[str, ...]:
        """VOC, Cityscapes, or ADE20K with its background first."""
        from deeplabzoo.inference.classes import ADE20K_CLASSES, CITYSCAPES_CLASSES

        known = {len(CITYSCAPES_CLASSES): CITYSCAPES_CLASSES, len(ADE20K_CLASSES) + 1: ("background", *ADE20K_CLASSES)}
        return known.get(count) or super().classes(count)
