"""Recorded goldens: what backends make of seeded inputs today, replayed on another version, interpreter or machine."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.backends import by_full_name
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.training import EVALUATION, loss_weights
from deeplabzoo.core.weights import Weights, check_weights, seeded_weights
from deeplabzoo.errors import BackendError, DeepLabZooError, FormatError, GraphError, WeightsError, WorkerError, unknown
from deeplabzoo.models import DEVICES, WeightsLike, canonical_model
from deeplabzoo.parity import claims
from deeplabzoo.parity.cases import (
    REFEREE,
    Case,
    Progress,
    case_of,
    default_cases,
    output_shapes,
    subject,
    weights_digest,
)
from deeplabzoo.parity.compare import BOUNDS, GRADIENT_BOUNDS, error
from deeplabzoo.parity.drift import KINK, Change, Drift, DriftRow
from deeplabzoo.parity.golden_file import Golden, Input, Record, check_limits
from deeplabzoo.parity.judge import NO_GRADIENTS, Answers, Exam, answers_of_referee, answers_of_worker, make_exam
from deeplabzoo.parity.report import Check
from deeplabzoo.parity.run import environment
from deeplabzoo.parity.sketch import (
    digest_of,
    gradient_sizes,
    grid_of,
    norm_errors,
    sketch_gradients,
    sketch_outputs,
)
from deeplabzoo.parity.team import taking_part

_USUAL: dict[Check, dict[str, float]] = {"forward": BOUNDS, "gradients": GRADIENT_BOUNDS}
_SEEDS = 2**63
_NOT_ASKED = "gradients were not asked for"


def record(
    arch: str | ArchSpec | None = None,
    *,
    backends: Sequence[str] = ("torch", "paddle", "keras"),
    dtypes: Sequence[str] = ("float64", "float32"),
    weights: WeightsLike | None = None,
    seed: int = 0,
    narrow: int = 1,
    sizes: Iterable[tuple[int, int]] | None = None,
    gradients: bool = True,
    pythons: Mapping[str, str] | None = None,
    bounds: Mapping[Check, float] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Golden:
    """Run a model in every backend and in the numpy referee, and keep what is needed to notice a change.

    A golden is whole and right when it is recorded: a backend that fails, or is off the referee's truth, is an error.

    Args:
        arch: as for `build`.
        backends: at least one.
        dtypes: `float64`, `float32` or both.
        weights: real weights, of which only the digest is kept; seeded ones with lively statistics by default.
        seed: of weights, images and labels.
        narrow: divide all channel counts by this; seeded weights only.
        sizes: heights and widths of batches of two; by default one with all atrous taps live and an even one.
        gradients: also those of the mean cross entropy in evaluation mode, by every parameter and by the image.
        pythons: Python interpreters of other environments, by backend.
        bounds: largest allowed errors by check (`forward`, `gradients`), in every dtype, where they are not those of
            `parity.compare`.
        progress: called with a line before each longer step.
        **options: as for `spec`.

    Raises:
        BackendError, WorkerError: a backend is not there, died, or is off the truth; a seed that no golden can keep.
        SpecError, GraphError, WeightsError: a wrong model, or a size it can't take.
    """
    tell = progress or (lambda line: None)
    elsewhere = by_full_name(pythons)
    if not 0 <= seed < _SEEDS:
        raise BackendError(
            f"seed = {seed}: expected a whole number from 0 to {_SEEDS - 1}, which is all a golden keeps"
        )
    chosen = taking_part(backends, elsewhere)
    _check_bounds(bounds or {})
    if not dtypes or (strange := [dtype for dtype in dtypes if dtype not in GRADIENT_BOUNDS]):
        raise BackendError(unknown("dtype", strange[0] if dtypes else "", GRADIENT_BOUNDS))
    it = subject(arch, weights=weights, seed=seed, narrow=narrow, **options)
    cases = default_cases(it.spec) if sizes is None else [case_of(it.graph, 2, *size) for size in sizes]
    check_limits(it.graph, [(case.batch, case.height, case.width) for case in cases])
    left_out = _no_loss(it.graph) if gradients else _NOT_ASKED
    exam = _exam(it.graph, it.weights, cases, seed, gradients=left_out is None)
    inputs = tuple(
        Input(case, digest, {name: grid_of(shape) for name, shape in output_shapes(it.graph, case).items()})
        for case, digest in zip(cases, _input_digests(exam), strict=True)
    )
    # The name of a file says enough; where it lay is nobody else's affair. It may hold what no golden may.
    source = Path(weights).name if isinstance(weights, str | Path) else it.source
    golden = Golden(
        claims.as_words(it.title.replace(it.source, source)),
        it.spec,
        it.graph.digest(),
        weights_digest(it.graph, it.weights),
        claims.as_words(source),
        seed if weights is None else None,
        seed,
        here(),
        inputs,
        (),
    )
    with contextlib.ExitStack() as stack:
        # All start before the long work begins: what is missing is told at once.
        workers = [stack.enter_context(Worker(b.name, python=elsewhere.get(b.name))) for b in chosen]
        records = [_sketch(exam, inputs, REFEREE, "float64", answers_of_referee(exam, tell), left_out=left_out)]
        for worker in workers:
            for dtype in dict.fromkeys(dtypes):
                made = _replay(exam, inputs, worker, dtype, left_out, tell)
                _check_right(_rows(records[0], made, None, it.graph, inputs, bounds or {}))
                records.append(made)
            worker.close()  # frees its model before the next one is built
    return dataclasses.replace(golden, records=tuple(records))


def check(
    golden: Golden,
    *,
    backends: Sequence[str] | None = None,
    weights: WeightsLike | None = None,
    device: str = "cpu",
    pythons: Mapping[str, str] | None = None,
    bounds: Mapping[Check, float] | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Replay a golden and say how far everybody is from what was recorded.

    On a GPU backends compute in strict float32 and are judged against the recorded float64 truth alone. So is a backend
    that was not recorded. A backend that fails is reported in one line, and the results of the others are kept.

    Args:
        golden: see `record`.
        backends: the recorded ones by default.
        weights: those that the golden was recorded with; not needed for seeded ones.
        device: `cpu` or `gpu`.
        pythons: Python interpreters of other environments, by backend.
        bounds: largest allowed errors by check (`forward`, `gradients`), in every dtype, where they are not those of
            `parity.compare`.
        progress: called with a line before each longer step.

    Raises:
        BackendError: an unknown backend or device, or an interpreter for a backend that takes no part.
        WeightsError: no weights, or others than those of the golden.
        FormatError: this numpy draws other images, or the golden's digest of them is wrong.
    """
    tell, elsewhere = progress or (lambda line: None), by_full_name(pythons)
    chosen = taking_part(golden.backends if backends is None else backends, elsewhere)
    _check_bounds(bounds or {})
    if device not in DEVICES:
        raise BackendError(unknown("device", device, DEVICES))
    graph = build_graph(golden.spec)
    cases = [one.case for one in golden.inputs]
    exam = _exam(graph, _weights(golden, graph, weights), cases, golden.seed, gradients=bool(golden.truth.gradients))
    for one, digest in zip(golden.inputs, _input_digests(exam), strict=True):
        if digest != one.digest:
            raise FormatError(
                f"images and labels of input {one.case}, seed {golden.seed}, have SHA-256 {digest} here and "
                f"{one.digest} in the golden: {_why_others(golden)}"
            )
    rows: list[DriftRow] = []
    changes = list(_changes("", golden.environment, here()))
    failures: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for backend in chosen:
        dtypes = ("float32",) if device == "gpu" else golden.dtypes(backend.name)
        try:
            with Worker(backend.name, device=device, python=elsewhere.get(backend.name)) as worker:
                for place, dtype in enumerate(dtypes):
                    made = _replay(exam, golden.inputs, worker, dtype, golden.truth.left_out, tell)
                    own = golden.find(backend.name, dtype) if device == "cpu" else None
                    rows += _rows(golden.truth, made, own, graph, golden.inputs, bounds or {})
                    if own is not None and not place:
                        changes += _changes(f"{backend.name}: ", own.versions, made.versions)
                    if golden.truth.left_out is None and made.left_out is not None:
                        left_out[backend.name] = made.left_out
        except DeepLabZooError as failure:
            failures[backend.name] = str(failure)
    return Drift(golden.model, device, tuple(rows), tuple(changes), failures, left_out)


