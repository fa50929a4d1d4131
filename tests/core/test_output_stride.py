"""The same weights at another output stride: equal on the common grid where `stride_differences` finds none, else not."""

from __future__ import annotations

import numpy as np
import pytest

from deeplabzoo.core.analysis import stride_differences
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import MobileNetV2, MobileNetV3
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import make_spec
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import GraphError, SpecError
from deeplabzoo.zoo.presets import PRESETS

SIZES = ((257, 193), (256, 192))
"""An odd size, 32 k + 1, and an even one, at which `same` padding lays another grid."""
NOT_CONSISTENT = {
    # pooling windows of the closed trunk keep their size in points
    "v1_vgg16", "v2_vgg16",
    # squeeze and excite takes its mean over another grid, and the first block has the new dilation
    "v3_mobilenet_v3_large", "v3plus_mobilenet_v3_large", "v3_mobilenet_v3_large.torchvision",
    "v3_mobilenet_v3_large.torchvision_no_aux",
    # `same` padding: equal at 32 k + 1 alone
    "v3_mobilenet_v2", "v3plus_mobilenet_v2", "v3_mobilenet_v2.tf", "v3_mobilenet_v2.tf_dm05",
    "v3plus_mobilenet_v2.tf_ade20k", "v3_mobilenet_v2.bonlime", "v3plus_mobilenet_v2.ryanccc", "v3_mobilenet_v2.hf",
    # the block that loses its stride takes the new dilation in its 3x3
    "v3_resnet18.smp", "v3_resnet34.smp", "v3_resnet50.smp", "v3_resnet101.smp", "v3_mobilenet_v2.smp",
    "v3plus_resnet18.smp", "v3plus_resnet34.smp", "v3plus_resnet50.smp", "v3plus_resnet101.smp",
    "v3plus_mobilenet_v2.smp", "v3_resnet50.paddleseg", "v3_resnet101.paddleseg", "v3plus_resnet50.paddleseg",
    "v3plus_resnet101.paddleseg", "v3plus_resnet101.paddleseg_769", "v3plus_resnet101.jfzhang95",
    # the dilation of later blocks does not follow the stride
    "v3_resnet18.mmseg", "v3plus_resnet18.mmseg", "v3_mobilenet_v2.mmseg", "v3plus_mobilenet_v2.mmseg",
    "v3_resnet101.mmseg_d16_mg124", "v3plus_resnet101.mmseg_d16_mg124", "v3plus_mobilenet_v2.jfzhang95",
    "v3plus_xception65.jfzhang95", "v3_xception.vainf", "v3plus_xception.vainf",
}  # fmt: skip


def narrow(spec):
    """The spec's backbone and atrous branches with few channels; MobileNets keep theirs, which decide on shortcuts."""
    width = 1.0 if isinstance(spec.backbone, MobileNetV2 | MobileNetV3) else 0.125
    small = spec.replace(backbone=spec.backbone.replace(width=width), aux=None)
    if spec.aspp is not None:
        return small.replace(aspp=spec.aspp.replace(channels=8))
    return small.replace(head=spec.head.replace(hidden=tuple(8 for _ in spec.head.hidden)))


def trunk(spec) -> Graph:
    """The graph up to the last map and each atrous branch, image pooling aside."""
    graph = build_graph(spec)
    if spec.aspp is None:
        ends = [node.name for node in graph.nodes if node.name in ("classifier.conv", "classifier.sum")]
    else:
        branches = {}
        for node in graph.nodes:
            if node.name.startswith("aspp.branch"):
                branches[node.name.split(".")[1]] = node.name  # the last of each
        ends = list(branches.values())
    last = [node.name for node in graph.nodes if node.name.startswith("backbone.")][-1]
    outputs = {"backbone": last, **{f"branch{n}": name for n, name in enumerate(ends)}}
    needed = set(outputs.values()) | {graph.input.name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return Graph(tuple(node for node in graph.nodes if node.name in needed), tuple(outputs.items()))


def strides(spec):
    """(coarse, 8) for every other stride the network can have with these rates."""
    pairs = []
    for stride in (16, 32):
        try:
            pairs.append((spec.at_output_stride(stride), spec.at_output_stride(8)))
        except SpecError:  # rates that do not divide, or a network cut before that stride
            continue
    return pairs


def difference(process, coarse, fine, size):
    """Largest error of the fine maps, taken on the coarse grid, against the coarse ones."""
    image = np.random.default_rng(3).standard_normal((1, coarse.in_channels, *size))
    results = []
    for spec in (coarse, fine):
        graph = trunk(spec)
        process.load(graph, seeded_weights(graph, 5, statistics="lively"), dtype="float64")
        results.append(process.forward(image))
    step = coarse.output_stride // fine.output_stride
    worst = 0.0
    for name, ours in results[0].items():
        theirs = results[1][name][:, :, ::step, ::step]
        if ours.shape != theirs.shape:
            return 1.0
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(ours).max()))
    return worst


def representatives():
    """One preset for each backbone and set of rates; the others would be the same test again."""
    met = {}
    for name, preset in PRESETS.items():
        spec = preset.make()
        met.setdefault((spec.backbone, spec.rates, spec.head), name)
    return sorted(met.values())


@pytest.mark.parametrize("name", PRESETS)
def test_the_list_of_inconsistent_presets(name):
    found = [stride_differences(*map(build_graph, pair)) for pair in strides(PRESETS[name].make())]
    assert found
    assert all(found) if name in NOT_CONSISTENT else not any(found)


@pytest.mark.parametrize("name", representatives())
def test_other_strides(worker, requested, name):
    process = worker(requested[0])
    for coarse, fine in strides(narrow(PRESETS[name].make())):
        errors = [difference(process, coarse, fine, size) for size in SIZES]
        if name in NOT_CONSISTENT:
            assert max(errors) > 1e-6, f"stride {coarse.output_stride}: {errors}"
        else:
            assert max(errors) <= 1e-11, f"stride {coarse.output_stride}: {errors}"


def test_same_padding_is_equal_at_odd_sizes(worker, requested):
    """What the list says of `same` padding: right at 32 k + 1, wrong at even sizes."""
    coarse, fine = strides(narrow(PRESETS["v3_mobilenet_v2"].make()))[0]
    odd, even = (difference(worker(requested[0]), coarse, fine, size) for size in SIZES)
    assert odd <= 1e-11
    assert even > 1e-3


def test_reasons_name_the_node():
    full = make_spec("v3", first_block_dilation="full")
    assert stride_differences(build_graph(full), build_graph(full.at_output_stride(8))) == [
        "backbone.stage3.block1.conv2: dilation 2 instead of 1"
    ]
    vgg = make_spec("v2", output_stride=16)
    (why,) = stride_differences(build_graph(vgg), build_graph(vgg.at_output_stride(8)))
    assert why == "backbone.stage5.pool: a pooling window of another size in pixels"
    same = make_spec("v3", backbone="mobilenet_v2")
    assert "same" in stride_differences(build_graph(same), build_graph(same.at_output_stride(8)))[0]


def test_graphs_that_can_not_be_compared():
    spec = make_spec("v3")
    with pytest.raises(GraphError, match="coarse one first"):
        stride_differences(build_graph(spec.at_output_stride(8)), build_graph(spec))
    with pytest.raises(GraphError, match="other weights"):
        stride_differences(build_graph(make_spec("v3plus")), build_graph(spec))
