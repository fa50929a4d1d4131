"""Our own names: canonical in safetensors and `.pth`, Paddle's idiom in `.pdparams`, Keras' paths in `.weights.h5`."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

import numpy as np

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.backbones import BACKBONES, ResNet
from deeplabzoo.core.graph import GraphBuilder
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.sections import BRANCHES
from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.errors import LayoutError, SpecError
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.keras_paths import keras_node_name, keras_variable_paths
from deeplabzoo.weights_converter.layouts.base import (
    Entry,
    Layout,
    Reading,
    Shapes,
    described,
    dimension,
    shapes_of,
    with_counters,
)
from deeplabzoo.weights_converter.layouts.widths import find_width
from deeplabzoo.weights_converter.transforms import HWIO, IDENTITY, Transform, depthwise

_PADDLE = {"running_mean": "_mean", "running_var": "_variance"}
_AMBIGUOUS = "separable_bn_relu"
"""The kind assumed (TF's) where an inner batch norm shows: `separable_bn` (PaddleSeg) has the same tensors."""
_KERAS_NORM = ("weight", "bias", "running_mean", "running_var")


class OwnLayout(Layout):
    """What this package writes for each framework."""

    name = "deeplabzoo"
    title = "DeepLabZoo's own names, in each framework's idiom"
    writes = ("safetensors", "torch", "paddle", "keras-h5")

    def recognise(self, checkpoint: Checkpoint) -> str:
        """Our name of the classifier, or Keras' positional paths."""
        if checkpoint.format == "keras-h5":
            if not any(name.startswith("layers/conv2d") for name in checkpoint.tensors):
                raise LayoutError("no Keras path 'layers/conv2d...'")
            if checkpoint.labels and not any(label == "classifier__conv" for label in checkpoint.labels.values()):
                raise LayoutError("no Keras layer named 'classifier__conv'")
            return "Keras 3 paths" + (" with our layer names" if checkpoint.labels else ", which carry no names")
        scores = _scores(checkpoint.tensors)
        trunk = next((name for name in checkpoint.tensors if name.startswith("backbone.s")), None)
        if trunk is None:
            raise LayoutError("no tensor of a backbone's stem or first stage")
        return f"has {scores}, {trunk}"

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """Everything that shapes tell; the rest is the default of `make_spec`."""
        shapes = _canonical_shapes(checkpoint)
        given, told = _options(shapes) if "aspp.fusion.conv.weight" in shapes else _head_options(shapes)
        try:
            spec = make_spec(**given)  # type: ignore[arg-type]
        except SpecError as error:
            raise LayoutError(f"the tensors describe no network of this version: {error}") from None
        named = set(told)
        assumed = [line for line in described(spec.to_dict()) if line.split(" = ")[0] not in named]
        return Reading(spec, tuple(line for line in described(spec.to_dict()) if line not in assumed), tuple(assumed))

    def entries(self, spec: ArchSpec, file_format: str) -> list[Entry]:
        """Identical names; `_mean` and `_variance` for Paddle; paths and HWIO kernels for Keras."""
        graph = build_graph(spec)
        if file_format == "keras-h5":
            paths = keras_variable_paths(graph)
            return [
                Entry(paths[name], name, _keras_transform(node.op, name))
                for node in graph.nodes
                for name in node.parameters()
            ]
        if file_format == "paddle":
            return [Entry(_paddle_name(name), name) for name in graph.parameters()]
        entries = [Entry(name, name) for name in graph.parameters()]
        return with_counters(spec, entries, {node.name: node.name for node in graph.nodes})


def _keras_transform(op: object, name: str) -> Transform:
    if not isinstance(op, Conv2d) or not name.endswith(".weight"):
        return IDENTITY
    return depthwise(op.in_channels) if op.depthwise else HWIO


def _paddle_name(name: str) -> str:
    node, suffix = name.rsplit(".", 1)
    return f"{node}.{_PADDLE.get(suffix, suffix)}"


def _canonical_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    shapes = shapes_of(checkpoint)
    if checkpoint.format == "paddle":
        back = {theirs: ours for ours, theirs in _PADDLE.items()}
        split = [(name.rsplit(".", 1), shape) for name, shape in shapes.items()]
        return {f"{parts[0]}.{back.get(parts[-1], parts[-1])}": shape for parts, shape in split}
    if checkpoint.format != "keras-h5":
        return shapes
    if not checkpoint.labels:
        raise LayoutError(
            "a Keras weights file without layer names tells nothing but an order: give its spec with --spec FILE.toml"
        )
    canonical = {}
    for path, shape in shapes.items():
        group, _, index = path.rpartition("/vars/")
        node = keras_node_name(checkpoint.labels.get(group, group))
        suffix = _KERAS_NORM[int(index)] if index.isdigit() and int(index) < 4 else index
        if len(shape) == 4:
            transform = depthwise(shape[2]) if "depthwise" in group else HWIO
            # Shapes are all that is wanted here, so a view without memory of its own does.
            shape = transform.forward(_hollow(shape)).shape
        canonical[f"{node}.{suffix}"] = shape
    return canonical


def _options(shapes: Shapes) -> tuple[dict[str, object], list[str]]:
    """Arguments of `make_spec` that the shapes tell, and the dotted names of the fields they settle."""
    plus = any(name.startswith("decoder.") for name in shapes)
    backbone = _backbone(shapes)
    branches = {int(m[1]) for name in shapes if (m := re.match(r"aspp\.branch(\d+)\.", name))}
    order = [
        kind
        for kind, there in zip(
            BRANCHES, (0 in branches, bool(branches - {0}), "aspp.image_pooling.conv.weight" in shapes), strict=True
        )
        if there
    ]
    aspp: dict[str, object] = {
        "channels": dimension(shapes, "aspp.fusion.conv.weight", 0),
        "fusion_kernel": dimension(shapes, "aspp.fusion.conv.weight", 2),
        "bias": "aspp.fusion.conv.bias" in shapes,
        "pool_bias": "aspp.image_pooling.conv.bias" in shapes,
        "post_conv": _kind(shapes, "aspp.post") if any(n.startswith("aspp.post.") for n in shapes) else "none",
        "order": order,
    }
    told = ["arch", "num_classes", "in_channels", *(f"backbone.{key}" for key in backbone)]
    told += [f"aspp.{key}" for key in aspp if key != "order"]
    if branches - {0}:
        aspp["branch"] = _kind(shapes, "aspp.branch1")
        told.append("aspp.branch")
        if len(branches - {0}) != 3:
            raise LayoutError(
                "the rates of other than three branches have no default: give the spec with --spec FILE.toml"
            )
    given: dict[str, object] = {
        "arch": "v3plus" if plus else "v3",
        "backbone": backbone,
        "num_classes": dimension(shapes, _scores(shapes), 0),
        "in_channels": _in_channels(shapes),
        "aspp": aspp,
        "classifier": {"bias": "classifier.conv.bias" in shapes},
    }
    if plus:
        convs = {int(m[1]) for name in shapes if (m := re.match(r"decoder\.conv(\d+)\.", name))}
        kind = _kind(shapes, "decoder.conv1")
        first = "decoder.conv1.conv.weight" if kind == "plain" else "decoder.conv1.depthwise.conv.weight"
        given["decoder"] = {
            "low_level_channels": dimension(shapes, "decoder.low_level.conv.weight", 0),
            "conv": kind,
            "convs": len(convs),
            "kernel": dimension(shapes, first, 2),
            "channels": dimension(shapes, first if kind == "plain" else "decoder.conv1.pointwise.conv.weight", 0),
            "bias": "decoder.low_level.conv.bias" in shapes,
        }
        told += [f"decoder.{key}" for key in given["decoder"]]  # type: ignore[attr-defined]
    if "aux.classifier.weight" in shapes:
        given["aux"] = {"channels": dimension(shapes, "aux.classifier.weight", 1)}
        told.append("aux.channels")
    # Whether a ReLU follows the inner batch norm no tensor tells: TF's kind is an assumption.
    tables = {"aspp": aspp, "decoder": given.get("decoder", {})}
    told = [name for name in told if _field(tables, name) != _AMBIGUOUS]
    return given, [*told, "classifier.bias"]


def _field(tables: Mapping[str, object], name: str) -> object:
    section, _, field = name.partition(".")
    table = tables.get(section)
    return table.get(field) if isinstance(table, Mapping) else None


def _head_options(shapes: Shapes) -> tuple[dict[str, object], list[str]]:
    """The same for a head of summed branches: v1 with one, v2 with more."""
    scores = sorted(name for name in shapes if re.fullmatch(r"classifier\.(conv|branch\d+)\.weight", name))
    first = "head.branch1.hidden{}.conv.weight"
    hidden: list[int] = []
    while first.format(len(hidden) + 1) in shapes:
        hidden.append(dimension(shapes, first.format(len(hidden) + 1), 0))
    backbone = _backbone(shapes)
    head: dict[str, object] = {"hidden": hidden}
    if len(scores) == 1:
        head["kernel"] = dimension(shapes, first.format(1) if hidden else scores[0], 2)
    elif len(scores) != 4:
        raise LayoutError(f"the rates of {len(scores)} branches have no default: give the spec with --spec FILE.toml")
    given: dict[str, object] = {
        "arch": "v2" if len(scores) > 1 else "v3" if "cascade" in backbone else "v1",
        "backbone": backbone,
        "num_classes": dimension(shapes, _scores(shapes), 0),
        "in_channels": _in_channels(shapes),
        "head": head,
        "classifier": {"bias": scores[0].replace(".weight", ".bias") in shapes},
    }
    told = ["arch", "num_classes", "in_channels", *(f"backbone.{key}" for key in backbone), "head.hidden"]
    return given, [*told, "classifier.bias", *(["head.kernel"] if "kernel" in head else [])]


def _scores(names: Collection[str]) -> str:
    """The kernel of the class scores; `LayoutError` without one."""
    found = next((name for name in ("classifier.conv.weight", "classifier.branch1.weight") if name in names), None)
    if found is None:
        raise LayoutError("no tensor 'classifier.conv.weight'")
    return found


def _in_channels(shapes: Shapes) -> int:
    """Channels of the image: what the first kernel of the backbone reads."""
    first = ("backbone.stem.conv.weight", "backbone.stem.conv1.weight", "backbone.stage1.conv1.weight")
    return dimension(shapes, next((name for name in first if name in shapes), first[0]), 1)


def _backbone(shapes: Shapes) -> dict[str, object]:
    """A backbone whose tensors are these: a MobileNetV2 of any width, or one of `_candidates`."""
    if (
        "backbone.stage1.block1.project.conv.weight" in shapes
        and "backbone.stage7.block1.project.conv.weight" in shapes
    ):
        names = ["backbone.stem.conv.weight"]
        names += [f"backbone.stage{stage}.block1.project.conv.weight" for stage in range(1, 8)]
        width, divisor = find_width({name: dimension(shapes, name, 0) for name in names})
        table = {"name": "mobilenet_v2", "width": width, "depth_divisor": divisor}
        return {**table, "end": "last"} if "backbone.last.conv.weight" in shapes else table
    tensors = {name for name in shapes if name.startswith("backbone.")}
    for candidate in _candidates():
        if tensors == _tensor_names(json.dumps(candidate), 16):
            return candidate
    raise LayoutError(
        f"the {len(tensors)} tensors of the backbone are those of none of {', '.join(BACKBONES)}: give the spec with "
        "--spec FILE.toml"
    )


def _candidates() -> Iterator[dict[str, object]]:
    """Every backbone, ResNets with each stem and with the copied blocks of the cascaded v3."""
    for name, family in BACKBONES.items():
        for stem in ("7x7", "v1c", "beta") if family is ResNet else ("",):
            for cascade in (0, 3) if family is ResNet else (0,):
                yield {"name": name, **({"stem": stem} if stem else {}), **({"cascade": cascade} if cascade else {})}


@lru_cache(maxsize=64)
def _tensor_names(candidate: str, output_stride: int) -> frozenset[str]:
    builder = GraphBuilder()
    table = json.loads(candidate)
    features = BACKBONES[table["name"]].from_dict(table).add(builder, builder.input(3), output_stride)
    return frozenset(builder.finish({"out": features.out}).parameters())


def _kind(shapes: Shapes, group: str) -> str:
    """Kind of a convolution; with an inner batch norm the `_AMBIGUOUS` one."""
    if f"{group}.conv.weight" in shapes:
        return "plain"
    return _AMBIGUOUS if f"{group}.depthwise.bn.weight" in shapes else "separable"


def _hollow(shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.zeros((), np.float32), shape)
