"""ResNet with bottleneck blocks (He et al. 2016), dilated as DeepLab does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from deeplabzoo.core import ops
from deeplabzoo.core.backbones.base import BackboneSpec, Features, atrous_plan
from deeplabzoo.core.fields import check_bool, check_choice, check_ints, check_norm
from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.errors import SpecError

_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class ResNet(BackboneSpec):
    """Options of a ResNet; the defaults are torchvision's.

    Attributes:
        name: `resnet50` or `resnet101`.
        stride_in: where a stage's stride sits: the 3x3 of its first block (`conv2`, torchvision and "v1.5"), the first
            1x1 of its first block (`conv1`, Caffe and the paper), or the 3x3 of the last block of the stage before
            (`last_unit`, TF slim).
        first_block_dilation: dilation of the block that loses its stride: `previous` (torchvision, timm) or `full`
            (PaddleSeg, smp's own encoders, Caffe).
        multi_grid: one rate for each block of stage 4 (DeepLab v3, section 3.1; the paper's best is 1, 2, 4).
        multi_grid_mode: whether those rates `multiply` the dilation (paper, TF, PaddleSeg) or `replace` it (mmseg).
        padding: of the strided convolutions: `symmetric` (all of them, TF slim's `conv2d_same` too), or TensorFlow's
            `same` (ports that leave out slim's explicit padding).
        pool_padding: of the stem's pooling: `symmetric`, or `same` (TF slim).
        pool_ceil: whether the stem's pooling rounds its size up (Caffe); `same` knows no rounding.
        epsilon: of every batch norm.
        momentum: share of the old statistic that is kept.
    """

    NAMES: ClassVar[tuple[str, ...]] = tuple(_BLOCKS)
    DEFAULT_LOW_LEVEL: ClassVar[str] = "stage1"
    DEFAULT_AUX: ClassVar[str] = "stage3"

    stride_in: Literal["conv1", "conv2", "last_unit"] = "conv2"
    first_block_dilation: Literal["previous", "full"] = "previous"
    multi_grid: tuple[int, ...] = (1, 1, 1)
    multi_grid_mode: Literal["multiply", "replace"] = "multiply"
    padding: Literal["symmetric", "same"] = "symmetric"
    pool_padding: Literal["symmetric", "same"] = "symmetric"
    pool_ceil: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9

    def validate(self) -> None:
        """Check every field."""
        super().validate()
        check_choice("backbone.stride_in", self.stride_in, ("conv1", "conv2", "last_unit"))
        check_choice("backbone.first_block_dilation", self.first_block_dilation, ("previous", "full"))
        check_ints("backbone.multi_grid", self.multi_grid, length=_BLOCKS[self.name][3])
        check_choice("backbone.multi_grid_mode", self.multi_grid_mode, ("multiply", "replace"))
        check_choice("backbone.padding", self.padding, ("symmetric", "same"))
        check_choice("backbone.pool_padding", self.pool_padding, ("symmetric", "same"))
        check_bool("backbone.pool_ceil", self.pool_ceil)
        if self.pool_ceil and self.pool_padding == "same":
            raise SpecError(
                "backbone.pool_ceil = true contradicts backbone.pool_padding = 'same', which says the size: "
                "expected only one of them"
            )
        check_norm("backbone", self.epsilon, self.momentum)

    def taps(self) -> tuple[str, ...]:
        """`stage1` to `stage4`, each after the last block's ReLU."""
        return tuple(f"stage{n}" for n in range(1, 5))

    def add(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Stem (7x7 of stride 2, pooling of stride 2) and four stages of 256, 512, 1024 and 2048 channels."""
        counts = _BLOCKS[self.name]
        plan = iter(atrous_plan(self._unit_strides(counts), 4, output_stride, self.first_block_dilation))
        taps: dict[str, str] = {}
        with builder.scope("backbone"):
            with builder.scope("stem"):
                x = self._conv_bn(builder, "conv", "bn", x, 64, 7, 2, 1)
                x = builder.activation("relu", x, "relu")
                pool_padding: ops.Padding = "same" if self.pool_padding == "same" else (1, 1, 1, 1)
                pool = ops.MaxPool(kernel=3, stride=2, padding=pool_padding, ceil_mode=self.pool_ceil)
                x = builder.apply("pool", pool, x)
            for stage, count in enumerate(counts, start=1):
                for block in range(1, count + 1):
                    stride, dilation = next(plan)
                    if stage == 4:
                        grid = self.multi_grid[block - 1]
                        dilation = grid if self.multi_grid_mode == "replace" else dilation * grid
                    with builder.scope(f"stage{stage}.block{block}"):
                        x = self._bottleneck(builder, x, 64 * 2 ** (stage - 1), stride, dilation)
                taps[f"stage{stage}"] = x
        return Features(x, taps)

    def _unit_strides(self, counts: tuple[int, ...]) -> list[int]:
        strides = []
        for stage, count in enumerate(counts):
            units = [1] * count
            if self.stride_in == "last_unit" and stage < 3:
                units[-1] = 2
            elif self.stride_in != "last_unit" and stage > 0:
                units[0] = 2
            strides += units
        return strides

    def _bottleneck(self, builder: GraphBuilder, x: str, width: int, stride: int, dilation: int) -> str:
        out = width * _EXPANSION
        in_first = self.stride_in == "conv1"
        y = self._conv_bn(builder, "conv1", "bn1", x, width, 1, stride if in_first else 1, 1)
        y = builder.activation("relu1", y, "relu")
        y = self._conv_bn(builder, "conv2", "bn2", y, width, 3, 1 if in_first else stride, dilation)
        y = builder.activation("relu2", y, "relu")
        y = self._conv_bn(builder, "conv3", "bn3", y, out, 1, 1, 1)
        if builder.channels(x) != out:
            with builder.scope("shortcut"):
                x = self._conv_bn(builder, "conv", "bn", x, out, 1, stride, 1)
        elif stride > 1:  # only TF slim strides a block that keeps its width
            x = builder.apply("subsample", ops.MaxPool(kernel=1, stride=stride), x)
        return builder.activation("relu", builder.apply("add", ops.Add(), y, x), "relu")

    def _conv_bn(
        self, builder: GraphBuilder, conv: str, bn: str, x: str, channels: int, kernel: int, stride: int, dilation: int
    ) -> str:
        same = self.padding == "same" and stride > 1 and kernel > 1  # at stride 1 both rules are equal
        x = builder.conv(conv, x, channels, kernel, stride=stride, dilation=dilation, padding="same" if same else None)
        return builder.batch_norm(bn, x, epsilon=self.epsilon, momentum=self.momentum)
