"""tensorflow/models research/deeplab on MobileNetV2: slim's variable names.

Source: tensorflow/models, research/deeplab/model.py and core/feature_extractor.py, research/slim/nets/mobilenet
(Apache-2.0). Names of the head (`image_pooling`, `aspp0`, ...) stand at the top level, not under the backbone's scope.
"""

from __future__ import annotations

import re

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import MobileNetV2
from deeplabzoo.core.graph import Node
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.canonical import Card
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts.base import (
    Entry,
    Layout,
    Reading,
    described,
    dimension,
    require,
    require_same_tensors,
    shapes_of,
)
from deeplabzoo.weights_converter.layouts.widths import find_width
from deeplabzoo.weights_converter.transforms import HWIO, IDENTITY, Transform, depthwise
from deeplabzoo.zoo.presets.tensorflow import HEAD_EPSILON, template

_STAGE_STARTS = (0, 1, 3, 6, 10, 13, 16)
"""Number of the first `expanded_conv` of each of MobileNetV2's seven stages."""

_RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.stem", "MobilenetV2/Conv"),
    (r"backbone\.stage(\d)\.block(\d+)\.(expand|depthwise|project)", r"MobilenetV2/expanded_conv{\1,\2}/\3"),
    (r"aspp\.image_pooling", "image_pooling"),
    (r"aspp\.branch0", "aspp0"),
    (r"aspp\.branch(\d+)\.(depthwise|pointwise)", r"aspp\1_\2"),
    (r"aspp\.branch(\d+)", r"aspp\1"),
    (r"aspp\.fusion", "concat_projection"),
    (r"decoder\.low_level", "decoder/feature_projection0"),
    (r"decoder\.conv(\d+)\.(depthwise|pointwise)", r"decoder/decoder_conv{\1}_\2"),
    (r"decoder\.conv(\d+)", r"decoder/decoder_conv{\1}"),
    (r"classifier", "logits/semantic"),
)
"""Canonical group that holds `conv` (and `bn`) -> slim's scope. {stage,block} and {n} are renumbered from 0."""

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}

_ORDER = ("image_pooling", "conv1x1", "atrous")


