"""Aligned Xception (DeepLab v3+, figure 4): TensorFlow's, and other projects' readings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from deeplabzoo.core import ops
from deeplabzoo.core.backbones.base import Features, NormedBackbone, atrous_plan
from deeplabzoo.core.fields import check_bool, check_choice, check_ints
from deeplabzoo.core.graph import GraphBuilder

# (channels, stride) of each entry block, and the number of middle blocks: research/deeplab, core/xception.py.
_ENTRY = ((128, 2), (256, 2), (728, 2))
_ENTRY_71 = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
_VARIANTS = {"xception41": (_ENTRY, 8), "xception65": (_ENTRY, 16), "xception71": (_ENTRY_71, 16)}
_MIDDLE = 728
_EXIT = ((728, 1024, 1024), (1536, 1536, 2048))


@dataclass(frozen=True, kw_only=True)
class Xception(NormedBackbone):
    """Options of an aligned Xception; the defaults are those of TensorFlow's research/deeplab.

    Blocks of three separable convolutions (depthwise, batch norm, pointwise, batch norm), each after a ReLU, the last
    with the block's stride. All padding is symmetric but that of the stem.

    Attributes:
        name: `xception41`, `xception65` or `xception71`.
        shortcut: what the shortcuts read: the `raw` input of the block (TF, PaddleSeg), the input after its ReLU
            (`relu`: jfzhang95, whose ReLU works in place), or after it only where the shortcut has no convolution
            (`relu_identity`: bubbliiiing).
        exit_activation: of exit block 2: ReLU `after_each` depthwise and pointwise (TF, PaddleSeg, bubbliiiing), or
            `before_each` separable convolution and at the end (jfzhang95).
        exit_stride: stride that exit block 1 has at output stride 32 and that counts for the dilation: 2, or 1
            (bubbliiiing, whose exit flow keeps the dilation of the middle).
        exit_dilated: whether the third convolution of exit block 1 is dilated like the others (jfzhang95: not).
        multi_grid: a factor on the dilation of each convolution of exit block 2; empty for none.
        padding: of the strided convolution of the stem: `symmetric`, or TensorFlow's `same` (bonlime).
    """

    NAMES: ClassVar[tuple[str, ...]] = tuple(_VARIANTS)
    DEFAULT_LOW_LEVEL: ClassVar[str] = "entry.block2.sep2"
    DEFAULT_AUX: ClassVar[str] = "middle"

    shortcut: Literal["raw", "relu", "relu_identity"] = "raw"
    exit_activation: Literal["after_each", "before_each"] = "after_each"
    exit_stride: int = 2
    exit_dilated: bool = True
    multi_grid: tuple[int, ...] = ()
    padding: Literal["symmetric", "same"] = "symmetric"
    epsilon: float = 1e-3
    momentum: float = 0.9997

    def validate(self) -> None:
        """Check every field."""
        super().validate()
        check_choice("backbone.shortcut", self.shortcut, ("raw", "relu", "relu_identity"))
        check_choice("backbone.exit_activation", self.exit_activation, ("after_each", "before_each"))
        check_choice("backbone.exit_stride", self.exit_stride, (1, 2))
        check_bool("backbone.exit_dilated", self.exit_dilated)
        if self.multi_grid != ():
            check_ints("backbone.multi_grid", self.multi_grid, length=3)
        check_choice("backbone.padding", self.padding, ("symmetric", "same"))

    def wire(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Stem, entry, middle and exit flow.

        Taps are each block's output (`entry.block1`, raw), its first ReLU (`.relu1`), its separable convolutions after
        their batch norm (`.sep2`, before any ReLU), and `entry`, `middle`, `exit` for the end of each flow.
        """
        entry, middles = _VARIANTS[self.name]
        strides = [*(stride for _, stride in entry), *[1] * middles, self.exit_stride, 1]
        # As in TF slim, all convolutions of the unit that loses its stride keep the dilation before it.
        plan = iter([(unit.stride, unit.entry) for unit in atrous_plan(strides, 2, output_stride, "previous")])
        taps: dict[str, str] = {}
        x = self._stem(builder, x)
        for n, (channels, _) in enumerate(entry, start=1):
            stride, rate = next(plan)
            x = self._block(builder, f"entry.block{n}", x, (channels,) * 3, stride, (rate,) * 3, taps, first=n == 1)
        taps["entry"] = x
        for n in range(1, middles + 1):
            _, rate = next(plan)
            x = self._block(builder, f"middle.block{n}", x, (_MIDDLE,) * 3, 1, (rate,) * 3, taps, identity=True)
        taps["middle"] = x
        stride, rate = next(plan)
        rates = (rate, rate, rate if self.exit_dilated else 1)
        x = self._block(builder, "exit.block1", x, _EXIT[0], stride, rates, taps)
        _, rate = next(plan)
        x = taps["exit"] = self._exit(builder, x, rate)
        return Features(x, taps)

    def _stem(self, builder: GraphBuilder, x: str) -> str:
        with builder.scope("stem"):
            for n, (channels, stride) in enumerate(((32, 2), (64, 1)), start=1):
                padding: ops.Padding | None = "same" if self.padding == "same" and stride > 1 else None
                x = builder.conv(f"conv{n}", x, self.scaled(channels), 3, stride=stride, padding=padding)
                x = builder.activation(f"relu{n}", self.norm(builder, f"bn{n}", x), "relu")
        return x

    def _block(
        self,
        builder: GraphBuilder,
        name: str,
        x: str,
        channels: tuple[int, ...],
        stride: int,
        rates: tuple[int, ...],
        taps: dict[str, str],
        *,
        first: bool = False,
        identity: bool = False,
    ) -> str:
        with builder.scope(name):
            y, read = x, x
            for n, (wanted, rate) in enumerate(zip(channels, rates, strict=True), start=1):
                if not (first and n == 1):  # the stem ends with a ReLU, and a second one changes nothing
                    y = taps[f"{name}.relu{n}"] = builder.activation(f"relu{n}", y, "relu")
                read = y if n == 1 else read
                y = taps[f"{name}.sep{n}"] = self._separable(
                    builder, f"sep{n}", y, self.scaled(wanted), stride if n == len(channels) else 1, rate
                )
            if self.shortcut == "relu" or (self.shortcut == "relu_identity" and identity):
                x = read
            if not identity:
                x = builder.conv("shortcut.conv", x, builder.channels(y), stride=stride)
                x = self.norm(builder, "shortcut.bn", x)
            taps[name] = builder.apply("add", ops.Add(), y, x)
        return taps[name]

    def _exit(self, builder: GraphBuilder, x: str, rate: int) -> str:
        """Exit block 2: no shortcut, and an end after a ReLU."""
        after = self.exit_activation == "after_each"
        with builder.scope("exit.block2"):
            for n, channels in enumerate(_EXIT[1], start=1):
                dilation = rate * (self.multi_grid[n - 1] if self.multi_grid else 1)
                if not after:
                    x = builder.activation(f"relu{n}", x, "relu")
                x = self._separable(builder, f"sep{n}", x, self.scaled(channels), 1, dilation, relu=after)
            return x if after else builder.activation("relu", x, "relu")

    def _separable(
        self, builder: GraphBuilder, name: str, x: str, channels: int, stride: int, dilation: int, *, relu: bool = False
    ) -> str:
        inner = builder.channels(x)
        with builder.scope(name):
            for part, wanted, kernel in (("depthwise", inner, 3), ("pointwise", channels, 1)):
                depthwise = kernel == 3
                with builder.scope(part):
                    x = builder.conv(
                        "conv",
                        x,
                        wanted,
                        kernel,
                        stride=stride if depthwise else 1,
                        dilation=dilation if depthwise else 1,
                        groups=inner if depthwise else 1,
                    )
                    x = self.norm(builder, "bn", x)
                    x = builder.activation("relu", x, "relu") if relu else x
        return x
