"""MobileNetV2 (Sandler et al. 2018) up to its last bottleneck, dilated as DeepLab does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from deeplabzoo.core import ops
from deeplabzoo.core.backbones.base import BackboneSpec, Features, atrous_plan
from deeplabzoo.core.fields import check_choice, check_int, check_norm, check_number
from deeplabzoo.core.graph import GraphBuilder

# (expansion, channels, blocks, stride) of each stage: table 2 of the paper.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


@dataclass(frozen=True, kw_only=True)
class MobileNetV2(BackboneSpec):
    """Options of a MobileNetV2; the defaults are those of TensorFlow's research/deeplab.

    The last map is the linear projection of the 17th block (320 channels); the 1280-channel 1x1 of the classifier is
    not part of a DeepLab.

    Attributes:
        name: `mobilenet_v2`.
        width: multiplier of all channel counts; each is rounded to a multiple of `depth_divisor`, never by more than
            10 % down. The expansions inside a block are always rounded to multiples of 8.
        depth_divisor: 8 (slim, torchvision, HF), or 1, which research/deeplab takes at every width but 1
            (`feature_extractor.py`), so that width 0.5 has 12 channels where others have 16.
        first_block_dilation: dilation of a block that loses its stride: `previous` (TF, bonlime, HF), `full` (smp), or
            `first_only`: the new dilation in the first block of each stage and none in the others (mmseg).
        padding: TensorFlow's `same`, or `symmetric` (torchvision-like ports); they differ where a strided
            convolution reads an even size.
        epsilon: of every batch norm.
        momentum: share of the old statistic that is kept.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("mobilenet_v2",)
    DEFAULT_LOW_LEVEL: ClassVar[str] = "stage2.block2.depthwise"
    DEFAULT_AUX: ClassVar[str] = "stage5"

    width: float = 1.0
    depth_divisor: int = 8
    first_block_dilation: Literal["previous", "full", "first_only"] = "previous"
    padding: Literal["same", "symmetric"] = "same"
    epsilon: float = 1e-3
    momentum: float = 0.997

    def validate(self) -> None:
        """Check every field."""
        super().validate()
        check_number("backbone.width", self.width, 0, 10, open_low=True)
        check_int("backbone.depth_divisor", self.depth_divisor)
        check_choice("backbone.first_block_dilation", self.first_block_dilation, ("previous", "full", "first_only"))
        check_choice("backbone.padding", self.padding, ("same", "symmetric"))
        check_norm("backbone", self.epsilon, self.momentum)

    def taps(self) -> tuple[str, ...]:
        """Each block's output, its expansion and its depthwise output (both after ReLU6), and each stage's output."""
        names = []
        for stage, (expansion, _, count, _) in enumerate(_STAGES, start=1):
            for block in range(1, count + 1):
                inner = ("expand", "depthwise") if expansion > 1 else ("depthwise",)
                names += [f"stage{stage}.block{block}.{part}" for part in inner]
                names.append(f"stage{stage}.block{block}")
            names.append(f"stage{stage}")
        return tuple(names)

    def channels(self, channels: int) -> int:
        """A channel count of the paper under the width multiplier."""
        return _divisible(channels * self.width, self.depth_divisor)

    def add(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Stem (3x3 of stride 2) and 17 inverted residuals in seven stages."""
        strides = [stride if block == 0 else 1 for *_, count, stride in _STAGES for block in range(count)]
        rule = "previous" if self.first_block_dilation == "previous" else "full"
        plan = iter(atrous_plan(strides, 2, output_stride, rule))
        taps: dict[str, str] = {}
        with builder.scope("backbone"):
            with builder.scope("stem"):
                x = self._conv_bn(builder, x, self.channels(32), 3, 2, 1, "relu6")
            for stage, (expansion, channels, count, _) in enumerate(_STAGES, start=1):
                for block in range(1, count + 1):
                    stride, dilation = next(plan)
                    if self.first_block_dilation == "first_only" and block > 1:
                        dilation = 1
                    name = f"stage{stage}.block{block}"
                    with builder.scope(name):
                        inner = self._block(builder, x, expansion, self.channels(channels), stride, dilation)
                    taps |= {f"{name}.{part}": node for part, node in inner.items() if part}
                    x = taps[name] = inner[""]
                taps[f"stage{stage}"] = x
        return Features(x, taps)

    def _block(
        self, builder: GraphBuilder, x: str, expansion: int, channels: int, stride: int, dilation: int
    ) -> dict[str, str]:
        made, y = {}, x
        if expansion > 1:
            with builder.scope("expand"):
                made["expand"] = y = self._conv_bn(
                    builder, y, _divisible(builder.channels(x) * expansion, 8), 1, 1, 1, "relu6"
                )
        with builder.scope("depthwise"):
            made["depthwise"] = y = self._conv_bn(builder, y, builder.channels(y), 3, stride, dilation, "relu6", True)
        with builder.scope("project"):
            y = self._conv_bn(builder, y, channels, 1, 1, 1, None)
        # As in TF slim the stride that counts is the one after dilation took its place.
        if stride == 1 and builder.channels(x) == channels:
            y = builder.apply("add", ops.Add(), y, x)
        return {**made, "": y}

    def _conv_bn(
        self,
        builder: GraphBuilder,
        x: str,
        channels: int,
        kernel: int,
        stride: int,
        dilation: int,
        activation: str | None,
        depthwise: bool = False,
    ) -> str:
        same = self.padding == "same" and stride > 1  # at stride 1 both rules are equal
        x = builder.conv(
            "conv",
            x,
            channels,
            kernel,
            stride=stride,
            dilation=dilation,
            padding="same" if same else None,
            groups=channels if depthwise else 1,
        )
        x = builder.batch_norm("bn", x, epsilon=self.epsilon, momentum=self.momentum)
        return builder.activation(activation, x, activation) if activation else x


def _divisible(channels: float, divisor: int) -> int:
    """Nearest multiple of `divisor`, at least `divisor`, never more than 10 % below (`_make_divisible` of TF slim)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
