"""Trace parity of a model of one's own: a live network of PyTorch, Paddle or Keras against the referee, in this process.

The names by which the converter knows the model's tensors say which module is which node; hooks take what the modules
give. What lies between (sums, resizes, activations that are calls, not modules) has no name in the model: it is judged
by the first node after it that has one, and the network's outputs by what the model returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.core import ops
from deeplabzoo.core.analysis import smallest_live_size
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import Weights
from deeplabzoo.errors import BackendError, FormatError, LayoutError
from deeplabzoo.models import WeightsLike, canonical_model, check_images
from deeplabzoo.parity.cases import REFEREE, Case, case_of, seeded_image
from deeplabzoo.parity.compare import BOUNDS
from deeplabzoo.parity.hooks import LiveModel, live_model
from deeplabzoo.parity.matching import Match, Store, listed
from deeplabzoo.parity.trace import Trace, first_jump, nearest_seen, slowly
from deeplabzoo.weights_converter.formats import Checkpoint
from deeplabzoo.weights_converter.layouts import Entry, Layout, detect_layout, get_layout
from deeplabzoo.weights_converter.layouts.base import hollow
from deeplabzoo.weights_converter.layouts.fit import fitted
from deeplabzoo.weights_converter.ledger import to_canonical
from deeplabzoo.weights_converter.native import checkpoint_of, is_native
from deeplabzoo.zoo.models import named_spec


@dataclass(frozen=True)
class ModelTrace(Trace):
    """Outcome of tracing a model of one's own; nodes that no module gives have no row.

    Attributes:
        modules: path of the module, and its class, by node.
        unmatched: paths of the modules that are no node, those that hold others left out.
        suspects: nodes without a row that the blamed one reads and nothing before it has cleared: the fault is in it or
            in one of these.
        expected: shape of the blamed node in the network; empty where none is to blame.
        notes: whatever else was found, one line each.
    """

    modules: Mapping[str, str] = field(default_factory=dict, repr=False)
    unmatched: tuple[str, ...] = field(default=(), repr=False)
    suspects: tuple[str, ...] = ()
    expected: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no node is to blame and what the model returns was judged, all of it within the bound."""
        return super().passed and {row.node for row in self.rows}.issuperset(self.outputs) and bool(self.outputs)

    def lines(self) -> list[str]:
        """The first node to blame, its module, and what else it may be, or the largest error; then the notes."""
        told = [self._verdict(), *(f"note: {note}" for note in self.notes)]
        return told + ([f"modules that are no node: {listed(self.unmatched)}"] if self.unmatched else [])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **super().to_dict(),
            "modules": dict(self.modules),
            "unmatched": list(self.unmatched),
            "suspects": list(self.suspects),
            "notes": list(self.notes),
        }

    def _verdict(self) -> str:
        ((side, first),) = self.blamed.items()
        if first is None:
            if side in self.grown:
                return f"{side}: {slowly(self.grown[side], self._named(self.grown[side].node))}"
            worst = max(self.rows, key=lambda row: row.error)
            return f"{side}: no node is to blame; largest error {worst.error:.1e} at {self._named(worst.node)}"
        shape = "x".join(map(str, first.shape))
        what = f"the error jumps to {first.error:.1e}"
        if first.shape != self.expected:
            what, shape = "the shape differs first", f"{shape}, expected {'x'.join(map(str, self.expected))}"
        line = f"{side}: {what} at {self._named(first.node)}, {shape}: {first.op}"
        if self.suspects:
            line += f"; or the fault is in what it reads and no module shows: {listed(self.suspects)}"
        return line

    def _named(self, node: str) -> str:
        return f"{node} ({self.modules[node]})"


