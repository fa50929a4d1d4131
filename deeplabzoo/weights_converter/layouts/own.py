"""Our own names: canonical in safetensors and `.pth`, Paddle's idiom in `.pdparams`, Keras' paths in `.weights.h5`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph, Node
from deeplabzoo.core.ops import Conv2d
from deeplabzoo.core.spec import ArchSpec, make_spec
from deeplabzoo.errors import GraphError, LayoutError, SpecError
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.keras_paths import (
    keras_layer_name,
    keras_node_name,
    keras_variable_paths,
    training_state,
)
from deeplabzoo.weights_converter.layouts.base import (
    Entry,
    Layout,
    Reading,
    described,
    hollow,
    require_labels,
    shapes_of,
    with_counters,
)
from deeplabzoo.weights_converter.layouts.graph_facts import informed_by_graph
from deeplabzoo.weights_converter.layouts.own_shapes import scores_name, told_options
from deeplabzoo.weights_converter.layouts.rules import keras
from deeplabzoo.weights_converter.transforms import HWIO, IDENTITY, Transform, depthwise

_PADDLE = {"running_mean": "_mean", "running_var": "_variance"}
_POSITIONAL = ("keras-h5", "keras")
"""Formats in which a variable's name is its layer's place in the model."""

_FLAT = re.compile(r"layers/[^/]+/vars/\d+|(optimizer|_trainable).*")
_KERAS_VARIABLES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_KERAS_NORM = ("weight", "bias", "running_mean", "running_var")


class OwnLayout(Layout):
    """What this package writes for each framework."""

    name = "deeplabzoo"
    title = "DeepLabZoo's own names, in each framework's idiom"
    writes = ("safetensors", "torch", "paddle", "keras-h5", "keras", "keras2-h5", "npz", "onnx")

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        """Make the layout for any file, or for one whose groups are of layers of these names."""
        self._labels = labels or {}

    def bound(self, checkpoint: Checkpoint) -> Layout:
        """The layout that holds a file of counted paths to the names of its layers."""
        return OwnLayout(checkpoint.labels) if checkpoint.format in _POSITIONAL else self

    def recognise(self, checkpoint: Checkpoint) -> str:
        """Our name of the classifier, or Keras' positional paths."""
        if checkpoint.format in _POSITIONAL:
            if nested := next((name for name in checkpoint.tensors if not _FLAT.fullmatch(name)), None):
                raise LayoutError(f"{nested!r} is no path of a plain model, 'layers/conv2d.../vars/0'")
            ours = ("classifier__conv", "classifier__branch1")
            if checkpoint.labels and not any(label in ours for label in checkpoint.labels.values()):
                raise LayoutError(f"no Keras layer named {' or '.join(map(repr, ours))}")
            return "Keras 3 paths" + (" with our layer names" if checkpoint.labels else ", which carry no names")
        if layer := _by_layer(checkpoint.tensors):
            return f"has {layer}, a Keras layer of ours"
        scores = scores_name(checkpoint.tensors)
        trunk = next((name for name in checkpoint.tensors if name.startswith("backbone.")), None)
        if trunk is None:
            raise LayoutError("no tensor of a backbone")
        # torchvision and others say `backbone.` too; our part after it is none of theirs, nor are our scores.
        return f"has {scores}, {trunk}"

    def read_spec(self, checkpoint: Checkpoint) -> Reading:
        """Everything that shapes tell; the rest is the default of `make_spec`."""
        shapes = _canonical_shapes(checkpoint)
        given, told = told_options(shapes)
        try:
            spec = make_spec(**given)
        except SpecError as error:
            raise LayoutError(f"the tensors describe no network of this version: {error}") from None
        wanted = build_graph(spec).parameters()
        if wrong := next((name for name in wanted if shapes.get(name) != wanted[name]), None):
            raise LayoutError(
                f"the tensors look like {spec.title}, but {wrong} is {shapes.get(wrong, 'absent')}, expected "
                f"{wanted[wrong]}: give the spec with --spec FILE.toml"
            )
        self._check_graph(checkpoint, spec)
        table = self.entries(spec, checkpoint.format, checkpoint.tensors)
        spec, shown, notes = informed_by_graph(spec, checkpoint.facts, table)
        named = {*told, *shown}
        assumed = [line for line in described(spec.to_dict()) if line.split(" = ")[0] not in named]
        lines = tuple(line for line in described(spec.to_dict()) if line not in assumed)
        return Reading(spec, lines, tuple(assumed), tuple(notes))

    def ignored(self, foreign: str) -> str | None:
        """What a compiled Keras model keeps beside its layers."""
        return training_state(foreign)

    def _check_graph(self, checkpoint: Checkpoint, spec: ArchSpec) -> None:
        """A `.keras` file of ours holds its graph, which must not be another than the one the tensors seem to have."""
        config = checkpoint.facts.get("config")
        inner = config.get("config") if isinstance(config, Mapping) else None
        text = inner.get("graph") if isinstance(inner, Mapping) else None
        if not isinstance(text, str):
            return
        try:
            own = Graph.from_json(text)
        except GraphError as error:
            raise LayoutError(f"the file's own graph is broken: {error}") from None
        if own != build_graph(spec):
            raise LayoutError(
                "the file's own graph differs from the network that its tensors and the defaults give: keep the .toml "
                "beside it, or give the spec with --spec FILE.toml"
            )

    def entries(self, spec: ArchSpec, file_format: str, names: Collection[str] = ()) -> list[Entry]:
        """Identical names; `_mean` and `_variance` for Paddle; paths and HWIO kernels for Keras."""
        graph = build_graph(spec)
        if file_format == "keras2-h5" or _by_layer(names):
            return [_layer_entry(node, name) for node in graph.nodes for name in node.parameters()]
        if file_format in _POSITIONAL:
            paths = keras_variable_paths(graph)
            places = {path.rpartition("/vars/")[0]: name.rpartition(".")[0] for name, path in paths.items()}
            require_labels(self._labels, places, _node_named)
            return [
                Entry(paths[name], name, _keras_transform(node.op, name))
                for node in graph.nodes
                for name in node.parameters()
            ]
        if file_format == "paddle":
            return [Entry(_paddle_name(name), name) for name in graph.parameters()]
        entries = [Entry(name, name) for name in graph.parameters()]
        return with_counters(spec, entries, {node.name: node.name for node in graph.nodes})


