"""Names of public projects that have no layout yet: enough of them to fill our weights from a golden case's tensors."""

from __future__ import annotations

import re

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.weights import check_weights
from deeplabzoo.zoo.presets import PRESETS

TORCH = {name: name for name in ("weight", "bias", "running_mean", "running_var")}
PADDLE = {**TORCH, "running_mean": "_mean", "running_var": "_variance"}
SLIM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}

# Canonical node -> the project's module; {n} counts from 0 what we count from 1.
BLOCKS = (
    (r"backbone\.stage(\d)\.block(\d+)\.shortcut\.conv", r"{prefix}layer\1.{\2}.downsample.0"),
    (r"backbone\.stage(\d)\.block(\d+)\.shortcut\.bn", r"{prefix}layer\1.{\2}.downsample.1"),
    (r"backbone\.stage(\d)\.block(\d+)\.(conv|bn)(\d)", r"{prefix}layer\1.{\2}.\3\4"),
)
RESNET = ((r"backbone\.stem\.(conv|bn)", r"{prefix}\g<1>1"), *BLOCKS)


def units(ours: str, theirs: str, conv: str, bn: str) -> tuple[tuple[str, str], ...]:
    """Rules of a unit of convolution and batch norm."""
    return (rf"{ours}\.conv", theirs + conv), (rf"{ours}\.bn", theirs + bn)


