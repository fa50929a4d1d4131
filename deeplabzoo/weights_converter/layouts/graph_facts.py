"""What a file that holds its graph (a frozen one of TensorFlow, or ONNX) tells beside its tensors.

That is rates, strides, multi-grids, epsilons, and how maps are resized.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import BackboneSpec, ResNet, Xception
from deeplabzoo.core.backbones.base import OUTPUT_STRIDES
from deeplabzoo.core.graph import Node
from deeplabzoo.core.ops import BatchNorm, Conv2d, Resize, float32_exact
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import DeepLabZooError
from deeplabzoo.weights_converter.formats import shown
from deeplabzoo.weights_converter.layouts.base import Entry, described

_CHOICES = {
    "stride_in": ("conv1", "conv2", "last_unit"),
    "first_block_dilation": ("previous", "full", "first_only", "previous_stage"),
    "basic_dilation": ("both", "conv1"),
}
"""Options of backbones that decide strides and dilations."""

_FIELDS = ("output_stride", *(f"backbone.{option}" for option in (*_CHOICES, "multi_grid", "multi_grid_mode")))
_GRID_UNIT = re.compile(r"backbone\.(stage4\.block\d+|exit\.block2\.sep\d)\..*")
"""Each part to which a multi-grid has a rate: the blocks of a ResNet, the convolutions of an Xception's last block."""


class _Steps(NamedTuple):
    """Stride and dilation of a convolution in the file, rows and columns; none of what it does not say."""

    strides: list[int] | None
    dilations: list[int] | None


def informed_by_graph(
    spec: ArchSpec, facts: Mapping[str, Any], table: Sequence[Entry], variants: Iterable[BackboneSpec] = ()
) -> tuple[ArchSpec, list[str], list[str]]:
    """`spec` with what the graph of the file says, the fields that it settled, and notes on what contradicts.

    A field is taken only where all that the graph says of it agrees; whatever contradicts stays an assumption, and a
    note names the first convolution that is another in the file than in the network.

    Args:
        spec: the layout's reading, with the published defaults.
        facts: of the checkpoint; `graph` as the readers of frozen graphs and ONNX make it.
        table: foreign and canonical names.
        variants: the backbones of the project's networks, among them those with the same tensors as that of `spec`.
    """
    graph = facts.get("graph")
    if not isinstance(graph, Mapping):
        return spec, [], []
    nodes = {entry.foreign: entry.canonical.rsplit(".", 1)[0] for entry in table if entry.canonical}
    steps = dict(_steps(graph, nodes))
    told: list[str] = []
    notes: list[str] = []
    if steps:
        spec, told = _with_backbone(spec, steps, variants)
        spec, rates = _with_rates(spec, steps)
        told += rates
        notes += _contradictions(spec, steps, {node: foreign for foreign, node in nodes.items()})
    spec, aligned, unclear = _with_resizes(spec, graph, auxiliary=any(name.startswith("aux.") for name in steps))
    spec, epsilons = _with_epsilons(spec, graph, nodes)
    return spec, [*told, *aligned, *epsilons], [*notes, *unclear]


def _steps(graph: Mapping[str, Any], nodes: Mapping[str, str]) -> Iterator[tuple[str, _Steps]]:
    for convolution in graph.get("convolutions", ()):
        if name := nodes.get(convolution.get("weights") or ""):
            yield name, _Steps(_pair(convolution.get("strides")), _pair(convolution.get("dilations")))


def _pair(value: object) -> list[int] | None:
    """Rows and columns, where a file says them."""
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value)
    return list(value) if pair and isinstance(value, list) else None


def _convolutions(spec: ArchSpec) -> Iterator[tuple[Node, Conv2d]]:
    for node in build_graph(spec).nodes:
        if isinstance(node.op, Conv2d):
            yield node, node.op


def _differs(op: Conv2d, steps: _Steps) -> bool:
    """Whether the file says of a convolution what it is not; the dilation of a 1x1 is nothing."""
    strides = steps.strides is not None and steps.strides != [op.stride] * 2
    return strides or (op.kernel > 1 and steps.dilations is not None and steps.dilations != [op.dilation] * 2)


def _fits(spec: ArchSpec, steps: Mapping[str, _Steps]) -> bool:
    """Whether no convolution of the backbone is another in the file."""
    return not any(
        node.name.startswith("backbone.") and node.name in steps and _differs(op, steps[node.name])
        for node, op in _convolutions(spec)
    )


