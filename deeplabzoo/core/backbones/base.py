"""What all backbones share: the base of their options, the strides-to-rates rule, the features they hand on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from deeplabzoo.core.fields import Section, check_choice
from deeplabzoo.core.graph import GraphBuilder

OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Features:
    """What a backbone makes: its last map, and every point that a decoder or an auxiliary head may tap."""

    out: str
    taps: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Section):
    """Base of a backbone's options. `name` picks the variant, `epsilon` and `momentum` are its batch norms'."""

    NAMES: ClassVar[tuple[str, ...]]
    DEFAULT_LOW_LEVEL: ClassVar[str]
    DEFAULT_AUX: ClassVar[str]

    name: str

    @abstractmethod
    def taps(self) -> tuple[str, ...]:
        """The legal tap points, shallow to deep."""

    @abstractmethod
    def add(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Add the nodes, reading the image `x`, with the spatial stride of the last map."""

    def validate(self) -> None:
        """The name must be one of the family's."""
        check_choice("backbone.name", self.name, self.NAMES)


def atrous_plan(strides: Sequence[int], stem_stride: int, output_stride: int, first: str) -> list[tuple[int, int]]:
    """(stride, dilation) of each unit when the network is held at `output_stride` (DeepLab v3, section 3.1).

    Units keep their strides until `output_stride` is reached; a later stride becomes 1 and multiplies the dilation.
    The unit that loses its stride keeps the dilation before it (`first` = "previous": TF slim, torchvision) or takes
    the new one ("full": PaddleSeg, Caffe).
    """
    current, dilation, plan = stem_stride, 1, []
    for stride in strides:
        if current < output_stride:
            plan.append((stride, dilation))
            current *= stride
        else:
            before, dilation = dilation, dilation * stride
            plan.append((1, dilation if first == "full" else before))
    return plan