PADDLESEG = (
    (r"backbone\.stem\.conv(\d)", r"backbone.conv1_\1._conv"),
    (r"backbone\.stem\.bn(\d)", r"backbone.conv1_\1._batch_norm"),
    *units(r"backbone\.stage(\d)\.block(\d+)\.shortcut", r"backbone.bb_{\1}_{\2}.short", "._conv", "._batch_norm"),
    (r"backbone\.stage(\d)\.block(\d+)\.conv(\d)", r"backbone.bb_{\1}_{\2}.conv{\3}._conv"),
    (r"backbone\.stage(\d)\.block(\d+)\.bn(\d)", r"backbone.bb_{\1}_{\2}.conv{\3}._batch_norm"),
    *units(r"aspp\.branch(\d)\.depthwise", r"head.aspp.aspp_blocks.\1.depthwise_conv", "._conv", "._batch_norm"),
    *units(r"aspp\.branch(\d)\.pointwise", r"head.aspp.aspp_blocks.\1.piontwise_conv", "._conv", "._batch_norm"),
    *units(r"aspp\.branch(\d)", r"head.aspp.aspp_blocks.\1", "._conv", "._batch_norm"),
    *units(r"aspp\.image_pooling", "head.aspp.global_avg_pool.1", "._conv", "._batch_norm"),
    *units(r"aspp\.fusion", "head.aspp.conv_bn_relu", "._conv", "._batch_norm"),
    *units(r"decoder\.low_level", "head.decoder.conv_bn_relu1", "._conv", "._batch_norm"),
    *(
        rule
        for n in (1, 2)
        for ours, theirs in (("depthwise", "depthwise_conv"), ("pointwise", "piontwise_conv"))
        for rule in units(
            rf"decoder\.conv{n}\.{ours}", f"head.decoder.conv_bn_relu{n + 1}.{theirs}", "._conv", "._batch_norm"
        )
    ),
    (r"classifier\.conv", "head.decoder.conv"),
)
KAZUTO = (
    *units(r"backbone\.stem", "layer1.conv1", ".conv", ".bn"),
    *units(r"backbone\.stage(\d)\.block(\d+)\.shortcut", r"layer{+\1}.block\2.shortcut", ".conv", ".bn"),
    *(
        rule
        for n, theirs in ((1, "reduce"), (2, "conv3x3"), (3, "increase"))
        for rule in (
            (rf"backbone\.stage(\d)\.block(\d+)\.conv{n}", rf"layer{{+\1}}.block\2.{theirs}.conv"),
            (rf"backbone\.stage(\d)\.block(\d+)\.bn{n}", rf"layer{{+\1}}.block\2.{theirs}.bn"),
        )
    ),
    (r"classifier\.branch(\d)", r"aspp.c{\1}"),
)
MMSEG = (
    *((rf"backbone\.stem\.conv{n}", f"backbone.stem.{3 * n - 3}") for n in (1, 2, 3)),
    *((rf"backbone\.stem\.bn{n}", f"backbone.stem.{3 * n - 2}") for n in (1, 2, 3)),
    *BLOCKS,
    *units(r"aspp\.image_pooling", "decode_head.image_pool.1", ".conv", ".bn"),
    *units(r"aspp\.branch(\d)\.(depthwise|pointwise)", r"decode_head.aspp_modules.\1.\2_conv", ".conv", ".bn"),
    *units(r"aspp\.branch(\d)", r"decode_head.aspp_modules.\1", ".conv", ".bn"),
    *units(r"aspp\.fusion", "decode_head.bottleneck", ".conv", ".bn"),
    *units(r"decoder\.low_level", "decode_head.c1_bottleneck", ".conv", ".bn"),
    *units(r"decoder\.conv(\d)\.(depthwise|pointwise)", r"decode_head.sep_bottleneck.{\1}.\2_conv", ".conv", ".bn"),
    (r"classifier\.conv", "decode_head.conv_seg"),
    *units(r"aux\.hidden", "auxiliary_head.convs.0", ".conv", ".bn"),
    (r"aux\.classifier", "auxiliary_head.conv_seg"),
)
_HF = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
_HF_NAMES = (".convolution", ".normalization")
_STARTS = (0, 1, 3, 6, 10, 13, 16)  # number of the first block of each of MobileNetV2's stages
HUGGING_FACE = (
    *units(r"backbone\.stem", "mobilenet_v2.conv_stem.first_conv", *_HF_NAMES),
    *(
        rule
        for ours, theirs in _HF.items()
        for stage, start in enumerate(_STARTS, start=1)
        for block in range(1, 5)
        for rule in units(
            rf"backbone\.stage{stage}\.block{block}\.{ours}",
            f"mobilenet_v2.{'conv_stem' if stage == 1 else f'layer.{start + block - 2}'}.{theirs}",
            *_HF_NAMES,
        )
    ),
    *units(r"aspp\.image_pooling", "segmentation_head.conv_pool", *_HF_NAMES),
    *units(r"aspp\.branch0", "segmentation_head.conv_aspp", *_HF_NAMES),
    *units(r"aspp\.fusion", "segmentation_head.conv_projection", *_HF_NAMES),
    (r"classifier\.conv", "segmentation_head.classifier.convolution"),
)
_MODULE = r"{prefix}/\1_flow/block\2/unit_1/xception_module"
TF_XCEPTION = (
    *(
        rule
        for n in (1, 2)
        for rule in (
            (rf"backbone\.stem\.conv{n}", f"{{prefix}}/entry_flow/conv1_{n}/weights"),
            (rf"backbone\.stem\.bn{n}", f"{{prefix}}/entry_flow/conv1_{n}/BatchNorm"),
        )
    ),
    *units(r"backbone\.(entry|exit)\.block(\d)\.shortcut", rf"{_MODULE}/shortcut", "/weights", "/BatchNorm"),
    *(
        rule
        for part, kernel in (("depthwise", "/depthwise_weights"), ("pointwise", "/weights"))
        for rule in (
            *units(
                rf"backbone\.(entry|exit)\.block(\d)\.sep(\d)\.{part}",
                rf"{_MODULE}/separable_conv\3_{part}",
                kernel,
                "/BatchNorm",
            ),
            *units(
                rf"backbone\.middle\.block(\d+)\.sep(\d)\.{part}",
                rf"{{prefix}}/middle_flow/block1/unit_\1/xception_module/separable_conv\2_{part}",
                kernel,
                "/BatchNorm",
            ),
            *units(rf"aspp\.branch(\d)\.{part}", rf"aspp\1_{part}", kernel, "/BatchNorm"),
            *units(rf"decoder\.conv(\d)\.{part}", rf"decoder/decoder_conv{{\1}}_{part}", kernel, "/BatchNorm"),
        )
    ),
    *units(r"aspp\.image_pooling", "image_pooling", "/weights", "/BatchNorm"),
    *units(r"aspp\.branch0", "aspp0", "/weights", "/BatchNorm"),
    *units(r"aspp\.fusion", "concat_projection", "/weights", "/BatchNorm"),
    *units(r"decoder\.low_level", "decoder/feature_projection0", "/weights", "/BatchNorm"),
    (r"classifier\.conv", "logits/semantic"),
)
_SPP = "spatial_pyramid_pooling/sequential"
KERASHUB = (
    *units(r"backbone\.stem", "conv1", "_conv", "_bn"),
    *units(r"backbone\.stage(\d)\.block(\d)\.shortcut", r"stack{\1}_block{\2}_0", "_conv", "_bn"),
    (r"backbone\.stage(\d)\.block(\d)\.(conv|bn)(\d)", r"stack{\1}_block{\2}_\4_\3"),
    *units(r"aspp\.branch0", f"{_SPP}/aspp", "_conv_1", "_bn_1"),
    *(
        rule
        for n in (1, 2, 3)
        for rule in (
            (rf"aspp\.branch{n}\.conv", f"{_SPP}_{n}/aspp_conv_{n + 1}"),
            (rf"aspp\.branch{n}\.bn", f"{_SPP}_{n}/aspp_bn_{n + 1}"),
        )
    ),
    (r"aspp\.image_pooling\.conv", f"{_SPP}_4/conv_pooling"),
    (r"aspp\.image_pooling\.bn", f"{_SPP}_4/bn_pooling"),
    (r"aspp\.fusion\.conv", f"{_SPP}_5/conv_projection"),
    (r"aspp\.fusion\.bn", f"{_SPP}_5/bn_projection"),
    *units(r"decoder\.low_level", "decoder", "_conv", "_norm"),
    *units(r"decoder\.conv1", "segmentation_head", "_conv", "_norm"),
    (r"classifier\.conv", "segmentation_output"),
)
VAINF = (
    *RESNET,
    *units(r"decoder\.low_level", "classifier.project", ".0", ".1"),
    *units(r"aspp\.branch(\d)", r"classifier.aspp.convs.\1", ".0", ".1"),
    *units(r"aspp\.image_pooling", "classifier.aspp.convs.4", ".1", ".2"),
    *units(r"aspp\.fusion", "classifier.aspp.project", ".0", ".1"),
    *units(r"decoder\.conv1", "classifier.classifier", ".0", ".1"),
    (r"classifier\.conv", "classifier.classifier.3"),
)
SMP = (
    *RESNET,
    *units(r"aspp\.branch0", "decoder.aspp.0.convs.0", ".0", ".1"),
    (r"aspp\.branch(\d)\.depthwise\.conv", r"decoder.aspp.0.convs.\1.0.0"),
    *units(r"aspp\.branch(\d)\.pointwise", r"decoder.aspp.0.convs.\1", ".0.1", ".1"),
    *units(r"aspp\.image_pooling", "decoder.aspp.0.convs.4", ".1", ".2"),
    *units(r"aspp\.fusion", "decoder.aspp.0.project", ".0", ".1"),
    (r"aspp\.post\.depthwise\.conv", "decoder.aspp.1.0"),
    *units(r"aspp\.post\.pointwise", "decoder.aspp", ".1.1", ".2"),
    *units(r"decoder\.low_level", "decoder.block1", ".0", ".1"),
    (r"decoder\.conv1\.depthwise\.conv", "decoder.block2.0.0"),
    *units(r"decoder\.conv1\.pointwise", "decoder.block2", ".0.1", ".1"),
    (r"classifier\.conv", "segmentation_head.0"),
)
JFZHANG95 = (
    *RESNET,
    *(rule for n in range(4) for rule in units(rf"aspp\.branch{n}", f"aspp.aspp{n + 1}", ".atrous_conv", ".bn")),
    *units(r"aspp\.image_pooling", "aspp.global_avg_pool", ".1", ".2"),
    *units(r"aspp\.fusion", "aspp", ".conv1", ".bn1"),
    *units(r"decoder\.low_level", "decoder", ".conv1", ".bn1"),
    *units(r"decoder\.conv1", "decoder.last_conv", ".0", ".1"),
    *units(r"decoder\.conv2", "decoder.last_conv", ".4", ".5"),
    (r"classifier\.conv", "decoder.last_conv.8"),
)