def recorded_rows(golden: Golden) -> Iterator[DriftRow]:
    """How far every side was from the truth when the golden was recorded."""
    graph = build_graph(golden.spec)
    for made in golden.records[1:]:
        yield from _rows(golden.truth, made, None, graph, golden.inputs, {})


def here() -> dict[str, str]:
    """What this process runs on, with the name of the processor."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux alone has it
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return claims.as_words_by_name({**environment(), "processor": name})


def _check_bounds(bounds: Mapping[Check, float]) -> None:
    for what, value in bounds.items():
        if what not in _USUAL:
            raise BackendError(unknown("check", what, _USUAL))
        if not 0 < value < float("inf"):
            raise BackendError(f"bound = {value!r} for {what}: expected a finite number above 0")


def _check_right(rows: Iterable[DriftRow]) -> None:
    """`BackendError` where a side is off the referee: its golden would make a fault the rule."""
    for row in rows:
        if not row.passed:
            advice = "`deeplabzoo parity --trace` names the layer"
            if row.kink:
                advice = f"{KINK}: take another seed or size, or another bound for gradients"
            raise BackendError(
                f"{row.side}, {row.dtype}, {row.case}: {row.check} {row.name} is {row.truth:.1e} off the referee, over "
                f"{row.bound:g}, so it can't become a golden; {advice}"
            )


def _no_loss(graph: Graph) -> str | None:
    """Why the network has no gradients; none where it has."""
    try:
        loss_weights(graph, EVALUATION)
    except GraphError as error:
        return str(error)
    return None


def _exam(graph: Graph, weights: Weights, cases: Sequence[Case], seed: int, *, gradients: bool) -> Exam:
    """Network and seeded inputs.

    Images are rounded to float32, so that another machine whose logarithm differs in the last bit draws the same ones.
    """
    checks: tuple[Check, ...] = ("forward", "gradients") if gradients else ("forward",)
    exam = make_exam(graph, weights, cases, checks=checks, seed=seed)
    rounded = tuple(image.astype(np.float32).astype(np.float64) for image in exam.images)
    return dataclasses.replace(exam, images=rounded)


def _input_digests(exam: Exam) -> list[str]:
    labels = [[one] for one in exam.labels] or [[] for _ in exam.images]
    return [digest_of([image, *given]) for image, given in zip(exam.images, labels, strict=True)]


def _weights(golden: Golden, graph: Graph, given: WeightsLike | None) -> Weights:
    """The weights of the golden: seeded again, or given, and then the same."""
    if given is not None:
        values: Weights = canonical_model(golden.spec, weights=given)[0].weights
    elif golden.weights_seed is None:
        raise WeightsError(
            f"the golden was recorded with {golden.weights}, which it does not hold: give the weights it was recorded "
            "with (weights=, --weights)"
        )
    else:
        values = seeded_weights(graph, golden.weights_seed, statistics="lively")
    check_weights(graph, values)
    found = weights_digest(graph, values)
    if found != golden.weights_digest:
        raise WeightsError(
            f"the weights have SHA-256 {found}, those of the golden ({golden.weights}) {golden.weights_digest}: "
            + (_why_others(golden) if given is None else "give the ones it was recorded with")
        )
    return values


def _why_others(golden: Golden) -> str:
    """Why what is drawn from a seed has another digest than in the golden, and what to do."""
    drawing = [one for one in _changes("", golden.environment, environment()) if one.what in ("numpy", "deeplabzoo")]
    if not drawing:
        return (
            f"numpy {np.__version__} drew both, so that the digest in the golden is wrong (damaged or forged); record "
            "again"
        )
    told = " and ".join(f"{one.what} {one.then} drew others than {one.now} does" for one in drawing)
    return f"{told}; use the one it was recorded with, or record again"


def _replay(
    exam: Exam, inputs: Sequence[Input], worker: Worker, dtype: str, left_out: str | None, tell: Progress
) -> Record:
    answers = Answers()
    answers_of_worker(exam, worker, dtype, answers, tell)
    if not worker.backend.flags.GRADIENTS:
        left_out = NO_GRADIENTS
    return _sketch(exam, inputs, worker.backend.name, dtype, answers, worker.versions, left_out)


def _sketch(
    exam: Exam,
    inputs: Sequence[Input],
    name: str,
    dtype: str,
    answers: Answers,
    versions: Mapping[str, str] | None = None,
    left_out: str | None = None,
) -> Record:
    """What is kept of a side's answers."""
    for one, outputs in zip(inputs, answers.outputs, strict=True):
        for output, shape in output_shapes(exam.graph, one.case).items():
            if output not in outputs or outputs[output].shape != shape:
                made = outputs[output].shape if output in outputs else "nothing"
                raise WorkerError(f"{name}, {one.case}: output {output} is {made}, expected {shape}")
    return Record(
        name,
        dtype,
        claims.as_words_by_name(versions or {}),
        tuple(sketch_outputs(made, one.grids) for one, made in zip(inputs, answers.outputs, strict=True)),
        tuple(
            sketch_gradients(made, gradient_sizes(exam.graph, one.case))
            for one, made in zip(inputs, answers.gradients, strict=False)
        ),
        None if left_out is None else claims.as_words(left_out),
    )


