"""Forward parity: run one graph in isolated workers and compare all outputs, pair by pair and with the referee."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deeplabzoo.backends import Backend, resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core import reference
from deeplabzoo.core.analysis import all_taps_live, live_taps, smallest_live_size
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import Weights, seeded_weights
from deeplabzoo.errors import BackendError, GraphError
from deeplabzoo.models import WeightsLike, canonical_model, check_runtime
from deeplabzoo.parity.compare import BOUNDS, error, label_agreement
from deeplabzoo.zoo.models import named_spec

REFEREE = "numpy float64"
"""Name of the referee in tables."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """One input: a batch of seeded normal images.

    Attributes:
        batch: number of images.
        height: in pixels.
        width: in pixels.
        live: whether every tap of every atrous kernel reads a real pixel.
    """

    batch: int
    height: int
    width: int
    live: bool

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: the input.
        output: `out` or `aux`.
        first: what was judged.
        second: what it was judged against.
        error: max|a - b| / max|b|.
        labels: share of pixels with the same label.
    """

    case: Case
    output: str
    first: str
    second: str
    error: float
    labels: float


@dataclass(frozen=True)
class Report:
    """Outcome of a parity run; `passed` says whether every error is within `bound`."""

    model: str
    digest: str
    dtype: str
    device: str
    bound: float
    versions: dict[str, dict[str, str]]
    devices: dict[str, str]
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether there were comparisons and all errors are within the bound."""
        return bool(self.rows) and all(row.error <= self.bound for row in self.rows)

    @property
    def worst(self) -> Row:
        """The row with the largest error."""
        return max(self.rows, key=lambda row: row.error)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "graph_sha256": self.digest,
            "dtype": self.dtype,
            "device": self.device,
            "bound": self.bound,
            "passed": self.passed,
            "versions": self.versions,
            "devices": self.devices,
            "rows": [
                {
                    "input": str(row.case),
                    "all_taps_live": row.case.live,
                    "output": row.output,
                    "first": row.first,
                    "second": row.second,
                    "error": row.error,
                    "labels_equal": row.labels,
                }
                for row in self.rows
            ],
        }


def parity(
    arch: str | ArchSpec | None = None,
    *,
    backends: Sequence[str] = ("torch", "paddle", "keras"),
    dtype: str = "float64",
    device: str = "cpu",
    weights: WeightsLike | None = None,
    seed: int = 0,
    sizes: Iterable[tuple[int, int]] | None = None,
    bound: float | None = None,
    narrow: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Judge whether a model computes the same in every backend.

    In float64 every pair of backends is compared, and each backend with a numpy referee written from the op docstrings.
    In float32 each backend is judged against the referee's float64 truth. With `device="gpu"` the backends that have a
    GPU here run on it in strict float32; the others take part with their float64 outputs on the CPU.

    Args:
        arch: as for `build`.
        backends: at least one; two for a pair.
        dtype: `float64` or `float32`.
        device: `cpu` or `gpu`.
        weights: real weights; seeded ones with lively statistics by default.
        seed: of weights and images.
        sizes: heights and widths; by default an odd size at which all taps of all atrous kernels are live and an even
            one, neither square. The batch is 2.
        bound: largest allowed error; 1e-11 in float64, 2e-5 in float32.
        narrow: divide all channel counts by this, to judge the wiring of a large model in seconds; seeded weights only.
        progress: called with a line before each longer step.
        **options: as for `spec`.

    Raises:
        BackendError, WorkerError: a backend is not there, or died.
        SpecError, GraphError: a wrong model or a size it can't take.
    """
    tell = progress or (lambda line: None)
    chosen = list(dict.fromkeys(resolve(name) for name in backends))
    if bound is not None and not 0 < bound < float("inf"):
        raise BackendError(f"bound = {bound!r}: expected a finite number above 0")
    if dtype not in BOUNDS:
        raise BackendError(f"dtype = {dtype!r}: parity is judged in {' or '.join(BOUNDS)}")
    if device == "gpu" and dtype == "float64":
        raise BackendError("device gpu is judged in strict float32 against the float64 truth: use --dtype float32")
    if not chosen:
        raise BackendError("no backend was named: expected at least one")
    for backend in chosen:
        check_runtime(backend, dtype, device)
    spec, graph, arrays, title = subject(arch, weights=weights, seed=seed, narrow=narrow, **options)
    cases = default_cases(spec) if sizes is None else [case_of(graph, 2, *size) for size in sizes]
    if not cases:
        raise GraphError("no image size was given: expected at least one")

    versions, devices = {}, {}

    def note(label: str, worker: Worker) -> None:
        versions[label], devices[label] = worker.versions, worker.device_name
        worker.close()  # frees its model before the next one is built

    with contextlib.ExitStack() as stack:
        # All start before the long work begins: what is missing is told at once.
        workers = [(stack.enter_context(worker), own) for worker, own in (_start(b, dtype, device) for b in chosen)]
        if device == "gpu" and all(worker.device == "cpu" for worker, _ in workers):
            raise BackendError(f"device gpu: none of {', '.join(b.name for b in chosen)} has a GPU here")
        rows = judge(graph, arrays, cases, workers, dtype=dtype, seed=seed, tell=tell, done=note)
    return Report(
        title, graph.digest(), dtype, device, BOUNDS[dtype] if bound is None else bound, versions, devices, rows
    )


