"""The sections of an `ArchSpec` beside the backbone: heads, decoder, classifier, auxiliary head, output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deeplabzoo.core.fields import (
    Section,
    check_bool,
    check_choice,
    check_int,
    check_ints,
    check_norm,
    check_number,
)
from deeplabzoo.errors import SpecError

ConvKind = Literal["plain", "separable", "separable_bn", "separable_bn_relu"]
"""`plain`, or depthwise + pointwise with nothing (smp), batch norm (PaddleSeg) or batch norm and ReLU (TF) between."""

CONV_KINDS = ("plain", "separable", "separable_bn", "separable_bn_relu")
_MOST_CONVS = 16
BRANCHES = ("conv1x1", "atrous", "image_pooling")


@dataclass(frozen=True, kw_only=True)
class ASPPSpec(Section):
    """Atrous spatial pyramid pooling (DeepLab v3, section 3.3).

    Attributes:
        rates: dilation of each 3x3 branch; empty where there is none (TF's MobileNetV2).
        channels: of every branch and of the fusion.
        order: the branches in the order of their concatenation: `conv1x1`, `atrous` (all rates), `image_pooling`.
        branch: kind of the 3x3 branches.
        bias: whether the convolutions of branches and fusion have a bias beside their batch norm (PaddleSeg).
        pool_bias: the same for the convolution after the image pooling.
        fusion_kernel: 1, or 3 (mmseg).
        dropout: rate after the fusion.
        dropout_channels: whether dropout takes whole channels (Dropout2d: mmseg, HF).
        post_conv: a 3x3 after dropout: `none`, or a kind (`plain`: torchvision, smp v3; `separable`: smp v3+).
        epsilon: of every batch norm of the section.
        momentum: share of the old statistic that is kept.
    """

    rates: tuple[int, ...]
    channels: int = 256
    order: tuple[str, ...] = BRANCHES
    branch: ConvKind = "plain"
    bias: bool = False
    pool_bias: bool = False
    fusion_kernel: int = 1
    dropout: float = 0.5
    dropout_channels: bool = False
    post_conv: ConvKind | Literal["none"] = "none"
    epsilon: float = 1e-5
    momentum: float = 0.9

    def validate(self) -> None:
        """Check every field."""
        check_ints("aspp.rates", self.rates)
        check_int("aspp.channels", self.channels)
        if not isinstance(self.order, tuple) or not self.order:
            raise SpecError(f"aspp.order = {self.order!r}: expected each of {', '.join(BRANCHES)} at most once")
        for branch in self.order:
            check_choice("aspp.order", branch, BRANCHES)
        if len(set(self.order)) != len(self.order):
            raise SpecError(f"aspp.order = {self.order!r}: expected each of {', '.join(BRANCHES)} at most once")
        if bool(self.rates) != ("atrous" in self.order):
            raise SpecError(
                f"aspp.rates = {list(self.rates)} and aspp.order = {list(self.order)} contradict each other: "
                "expected rates exactly where the order holds 'atrous'"
            )
        check_choice("aspp.branch", self.branch, CONV_KINDS)
        check_bool("aspp.bias", self.bias)
        check_bool("aspp.pool_bias", self.pool_bias)
        check_choice("aspp.fusion_kernel", self.fusion_kernel, (1, 3))
        check_number("aspp.dropout", self.dropout, 0, 1)
        check_bool("aspp.dropout_channels", self.dropout_channels)
        check_choice("aspp.post_conv", self.post_conv, ("none", *CONV_KINDS))
        check_norm("aspp", self.epsilon, self.momentum)


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Section):
    """The head of v1 and v2: biased branches without batch norm, each down to class scores, which are summed.

    One branch is v1's LargeFOV, four of rates 6, 12, 18, 24 are v2's ASPP-L (DeepLab v2, section 3.2). With kernel 1
    it is the plain classifier of v1 on a ResNet (kazuto1011) and of the cascaded v3 (DeepLab v3, section 3.2).

    Attributes:
        rates: dilation of the first convolution of each branch.
        kernel: of that convolution: 3, or 1.
        hidden: channels of the convolutions before the class scores, each with ReLU and dropout; the first has the
            branch's kernel and rate, the others are 1x1 (VGG-16: fc6 and fc7 with 1024). Empty where the branch's
            convolution makes the scores itself (ResNet).
        dropout: rate after each hidden convolution.
    """

    rates: tuple[int, ...]
    kernel: int = 3
    hidden: tuple[int, ...] = ()
    dropout: float = 0.5

    def validate(self) -> None:
        """Check every field."""
        check_ints("head.rates", self.rates)
        if not self.rates:
            raise SpecError("head.rates is empty: expected one rate a branch")
        check_choice("head.kernel", self.kernel, (1, 3))
        if self.kernel == 1 and set(self.rates) != {1}:
            raise SpecError(f"head.rates = {list(self.rates)}: a 1x1 convolution has no rate; expected 1 or kernel = 3")
        check_ints("head.hidden", self.hidden)
        check_number("head.dropout", self.dropout, 0, 1)


@dataclass(frozen=True, kw_only=True)
class DecoderSpec(Section):
    """The v3+ decoder (DeepLab v3+, section 3.1).

    Attributes:
        low_level: tap point of the backbone that is joined in.
        low_level_channels: of the 1x1 that projects it (paper: 48).
        order: `aspp` and `low_level` in the order of their concatenation (VainF has the low level first).
        conv: kind of the convolutions after the concatenation.
        convs: how many (TF 2, smp and VainF 1).
        kernel: 3, or 1 (KerasHub).
        channels: of these convolutions.
        bias: whether projection and convolutions have a bias beside their batch norm (PaddleSeg, bubbliiiing).
        dropout: rate after each convolution; empty for none.
        dropout_channels: whether dropout takes whole channels.
        align_corners: of the resize of the ASPP's output to the low level's size.
        epsilon: of every batch norm of the section.
        momentum: share of the old statistic that is kept.
    """

    low_level: str
    low_level_channels: int = 48
    order: tuple[str, ...] = ("aspp", "low_level")
    conv: ConvKind = "separable_bn_relu"
    convs: int = 2
    kernel: int = 3
    channels: int = 256
    bias: bool = False
    dropout: tuple[float, ...] = ()
    dropout_channels: bool = False
    align_corners: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9

    def validate(self) -> None:
        """Check every field but the tap point, which only the backbone knows."""
        check_int("decoder.low_level_channels", self.low_level_channels)
        if self.order not in (("aspp", "low_level"), ("low_level", "aspp")):
            raise SpecError(f"decoder.order = {self.order!r}: expected 'aspp' and 'low_level' in either order")
        check_choice("decoder.conv", self.conv, CONV_KINDS)
        check_int("decoder.convs", self.convs)
        if self.convs > _MOST_CONVS:
            raise SpecError(f"decoder.convs = {self.convs}: expected at most {_MOST_CONVS} (the papers: 2)")
        check_choice("decoder.kernel", self.kernel, (1, 3))
        check_int("decoder.channels", self.channels)
        check_bool("decoder.bias", self.bias)
        if not isinstance(self.dropout, tuple) or (self.dropout and len(self.dropout) != self.convs):
            raise SpecError(
                f"decoder.dropout = {self.dropout!r}: expected none or {self.convs} rates, one a convolution"
            )
        for rate in self.dropout:
            check_number("decoder.dropout", rate, 0, 1)
        check_bool("decoder.dropout_channels", self.dropout_channels)
        check_bool("decoder.align_corners", self.align_corners)
        check_norm("decoder", self.epsilon, self.momentum)


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec(Section):
    """The last 1x1.

    Attributes:
        bias: whether it has one (KerasHub's has none).
    """

    bias: bool = True

    def validate(self) -> None:
        """Check every field."""
        check_bool("classifier.bias", self.bias)


@dataclass(frozen=True, kw_only=True)
class AuxSpec(Section):
    """The auxiliary FCN head (torchvision, mmseg): 3x3, batch norm, ReLU, dropout, 1x1 with bias.

    Attributes:
        tap: point of the backbone it reads.
        channels: of its 3x3 (torchvision: a quarter of the tapped channels).
        dropout: rate before the 1x1.
        dropout_channels: whether dropout takes whole channels.
        epsilon: of its batch norm.
        momentum: share of the old statistic that is kept.
    """

    tap: str
    channels: int = 256
    dropout: float = 0.1
    dropout_channels: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9

    def validate(self) -> None:
        """Check every field but the tap point, which only the backbone knows."""
        check_int("aux.channels", self.channels)
        check_number("aux.dropout", self.dropout, 0, 1)
        check_bool("aux.dropout_channels", self.dropout_channels)
        check_norm("aux", self.epsilon, self.momentum)


@dataclass(frozen=True, kw_only=True)
class OutputSpec(Section):
    """What the network returns.

    Attributes:
        size: `input`, or `feature`: the classifier's own smaller map (HF, kazuto1011; the caller resizes).
        align_corners: of the resize to the input's size.
        resize: what is resized, the `logits` or the `features` before the classifier (KerasHub).
        values: `logits`, `probabilities` (softmax over the classes, sigmoid where there is one) or `labels` (argmax,
            one channel).
    """

    size: Literal["input", "feature"] = "input"
    align_corners: bool = False
    resize: Literal["logits", "features"] = "logits"
    values: Literal["logits", "probabilities", "labels"] = "logits"

    def validate(self) -> None:
        """Check every field."""
        check_choice("output.size", self.size, ("input", "feature"))
        check_bool("output.align_corners", self.align_corners)
        check_choice("output.resize", self.resize, ("logits", "features"))
        check_choice("output.values", self.values, ("logits", "probabilities", "labels"))
        if self.size == "feature" and (self.align_corners or self.resize == "features"):
            raise SpecError(
                "output.size = 'feature' contradicts align_corners or resize = 'features': nothing is resized; "
                "leave both at their defaults"
            )
