"""The classic Xception (Chollet 2017) as VainF/DeepLabV3Plus-Pytorch dilates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeplabzoo.core import ops
from deeplabzoo.core.backbones.base import Features, NormedBackbone, Unit, atrous_plan
from deeplabzoo.core.graph import GraphBuilder

# (channels of the separable convolutions, stride): entry flow, eight middle blocks, first block of the exit flow.
_BLOCKS = (((128, 128), 2), ((256, 256), 2), ((728, 728), 2), *[((728, 728, 728), 1)] * 8, ((728, 1024), 2))
_EXIT = (1536, 2048)


@dataclass(frozen=True, kw_only=True)
class ClassicXception(NormedBackbone):
    """Options of a classic Xception, which has no aligned exit: poolings stride, and nothing is normalised in between.

    The stem does not pad, a block's stride is a max pooling that dilation takes away, and its own separable
    convolutions have the new dilation. The two last ones pad by 1 whatever their dilation, so that each takes
    2 * (dilation - 1) points off the map, and the very last has neither batch norm nor ReLU.

    Source: VainF/DeepLabV3Plus-Pytorch, `network/backbone/xception.py`.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("xception",)
    DEFAULT_LOW_LEVEL: ClassVar[str] = "block1"
    DEFAULT_AUX: ClassVar[str] = "block11"

    def wire(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Stem, twelve blocks and two separable convolutions; taps are `blockN`, raw sums."""
        with builder.scope("stem"):
            for n, (wanted, stride) in enumerate(((32, 2), (64, 1)), start=1):
                x = builder.conv(f"conv{n}", x, self.scaled(wanted), 3, stride=stride, padding=(0, 0, 0, 0))
                x = builder.activation(f"relu{n}", self.norm(builder, f"bn{n}", x), "relu")
        taps = {}
        plan = atrous_plan([stride for _, stride in _BLOCKS], 2, output_stride, "full")
        for n, ((channels, _), unit) in enumerate(zip(_BLOCKS, plan, strict=True), start=1):
            with builder.scope(f"block{n}"):
                x = taps[f"block{n}"] = self._block(builder, x, channels, unit, first=n == 1)
        with builder.scope("exit"):
            for n, wanted in enumerate(_EXIT, start=1):
                x = self._separable(builder, f"sep{n}", x, self.scaled(wanted), plan[-1].rate, padding=1)
                if n == 1:
                    x = builder.activation("relu", self.norm(builder, "bn", x), "relu")
        return Features(x, taps)

    def _block(self, builder: GraphBuilder, x: str, channels: tuple[int, ...], unit: Unit, *, first: bool) -> str:
        y = x
        for n, wanted in enumerate(channels, start=1):
            if not (first and n == 1):  # the stem ends with a ReLU
                y = builder.activation(f"relu{n}", y, "relu")
            y = self._separable(builder, f"sep{n}", y, self.scaled(wanted), unit.entry, padding=unit.entry)
            y = self.norm(builder, f"bn{n}", y)
        if unit.stride > 1:
            y = builder.apply("pool", ops.MaxPool(kernel=3, stride=unit.stride, padding=(1, 1, 1, 1)), y)
        if unit.stride > 1 or builder.channels(x) != builder.channels(y):
            x = builder.conv("shortcut.conv", x, builder.channels(y), stride=unit.stride)
            x = self.norm(builder, "shortcut.bn", x)
        return builder.apply("add", ops.Add(), y, x)

    def _separable(self, builder: GraphBuilder, name: str, x: str, channels: int, dilation: int, padding: int) -> str:
        inner = builder.channels(x)
        x = builder.conv(f"{name}.depthwise", x, inner, 3, dilation=dilation, padding=(padding,) * 4, groups=inner)
        return builder.conv(f"{name}.pointwise", x, channels)
