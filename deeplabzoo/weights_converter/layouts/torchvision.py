"""torchvision's `deeplabv3_resnet50` and `deeplabv3_resnet101`, with and without the auxiliary head.

Source: torchvision/models/segmentation/deeplabv3.py and fcn.py (BSD-3-Clause), names as in their `state_dict()`.
"""

from __future__ import annotations

import re

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import ResNet
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
    with_counters,
)
from deeplabzoo.zoo.presets.torchvision import template

_RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.stem\.(conv|bn)", r"backbone.\g<1>1"),
    (r"backbone\.stage(\d)\.block(\d+)\.shortcut\.conv", r"backbone.layer\1.{\2}.downsample.0"),
    (r"backbone\.stage(\d)\.block(\d+)\.shortcut\.bn", r"backbone.layer\1.{\2}.downsample.1"),
    (r"backbone\.stage(\d)\.block(\d+)\.(conv|bn)(\d)", r"backbone.layer\1.{\2}.\3\4"),
    (r"aspp\.branch(\d+)\.conv", r"classifier.0.convs.\1.0"),
    (r"aspp\.branch(\d+)\.bn", r"classifier.0.convs.\1.1"),
    (r"aspp\.image_pooling\.conv", r"classifier.0.convs.{pool}.1"),
    (r"aspp\.image_pooling\.bn", r"classifier.0.convs.{pool}.2"),
    (r"aspp\.fusion\.conv", r"classifier.0.project.0"),
    (r"aspp\.fusion\.bn", r"classifier.0.project.1"),
    (r"aspp\.post\.conv", r"classifier.1"),
    (r"aspp\.post\.bn", r"classifier.2"),
    (r"classifier\.conv", r"classifier.4"),
    (r"aux\.hidden\.conv", r"aux_classifier.0"),
    (r"aux\.hidden\.bn", r"aux_classifier.1"),
    (r"aux\.classifier", r"aux_classifier.4"),
)
"""Canonical node -> torchvision's module. {n} is a block number, which torchvision counts from 0."""

_BLOCKS = {6: "resnet50", 23: "resnet101"}


class TorchvisionLayout(Layout):
    """Tensor names of torchvision's DeepLab v3 on ResNet."""

    name = "torchvision"
    title = "torchvision deeplabv3_resnet50 / deeplabv3_resnet101"
    writes = ("torch", "safetensors")

    def recognise(self, checkpoint: Checkpoint) -> str:
        """Torchvision's names of stem, first branch and classifier."""
        names = checkpoint.tensors
        if "backbone.0.0.weight" in names:
            raise LayoutError("the backbone is MobileNetV3, which this version does not have")
        needed = ("backbone.conv1.weight", "classifier.0.convs.0.0.weight", "classifier.4.weight")
        require(names, *needed)
        return f"has {', '.join(needed)}"

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """Depth, classes and auxiliary head from the tensors; the rest is torchvision's only variant."""
        shapes = shapes_of(checkpoint)
        blocks = {int(m[1]) for name in shapes if (m := re.match(r"backbone\.layer3\.(\d+)\.", name))}
        if len(blocks) not in _BLOCKS:
            raise LayoutError(f"layer3 has {len(blocks)} blocks, expected 6 (ResNet-50) or 23 (ResNet-101)")
        aux = "aux_classifier.0.weight" in shapes
        spec = template(
            _BLOCKS[len(blocks)], dimension(shapes, "classifier.4.weight", 0), aux=aux, channels=_channels(shapes)
        )
        told = (
            f"backbone.name = {spec.backbone.name}",
            f"num_classes = {spec.num_classes}",
            f"auxiliary head = {'yes' if aux else 'no'}",
        )
        assumed = described(
            {
                "output_stride": spec.output_stride,
                "aspp.rates": list(spec.rates),
                "backbone.first_block_dilation": "previous",
                "backbone.stride_in": "conv2",
                "output.align_corners": False,
                "epsilon": 1e-5,
            }
        )
        return Reading(spec, told, tuple(assumed))

    def entries(self, spec: ArchSpec, file_format: str) -> list[Entry]:
        """Rename node by node; counters where torch has them."""
        del file_format
        if not isinstance(spec.backbone, ResNet) or spec.arch != "v3":
            raise LayoutError(f"{self.title} has no {spec.title}; use --to-layout deeplabzoo")
        aspp = spec.required_aspp
        rename, entries = {}, []
        for node in build_graph(spec).nodes:
            if node.parameters():
                rename[node.name] = _foreign(node.name, len(aspp.rates) + 1)
                entries += [Entry(f"{rename[node.name]}.{name.rsplit('.', 1)[1]}", name) for name in node.parameters()]
        hidden = spec.aux.channels if spec.aux else 0
        channels = (spec.in_channels, aspp.channels, hidden)
        published = template(spec.backbone.name, spec.num_classes, aux=spec.aux is not None, channels=channels)
        require_same_tensors(spec, published, self.title)
        order = published.required_aspp.order
        if aspp.order != order:  # the same tensors, but other columns of the fusion
            raise LayoutError(
                f"aspp.order = {list(aspp.order)}: torchvision has {list(order)}; use --to-layout deeplabzoo"
            )
        return with_counters(spec, entries, rename)

    def card(self, spec: ArchSpec) -> Card:
        """RGB in [0, 1], ImageNet mean and std, shorter side 520; the published files name VOC's 21 classes."""
        from deeplabzoo.inference.colours import VOC_CLASSES
        from deeplabzoo.inference.preprocessing import TORCHVISION

        return Card(TORCHVISION.to_dict(), VOC_CLASSES if spec.num_classes == 21 else ())

    def differences(self, spec: ArchSpec) -> list[str]:
        """Everything but what `read_spec` reads from tensors."""
        published = template(
            spec.backbone.name, spec.num_classes, aux=spec.aux is not None, channels=(3, spec.required_aspp.channels, 0)
        )
        ours, theirs = described(spec.to_dict()), described(published.to_dict())
        free = ("in_channels", "aux.channels", "aspp.channels", "aspp.dropout", "aux.dropout")
        return [line for line in ours if line not in theirs and not line.startswith(free)]


def _channels(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int, int]:
    hidden = dimension(shapes, "aux_classifier.0.weight", 0) if "aux_classifier.0.weight" in shapes else 0
    return (
        dimension(shapes, "backbone.conv1.weight", 1),
        dimension(shapes, "classifier.0.convs.0.0.weight", 0),
        hidden,
    )


def _foreign(node: str, pool: int) -> str:
    for pattern, target in _RULES:
        if match := re.fullmatch(pattern, node):
            name = match.expand(target).replace("{pool}", str(pool))
            return re.sub(r"\{(\d+)\}", lambda m: str(int(m[1]) - 1), name)
    raise LayoutError(f"torchvision has no counterpart of {node!r}; use --to-layout deeplabzoo")
