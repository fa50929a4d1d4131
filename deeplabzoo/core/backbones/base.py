"""What all backbones share: the base of their options, the strides-to-rates rule, the features they hand on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from deeplabzoo.core.fields import Section, check_bool, check_choice, check_norm, check_number
from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.core.ops import Padding
from deeplabzoo.errors import SpecError, unknown

OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Features:
    """What a backbone makes: its last map, and every point that a decoder or an auxiliary head may tap."""

    out: str
    taps: dict[str, str]


class Tap(NamedTuple):
    """A point of a backbone: channels of its map, and its stride in pixels of the image."""

    channels: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Section):
    """Base of a backbone's options.

    Attributes:
        name: the variant.
        width: multiplier of all channel counts.
        end: tap point that stands for the last map (`stage3` cuts a ResNet at conv4); by default the last one.
    """

    NAMES: ClassVar[tuple[str, ...]]
    DEFAULT_LOW_LEVEL: ClassVar[str]
    DEFAULT_AUX: ClassVar[str]

    name: str
    width: float = 1.0
    end: str | None = None

    @property
    def default_low_level(self) -> str:
        """The tap point that a v3+ decoder takes unless told otherwise."""
        return self.DEFAULT_LOW_LEVEL

    @abstractmethod
    def wire(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Add the nodes, reading the image `x`, with the spatial stride of the last map."""

    def add(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """What `wire` adds, up to `end`, in the scope `backbone`.

        Raises:
            SpecError: a tap point that does not exist, or a stride that this backbone can't have there.
        """
        with builder.scope("backbone"):
            features = self.wire(builder, x, output_stride)
        if self.end is not None:
            if self.end not in features.taps:
                raise SpecError(unknown("backbone.end", self.end, features.taps))
            end = builder.position(features.taps[self.end])
            kept = {name: node for name, node in features.taps.items() if builder.position(node) <= end}
            features = Features(features.taps[self.end], kept)
        if (stride := builder.stride(features.out)) != output_stride:
            where = "its last map" if self.end is None else f"{self.end!r}"
            raise SpecError(
                f"output_stride = {output_stride}: {where} of {self.name} comes at stride {stride} then; expected a "
                "stride that its own strides reach"
            )
        return features

    def taps(self, output_stride: int) -> Mapping[str, Tap]:
        """The legal tap points, shallow to deep.

        Raises:
            SpecError: as for `add`.
        """
        return _taps(self, output_stride)

    def validate(self) -> None:
        """The name must be one of the family's, the width a number above 0."""
        check_choice("backbone.name", self.name, self.NAMES)
        check_number("backbone.width", self.width, 0, 10, open_low=True)

    def scaled(self, channels: int) -> int:
        """A channel count of the paper under the width multiplier: the nearest whole number, at least 1."""
        return max(1, round(channels * self.width))


@dataclass(frozen=True, kw_only=True)
class NormedBackbone(BackboneSpec):
    """A backbone with batch norm after each convolution.

    Attributes:
        epsilon: of every batch norm.
        exact_epsilon: whether epsilon is the double that it is written as, which is what PyTorch adds; otherwise the
            nearest float32, which is what TensorFlow and Paddle store. At 1e-3 the two differ by 3e-10 a layer in
            float64, and by nothing in float32.
        momentum: share of the old statistic that is kept.
    """

    epsilon: float = 1e-5
    exact_epsilon: bool = False
    momentum: float = 0.9

    def validate(self) -> None:
        """Check name, width, epsilon and momentum."""
        super().validate()
        check_norm("backbone", self.epsilon, self.momentum)
        check_bool("backbone.exact_epsilon", self.exact_epsilon)

    def norm(self, builder: GraphBuilder, name: str, x: str) -> str:
        """A batch norm with the backbone's epsilon and momentum."""
        return builder.batch_norm(name, x, epsilon=self.epsilon, momentum=self.momentum, exact=self.exact_epsilon)

    def conv_bn(
        self,
        builder: GraphBuilder,
        x: str,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: Padding | None = None,
        groups: int = 1,
        activation: str | None = None,
    ) -> str:
        """Nodes `conv`, `bn` and, where one is wanted, the activation under its own name."""
        x = builder.conv("conv", x, channels, kernel, stride=stride, dilation=dilation, padding=padding, groups=groups)
        x = self.norm(builder, "bn", x)
        return builder.activation(activation, x, activation) if activation else x


class Unit(NamedTuple):
    """Stride and dilations of one unit of a dilated network.

    Attributes:
        stride: that it keeps.
        entry: dilation of the convolution that bears the stride, or lost it.
        rate: dilation of its other convolutions.
    """

    stride: int
    entry: int
    rate: int


def atrous_plan(strides: Sequence[int], stem_stride: int, output_stride: int, first: str) -> list[Unit]:
    """How each unit runs when the network is held at `output_stride` (DeepLab v3, section 3.1).

    Units keep their strides until `output_stride` is reached; a later stride becomes 1 and multiplies the dilation.
    The convolution that loses its stride keeps the dilation before it (`first` = "previous": TF slim, torchvision) or
    takes the new one ("full": PaddleSeg, Caffe).
    """
    current, dilation, plan = stem_stride, 1, []
    for stride in strides:
        if current < output_stride:
            plan.append(Unit(stride, dilation, dilation))
            current *= stride
        else:
            before, dilation = dilation, dilation * stride
            plan.append(Unit(1, dilation if first == "full" else before, dilation))
    return plan


@lru_cache(maxsize=256)
def _taps(spec: BackboneSpec, output_stride: int) -> Mapping[str, Tap]:
    builder = GraphBuilder()
    features = spec.add(builder, builder.input(3), output_stride)
    return MappingProxyType(
        {name: Tap(builder.channels(node), builder.stride(node)) for name, node in features.taps.items()}
    )