def trace_model(
    model: Any,
    x: np.ndarray | None = None,
    *,
    spec: ArchSpec | str | None = None,
    weights: WeightsLike | None = None,
    layout: str | None = None,
    names: Mapping[str, str] | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    bound: float | None = None,
) -> ModelTrace:
    """Compare what the modules of a live model give with the numpy referee's nodes in float64, in the order of the graph.

    The model that is given runs once, in evaluation mode, in its own dtype, and what it returns is judged too; its
    values lie in a temporary folder until they are compared, so that memory holds two nodes beside what the network
    itself needs. Errors count from 1e-11 in float64 and from 2e-5 in float32, in Paddle and Keras always, whose own resizes work in float32 whatever goes in.

    Without a spec the network is the one that the layout's project publishes, with the classes and widths that the
    tensors tell: strides, rates and epsilons are not taken from the model, which would judge it by itself. A model of
    this package has its spec with it.

    Args:
        model: of PyTorch, Paddle or Keras, of any class whose tensor names a layout has.
        x: preprocessed images N, C, H, W (for Keras too); seeded normal ones by default.
        spec: the network to judge against, or the name of a preset.
        weights: those to judge against, a file or canonical arrays, whose spec is taken where none is given; the
            model's own by default.
        layout: name of the layout; told from the names by default.
        names: nodes of more modules, by the module's path: `{"classifier.0.project.2": "aspp.fusion.relu"}`. With a
            spec, weights and all names given, the model need have no known layout.
        size: height and width of the seeded images; by default the smallest at which all taps are live.
        seed: of the images.
        bound: smallest error that counts; see `parity.compare.BOUNDS`.

    Raises:
        FormatError: no model of these frameworks.
        LayoutError: the layout can't be told, or the tensors do not fit it.
        GraphError: unknown names, images that do not fit, or a model that returns no scores.
        BackendError: the model does not run, or has a dtype without a bound; a bound that is none.
    """
    if bound is not None and not 0 < bound < float("inf"):
        raise BackendError(f"bound = {bound!r}: expected a finite number above 0")
    if not is_native(model):
        raise FormatError(f"a {type(model).__name__} can't be traced: expected a model of PyTorch, Paddle or Keras")
    checkpoint, own = checkpoint_of(model)
    if weights is not None and not isinstance(weights, Mapping):
        given, _ = canonical_model(weights=weights)
        spec, weights = spec or given.spec, given.weights
    known = _layout(checkpoint, layout, free=bool(names) and spec is not None and weights is not None)
    wanted = _spec(checkpoint, known, spec or own)
    graph, live = build_graph(wanted), live_model(model, checkpoint.tensors, checkpoint.format)
    judged = live.dtype if live.exact or live.dtype != "float64" else "float32"
    floor = BOUNDS.get(judged) if bound is None else bound
    if floor is None:
        raise BackendError(f"a model in {live.dtype} was given no bound: expected one, or {' or '.join(BOUNDS)}")
    case, image = _image(wanted, x, size, seed)
    image = live.rounded(image)
    entries = known.entries(wanted, checkpoint.format, checkpoint.tensors)
    match = Match(graph, live, entries, names or {}, own_names=known.name == "deeplabzoo")
    truth = _weights(checkpoint, known, wanted, entries) if weights is None else weights
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        returned = live.run(image, match.watched, store.take)
        match.settle(store, returned, case)
        exact = _with_own_epsilons(graph, live, match.paths)
        rows = tuple(store.rows(exact, truth, image.astype(np.float64), match.paths, live.backend.name))
    side = live.backend.name
    found = ModelTrace(
        f"{type(model).__name__} in memory against {wanted.title}, stride {wanted.output_stride}",
        graph.digest(),
        live.dtype,
        case,
        REFEREE,
        floor,
        {side: live.backend.versions()},
        rows,
        {side: first_jump(graph, rows, floor)},
        modules=match.described(),
        unmatched=match.unmatched(),
        outputs=tuple(match.outputs),
        notes=(*checkpoint.notes, *live.notes, *_strangers(checkpoint, known, entries), *match.notes),
    )
    return _with_suspects(found, graph)


def _layout(checkpoint: Checkpoint, name: str | None, *, free: bool) -> Layout:
    """The layout; our own, which then matches nothing, where the caller says all else (`free`)."""
    if name is not None:
        return get_layout(name).bound(checkpoint)
    try:
        return detect_layout(checkpoint)[0].bound(checkpoint)
    except LayoutError as error:
        if not free:
            raise LayoutError(str(error).replace("--from-layout", "layout=")) from None
        return get_layout("deeplabzoo")


