"""The four papers, on every backbone, and the plain variants that tutorials use."""

from __future__ import annotations

from functools import partial

from deeplabzoo.core.spec import make_spec
from deeplabzoo.zoo.presets.base import Preset

_V1, _V2 = "DeepLab v1 (Chen et al. 2015)", "DeepLab v2 (Chen et al. 2017)"
_V3 = "DeepLab v3 (Chen et al. 2017), head as in torchvision"
_V3PLUS = "DeepLab v3+ (Chen et al. 2018), decoder as in tensorflow/models research/deeplab"
_BACKBONES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "xception41", "xception65", "xception71", "mobilenet_v2",
    "mobilenet_v3_large",
)  # fmt: skip


def _plain(arch: str, backbone: str, source: str) -> Preset:
    return Preset(f"{arch}_{backbone}", source, partial(make_spec, arch, backbone=backbone))


PRESETS = (
    _plain("v1", "vgg16", f"{_V1}, section 4.1: LargeFOV; Caffe model DeepLab-LargeFOV"),
    _plain("v1", "resnet101", f"{_V1} on a Caffe ResNet with one 1x1, as in kazuto1011/deeplab-pytorch"),
    _plain("v2", "vgg16", f"{_V2}, section 4.1: ASPP-L; Caffe model deeplabv2_vgg16"),
    _plain("v2", "resnet101", f"{_V2}, section 4.1: ASPP-L on MSRA's ResNet; Caffe model deeplabv2_resnet101"),
    *(_plain("v3", backbone, _V3) for backbone in _BACKBONES),
    *(_plain("v3plus", backbone, _V3PLUS) for backbone in _BACKBONES),
    Preset(
        "v3_resnet101.multi_grid",
        "DeepLab v3 (Chen et al. 2017), table 5: parallel, multi-grid 1, 2, 4",
        lambda: make_spec("v3", backbone="resnet101", multi_grid=(1, 2, 4), aspp={"post_conv": "none"}),
    ),
    *(
        Preset(
            f"v3_{backbone}.cascade",
            "DeepLab v3 (Chen et al. 2017), section 3.2: blocks 5 to 7 copied from block 4, multi-grid 1, 2, 1 (table 3)",
            partial(make_spec, "v3", backbone=backbone, cascade=3, multi_grid=(1, 2, 1), head={}),
        )
        for backbone in ("resnet50", "resnet101")
    ),
    Preset(
        "v3_resnet50.conv4",
        "ResNet-50 cut at conv4, v3 head and softmax, as tutorials build it",
        lambda: make_spec("v3", backbone={"name": "resnet50", "end": "stage3"}, output={"values": "probabilities"}),
    ),
    Preset(
        "v3_resnet50.copied_blocks",
        "ResNet-50 with blocks 5 to 7 and an ASPP of rates 12, 24, 36 for Pascal-Context's 59 classes, as tutorials build it",
        lambda: make_spec("v3", cascade=3, rates=(12, 24, 36), num_classes=59),
    ),
)
