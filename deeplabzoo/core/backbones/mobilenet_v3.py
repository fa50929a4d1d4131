"""MobileNetV3-Large (Howard et al. 2019) as torchvision wires and dilates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from deeplabzoo.core import ops
from deeplabzoo.core.backbones.base import Features, NormedBackbone, Unit, atrous_plan
from deeplabzoo.core.backbones.mobilenet_v2 import divisible
from deeplabzoo.core.fields import check_choice
from deeplabzoo.core.graph import GraphBuilder


class _Block(NamedTuple):
    kernel: int
    expansion: int
    channels: int
    squeeze: bool
    activation: str
    stride: int


_RE, _HS = "relu", "hard_swish"
# Table 1 of the paper; a stage is a run of equal output channels.
_STAGES = (
    (_Block(3, 16, 16, False, _RE, 1),),
    (_Block(3, 64, 24, False, _RE, 2), _Block(3, 72, 24, False, _RE, 1)),
    (_Block(5, 72, 40, True, _RE, 2), *[_Block(5, 120, 40, True, _RE, 1)] * 2),
    (_Block(3, 240, 80, False, _HS, 2), _Block(3, 200, 80, False, _HS, 1), *[_Block(3, 184, 80, False, _HS, 1)] * 2),
    (_Block(3, 480, 112, True, _HS, 1), _Block(3, 672, 112, True, _HS, 1)),
    (_Block(5, 672, 160, True, _HS, 2), *[_Block(5, 960, 160, True, _HS, 1)] * 2),
)


@dataclass(frozen=True, kw_only=True)
class MobileNetV3(NormedBackbone):
    """Options of a MobileNetV3-Large; the defaults are torchvision's.

    Squeeze and excite with biased 1x1 convolutions and a hard sigmoid gate; a last 1x1 of six times the channels.

    Attributes:
        first_block_dilation: dilation of a block that loses its stride: `full` (torchvision) or `previous`.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("mobilenet_v3_large",)
    DEFAULT_LOW_LEVEL: ClassVar[str] = "stage2"
    DEFAULT_AUX: ClassVar[str] = "stage3.block1"

    first_block_dilation: Literal["previous", "full"] = "full"
    epsilon: float = 1e-3
    momentum: float = 0.99

    def validate(self) -> None:
        """Check every field."""
        super().validate()
        check_choice("backbone.first_block_dilation", self.first_block_dilation, ("previous", "full"))

    def scaled(self, channels: int) -> int:
        """A channel count of the paper under the width multiplier: multiples of 8."""
        return divisible(channels * self.width, 8)

    def wire(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Stem (3x3 of stride 2), fifteen blocks in six stages and the last 1x1; taps are `stageN` and its blocks."""
        with builder.scope("stem"):
            x = self.conv_bn(builder, x, self.scaled(16), 3, stride=2, activation=_HS)
        strides = [block.stride for stage in _STAGES for block in stage]
        plan = iter(atrous_plan(strides, 2, output_stride, self.first_block_dilation))
        taps = {}
        for stage, blocks in enumerate(_STAGES, start=1):
            for n, block in enumerate(blocks, start=1):
                with builder.scope(f"stage{stage}.block{n}"):
                    x = taps[f"stage{stage}.block{n}"] = self._block(builder, x, block, next(plan))
            taps[f"stage{stage}"] = x
        with builder.scope("last"):
            x = taps["last"] = self.conv_bn(builder, x, 6 * builder.channels(x), activation=_HS)
        return Features(x, taps)

    def _block(self, builder: GraphBuilder, x: str, block: _Block, unit: Unit) -> str:
        y, inner = x, self.scaled(block.expansion)
        if inner != builder.channels(x):
            with builder.scope("expand"):
                y = self.conv_bn(builder, y, inner, activation=block.activation)
        with builder.scope("depthwise"):
            y = self.conv_bn(
                builder,
                y,
                inner,
                block.kernel,
                stride=unit.stride,
                dilation=unit.entry,
                groups=inner,
                activation=block.activation,
            )
        if block.squeeze:
            y = self._squeeze_excite(builder, y)
        with builder.scope("project"):
            y = self.conv_bn(builder, y, self.scaled(block.channels))
        # As in torchvision it is the nominal stride that counts, so a dilated first block has no shortcut.
        if block.stride == 1 and builder.channels(x) == builder.channels(y):
            y = builder.apply("add", ops.Add(), y, x)
        return y

    def _squeeze_excite(self, builder: GraphBuilder, x: str) -> str:
        with builder.scope("squeeze"):
            gate = builder.apply("mean", ops.GlobalAvgPool(), x)
            gate = builder.conv("conv1", gate, divisible(builder.channels(x) // 4, 8), bias=True)
            gate = builder.conv("conv2", builder.activation("relu", gate, _RE), builder.channels(x), bias=True)
            return builder.apply("scale", ops.Multiply(), x, builder.activation("gate", gate, "hard_sigmoid"))
