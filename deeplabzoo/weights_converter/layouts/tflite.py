"""TensorFlow Lite files of tensorflow/models research/deeplab on MobileNetV2, batch norms folded.

Source: the published `deeplabv3_257_mv_gpu.tflite` (Apache-2.0) and tensorflow/lite/schema/schema.fbs. Which constant
is which tensor is told by the operators, `tflite_walk`, and so is everything about the network but epsilon, which
folding has used up.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import BatchNorm, Conv2d
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError, SpecError
from deeplabzoo.weights_converter.canonical import Card
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts import tflite_walk
from deeplabzoo.weights_converter.layouts.base import Entry, Layout, Reading, described
from deeplabzoo.weights_converter.layouts.fit import assumed_card, told
from deeplabzoo.weights_converter.layouts.widths import find_width
from deeplabzoo.zoo.presets.tensorflow import template

_FIRST_BLOCKS = (0, 1, 3, 6, 10, 13, 16)
"""Number of the first block of each of MobileNetV2's seven stages."""

_BLOCKS = 17
_ORDERS = (
    ("image_pooling", "conv1x1"), ("image_pooling", "conv1x1", "atrous"), ("conv1x1", "atrous"), ("conv1x1",),
)  # fmt: skip


class TFLiteLayout(Layout):
    """A network of operators; bound to one file, because its table is that file's wiring."""

    name = "tflite"
    title = "TensorFlow Lite, research/deeplab mobilenet_v2"
    writes = ()

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self._checkpoint = checkpoint

    def bound(self, checkpoint: Checkpoint) -> Layout:
        """The layout of that file; `LayoutError` where it is not one of TensorFlow Lite."""
        self.recognise(checkpoint)
        return TFLiteLayout(checkpoint)

    def recognise(self, checkpoint: Checkpoint) -> str:
        """A TensorFlow Lite network whose first convolutions are a MobileNetV2's."""
        if checkpoint.format != "tflite":
            raise LayoutError(f"the file is {checkpoint.format}, not tflite")
        depthwise = [shape for operator, shape in tflite_walk.convolutions(checkpoint) if _is_depthwise(operator)]
        if len(depthwise) < _BLOCKS:
            raise LayoutError(
                f"{len(depthwise)} depthwise convolutions, expected at least the {_BLOCKS} of a MobileNetV2"
            )
        return f"is TensorFlow Lite with {len(depthwise)} depthwise convolutions"

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """The network of research/deeplab whose wiring is that of the operators; only epsilon is taken from there."""
        first: LayoutError | None = None
        for spec in _candidates(checkpoint):
            try:
                tflite_walk.entries(build_graph(spec), checkpoint)
            except LayoutError as error:
                first = first or error
                continue
            lines = (f"output_stride = {spec.output_stride}", f"output.align_corners = {spec.output.align_corners}")
            guesses = [line for line in described(spec.to_dict()) if line.split(" = ")[0].endswith(".epsilon")]
            guesses += assumed_card(self.card(spec, checkpoint.facts), ())
            return Reading(spec, (*told(spec), *lines), tuple(guesses))
        raise LayoutError(f"{self.title} has no such network: {first or 'another number of convolutions'}")

    def entries(self, spec: ArchSpec, file_format: str, names: Collection[str] = ()) -> list[Entry]:
        """Kernel and bias of each convolution; the bias is that of the folded batch norm."""
        del file_format, names
        if self._checkpoint is None:
            raise LayoutError(f"layout {self.name} can only be read from a .tflite file")
        return tflite_walk.entries(build_graph(spec), self._checkpoint)

    def ignored(self, foreign: str) -> str | None:
        """Whole numbers are sizes of resizes."""
        if self._checkpoint is not None and self._checkpoint.tensors[foreign].dtype.kind == "i":
            return "the size of a resize"
        return None

    def filled(self, spec: ArchSpec) -> Mapping[str, tuple[np.ndarray, str]]:
        """The rest of each batch norm, so that it adds the bias and does nothing else.

        Its variance is 1 less epsilon: rounding to float32 leaves a factor within 1e-7 of 1.
        """
        reason = "neutral: the file has this batch norm folded into its convolution"
        made = {}
        for node in build_graph(spec).nodes:
            if isinstance(node.op, BatchNorm):
                values = {"weight": 1.0, "running_mean": 0.0, "running_var": 1.0 - node.op.epsilon}
                for suffix, value in values.items():
                    made[f"{node.name}.{suffix}"] = np.full(node.op.channels, value, np.float32), reason
        return made

    def card(self, spec: ArchSpec, facts: Mapping[str, Any]) -> Card:
        """RGB in [-1, 1] at the size that the file is made for; VOC's classes where there are 21."""
        from deeplabzoo.inference.classes import VOC_CLASSES
        from deeplabzoo.inference.preprocessing import TF_DEEPLAB

        height, width = facts["inputs"][0]["shape"][1:3]
        preprocessing = TF_DEEPLAB.replace(size=min(height, width), pad_to=max(height, width))
        return Card(preprocessing.to_dict(), VOC_CLASSES if spec.num_classes == len(VOC_CLASSES) else ())


def _is_depthwise(operator: tflite_walk.Operator) -> bool:
    return bool(operator["op"] == "DEPTHWISE_CONV_2D")


def _candidates(checkpoint: Checkpoint) -> Iterator[ArchSpec]:
    """Networks of research/deeplab with the channels, and as many convolutions as, the file has."""
    found = tflite_walk.convolutions(checkpoint)
    projections = [
        shape for (before, _), (_, shape) in itertools.pairwise(found) if _is_depthwise(before)
    ]  # the convolution after each depthwise one
    if len(projections) < _BLOCKS:
        raise LayoutError(f"{len(projections)} blocks, expected the {_BLOCKS} of a MobileNetV2")
    stem, classifier = found[0][1], found[-1][1]
    channels = {"backbone.stem.conv.weight": stem[0]}
    for stage, number in enumerate(_FIRST_BLOCKS, start=1):
        channels[f"backbone.stage{stage}.block1.project.conv.weight"] = projections[number][0]
    width, divisor = find_width(channels, first=1)
    for order, decoder, stride in itertools.product(_ORDERS, (False, True), (8, 16, 32)):
        try:
            spec = template(
                num_classes=classifier[0],
                width=width,
                divisor=divisor,
                order=order,
                decoder=decoder,
                in_channels=stem[3],
                channels=classifier[3],
                output_stride=stride,
            )
        except SpecError as error:  # a kernel without channels
            raise LayoutError(f"the kernels describe no network: {error}") from None
        if sum(isinstance(node.op, Conv2d) for node in build_graph(spec).nodes) == len(found):
            yield spec