class TensorFlowLayout(Layout):
    """Variable names of TensorFlow's DeepLab on MobileNetV2."""

    name = "tensorflow"
    title = "tensorflow/models research/deeplab, mobilenet_v2"
    writes = ("safetensors",)

    def recognise(self, checkpoint: Checkpoint) -> str:
        """Slim's names of the stem and the logits."""
        names = checkpoint.tensors
        for other in ("xception_", "resnet_v1_", "MobilenetV3"):
            if found := next((name for name in names if name.startswith(other)), None):
                raise LayoutError(f"{found!r} belongs to a backbone that this version does not have")
        needed = ("MobilenetV2/Conv/weights", "logits/semantic/weights")
        require(names, *needed)
        return f"has {', '.join(needed)}"

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """Width, classes, atrous branches and decoder from the tensors; the stride of the published graphs is 8."""
        shapes = shapes_of(checkpoint)
        branches = sorted(
            int(m[1]) for name in shapes if (m := re.fullmatch(r"aspp([1-9]\d*)_depthwise/.*ights", name))
        )
        if branches and branches != [1, 2, 3]:
            raise LayoutError(f"atrous branches {branches}: expected none or 1, 2 and 3")
        order = [
            part
            for part, scope in (("image_pooling", "image_pooling"), ("conv1x1", "aspp0"), ("atrous", "aspp1_depthwise"))
            if any(name.startswith(f"{scope}/") for name in shapes)
        ]
        require(shapes, "aspp0/weights", "concat_projection/weights")
        decoder = any(name.startswith("decoder/") for name in shapes)
        kernels = {
            "backbone.stem.conv.weight": dimension(shapes, "MobilenetV2/Conv/weights", 3),
            **{
                f"backbone.stage{stage}.block1.project.conv.weight": dimension(
                    shapes, f"{_expanded(stage, 1)}/project/weights", 3
                )
                for stage in range(1, 8)
            },
        }
        width, divisor = find_width(kernels)
        spec = template(
            num_classes=dimension(shapes, "logits/semantic/weights", 3),
            width=width,
            divisor=divisor,
            order=tuple(order),
            decoder=decoder,
            in_channels=dimension(shapes, "MobilenetV2/Conv/weights", 2),
            channels=dimension(shapes, "aspp0/weights", 3),
        )
        told = (
            f"arch = {spec.arch}",
            f"backbone.width = {width:g}",
            f"num_classes = {spec.num_classes}",
            f"aspp.order = {order}",
        )
        assumed = {
            "output_stride": spec.output_stride,
            "aspp.rates": list(spec.rates),
            "backbone.first_block_dilation": "previous",
            "backbone.padding": "same",
            "backbone.epsilon": 1e-3,
            "aspp.epsilon": HEAD_EPSILON,
            "output.align_corners": True,
        }
        return Reading(spec, told, tuple(described(assumed)))

    def entries(self, spec: ArchSpec, file_format: str) -> list[Entry]:
        """Rename node by node, kernels HWIO and HWCM."""
        del file_format
        self._require_published(spec)
        return [
            Entry(foreign, canonical, transform)
            for node in build_graph(spec).nodes
            for canonical in node.parameters()
            for foreign, transform in [_foreign(node, canonical.rsplit(".", 1)[1])]
        ]

    def ignored(self, foreign: str) -> str | None:
        """Training state is not part of the network."""
        if foreign.rsplit("/", 1)[-1] in ("Momentum", "Adam", "Adam_1", "RMSProp", "ExponentialMovingAverage"):
            return "optimizer slot"
        return "step counter" if foreign == "global_step" else None

    def card(self, spec: ArchSpec) -> Card:
        """RGB in [-1, 1], padded to 513; VOC's classes where there are 21."""
        from deeplabzoo.inference.colours import VOC_CLASSES
        from deeplabzoo.inference.preprocessing import TF_DEEPLAB

        return Card(TF_DEEPLAB.to_dict(), VOC_CLASSES if spec.num_classes == 21 else ())

    def differences(self, spec: ArchSpec) -> list[str]:
        """Everything but what the tensors tell, and the stride, which TF leaves to the user."""
        ours, theirs = described(spec.to_dict()), described(_published(spec).to_dict())
        free = ("output_stride", "aspp.rates", "output.size", "output.values", "aspp.dropout")
        return [line for line in ours if line not in theirs and not line.startswith(free)]

    def _require_published(self, spec: ArchSpec) -> None:
        if not isinstance(spec.backbone, MobileNetV2) or spec.aspp is None:
            raise LayoutError(f"{self.title} has no {spec.title}; use --to-layout deeplabzoo")
        order = tuple(branch for branch in _ORDER if branch in spec.aspp.order)
        if spec.aspp.order != order:  # the same tensors, but other columns of the fusion
            raise LayoutError(f"aspp.order = {list(spec.aspp.order)}: TF has {list(order)}; use --to-layout deeplabzoo")
        require_same_tensors(spec, _published(spec), self.title)


def _published(spec: ArchSpec) -> ArchSpec:
    """TF's own network with what the tensors of `spec` tell."""
    backbone = spec.backbone if isinstance(spec.backbone, MobileNetV2) else MobileNetV2(name="mobilenet_v2")
    return template(
        num_classes=spec.num_classes,
        width=backbone.width,
        divisor=backbone.depth_divisor,
        order=spec.required_aspp.order,
        decoder=spec.decoder is not None,
        in_channels=spec.in_channels,
        channels=spec.required_aspp.channels,
    )


def _expanded(stage: int, block: int) -> str:
    number = _STAGE_STARTS[stage - 1] + block - 1
    return "MobilenetV2/expanded_conv" + (f"_{number}" if number else "")


def _foreign(node: Node, suffix: str) -> tuple[str, Transform]:
    group, leaf = node.name.rsplit(".", 1)
    for pattern, target in _RULES:
        if match := re.fullmatch(pattern, group):
            scope = match.expand(target)
            break
    else:
        raise LayoutError(f"TF's mobilenet_v2 has no counterpart of {node.name!r}; use --to-layout deeplabzoo")
    scope = re.sub(r"MobilenetV2/expanded_conv\{(\d+),(\d+)\}", lambda m: _expanded(int(m[1]), int(m[2])), scope)
    scope = re.sub(r"\{(\d+)\}", lambda m: str(int(m[1]) - 1), scope)
    if leaf == "bn":
        return f"{scope}/BatchNorm/{_NORM[suffix]}", IDENTITY
    if suffix == "bias":
        return f"{scope}/biases", IDENTITY
    if isinstance(node.op, Conv2d) and node.op.depthwise:
        return f"{scope}/depthwise_weights", depthwise(node.op.in_channels)
    return f"{scope}/weights", HWIO
