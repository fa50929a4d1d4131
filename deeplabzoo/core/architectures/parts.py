"""The parts that DeepLabs are made of; each adds nodes to a builder and returns the last one's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deeplabzoo.core import ops
from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.core.sections import ASPPSpec, AuxSpec, DecoderSpec, HeadSpec, OutputSpec


@dataclass(frozen=True)
class ConvUnit:
    """Convolution, batch norm, ReLU with the settings of one section of the spec."""

    builder: GraphBuilder
    bias: bool
    epsilon: float
    momentum: float

    def plain(self, name: str, x: str, channels: int, kernel: int = 1, dilation: int = 1) -> str:
        """`name.conv`, `name.bn`, `name.relu`."""
        with self.builder.scope(name):
            x = self.builder.conv("conv", x, channels, kernel, dilation=dilation, bias=self.bias)
            return self._norm(x, relu=True)

    def of_kind(self, kind: str, name: str, x: str, channels: int, kernel: int = 3, dilation: int = 1) -> str:
        """Plain or separable (`name.depthwise`, `name.pointwise`) as `sections.ConvKind` says."""
        if kind == "plain":
            return self.plain(name, x, channels, kernel, dilation)
        with self.builder.scope(name):
            with self.builder.scope("depthwise"):
                inner = self.builder.channels(x)
                x = self.builder.conv("conv", x, inner, kernel, dilation=dilation, groups=inner, bias=self.bias)
                if kind != "separable":
                    x = self._norm(x, relu=kind == "separable_bn_relu")
            return self.plain("pointwise", x, channels)

    def _norm(self, x: str, *, relu: bool) -> str:
        x = self.builder.batch_norm("bn", x, epsilon=self.epsilon, momentum=self.momentum)
        return self.builder.activation("relu", x, "relu") if relu else x


def add_aspp(builder: GraphBuilder, spec: ASPPSpec, x: str) -> str:
    """Parallel branches, concatenation, fusion, dropout and the optional 3x3 (DeepLab v3, section 3.3)."""
    unit = ConvUnit(builder, spec.bias, spec.epsilon, spec.momentum)
    made: dict[str, list[str]] = {}
    with builder.scope("aspp"):
        if "conv1x1" in spec.order:
            made["conv1x1"] = [unit.plain("branch0", x, spec.channels)]
        made["atrous"] = [
            unit.of_kind(spec.branch, f"branch{n}", x, spec.channels, 3, rate) for n, rate in enumerate(spec.rates, 1)
        ]
        if "image_pooling" in spec.order:
            pool = ConvUnit(builder, spec.pool_bias, spec.epsilon, spec.momentum)
            y = builder.apply("image_pooling.mean", ops.GlobalAvgPool(), x)
            y = pool.plain("image_pooling", y, spec.channels)
            # From a single point every resize convention is constant, so there is nothing to choose.
            y = builder.apply("image_pooling.resize", ops.Resize(align_corners=False), y, x)
            made["image_pooling"] = [y]
        branches = [branch for kind in spec.order for branch in made[kind]]
        x = builder.apply("concat", ops.Concat(), *branches) if len(branches) > 1 else branches[0]
        x = unit.plain("fusion", x, spec.channels, spec.fusion_kernel)
        x = add_dropout(builder, "dropout", x, spec.dropout, spec.dropout_channels)
        if spec.post_conv != "none":
            x = unit.of_kind(spec.post_conv, "post", x, spec.channels)
    return x


def add_head(builder: GraphBuilder, spec: HeadSpec, x: str) -> list[str]:
    """The branches of v1 and v2 up to their last hidden convolution (`head.branchN.hiddenM`); the input without any."""
    ends = []
    for branch, rate in enumerate(spec.rates, start=1):
        y = x
        for n, channels in enumerate(spec.hidden, start=1):
            with builder.scope(f"head.branch{branch}.hidden{n}"):
                kernel, dilation = (spec.kernel, rate) if n == 1 else (1, 1)
                y = builder.conv("conv", y, channels, kernel, dilation=dilation, bias=True)
                y = add_dropout(builder, "dropout", builder.activation("relu", y, "relu"), spec.dropout, False)
        ends.append(y)
    return ends


def add_classifier(builder: GraphBuilder, ends: list[str], spec: HeadSpec | None, num_classes: int, bias: bool) -> str:
    """Class scores: one 1x1, or, without hidden convolutions, the branches' own kernels; those of branches summed."""
    scores = []
    for n, x in enumerate(ends, start=1):
        direct = spec is not None and not spec.hidden
        kernel, rate = (spec.kernel, spec.rates[n - 1]) if spec is not None and direct else (1, 1)
        name = "classifier.conv" if len(ends) == 1 else f"classifier.branch{n}"
        scores.append(builder.conv(name, x, num_classes, kernel, dilation=rate, bias=bias))
    return scores[0] if len(scores) == 1 else builder.apply("classifier.sum", ops.Add(), *scores)


def add_decoder(builder: GraphBuilder, spec: DecoderSpec, x: str, low_level: str) -> str:
    """Project the low level, resize the ASPP's output to it, join both, refine (DeepLab v3+, section 3.1)."""
    unit = ConvUnit(builder, spec.bias, spec.epsilon, spec.momentum)
    with builder.scope("decoder"):
        low_level = unit.plain("low_level", low_level, spec.low_level_channels)
        x = builder.apply("resize", ops.Resize(align_corners=spec.align_corners), x, low_level)
        parts = {"aspp": x, "low_level": low_level}
        x = builder.apply("concat", ops.Concat(), *(parts[part] for part in spec.order))
        for n in range(1, spec.convs + 1):
            x = unit.of_kind(spec.conv, f"conv{n}", x, spec.channels, spec.kernel)
            if spec.dropout:
                x = add_dropout(builder, f"dropout{n}", x, spec.dropout[n - 1], spec.dropout_channels)
    return x


def add_aux(builder: GraphBuilder, spec: AuxSpec, x: str, num_classes: int) -> str:
    """FCN head: 3x3, batch norm, ReLU, dropout, 1x1 with bias (torchvision's FCNHead)."""
    with builder.scope("aux"):
        x = ConvUnit(builder, False, spec.epsilon, spec.momentum).plain("hidden", x, spec.channels, 3)
        x = add_dropout(builder, "dropout", x, spec.dropout, spec.dropout_channels)
        return builder.conv("classifier", x, num_classes, bias=True)


def add_output(
    builder: GraphBuilder, spec: OutputSpec, x: str, image: str, *, scope: str, resize: bool | None = None
) -> str:
    """Resize to the input's size and turn logits into what the spec wants to return."""
    if resize is None:
        resize = spec.size == "input" and spec.resize == "logits"
    with builder.scope(scope):
        if resize:
            x = builder.apply("resize", ops.Resize(align_corners=spec.align_corners), x, image)
        if spec.values == "probabilities":
            function = "softmax" if builder.channels(x) > 1 else "sigmoid"
            x = builder.activation(function, x, function)
        elif spec.values == "labels":
            x = builder.apply("argmax", ops.Argmax(), x)
    return x


def add_dropout(builder: GraphBuilder, name: str, x: str, rate: float, channelwise: bool) -> str:
    """Dropout; none where the rate is 0."""
    options: dict[str, Any] = {"rate": rate, "channelwise": channelwise}
    return builder.apply(name, ops.Dropout(**options), x) if rate else x
