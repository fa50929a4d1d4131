"""tensorflow/models research/deeplab, and the ports that keep its networks: bonlime, RyanCCC, Hugging Face.

Source: tensorflow/models, research/deeplab/{model,core/feature_extractor,core/xception,core/resnet_v1_beta}.py
(Apache-2.0); bonlime/keras-deeplab-v3-plus (MIT); RyanCCC/DeeplabV3Plus; huggingface/transformers, MobileNetV2
(Apache-2.0).
"""

from __future__ import annotations

from functools import partial

from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.inference.preprocessing import PADDLESEG, TF_DEEPLAB, TF_RESNET
from deeplabzoo.zoo.presets.base import Preset, Table

HEAD_EPSILON, HEAD_MOMENTUM = 1e-5, 0.9997
_NORM = {"epsilon": HEAD_EPSILON, "momentum": HEAD_MOMENTUM}
_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
_KERAS_MOMENTUM = 0.99
_ALL = ("image_pooling", "conv1x1", "atrous")


def template(
    *,
    num_classes: int = 21,
    width: float = 1.0,
    divisor: int | None = None,
    order: tuple[str, ...] = ("image_pooling", "conv1x1"),
    decoder: bool = False,
    in_channels: int = 3,
    channels: int = 256,
    output_stride: int = 8,
) -> ArchSpec:
    """The spec of TF's mobilenet_v2 models: `same` padding, align_corners everywhere, pool first, 1e-5 in the head.

    research/deeplab rounds channels to multiples of 8 at width 1 and not at all at other widths.
    """
    return _head(
        {"name": "mobilenet_v2", "width": width, "depth_divisor": divisor or (8 if width == 1 else 1)},
        num_classes=num_classes,
        order=order,
        decoder={} if decoder else None,
        in_channels=in_channels,
        channels=channels,
        output_stride=output_stride,
    )


def xception(
    name: str = "xception65", *, num_classes: int = 21, output_stride: int = 16, align_corners: bool = True
) -> ArchSpec:
    """The spec of TF's Xception models with decoder; the skip is the last point of stride 4 before a ReLU."""
    return _head(
        {"name": name},
        num_classes=num_classes,
        order=_ALL,
        decoder={"low_level": "entry.block3.sep2" if name == "xception71" else "entry.block2.sep2"},
        output_stride=output_stride,
        align_corners=align_corners,
    )


def resnet(name: str, *, beta: bool, num_classes: int = 21, output_stride: int = 16) -> ArchSpec:
    """The spec of TF slim's ResNets: the stride in the last unit of a block, `same` pooling, the skip before its sum."""
    backbone = {
        "name": name,
        "stem": "beta" if beta else "7x7",
        "stride_in": "last_unit",
        "pool_padding": "same",
        "multi_grid": [1, 2, 4] if beta else [],
        "momentum": 0.95,
    }
    return _head(
        backbone,
        num_classes=num_classes,
        order=_ALL,
        decoder={"low_level": "stage1.block2.conv3"},
        output_stride=output_stride,
    )


def _head(
    backbone: Table,
    *,
    num_classes: int,
    order: tuple[str, ...],
    decoder: Table | None,
    output_stride: int,
    in_channels: int = 3,
    channels: int = 256,
    align_corners: bool = True,
) -> ArchSpec:
    return make_spec(
        "v3" if decoder is None else "v3plus",
        backbone=backbone,
        output_stride=output_stride,
        num_classes=num_classes,
        in_channels=in_channels,
        aspp={
            "rates": _RATES[output_stride] if "atrous" in order else (),
            "order": order,
            "channels": channels,
            "branch": "separable_bn_relu",
            "dropout": 0.1,
            "post_conv": "none",
            **_NORM,
        },
        decoder=None if decoder is None else {"align_corners": align_corners, **_NORM, **decoder},
        output={"align_corners": align_corners},
    )


def _keras(spec: ArchSpec, momentum: float = _KERAS_MOMENTUM) -> ArchSpec:
    """A Keras port of TF's network: the head has Keras' momentum, the backbone its own."""
    changes = {
        "backbone": spec.backbone.replace(momentum=momentum),
        "aspp": spec.required_aspp.replace(momentum=_KERAS_MOMENTUM),
    }
    if spec.decoder is not None:
        changes["decoder"] = spec.decoder.replace(momentum=_KERAS_MOMENTUM)
    return spec.replace(**changes)