def _spec(checkpoint: Checkpoint, layout: Layout, spec: ArchSpec | str | None) -> ArchSpec:
    """The network to judge against; what the modules say of strides, rates and epsilons is left aside."""
    if isinstance(spec, ArchSpec):
        return spec
    if spec is None:
        aside = ("graph", "config") if checkpoint.format == "keras2-h5" else ("graph",)
        facts = {name: value for name, value in checkpoint.facts.items() if name not in aside}
        return layout.read_spec(dataclasses.replace(checkpoint, facts=facts)).spec
    preset, shapes = named_spec(spec), {}
    for entry in layout.entries(preset, checkpoint.format, checkpoint.tensors):
        if entry.foreign in checkpoint.tensors:
            with contextlib.suppress(ValueError):  # another number of axes, which comes out when weights are read
                shape = checkpoint.tensors[entry.foreign].shape
                shapes[entry.canonical] = entry.transform.forward(hollow(shape)).shape
    return fitted(preset, shapes)


def _image(spec: ArchSpec, x: np.ndarray | None, size: tuple[int, int] | None, seed: int) -> tuple[Case, np.ndarray]:
    graph = build_graph(spec)
    if x is not None:
        image = check_images(graph, x)
        return case_of(graph, image.shape[0], image.shape[2], image.shape[3]), image
    side = smallest_live_size(graph, spec.output_stride)
    # Not square, so that rows for columns show.
    case = case_of(graph, 1, *((side, side + spec.output_stride) if size is None else size))
    return case, seeded_image(graph, case, seed)


def _weights(checkpoint: Checkpoint, layout: Layout, spec: ArchSpec, entries: list[Entry]) -> Weights:
    """The model's own, without the tensors that no node has, of which a note tells."""
    used = {entry.foreign for entry in entries}
    tensors = {name: array for name, array in checkpoint.tensors.items() if name in used}
    return to_canonical(tensors, layout, spec, checkpoint.format).weights


def _with_own_epsilons(graph: Graph, live: LiveModel, paths: Mapping[str, str]) -> Graph:
    """The graph with the model's epsilons where they are the graph's in float32: not every framework rounds them.

    Where variances are small the difference would show in float64 as a fault that is none.
    """
    nodes = []
    for node in graph.nodes:
        path, op = paths.get(node.name, ""), node.op
        own = live.epsilon(path) if path in live.modules else None
        if isinstance(op, ops.BatchNorm) and own and ops.float32_exact(own) == ops.float32_exact(op.epsilon):
            op = dataclasses.replace(op, epsilon=own)
        nodes.append(dataclasses.replace(node, op=op))
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _strangers(checkpoint: Checkpoint, layout: Layout, entries: list[Entry]) -> list[str]:
    used = {entry.foreign for entry in entries}
    strange = [name for name in checkpoint.tensors if name not in used and layout.ignored(name) is None]
    return [f"the model has tensors that the network has not: {listed(strange)}"] if strange else []


def _with_suspects(found: ModelTrace, graph: Graph) -> ModelTrace:
    """The trace with the shape that the blamed node should have, and the nodes without a row that may be at fault."""
    (first,) = found.blamed.values()
    if first is None:
        return found
    seen = {row.node for row in found.rows}
    cleared: set[str] = set()
    for row in found.rows[: found.rows.index(first)]:
        cleared.update(nearest_seen(graph, row.node, seen)[1])
    idle = (ops.Input, ops.Dropout)
    passed = set(nearest_seen(graph, first.node, seen)[1]) - cleared
    suspects = tuple(node.name for node in graph.nodes if node.name in passed and not isinstance(node.op, idle))
    shapes = graph.shapes(found.case.height, found.case.width, found.case.batch)
    return dataclasses.replace(found, suspects=suspects, expected=shapes[first.node])