CASES = {
    "vainf_deeplabv3plus_resnet50_os16": ("v3plus_resnet50.vainf", VAINF, "backbone.", TORCH),
    "smp_deeplabv3plus_resnet50_os16": ("v3plus_resnet50.smp", SMP, "encoder.", TORCH),
    "jfzhang95_deeplabv3plus_resnet101_os16": ("v3plus_resnet101.jfzhang95", JFZHANG95, "backbone.", TORCH),
    "paddleseg_deeplabv3p_resnet50_vd_os8": ("v3plus_resnet50.paddleseg", PADDLESEG, "", PADDLE),
    "kazuto_deeplabv2_resnet101": ("v2_resnet101.kazuto", KAZUTO, "", TORCH),
    "mmseg_deeplabv3plus_r50-d8": ("v3plus_resnet50.mmseg", MMSEG, "backbone.", TORCH),
    "hf_mobilenet_v2": ("v3_mobilenet_v2.hf", HUGGING_FACE, "", TORCH),
    "tf_xception65_os16": ("v3plus_xception65.tf", TF_XCEPTION, "xception_65", SLIM),
    "kerashub_deeplab_v3_plus_resnet50": ("v3plus_resnet50.kerashub", KERASHUB, "", SLIM),
}
"""Preset, rules, prefix of the backbone's names and suffixes of each case."""


