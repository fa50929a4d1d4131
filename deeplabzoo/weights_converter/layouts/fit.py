"""Take a project's own network to the numbers that a file's shapes show: classes, channels, widths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import BackboneSpec, MobileNetV2
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.errors import LayoutError, SpecError
from deeplabzoo.weights_converter.canonical import Card
from deeplabzoo.weights_converter.layouts.base import Shapes, described
from deeplabzoo.weights_converter.layouts.widths import find_width

_TOLD = (
    "arch", "num_classes", "in_channels", "backbone.name", "backbone.width", "backbone.depth_divisor", "backbone.stem",
    "backbone.cascade", "backbone.end", "aspp.channels", "aspp.bias", "aspp.pool_bias", "aspp.fusion_kernel",
    "aspp.post_conv", "decoder.low_level_channels", "decoder.convs", "decoder.kernel", "decoder.channels",
    "decoder.bias", "classifier.bias", "head.hidden", "head.kernel", "aux.channels",
)  # fmt: skip
"""Fields that names and shapes always settle."""

_TRAINING = ("dropout", "dropout_channels", "momentum")
"""Fields that do not change what a trained network answers."""


_MOOT = (
    "output.values = logits", "output.resize = logits", "backbone.exact_epsilon = False",
    "backbone.stem_padding = like_others",
)  # fmt: skip
"""What nobody expects to be otherwise, so that saying it would only hide the rest."""


def fitted(spec: ArchSpec, shapes: Shapes) -> ArchSpec:
    """`spec` with the channel counts of canonical `shapes`; where a tensor is absent, its own stay.

    Whether the tensors then fit is for the caller to check: this only reads the few that tell a number.

    Raises:
        LayoutError: a number no network can have, or channels of a backbone at no width multiplier.
    """

    def of(name: str, axis: int) -> int | None:
        shape = shapes.get(name)
        if shape is not None and len(shape) <= axis:
            raise LayoutError(f"{name!r} has shape {shape}, expected more than {axis} axes")
        return None if shape is None else shape[axis]

    changes: dict[str, Any] = {
        "num_classes": of("classifier.conv.weight", 0) or of("classifier.branch1.weight", 0),
        "in_channels": of(_first_kernel(spec), 1),
        "backbone": _backbone(spec, shapes),
    }
    if spec.aspp is not None and (channels := of("aspp.fusion.conv.weight", 0)):
        changes["aspp"] = spec.aspp.replace(channels=channels)
    if spec.head is not None and spec.head.hidden:
        hidden = [of(f"head.branch1.hidden{n}.conv.weight", 0) for n in range(1, len(spec.head.hidden) + 1)]
        if None not in hidden:
            changes["head"] = spec.head.replace(hidden=tuple(hidden))
    if spec.decoder is not None:
        first = "decoder.conv1.conv.weight" if spec.decoder.conv == "plain" else "decoder.conv1.pointwise.conv.weight"
        numbers = {"low_level_channels": of("decoder.low_level.conv.weight", 0), "channels": of(first, 0)}
        changes["decoder"] = spec.decoder.replace(**{name: value for name, value in numbers.items() if value})
    if spec.aux is not None and (channels := of("aux.classifier.weight", 1)):
        changes["aux"] = spec.aux.replace(channels=channels)
    try:
        return spec.replace(**{name: value for name, value in changes.items() if value is not None})
    except SpecError as error:
        raise LayoutError(f"the tensors describe no network of this version: {error}") from None


def told(spec: ArchSpec) -> tuple[str, ...]:
    """What names and shapes said of a fitted spec."""
    lines = [f"arch = {spec.arch}", f"backbone.name = {spec.backbone.name}"]
    if spec.backbone.width != 1:
        lines.append(f"backbone.width = {spec.backbone.width:g}")
    lines.append(f"num_classes = {spec.num_classes}")
    if spec.in_channels != 3:
        lines.append(f"in_channels = {spec.in_channels}")
    if spec.aux is not None:
        lines.append("auxiliary head = yes")
    return tuple(lines)


def assumed(spec: ArchSpec) -> tuple[str, ...]:
    """Fields of a fitted spec that no tensor tells, `field = value`: what the project's own class does."""
    moot = _MOOT if spec.aspp is None or spec.aspp.rates else (*_MOOT, "aspp.branch = ", "aspp.rates = ")
    return tuple(
        line
        for line in described(spec.to_dict())
        if (field := line.split(" = ")[0]) not in _TOLD and not is_training(field) and not line.startswith(moot)
    )


def assumed_card(card: Card, named: tuple[str, ...]) -> list[str]:
    """What a card takes from the project's published weights: the names of the classes, unless the file has `named`."""
    from deeplabzoo.inference.classes import ADE20K_CLASSES, CITYSCAPES_CLASSES, VOC_CLASSES

    sets = {VOC_CLASSES[-1]: "Pascal VOC", CITYSCAPES_CLASSES[-1]: "Cityscapes", ADE20K_CLASSES[-1]: "ADE20K"}
    lines = []
    if card.classes and not named:
        lines.append(f"classes = {sets.get(card.classes[-1], 'the usual ones of the project')}")
    if card.preprocessing is not None:
        lines.append("preprocessing = the usual one of the project")
    return lines


def is_training(field: str) -> bool:
    """Whether a dotted field only matters in training."""
    return field.rsplit(".", 1)[-1] in _TRAINING


def _first_kernel(spec: ArchSpec) -> str:
    """Name of the kernel that reads the image."""
    return next(f"{node.name}.weight" for node in build_graph(spec).nodes if isinstance(node.op, Conv2d))


def _backbone(spec: ArchSpec, shapes: Shapes) -> BackboneSpec:
    """The backbone at the width multiplier that the shapes show; as it is where that is 1 or some tensor is absent."""
    backbone = spec.backbone
    if isinstance(backbone, MobileNetV2):
        names = ["backbone.stem.conv.weight", *(f"backbone.stage{n}.block1.project.conv.weight" for n in range(1, 8))]
        if not all(shapes.get(name) for name in names):
            return backbone
        width, divisor = find_width({name: shapes[name][0] for name in names}, first=backbone.depth_divisor)
        return backbone.replace(width=width, depth_divisor=divisor)
    first = _first_kernel(spec)
    wanted = shapes.get(first)
    for candidate in _scaled(backbone, wanted[0] if wanted else None):
        own = _shapes(spec, candidate)
        if all(shapes.get(name, shape) == shape for name, shape in own if name != first):
            return candidate
    return backbone


def _scaled(backbone: BackboneSpec, channels: int | None) -> Iterator[BackboneSpec]:
    """The backbone itself, then at every width in hundredths (and powers of a half) whose first kernel may fit."""
    yield backbone
    for width in (*(n / 100 for n in range(1, 401)), *(0.5**n for n in range(3, 7))):
        candidate = backbone.replace(width=width)
        # Every family's first kernel has 16, 32 or 64 channels in its paper.
        if channels in {candidate.scaled(count) for count in (16, 32, 64)}:
            yield candidate


def _shapes(spec: ArchSpec, backbone: BackboneSpec) -> Iterable[tuple[str, tuple[int, ...]]]:
    parameters = build_graph(spec.replace(backbone=backbone)).parameters()
    return [(name, shape) for name, shape in parameters.items() if name.startswith("backbone.")]
