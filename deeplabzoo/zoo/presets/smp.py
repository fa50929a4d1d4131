"""segmentation_models_pytorch 0.6: `DeepLabV3` and `DeepLabV3Plus` on its own encoders, and on timm's (`tu-`).

Its own encoders dilate every convolution of a stage that loses its stride; timm's keep the dilation before it in the
first. The rates are 12, 24, 36 at stride 8 and 16 alike. Source: qubvel-org/segmentation_models.pytorch,
decoders/deeplabv3 (MIT).
"""

from __future__ import annotations

from functools import partial

from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.inference.preprocessing import IMAGENET, PADDLESEG
from deeplabzoo.zoo.presets.base import Preset, Table

_ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2")


def template(arch: str, encoder: str, num_classes: int = 21, *, timm: bool = False) -> ArchSpec:
    """The spec of smp's class: stride 8 (v3) or 16 (v3+), align_corners in every resize.

    Args:
        arch: `v3` or `v3plus`.
        encoder: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `mobilenet_v2`, or, timm's alone, `xception41`,
            `xception65`, `xception71`, `mobilenet_v3_large`.
        num_classes: of the logits.
        timm: whether the encoder is timm's (`tu-resnet50`).
    """
    backbone: Table = {"name": encoder}
    low_level = "stage1"
    if encoder.startswith("xception"):
        backbone |= {"momentum": 0.9, "exact_epsilon": True}
        # TF's point is the one before this ReLU.
        low_level = "entry.block3.relu3" if encoder == "xception71" else "entry.block2.relu3"
    else:
        backbone |= {"first_block_dilation": "previous" if timm else "full"}
    if encoder.startswith("mobilenet"):
        backbone |= {"epsilon": 1e-5, "momentum": 0.9}
        low_level = "stage2"
    if encoder == "mobilenet_v3_large":
        backbone |= {"exact_epsilon": True}
    if encoder == "mobilenet_v2":
        backbone |= {"padding": "symmetric"} if timm else {"padding": "symmetric", "end": "last"}
    kind = (
        {"branch": "plain", "post_conv": "plain"} if arch == "v3" else {"branch": "separable", "post_conv": "separable"}
    )
    return make_spec(
        arch,
        backbone=backbone,
        output_stride=8 if arch == "v3" else 16,
        num_classes=num_classes,
        rates=(12, 24, 36),
        aspp={**kind, "dropout": 0.5},
        decoder={"low_level": low_level, "conv": "separable", "convs": 1, "align_corners": True}
        if arch == "v3plus"
        else None,
        output={"align_corners": True},
    )


def _preset(arch: str, encoder: str, *, timm: bool = False) -> Preset:
    kind = "DeepLabV3" if arch == "v3" else "DeepLabV3Plus"
    return Preset(
        f"{arch}_{encoder}.smp{'_timm' if timm else ''}",
        f"segmentation_models_pytorch {kind}('{'tu-' if timm else ''}{encoder}')",
        partial(template, arch, encoder, timm=timm),
        PADDLESEG if encoder == "xception65" else IMAGENET,  # timm's Xception takes mean and deviation 0.5
    )


PRESETS = (
    *(_preset(arch, encoder) for arch in ("v3", "v3plus") for encoder in _ENCODERS),
    *(
        _preset(arch, encoder, timm=True)
        for arch in ("v3", "v3plus")
        for encoder in ("resnet18", "resnet50", "xception65")
    ),
)
