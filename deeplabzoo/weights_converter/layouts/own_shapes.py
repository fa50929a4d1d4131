"""What the names and shapes of our own tensors tell of the network that they belong to.

Only for files whose spec was lost: our safetensors hold it, every other file has it in a TOML file beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

from deeplabzoo.core.backbones import BACKBONES, BackboneSpec, ResNet
from deeplabzoo.core.graph import Graph, GraphBuilder
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.sections import BRANCHES
from deeplabzoo.errors import LayoutError
from deeplabzoo.weights_converter.layouts.base import Shapes, dimension
from deeplabzoo.weights_converter.layouts.widths import find_width

_AMBIGUOUS = "separable_bn_relu"
"""The kind assumed (TF's) where an inner batch norm shows: `separable_bn` (PaddleSeg) has the same tensors."""

_HINT = "give the spec with --spec FILE.toml"
_STRIDE = 16
"""Any: no tensor's name or shape depends on the output stride."""


def told_options(shapes: Shapes) -> tuple[dict[str, Any], list[str]]:
    """Arguments of `make_spec` that the tensors tell, and the dotted names of the fields they settle.

    Raises:
        LayoutError: no backbone of ours, or branches whose number has no default rates.
    """
    scores = scores_name(shapes)
    backbone = _backbone(shapes)
    plus = any(name.startswith("decoder.") for name in shapes)
    given: dict[str, Any] = {
        "backbone": backbone,
        "num_classes": dimension(shapes, scores, 0),
        "in_channels": dimension(shapes, _first_kernel(backbone), 1),
        "classifier": {"bias": scores.replace(".weight", ".bias") in shapes},
    }
    told = ["num_classes", "in_channels", "classifier.bias", *(f"backbone.{key}" for key in backbone)]
    if "aspp.fusion.conv.weight" in shapes:
        given |= {"arch": "v3plus" if plus else "v3", "aspp": _aspp(shapes)}
        told += ["arch", *(f"aspp.{key}" for key in given["aspp"] if key != "order")]
    else:
        # A cascaded v3 and a v1 with copied blocks have the same tensors, so the architecture is an assumption here.
        given["head"] = _head(shapes)
        several = "classifier.branch1.weight" in shapes
        given["arch"] = "v2" if several else "v3" if "cascade" in backbone else "v1"
        told += ["head.hidden", *(["arch"] if several else [])]
    if plus:
        given["decoder"] = _decoder(shapes, backbone)
        told += [f"decoder.{key}" for key in given["decoder"] if key != "low_level"]
    if "aux.classifier.weight" in shapes:
        aux: dict[str, Any] = {"channels": dimension(shapes, "aux.classifier.weight", 1)}
        aux |= _tap("tap", backbone, dimension(shapes, "aux.hidden.conv.weight", 1), family_default="DEFAULT_AUX")
        given["aux"] = aux
        told.append("aux.channels")
    # Whether a ReLU follows the inner batch norm no tensor tells: TF's kind is an assumption.
    return given, [name for name in told if _field(given, name) != _AMBIGUOUS]


def scores_name(names: Collection[str]) -> str:
    """The kernel of the class scores; `LayoutError` without one."""
    found = next((name for name in ("classifier.conv.weight", "classifier.branch1.weight") if name in names), None)
    if found is None:
        raise LayoutError("no tensor 'classifier.conv.weight'")
    return found


def _aspp(shapes: Shapes) -> dict[str, Any]:
    branches = {int(m[1]) for name in shapes if (m := re.match(r"aspp\.branch(\d+)\.", name))}
    there = (0 in branches, bool(branches - {0}), "aspp.image_pooling.conv.weight" in shapes)
    aspp: dict[str, Any] = {
        "channels": dimension(shapes, "aspp.fusion.conv.weight", 0),
        "fusion_kernel": dimension(shapes, "aspp.fusion.conv.weight", 2),
        "bias": "aspp.fusion.conv.bias" in shapes,
        "pool_bias": "aspp.image_pooling.conv.bias" in shapes,
        "post_conv": _kind(shapes, "aspp.post") if any(n.startswith("aspp.post.") for n in shapes) else "none",
        "order": [kind for kind, present in zip(BRANCHES, there, strict=True) if present],
    }
    if branches - {0}:
        aspp["branch"] = _kind(shapes, "aspp.branch1")
        if len(branches - {0}) != 3:
            raise LayoutError(f"the rates of other than three branches have no default: {_HINT}")
    return aspp


def _head(shapes: Shapes) -> dict[str, Any]:
    first = "head.branch1.hidden{}.conv.weight"
    hidden: list[int] = []
    while first.format(len(hidden) + 1) in shapes:
        hidden.append(dimension(shapes, first.format(len(hidden) + 1), 0))
    branches = len({name for name in shapes if re.fullmatch(r"classifier\.branch\d+\.weight", name)}) or 1
    if branches not in (1, 4):
        raise LayoutError(f"the rates of {branches} branches have no default: {_HINT}")
    kernel = dimension(shapes, first.format(1) if hidden else scores_name(shapes), 2)
    head: dict[str, Any] = {"hidden": hidden}
    if branches == 1:
        head |= {"kernel": kernel, **({"rates": [1]} if kernel == 1 else {})}
    return head


def _decoder(shapes: Shapes, backbone: Mapping[str, Any]) -> dict[str, Any]:
    convs = {int(m[1]) for name in shapes if (m := re.match(r"decoder\.conv(\d+)\.", name))}
    kind = _kind(shapes, "decoder.conv1")
    first = "decoder.conv1.conv.weight" if kind == "plain" else "decoder.conv1.depthwise.conv.weight"
    return {
        "low_level_channels": dimension(shapes, "decoder.low_level.conv.weight", 0),
        "conv": kind,
        "convs": len(convs),
        "kernel": dimension(shapes, first, 2),
        "channels": dimension(shapes, first if kind == "plain" else "decoder.conv1.pointwise.conv.weight", 0),
        "bias": "decoder.low_level.conv.bias" in shapes,
        **_tap("low_level", backbone, dimension(shapes, "decoder.low_level.conv.weight", 1), stride=4),
    }


def _tap(
    field: str,
    backbone: Mapping[str, Any],
    channels: int,
    *,
    stride: int | None = None,
    family_default: str = "DEFAULT_LOW_LEVEL",
) -> dict[str, str]:
    """The usual tap point where its channels fit, else the first that does; a guess in both cases."""
    family = BACKBONES[backbone["name"]]
    taps = family.from_dict(backbone).taps(_STRIDE)
    usual = getattr(family, family_default)
    fitting = [name for name, tap in taps.items() if tap.channels == channels and stride in (None, tap.stride)]
    # A stage's name says more than that of one of its blocks.
    named = sorted(fitting, key=lambda name: name.count("."))
    return {} if usual in fitting or not named else {field: named[0]}


def _backbone(shapes: Shapes) -> dict[str, Any]:
    """A backbone whose tensors are these: a MobileNetV2 of any width, or one of `_candidates`."""
    names = [f"backbone.stage{stage}.block1.project.conv.weight" for stage in range(1, 8)]
    if all(name in shapes for name in names):
        names.append("backbone.stem.conv.weight")
        width, divisor = find_width({name: dimension(shapes, name, 0) for name in names})
        table: dict[str, Any] = {"name": "mobilenet_v2", "width": width, "depth_divisor": divisor}
        return {**table, "end": "last"} if "backbone.last.conv.weight" in shapes else table
    tensors = {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}
    tensors = {name: shape for name, shape in tensors.items() if not name.endswith("num_batches_tracked")}
    alike = [candidate for candidate in _candidates() if _parameters(candidate).keys() == tensors.keys()]
    for candidate in alike:
        first = _first_kernel(candidate)
        for width in _widths(candidate, dimension(tensors, first, 0)):
            scaled = candidate if width == 1 else {**candidate, "width": width}
            found = _parameters(scaled)
            if all(found[name] == tensors[name] for name in found if name != first):
                return scaled
    raise LayoutError(
        f"the {len(tensors)} tensors of the backbone are those of none of {', '.join(BACKBONES)}"
        f"{' at any width' if alike else ''}: {_HINT}"
    )


def _candidates() -> Iterator[dict[str, Any]]:
    """Every backbone, ResNets with each stem and with the copied blocks of the cascaded v3."""
    for name, family in BACKBONES.items():
        for stem in ("7x7", "v1c", "beta") if family is ResNet else ("",):
            for cascade in (0, 3) if family is ResNet else (0,):
                yield {"name": name, **({"stem": stem} if stem else {}), **({"cascade": cascade} if cascade else {})}


def _widths(candidate: Mapping[str, Any], channels: int) -> Iterator[float]:
    """Width multipliers, in hundredths and the powers of a half, that give the first kernel these channels."""
    base = BACKBONES[candidate["name"]].from_dict(candidate)
    paper = _parameters(dict(candidate))[_first_kernel(candidate)][0]
    for width in (1.0, *(n / 100 for n in range(1, 401)), *(0.5**n for n in range(3, 7))):
        if base.replace(width=width).scaled(paper) == channels:
            yield width


def _first_kernel(backbone: Mapping[str, Any]) -> str:
    """Name of the kernel that reads the image."""
    graph = _graph(json.dumps(backbone))
    return next(f"{node.name}.weight" for node in graph.nodes if isinstance(node.op, Conv2d))


def _parameters(backbone: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return _graph(json.dumps(backbone)).parameters()


@lru_cache(maxsize=128)
def _graph(backbone: str) -> Graph:
    table = json.loads(backbone)
    spec: BackboneSpec = BACKBONES[table["name"]].from_dict(table)
    builder = GraphBuilder()
    return builder.finish({"out": spec.add(builder, builder.input(3), _STRIDE).out})


def _field(given: Mapping[str, Any], name: str) -> object:
    section, _, field = name.partition(".")
    table = given.get(section)
    return table.get(field) if isinstance(table, Mapping) else None


def _kind(shapes: Shapes, group: str) -> str:
    """Kind of a convolution; with an inner batch norm the `_AMBIGUOUS` one."""
    if f"{group}.conv.weight" in shapes:
        return "plain"
    return _AMBIGUOUS if f"{group}.depthwise.bn.weight" in shapes else "separable"
