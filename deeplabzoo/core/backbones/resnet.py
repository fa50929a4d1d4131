"""ResNet (He et al. 2016) with its stems and shortcuts, dilated as DeepLab does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from deeplabzoo.core import ops
from deeplabzoo.core.backbones.base import Features, NormedBackbone, Unit, atrous_plan
from deeplabzoo.core.fields import check_bool, check_choice, check_int, check_ints
from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.errors import SpecError

_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_BASIC = ("resnet18", "resnet34")
_STEMS = {"v1c": (32, 32, 64), "beta": (64, 64, 128)}
_MOST_COPIES = 8


@dataclass(frozen=True, kw_only=True)
class ResNet(NormedBackbone):
    """Options of a ResNet; the defaults are torchvision's.

    Attributes:
        name: `resnet18`, `resnet34` (basic blocks), `resnet50` or `resnet101` (bottlenecks).
        stem: `7x7` of stride 2; or three 3x3, the first of stride 2: `v1c` with 32, 32, 64 channels (mmseg, PaddleSeg's
            vd) or `beta` with 64, 64, 128 (TF's resnet_v1_*_beta).
        shortcut: how a shortcut takes a stride: a strided `conv` (1x1), or `avg_pool` (2x2, sizes rounded up) and a 1x1
            of stride 1 ("v1d", PaddleSeg's vd).
        stride_in: where a stage's stride sits: the 3x3 of its first block (`conv2`, torchvision and "v1.5"), the first
            1x1 of its first block (`conv1`, Caffe and the paper), or the 3x3 of the last block of the stage before
            (`last_unit`, TF slim). A basic block has it in its first 3x3, for which the default stands.
        first_block_dilation: dilation of the convolution that loses its stride: `previous` (torchvision, timm) or
            `full` (PaddleSeg, smp's own encoders, Caffe).
        basic_dilation: which 3x3 of a basic block are dilated: `both` (smp, timm), or the first alone, `conv1` (mmseg).
        multi_grid: one rate for each block of stage 4 and of its copies (DeepLab v3, section 3.1; the paper's best is
            1, 2, 4); empty for none.
        multi_grid_mode: whether those rates `multiply` the dilation (paper, TF, PaddleSeg) or `replace` it (mmseg).
        cascade: how many copies of stage 4 follow it, each doubling the stride or the dilation (DeepLab v3, section
            3.2, with 3: blocks 5 to 7).
        padding: of the strided convolutions: `symmetric` (all of them, TF slim's `conv2d_same` too), or TensorFlow's
            `same` (ports that leave out slim's explicit padding).
        pool_padding: of the stem's pooling: `symmetric`, or `same` (TF slim).
        pool_ceil: whether the stem's pooling rounds its size up (Caffe); `same` knows no rounding.
    """

    NAMES: ClassVar[tuple[str, ...]] = tuple(_BLOCKS)
    DEFAULT_LOW_LEVEL: ClassVar[str] = "stage1"
    DEFAULT_AUX: ClassVar[str] = "stage3"

    stem: Literal["7x7", "v1c", "beta"] = "7x7"
    shortcut: Literal["conv", "avg_pool"] = "conv"
    stride_in: Literal["conv1", "conv2", "last_unit"] = "conv2"
    first_block_dilation: Literal["previous", "full"] = "previous"
    basic_dilation: Literal["both", "conv1"] = "both"
    multi_grid: tuple[int, ...] = ()
    multi_grid_mode: Literal["multiply", "replace"] = "multiply"
    cascade: int = 0
    padding: Literal["symmetric", "same"] = "symmetric"
    pool_padding: Literal["symmetric", "same"] = "symmetric"
    pool_ceil: bool = False

    def validate(self) -> None:
        """Check every field."""
        super().validate()
        check_choice("backbone.stem", self.stem, ("7x7", *_STEMS))
        check_choice("backbone.shortcut", self.shortcut, ("conv", "avg_pool"))
        check_choice("backbone.stride_in", self.stride_in, ("conv1", "conv2", "last_unit"))
        check_choice("backbone.first_block_dilation", self.first_block_dilation, ("previous", "full"))
        check_choice("backbone.basic_dilation", self.basic_dilation, ("both", "conv1"))
        if self.multi_grid != ():
            check_ints("backbone.multi_grid", self.multi_grid, length=_BLOCKS[self.name][3])
        check_choice("backbone.multi_grid_mode", self.multi_grid_mode, ("multiply", "replace"))
        check_int("backbone.cascade", self.cascade, 0)
        if self.cascade > _MOST_COPIES:
            raise SpecError(f"backbone.cascade = {self.cascade}: expected at most {_MOST_COPIES} copies (the paper: 3)")
        check_choice("backbone.padding", self.padding, ("symmetric", "same"))
        check_choice("backbone.pool_padding", self.pool_padding, ("symmetric", "same"))
        check_bool("backbone.pool_ceil", self.pool_ceil)
        if self.pool_ceil and self.pool_padding == "same":
            raise SpecError(
                "backbone.pool_ceil = true contradicts backbone.pool_padding = 'same', which says the size: "
                "expected only one of them"
            )
        if self.name in _BASIC and self.stride_in != "conv2":
            raise SpecError(
                f"backbone.stride_in = {self.stride_in!r}: the basic blocks of {self.name} bear their stride in the "
                "first 3x3; leave it out"
            )
        if self.name not in _BASIC and self.basic_dilation != "both":
            raise SpecError(
                f"backbone.basic_dilation = {self.basic_dilation!r}: {self.name} has no basic blocks; leave it out"
            )

    @property
    def default_low_level(self) -> str:
        """The end of stage 1; with the stride in its last unit, TF's point of stride 4 before that."""
        return "stage1.block2.conv3" if self.stride_in == "last_unit" else self.DEFAULT_LOW_LEVEL

    def wire(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Stem and stages.

        Taps are `stageN`, `stageN.blockM` and inside the block `.conv1`, `.conv2`, `.conv3`: after its ReLU, or, of
        the last convolution, after its batch norm, before the sum.
        """
        counts = (*_BLOCKS[self.name], *[_BLOCKS[self.name][3]] * self.cascade)
        plan = iter(atrous_plan(self._strides(counts), 4, output_stride, self.first_block_dilation))
        add_block = self._basic if self.name in _BASIC else self._bottleneck
        taps: dict[str, str] = {}
        x = self._stem(builder, x)
        for stage, count in enumerate(counts, start=1):
            for block in range(1, count + 1):
                unit = next(plan)
                if stage >= 4 and self.multi_grid:
                    grid = self.multi_grid[block - 1]
                    one, other = (1, 1) if self.multi_grid_mode == "replace" else (unit.entry, unit.rate)
                    unit = Unit(unit.stride, one * grid, other * grid)
                name = f"stage{stage}.block{block}"
                with builder.scope(name):
                    x, inner = add_block(builder, x, self.scaled(64 * 2 ** min(stage - 1, 3)), unit)
                taps |= {f"{name}.conv{n}": node for n, node in enumerate(inner, start=1)}
                taps[name] = x
            taps[f"stage{stage}"] = x
        return Features(x, taps)

    def _strides(self, counts: tuple[int, ...]) -> list[int]:
        """Of each block, before dilation takes their place."""
        strides = []
        for stage, count in enumerate(counts, start=1):
            units = [1] * count
            if self.stride_in == "last_unit" and stage < len(counts):
                units[-1] = 2
            elif self.stride_in != "last_unit" and stage > 1:
                units[0] = 2
            strides += units
        return strides

    def _stem(self, builder: GraphBuilder, x: str) -> str:
        with builder.scope("stem"):
            if self.stem == "7x7":
                x = self._conv_bn(builder, "", x, self.scaled(64), 7, 2)
                x = builder.activation("relu", x, "relu")
            else:
                for n, channels in enumerate(_STEMS[self.stem], start=1):
                    x = self._conv_bn(builder, str(n), x, self.scaled(channels), 3, 2 if n == 1 else 1)
                    x = builder.activation(f"relu{n}", x, "relu")
            padding: ops.Padding = "same" if self.pool_padding == "same" else (1, 1, 1, 1)
            return builder.apply("pool", ops.MaxPool(kernel=3, stride=2, padding=padding, ceil_mode=self.pool_ceil), x)

    def _basic(self, builder: GraphBuilder, x: str, width: int, unit: Unit) -> tuple[str, list[str]]:
        first = self._conv_bn(builder, "1", x, width, 3, unit.stride, unit.entry)
        first = builder.activation("relu1", first, "relu")
        second = self._conv_bn(builder, "2", first, width, 3, 1, unit.rate if self.basic_dilation == "both" else 1)
        return self._join(builder, second, x, unit.stride), [first, second]

    def _bottleneck(self, builder: GraphBuilder, x: str, width: int, unit: Unit) -> tuple[str, list[str]]:
        in_first = self.stride_in == "conv1"
        first = self._conv_bn(builder, "1", x, width, 1, unit.stride if in_first else 1)
        first = builder.activation("relu1", first, "relu")
        second = self._conv_bn(builder, "2", first, width, 3, 1 if in_first else unit.stride, unit.entry)
        second = builder.activation("relu2", second, "relu")
        third = self._conv_bn(builder, "3", second, 4 * width, 1)
        return self._join(builder, third, x, unit.stride), [first, second, third]

    def _join(self, builder: GraphBuilder, y: str, x: str, stride: int) -> str:
        """Add the shortcut of `x`, which has a 1x1 where the channels or, but in TF slim, the stride change."""
        if builder.channels(x) != builder.channels(y) or (stride > 1 and self.stride_in != "last_unit"):
            with builder.scope("shortcut"):
                if stride > 1 and self.shortcut == "avg_pool":
                    x = builder.apply("pool", ops.AvgPool(kernel=stride, stride=stride, ceil_mode=True), x)
                    stride = 1
                x = self._conv_bn(builder, "", x, builder.channels(y), 1, stride)
        elif stride > 1:
            x = builder.apply("subsample", ops.MaxPool(kernel=1, stride=stride), x)
        return builder.activation("relu", builder.apply("add", ops.Add(), y, x), "relu")

    def _conv_bn(
        self, builder: GraphBuilder, number: str, x: str, channels: int, kernel: int, stride: int = 1, dilation: int = 1
    ) -> str:
        same = self.padding == "same" and stride > 1 and kernel > 1  # at stride 1 both rules are equal
        x = builder.conv(
            f"conv{number}",
            x,
            channels,
            kernel,
            stride=stride,
            dilation=dilation,
            padding="same" if same else None,
        )
        return self.norm(builder, f"bn{number}", x)