def _bonlime_mobilenet() -> ArchSpec:
    spec = _keras(template(), 0.999)
    return spec.replace(output=spec.output.replace(align_corners=False))


def _same_stem(spec: ArchSpec) -> ArchSpec:
    return _keras(spec.replace(backbone=spec.backbone.replace(padding="same")))


def _ryanccc(spec: ArchSpec) -> ArchSpec:
    return spec.replace(output=spec.output.replace(values="probabilities"))


def _ryanccc_mobilenet() -> ArchSpec:
    spec = _head(
        {"name": "mobilenet_v2"},
        num_classes=21,
        order=_ALL,
        decoder={"low_level": "stage2"},
        output_stride=16,
    )
    return _ryanccc(_keras(spec, 0.999))


def _hugging_face() -> ArchSpec:
    spec = template()
    # transformers gives its batch norms 0.997 as PyTorch's momentum, which is the share of the NEW statistic.
    return spec.replace(
        backbone=spec.backbone.replace(momentum=0.003, exact_epsilon=True),
        aspp=spec.required_aspp.replace(dropout=0.8, dropout_channels=True, momentum=0.003),
        output=spec.output.replace(size="feature", align_corners=False),
    )


_TF = "tensorflow/models research/deeplab"
PRESETS = (
    Preset("v3_mobilenet_v2.tf", f"{_TF}, mobilenet_v2 without atrous branches", template, TF_DEEPLAB),
    Preset(
        "v3_mobilenet_v2.tf_dm05",
        f"{_TF}, mobilenet_v2 at width 0.5 without atrous branches",
        partial(template, width=0.5),
        TF_DEEPLAB,
    ),
    Preset(
        "v3plus_mobilenet_v2.tf_ade20k",
        f"{_TF}, mobilenet_v2 with decoder and without atrous branches, 151 classes",
        partial(template, decoder=True, num_classes=151, output_stride=16),
        TF_DEEPLAB.replace(size=257, pad_to=257),
    ),
    *(
        Preset(f"v3plus_{name}.tf", f"{_TF}, xception_{name[-2:]}", partial(xception, name), TF_DEEPLAB)
        for name in ("xception41", "xception65", "xception71")
    ),
    *(
        Preset(f"v3plus_{name}.tf", f"{_TF}, resnet_v1_{name[6:]}", partial(resnet, name, beta=False), TF_RESNET)
        for name in ("resnet50", "resnet101")
    ),
    *(
        Preset(
            f"v3plus_{name}.tf_beta",
            f"{_TF}, resnet_v1_{name[6:]}_beta with multi-grid 1, 2, 4",
            partial(resnet, name, beta=True),
            TF_DEEPLAB,
        )
        for name in ("resnet50", "resnet101")
    ),
    Preset(
        "v3_mobilenet_v2.bonlime",
        "bonlime/keras-deeplab-v3-plus, mobilenetv2: TF's network, resized with half-pixel centres",
        _bonlime_mobilenet,
        TF_DEEPLAB,
    ),
    Preset(
        "v3plus_xception65.bonlime",
        "bonlime/keras-deeplab-v3-plus, xception: TF's network, half-pixel centres, `same` padding in the stem",
        lambda: _same_stem(xception(align_corners=False)),
        TF_DEEPLAB,
    ),
    Preset(
        "v3plus_xception65.ryanccc",
        "RyanCCC/DeeplabV3Plus, Xception: TF's network, `same` padding in the stem, softmax",
        lambda: _ryanccc(_same_stem(xception())),
        TF_DEEPLAB,
    ),
    Preset(
        "v3plus_mobilenet_v2.ryanccc",
        "RyanCCC/DeeplabV3Plus, MobileNetV2: separable ASPP and a decoder on block 2, softmax",
        _ryanccc_mobilenet,
        TF_DEEPLAB,
    ),
    Preset(
        "v3_mobilenet_v2.hf",
        "transformers MobileNetV2ForSemanticSegmentation: TF's network, logits at stride 8",
        _hugging_face,
        PADDLESEG.replace(resize="shortest", size=545),  # its centre crop of 513 is left out: every pixel is wanted
    ),
)