def canonical(name, case, tensors):
    """(spec, weights) of a golden case; every tensor but counters and Hugging Face's unused 1x1 must be used up."""
    preset, rules, prefix, suffixes = CASES[name]
    spec = PRESETS[preset].make().replace(num_classes=case["num_classes"])
    graph = build_graph(spec)
    by_path = {entry[4]: tensors[entry[0]] for entry in case["tensors"] if len(entry) > 4} or tensors
    weights = {}
    for node in graph.nodes:
        for full in node.parameters():
            suffix = full.rsplit(".", 1)[1]
            module = _module(rules, node.name, prefix)
            weights[full] = _oihw(node.op, suffix, by_path[_tensor(node.op, module, suffix, suffixes)])
    left = [n for n in tensors if not n.endswith("tracked") and "mobilenet_v2.conv_1x1" not in n]
    assert len(weights) == len(left)
    check_weights(graph, weights)
    return spec, weights


def _module(rules, node, prefix):
    match, theirs = next((m, t) for ours, t in rules if (m := re.fullmatch(ours, node)))
    name = match.expand(theirs).replace("{prefix}", prefix)
    name = re.sub(r"\{(\d+)\}", lambda m: str(int(m[1]) - 1), name)
    return re.sub(r"\{\+(\d+)\}", lambda m: str(int(m[1]) + 1), name)


def _tensor(op, module, suffix, suffixes):
    separator = "/" if suffixes is SLIM else "."
    if suffixes is not SLIM or not isinstance(op, Conv2d):
        return f"{module}{separator}{suffixes[suffix]}"
    if module.startswith("logits"):
        return f"{module}/{'biases' if suffix == 'bias' else 'weights'}"
    return module if module.endswith("weights") else f"{module}/kernel"


def _oihw(op, suffix, array):
    if not isinstance(op, Conv2d) or suffix != "weight" or array.shape[0] not in (1, 3, 7):
        return array
    if array.shape[:2] != (op.kernel, op.kernel):
        return array
    return np.ascontiguousarray(array.transpose(2, 3, 0, 1) if op.depthwise else array.transpose(3, 2, 0, 1))