def _node_named(layer: str) -> str | None:
    """The node of a layer of ours; none for a name that Keras gave (`conv2d_4`)."""
    return keras_node_name(layer) if "__" in layer else None


def _layer_entry(node: Node, name: str) -> Entry:
    foreign, transform = keras(node, keras_layer_name(node.name), name.rsplit(".", 1)[1])
    # Keras 3, in which our layers live, calls every kernel so; `depthwise_kernel` is Keras 2's.
    return Entry(foreign.replace("/depthwise_kernel", "/kernel"), name, transform)


def _by_layer(names: Collection[str]) -> str | None:
    """The class scores as a variable of a Keras layer of ours, where a file names variables by layer."""
    return next((name for name in ("classifier__conv/kernel", "classifier__branch1/kernel") if name in names), None)


def _keras_transform(op: object, name: str) -> Transform:
    if not isinstance(op, Conv2d) or not name.endswith(".weight"):
        return IDENTITY
    return depthwise(op.in_channels) if op.depthwise else HWIO


def _paddle_name(name: str) -> str:
    node, suffix = name.rsplit(".", 1)
    return f"{node}.{_PADDLE.get(suffix, suffix)}"


def _canonical_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    shapes = shapes_of(checkpoint)
    if _by_layer(shapes):
        canonical = {}
        for name, shape in shapes.items():
            layer, _, variable = name.rpartition("/")
            shape = shape if len(shape) != 4 else _oihw(shape, depthwise_kernel="depthwise" in layer)
            canonical[f"{keras_node_name(layer)}.{_KERAS_VARIABLES.get(variable, variable)}"] = shape
        return canonical
    if checkpoint.format == "paddle":
        back = {theirs: ours for ours, theirs in _PADDLE.items()}
        split = [(name.rsplit(".", 1), shape) for name, shape in shapes.items()]
        return {f"{parts[0]}.{back.get(parts[-1], parts[-1])}": shape for parts, shape in split}
    if checkpoint.format not in _POSITIONAL:
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
            shape = _oihw(shape, depthwise_kernel="depthwise" in group)
        canonical[f"{node}.{suffix}"] = shape
    return canonical


def _oihw(shape: tuple[int, ...], *, depthwise_kernel: bool) -> tuple[int, ...]:
    """Canonical shape of a kernel that Keras has as HWIO or HWCM."""
    return (depthwise(shape[2]) if depthwise_kernel else HWIO).forward(hollow(shape)).shape