def subject(
    arch: str | ArchSpec | None = None,
    *,
    weights: WeightsLike | None = None,
    seed: int = 0,
    narrow: int = 1,
    **options: Any,
) -> tuple[ArchSpec, Graph, Weights, str]:
    """What is judged: spec, graph, canonical weights (seeded lively ones by default) and a title.

    Arguments and errors as for `parity`.
    """
    if weights is None:
        spec = named_spec(arch or "v3plus", **options).narrowed(narrow)
        graph = build_graph(spec)
        arrays: Weights = seeded_weights(graph, seed, statistics="lively")
        title = f"{spec.title}, stride {spec.output_stride}, seed {seed}"
        title += f", channels divided by {narrow}" if narrow > 1 else ""
    elif narrow != 1:
        raise BackendError(f"narrow = {narrow}: real weights have the channels they have; leave it out")
    else:
        model, _ = canonical_model(arch, weights=weights, **options)
        spec, graph, arrays = model.spec, model.graph, model.weights
        title = f"{spec.title}, stride {spec.output_stride}, {weights if isinstance(weights, str) else 'given weights'}"
    if spec.output.values == "labels":
        raise BackendError("a model that returns labels has no values to compare: use output.values = 'logits'")
    return spec, graph, arrays, title


def judge(
    graph: Graph,
    weights: Weights,
    cases: Sequence[Case],
    workers: Sequence[tuple[Worker, str]],
    *,
    dtype: str = "float64",
    seed: int = 0,
    tell: Progress = lambda line: None,
    done: Callable[[str, Worker], None] = lambda label, worker: None,
) -> tuple[Row, ...]:
    """Compare running workers with the referee on seeded images and, in float64, with one another.

    Args:
        graph: the network.
        weights: its canonical weights.
        cases: the inputs.
        workers: each with the dtype it computes in.
        dtype: what is judged; pairs are compared in float64 alone.
        seed: of the images.
        tell: called with a line before each longer step.
        done: called with a worker and its label once its outputs are there.
    """
    images = [np.random.default_rng([seed, n]).standard_normal(_shape(graph, case)) for n, case in enumerate(cases)]
    truths = []
    for case, image in zip(cases, images, strict=True):
        tell(f"numpy referee, {case}, float64")
        truths.append(reference.forward(graph, weights, image))
    outputs: dict[str, list[dict[str, np.ndarray]]] = {}
    for worker, own in workers:
        label = worker.backend.name if own == dtype else f"{worker.backend.name} ({own}, cpu)"
        worker.load(graph, weights, dtype=own)
        outputs[label] = []
        for case, image in zip(cases, images, strict=True):
            tell(f"{label}, {case}, {own}")
            outputs[label].append(worker.forward(image))
        done(label, worker)
    return tuple(_rows(cases, truths, outputs, pairs=dtype == "float64"))


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


def dead_taps(spec: ArchSpec, case: Case) -> list[str]:
    """Atrous kernels with taps that read nothing but padding in a case, as `node: live of total`."""
    return [
        f"{taps.node}: {taps.live} of {taps.total}"
        for taps in live_taps(build_graph(spec), case.height, case.width)
        if taps.live < taps.total
    ]


def _shape(graph: Graph, case: Case) -> tuple[int, int, int, int]:
    return case.batch, graph.input.op.attributes()["channels"], case.height, case.width


def _start(backend: Backend, dtype: str, device: str) -> tuple[Worker, str]:
    if device == "cpu":
        return Worker(backend.name), dtype
    try:
        return Worker(backend.name, device="gpu"), dtype
    except BackendError:
        return Worker(backend.name), "float64"


def _rows(
    cases: Sequence[Case],
    truths: Sequence[dict[str, np.ndarray]],
    outputs: dict[str, list[dict[str, np.ndarray]]],
    *,
    pairs: bool,
) -> Iterable[Row]:
    for n, (case, truth) in enumerate(zip(cases, truths, strict=True)):
        made = {label: results[n] for label, results in outputs.items()}
        compared: list[tuple[str, str]] = list(itertools.combinations(made, 2)) if pairs else []
        compared += [(label, REFEREE) for label in made]
        for first, second in compared:
            against = truth if second == REFEREE else made[second]
            for name, values in made[first].items():
                yield Row(
                    case,
                    name,
                    first,
                    second,
                    error(values, against[name]),
                    label_agreement(values, against[name]),
                )
