"""VGG-16 (Simonyan and Zisserman 2015) up to its last pooling, dilated as DeepLab v1 and v2 do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deeplabzoo.core import ops
from deeplabzoo.core.backbones.base import BackboneSpec, Features, atrous_plan
from deeplabzoo.core.fields import check_bool
from deeplabzoo.core.graph import GraphBuilder

# Channels of the convolutions of each stage: table 1 of the paper, column D.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True, kw_only=True)
class VGG(BackboneSpec):
    """Options of a VGG-16; the defaults are those of DeepLab's Caffe networks.

    Five stages of biased 3x3 convolutions and ReLU without batch norm, each closed by a 3x3 max pooling. Poolings
    beyond the output stride keep their window and lose their stride; the convolutions after them are dilated (v1,
    section 3.1).

    Attributes:
        pool_ceil: whether the poolings round their sizes up, as Caffe does.
        average_pool: whether a 3x3 average pooling of stride 1 follows the last pooling (`pool5a` of v1 LargeFOV);
            windows divide by 9 at the border too, as in Caffe.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("vgg16",)
    DEFAULT_LOW_LEVEL: ClassVar[str] = "stage2"
    DEFAULT_AUX: ClassVar[str] = "stage4"

    pool_ceil: bool = True
    average_pool: bool = False

    def validate(self) -> None:
        """Check every field."""
        super().validate()
        check_bool("backbone.pool_ceil", self.pool_ceil)
        check_bool("backbone.average_pool", self.average_pool)

    def wire(self, builder: GraphBuilder, x: str, output_stride: int) -> Features:
        """Thirteen convolutions; taps are `stageN.convM` after its ReLU and `stageN` after its pooling."""
        dilation, taps = 1, {}
        for stage, unit in enumerate(atrous_plan([2] * len(_STAGES), 1, output_stride, "full"), start=1):
            with builder.scope(f"stage{stage}"):
                for n, channels in enumerate(_STAGES[stage - 1], start=1):
                    x = builder.conv(f"conv{n}", x, self.scaled(channels), 3, dilation=dilation, bias=True)
                    x = taps[f"stage{stage}.conv{n}"] = builder.activation(f"relu{n}", x, "relu")
                pool = ops.MaxPool(kernel=3, stride=unit.stride, padding=(1, 1, 1, 1), ceil_mode=self.pool_ceil)
                x = builder.apply("pool", pool, x)
                if stage == len(_STAGES) and self.average_pool:
                    average = ops.AvgPool(kernel=3, stride=1, padding=(1, 1, 1, 1), count_padding=True)
                    x = builder.apply("average", average, x)
            taps[f"stage{stage}"] = x
            dilation = unit.rate
        return Features(x, taps)