def _with_backbone(
    spec: ArchSpec, steps: Mapping[str, _Steps], variants: Iterable[BackboneSpec]
) -> tuple[ArchSpec, list[str]]:
    """The stride and the wiring of the backbone under which its convolutions are those of the graph.

    Those that the project publishes are tried first, then those with other multi-grids, then every other.
    """
    if not any(name.startswith("backbone.") and found.dilations is not None for name, found in steps.items()):
        return spec, []
    parameters = build_graph(spec).parameters()
    strides = dict.fromkeys((spec.output_stride, *OUTPUT_STRIDES))
    published = _published(spec.backbone, variants)
    for backbones, gridded in ((published, False), (published, True), (list(_wired(spec.backbone)), True)):
        fitting = []
        for backbone, stride in itertools.product(backbones, strides):
            try:
                plain = spec.replace(backbone=backbone, output_stride=stride)
                if build_graph(plain).parameters() != parameters:
                    continue
            except DeepLabZooError:  # a stride that this backbone can't have
                continue
            candidates = (plain, *(_gridded(plain, steps) if gridded else ()))
            fitting += [one for one in candidates if _fits(one, steps)][:1]
        if fitting:
            settled = set.intersection(*(set(described(one.to_dict())) for one in fitting))
            fields = (line.split(" = ")[0] for line in settled)
            return fitting[0], sorted(field for field in fields if field in _FIELDS)
    return spec, []


def _published(backbone: BackboneSpec, variants: Iterable[BackboneSpec]) -> list[BackboneSpec]:
    """The backbone itself, and wired as the project's others of that name are."""
    found: dict[BackboneSpec, None] = {backbone: None}
    for other in variants:
        if other.name == backbone.name and type(other) is type(backbone):
            options = (field.removeprefix("backbone.") for field in _FIELDS)
            wiring = {option: getattr(other, option) for option in options if hasattr(other, option)}
            found[backbone.replace(**wiring)] = None
    return list(found)


def _wired(backbone: BackboneSpec) -> Iterator[BackboneSpec]:
    """The backbone with every choice of what decides its strides and dilations, but for the multi-grid."""
    options = [option for option in _CHOICES if hasattr(backbone, option)]
    plain = backbone.replace(multi_grid=()) if isinstance(backbone, ResNet | Xception) else backbone
    for values in itertools.product(*(_CHOICES[option] for option in options)):
        try:
            yield plain.replace(**dict(zip(options, values, strict=True)))
        except DeepLabZooError:  # a choice that this family does not have
            continue


