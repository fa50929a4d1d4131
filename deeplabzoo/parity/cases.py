"""What is judged, and on which inputs."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.core.analysis import all_taps_live, live_taps, smallest_live_size
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import Weights, plain, seeded_weights
from deeplabzoo.errors import BackendError, GraphError, LayoutError, WeightsError
from deeplabzoo.models import WeightsLike, canonical_model
from deeplabzoo.weights_converter.canonical import Canonical
from deeplabzoo.zoo.models import named_spec

REFEREE = "numpy float64"
"""Name of the referee in tables."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What is judged.

    Attributes:
        spec: the architecture.
        graph: its graph.
        weights: canonical ones.
        title: for people.
        source: where the weights come from: `seed 0`, a file's name, `given weights`.
        preprocessing: what photos go through, as plain data.
    """

    spec: ArchSpec
    graph: Graph
    weights: Weights
    title: str
    source: str
    preprocessing: dict[str, Any] | None = None


@dataclass(frozen=True)
class Case:
    """One input: a batch of seeded normal images, or a photo.

    Attributes:
        batch: number of images.
        height: in pixels.
        width: in pixels.
        live: whether every tap of every atrous kernel reads a real pixel.
        photo: name of the photo's file; None for seeded images.
    """

    batch: int
    height: int
    width: int
    live: bool
    photo: str | None = None

    def __str__(self) -> str:
        size = f"{self.batch}x{self.height}x{self.width}"
        return size if self.photo is None else f"{self.photo} {size}"


def subject(
    arch: str | ArchSpec | None = None,
    *,
    weights: WeightsLike | None = None,
    seed: int = 0,
    narrow: int = 1,
    small_rates: bool = False,
    **options: Any,
) -> Subject:
    """Spec, graph and canonical weights (seeded lively ones by default). Arguments and errors as for `parity`."""
    preprocessing = None
    if weights is None:
        spec = named_spec(arch or "v3plus", **options).narrowed(narrow)
        spec = spec.with_small_rates() if small_rates else spec
        graph = build_graph(spec)
        arrays: Weights = seeded_weights(graph, seed, statistics="lively")
        source = f"seed {seed}"
    elif narrow != 1:
        raise BackendError(f"narrow = {narrow}: real weights have the channels they have; leave it out")
    elif small_rates:
        raise BackendError("small rates make another network of real weights; leave them out")
    else:
        model, _ = canonical_model(arch, weights=weights, **options)
        spec, graph, arrays = model.spec, model.graph, model.weights
        preprocessing = dict(model.card.preprocessing) if model.card.preprocessing else None
        source = Path(weights).name if isinstance(weights, str | Path) else _source_of(model)
    if spec.output.values == "labels":
        raise BackendError("a model that returns labels has no values to compare: use output.values = 'logits'")
    title = f"{spec.title}, stride {spec.output_stride}, {source}"
    title += f", channels divided by {narrow}" if narrow > 1 else ""
    title += ", small rates" if small_rates else ""
    return Subject(spec, graph, arrays, title, source, preprocessing)


def counterpart(against: WeightsLike, spec: ArchSpec) -> tuple[Canonical, tuple[str, ...]]:
    """The model to judge against one of `spec`, and notes on what nobody said of it.

    Tensors by our own names with no spec beside them, as a training script saves them, say nothing of strides, rates and
    the like: that is then taken from `spec`, where they fit it. Other projects' files have their projects' defaults.

    Raises:
        WeightsError, FormatError, LayoutError, DownloadError: wrong weights.
    """
    if isinstance(against, Canonical):
        return against, ()
    if isinstance(against, Mapping):
        return canonical_model(spec, weights=against)[0], ()
    name = Path(against).name
    model = called(canonical_model(weights=against)[0], name)
    assumed = model.card.provenance.get("assumed")
    if not assumed:
        return model, ()
    if model.card.provenance.get("layout") == "deeplabzoo" and model.spec != spec:
        with contextlib.suppress(LayoutError, WeightsError):
            fitting = canonical_model(spec, weights=against)[0]
            return called(fitting, name), (f"{name} has no spec with it: what no tensor tells is as in {spec.title}",)
    return model, (f"of {name} is assumed, because no tensor tells: {assumed}",)


def called(model: Canonical, name: str) -> Canonical:
    """The model under the name of the file that it was read from just now, not of one that this was made of."""
    return replace(model, card=replace(model.card, provenance={**model.card.provenance, "source": name}))


def _source_of(model: Canonical) -> str:
    """What a model in memory was read from, where it knows."""
    return str(model.card.provenance.get("source") or "given weights")


def default_cases(spec: ArchSpec) -> list[Case]:
    """An odd input with all taps live, and an even one; neither square, batch 2."""
    graph = build_graph(spec)
    side = smallest_live_size(graph, 32)
    return [case_of(graph, 2, side, side + 32), case_of(graph, 2, 96, 128)]


def case_of(graph: Graph, batch: int, height: int, width: int) -> Case:
    """An input of a size; `GraphError` where the network can't take it."""
    if min(height, width) < 1:
        raise GraphError(f"size {height}x{width}: expected at least 1x1")
    graph.shapes(height, width)
    return Case(batch, height, width, all_taps_live(graph, height, width))


def output_shapes(graph: Graph, case: Case) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs by name, N, C, H, W."""
    shapes = graph.shapes(case.height, case.width, case.batch)
    return {name: shapes[node] for name, node in graph.outputs}


def seeded_image(graph: Graph, case: Case, seed: int, place: int = 0) -> np.ndarray:
    """Normal images N, C, H, W in float64 that depend on the seed and the place of the case among its likes."""
    shape = (case.batch, graph.input.op.attributes()["channels"], case.height, case.width)
    return np.random.default_rng([seed, place]).standard_normal(shape)


def dead_taps(graph: Graph, case: Case) -> list[str]:
    """Atrous kernels with taps that read nothing but padding in a case, as `node: live of total`."""
    return [
        f"{taps.node}: {taps.live} of {taps.total}"
        for taps in live_taps(graph, case.height, case.width)
        if taps.live < taps.total
    ]


def weights_digest(graph: Graph, weights: Weights) -> str:
    """SHA-256 over names, dtypes, shapes and values of the graph's parameters, in canonical order."""
    total = hashlib.sha256()
    for name in graph.parameters():
        array = np.ascontiguousarray(plain(weights[name]))
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