def _rows(
    truth: Record,
    made: Record,
    own: Record | None,
    graph: Graph,
    inputs: Sequence[Input],
    bounds: Mapping[Check, float],
) -> Iterator[DriftRow]:
    """A record against the truth and, where there is one, against its own older record."""
    limits = {what: bounds.get(what, usual[made.dtype]) for what, usual in _USUAL.items()}
    for n, one in enumerate(inputs):
        for name, output in made.outputs[n].items():
            then, exact = None if own is None else own.outputs[n][name], truth.outputs[n][name]
            yield DriftRow(
                made.name,
                made.dtype,
                one.case,
                "forward",
                name,
                None if then is None else error(output.grid, then.grid),
                error(output.grid, exact.grid),
                limits["forward"],
                None if then is None else output.digest == then.digest,
                output.labels == (then or exact).labels,
            )
        if made.gradients and truth.gradients:
            sizes = gradient_sizes(graph, one.case)
            against = norm_errors(made.gradients[n], truth.gradients[n], sizes)
            drifts = norm_errors(made.gradients[n], own.gradients[n], sizes) if own and own.gradients else None
            judged = drifts if drifts and max(drifts.values()) > 0 else against
            worst = max(judged, key=lambda name: judged[name])
            drift = None if drifts is None else max(drifts.values())
            yield DriftRow(
                made.name,
                made.dtype,
                one.case,
                "gradients",
                worst,
                drift,
                max(against.values()),
                limits["gradients"],
            )


def _changes(prefix: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Change]:
    for what in {**then, **now}:
        if then.get(what) != now.get(what):
            yield Change(prefix + what, then.get(what, "-"), now.get(what, "-"))