def _gridded(spec: ArchSpec, steps: Mapping[str, _Steps]) -> Iterator[ArchSpec]:
    """The spec with the multi-grid that makes the dilations of the graph of its own."""
    backbone = spec.backbone
    if not isinstance(backbone, ResNet | Xception) or backbone.multi_grid:
        return
    units: dict[str, tuple[int, int]] = {}
    for node, op in _convolutions(spec):
        match, pair = _GRID_UNIT.fullmatch(node.name), steps.get(node.name, _Steps(None, None)).dilations
        if match and op.kernel > 1 and pair is not None:
            units.setdefault(match[1], (op.dilation, pair[0]))
    whole = all(found % own == 0 for own, found in units.values())
    changes: dict[str, Any] = {"multi_grid": tuple(found // own if whole else found for own, found in units.values())}
    if isinstance(backbone, ResNet):
        changes["multi_grid_mode"] = "multiply" if whole else "replace"
    try:
        yield spec.replace(backbone=backbone.replace(**changes))
    except DeepLabZooError:  # too few rates, or none that a multi-grid can have
        return


def _with_rates(spec: ArchSpec, steps: Mapping[str, _Steps]) -> tuple[ArchSpec, list[str]]:
    """The rates of the branches, where the graph says all of them."""
    section = "aspp" if spec.aspp is not None else "head"
    if not spec.rates or (spec.head is not None and spec.head.kernel == 1):
        return spec, []
    rates = []
    for n in range(1, len(spec.rates) + 1):
        places = (
            f"aspp.branch{n}.conv", f"aspp.branch{n}.depthwise.conv", f"head.branch{n}.hidden1.conv",
            f"classifier.branch{n}", "classifier.conv",
        )  # fmt: skip
        known = build_graph(spec).by_name
        pair = steps.get(next(place for place in places if place in known), _Steps(None, None)).dilations
        if pair is None or pair[0] != pair[1] or pair[0] < 1:
            return spec, []
        rates.append(pair[0])
    return spec.replace(**{section: getattr(spec, section).replace(rates=tuple(rates))}), [f"{section}.rates"]


def _contradictions(spec: ArchSpec, steps: Mapping[str, _Steps], foreign: Mapping[str, str]) -> list[str]:
    """A note where convolutions of the file are not those of the network."""
    wrong = [
        (node.name, op) for node, op in _convolutions(spec) if node.name in steps and _differs(op, steps[node.name])
    ]
    if not wrong:
        return []
    name, op = wrong[0]
    strides, dilations = steps[name]
    return [
        f"the file's own graph contradicts the network that is read in {len(wrong)} of its convolutions, first "
        f"{shown(foreign[name])}: strides {strides} and dilations {dilations} in the file, {[op.stride] * 2} and "
        f"{[op.dilation] * 2} here, so that they compute different things: say the file's with --spec, --preset or --set"
    ]


def _with_resizes(
    spec: ArchSpec, graph: Mapping[str, Any], *, auxiliary: bool
) -> tuple[ArchSpec, list[str], list[str]]:
    """`align_corners` of decoder and output as the graph's bilinear resizes have it, and a note where that is unclear.

    `auxiliary` tells whether the auxiliary head is in the graph.
    """
    found = [
        (str(resize.get("name")), _aligned(resize))
        for resize in graph.get("resizes", ())
        if resize.get("mode") == "linear" or resize.get("op") == "ResizeBilinear"
    ]
    # Many exports are without the auxiliary head, and a resize from one point may be left out, because it is constant.
    resizes = [node.name for node in build_graph(spec).nodes if isinstance(node.op, Resize)]
    own = [name for name in resizes if auxiliary or not name.startswith("aux.")]
    orders = (own, [name for name in own if name != "aspp.image_pooling.resize"])
    order = next((names for names in orders if len(names) == len(found)), None)
    values: dict[str, bool | None] = {}
    if order is not None:
        values = dict(zip(order, (aligned for _, aligned in found), strict=True))
    elif len({aligned for _, aligned in found}) == 1:
        values = dict.fromkeys(own, found[0][1])
    told: list[str] = []
    notes: list[str] = []
    if found and not values:
        notes.append(
            f"the file resizes {len(found)} times, some with align_corners and some without, where {spec.title} does "
            f"{len(own)} times: align_corners stays what it is by default; --set changes it"
        )
    places = {"decoder.resize": "decoder", "output.resize": "output", "classifier.resize": "output"}
    for place, section in places.items():
        if place not in values:
            continue
        aligned = values[place]
        if aligned is None:
            name = next((name for name, other in found if other is None), "")
            notes.append(f"the file resizes at {shown(name)} neither by corners nor by half pixels, which no spec says")
            break
        spec = spec.replace(**{section: getattr(spec, section).replace(align_corners=aligned)})
        told.append(f"{section}.align_corners")
    return spec, told, notes


def _aligned(resize: Mapping[str, Any]) -> bool | None:
    """Whether a resize aligns corners; none where it neither does that nor counts from the middle of pixels."""
    mode = resize.get("coordinate_transformation_mode")
    if mode == "align_corners" or resize.get("align_corners") is True:
        return True
    half = mode in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    return False if half or resize.get("half_pixel_centers") is True else None


def _with_epsilons(spec: ArchSpec, graph: Mapping[str, Any], nodes: Mapping[str, str]) -> tuple[ArchSpec, list[str]]:
    """The epsilon of each section, where its batch norms have one and the same."""
    told = []
    found: dict[str, set[float]] = {}
    for norm in graph.get("batch_norms", ()):
        name = nodes.get(norm.get("scale") or norm.get("variance") or "")
        if name and isinstance(norm.get("epsilon"), float):
            found.setdefault(name.split(".")[0], set()).add(norm["epsilon"])
    norms = [node for node in build_graph(spec).nodes if isinstance(node.op, BatchNorm)]
    for section in ("backbone", "aspp", "decoder", "aux"):
        part = getattr(spec, section)
        values = found.get(section, set())
        if part is None or len(values) != 1 or not any(node.name.startswith(f"{section}.") for node in norms):
            continue
        (value,) = values
        if 0 < value < 1 and float32_exact(value) != float32_exact(part.epsilon):
            spec = spec.replace(**{section: part.replace(epsilon=value)})
        told.append(f"{section}.epsilon")
    return spec, told
