"""MobileNetV2 (Sandler et al. 2018) up to its last bottleneck, dilated as DeepLab does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from deeplabzoo.core import ops
from deeplabzoo.core.backbones.base import Features, NormedBackbone, atrous_plan
from deeplabzoo.core.fields import check_choice, check_int
from deeplabzoo.core.graph import GraphBuilder

# (expansion, channels, blocks, stride) of each stage: table 2 of the paper.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_RELU6 = "relu6"
_FIRST_BLOCK = ("previous", "full", "first_only", "previous_stage")
_PADDING = ("same", "symmetric", "before_expand")


@dataclass(frozen=True, kw_only=True)
class MobileNetV2(NormedBackbone):
    """Options of a MobileNetV2; the defaults are those of TensorFlow's research/deeplab.

    The last map is the linear projection of the 17th block (320 channels); `end = "last"` takes the 1x1 of 1280
    channels that follows it in a classifier (smp).

    Attributes:
        name: `mobilenet_v2`.
        width: multiplier of all channel counts; each is rounded to a multiple of `depth_divisor`, never by more than
            10 % down. The expansions inside a block are always rounded to multiples of 8.
        depth_divisor: 8 (slim, torchvision, HF), or 1, which research/deeplab takes at every width but 1
            (`feature_extractor.py`), so that width 0.5 has 12 channels where others have 16.
        first_block_dilation: dilation of a block that loses its stride: `previous` (TF, bonlime, HF, VainF), `full`
            (smp), `previous_stage`: the dilation before for that block's whole stage (jfzhang95), or `first_only`: the
            new dilation in the first block of each stage and none in the others (mmseg).
        padding: TensorFlow's `same`; `symmetric` (torchvision-like ports), which differs where a strided convolution
            reads an even size; or `before_expand`: symmetric, but of the block's input before its 1x1 expansion, so
            that the depthwise convolution sees a border of relu6(shift of the batch norm) instead of 0 (VainF,
            jfzhang95).
        stem_padding: whether the stem pads as said by `padding`, or not at all: `none` (VainF).
    """

    NAMES: ClassVar[tuple[str, ...]] = ("mobilenet_v2",)
    DEFAULT_LOW_LEVEL: ClassVar[str] = "stage2.block2.depthwise"
    DEFAULT_AUX: ClassVar[str] = "stage5"

    depth_divisor: int = 8
    first_block_dilation: Literal["previous", "full", "first_only", "previous_stage"] = "previous"
    padding: Literal["same", "symmetric", "before_expand"] = "same"
    stem_padding: Literal["like_others", "none"] = "like_others"
    epsilon: float = 1e-3
    momentum: float = 0.997

    def validate(self) -> None:
        """Check every field."""
        super().validate()
        check_int("backbone.depth_divisor", self.depth_divisor)
        check_choice("backbone.first_block_dilation", self.first_block_dilation, _FIRST_BLOCK)
        check_choice("backbone.padding", self.padding, _PADDING)
        check_choice("backbone.stem_padding", self.stem_padding, ("like_others", "none"))

    def scaled(self, channels: int) -> int:
        """A channel count of the paper under the width multiplier."""
        return divisible(channels * self.width, self.depth_divisor)

    def wire(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Stem (3x3 of stride 2) and 17 inverted residuals in seven stages.

        Taps are each block's output, its expansion and its depthwise output (both after ReLU6), each stage's output,
        and `last`.
        """
        rates = iter(self._plan(output_stride))
        taps: dict[str, str] = {}
        with builder.scope("stem"):
            padding = (0, 0, 0, 0) if self.stem_padding == "none" else self._padding(2, 1)
            x = self.conv_bn(builder, x, self.scaled(32), 3, stride=2, padding=padding, activation=_RELU6)
        for stage, (expansion, channels, count, _) in enumerate(_STAGES, start=1):
            for block in range(1, count + 1):
                name = f"stage{stage}.block{block}"
                with builder.scope(name):
                    inner = self._block(builder, x, expansion, self.scaled(channels), *next(rates))
                taps |= {f"{name}.{part}": node for part, node in inner.items() if part}
                x = taps[name] = inner[""]
            taps[f"stage{stage}"] = x
        with builder.scope("last"):
            taps["last"] = self.conv_bn(builder, x, divisible(1280 * max(1.0, self.width), 8), activation=_RELU6)
        return Features(x, taps)

    def _plan(self, output_stride: int) -> list[tuple[int, int]]:
        """(stride, dilation) of each block."""
        rule = self.first_block_dilation
        if rule == "previous_stage":
            stages = atrous_plan([stride for *_, stride in _STAGES], 2, output_stride, "previous")
            return [
                (unit.stride if block == 0 else 1, unit.entry)
                for unit, (*_, count, _) in zip(stages, _STAGES, strict=True)
                for block in range(count)
            ]
        strides = [stride if block == 0 else 1 for *_, count, stride in _STAGES for block in range(count)]
        units = atrous_plan(strides, 2, output_stride, "previous" if rule == "previous" else "full")
        if rule == "first_only":
            firsts = [block == 0 for *_, count, _ in _STAGES for block in range(count)]
            return [(unit.stride, unit.entry if first else 1) for unit, first in zip(units, firsts, strict=True)]
        return [(unit.stride, unit.entry) for unit in units]

    def _block(
        self, builder: GraphBuilder, x: str, expansion: int, channels: int, stride: int, dilation: int
    ) -> dict[str, str]:
        made, y = {}, x
        padding = self._padding(stride, dilation)
        if expansion > 1:
            with builder.scope("expand"):
                # Zero padding before a 1x1 is that of the block's input; the depthwise then needs none.
                early = (dilation,) * 4 if self.padding == "before_expand" else None
                inner = divisible(builder.channels(x) * expansion, 8)
                y = self.conv_bn(builder, y, inner, padding=early, activation=_RELU6)
                made["expand"] = y
                padding = (0, 0, 0, 0) if early else padding
        with builder.scope("depthwise"):
            inner = builder.channels(y)
            y = self.conv_bn(
                builder, y, inner, 3, stride=stride, dilation=dilation, padding=padding, groups=inner, activation=_RELU6
            )
            made["depthwise"] = y
        with builder.scope("project"):
            y = self.conv_bn(builder, y, channels)
        # As in TF slim the stride that counts is the one after dilation took its place.
        if stride == 1 and builder.channels(x) == channels:
            y = builder.apply("add", ops.Add(), y, x)
        return {**made, "": y}

    def _padding(self, stride: int, dilation: int) -> ops.Padding:
        # At stride 1 both rules are equal.
        return "same" if self.padding == "same" and stride > 1 else (dilation,) * 4


def divisible(channels: float, divisor: int) -> int:
    """Nearest multiple of `divisor`, at least `divisor`, never more than 10 % below (`_make_divisible` of TF slim)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
