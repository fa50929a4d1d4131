"""A parity run: workers side by side, the referee, every comparison, one report."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo._version import __version__
from deeplabzoo.backends import Backend, by_full_name
from deeplabzoo.backends.worker import TIME_LIMIT, check_time_limit
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.training import Training
from deeplabzoo.errors import BackendError, GraphError, unknown
from deeplabzoo.models import DTYPES, WeightsLike, check_runtime
from deeplabzoo.parity.blame import blamed_parameter
from deeplabzoo.parity.cases import (
    REFEREE,
    Case,
    Progress,
    Subject,
    case_of,
    counterpart,
    default_cases,
    subject,
    weights_digest,
)
from deeplabzoo.parity.judge import (
    Exam,
    compare,
    make_exam,
    usual_bound,
)
from deeplabzoo.parity.photos import photo_case, pictures
from deeplabzoo.parity.report import CHECKS, Check, Report, Row
from deeplabzoo.parity.team import Team, taking_part
from deeplabzoo.parity.trace import Trace, check_same_nodes, trace_sides

LESSON_BATCH = 4
"""Images of a training step: of two, image pooling leaves batch norm two values a channel, whose sign alone it keeps."""


def parity(
    arch: str | ArchSpec | None = None,
    *,
    backends: Sequence[str] = ("torch", "paddle", "keras"),
    dtype: str = "float64",
    device: str = "cpu",
    weights: WeightsLike | None = None,
    seed: int = 0,
    sizes: Iterable[tuple[int, int]] | None = None,
    images: Sequence[str | Path] = (),
    checks: Sequence[Check] = ("forward",),
    training: Training | None = None,
    bound: float | None = None,
    bounds: Mapping[Check, float] | None = None,
    narrow: int = 1,
    small_rates: bool = False,
    trace: bool = False,
    against: WeightsLike | None = None,
    pythons: Mapping[str, str] | None = None,
    time_limit: float = TIME_LIMIT,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Judge whether a model computes the same in every backend.

    In float64 every pair of backends is compared, and each backend with a numpy referee written from the op docstrings.
    In lower precision each backend is judged against the referee's float64 truth. With `device="gpu"` the backends that
    have a GPU here run on it in strict float32; the others, and those that lack the dtype, take part with their float64
    outputs on the CPU. A backend that dies or hangs is reported in one line; the results of the others are kept.

    Args:
        arch: as for `build`.
        backends: at least one; two for a pair.
        dtype: `float64`, `float32`, `float16` or `bfloat16`.
        device: `cpu` or `gpu`.
        weights: real weights; seeded ones with lively statistics by default.
        seed: of weights, images and labels.
        sizes: heights and widths; by default an odd size at which all taps of all atrous kernels are live and an even
            one, neither square. The batch is 2. With `images` and no sizes, the photos alone.
        images: files of photos, judged after the preprocessing of the weights.
        checks: any of `forward`, `gradients` (evaluation mode) and `training` (steps of SGD on four images of the
            first size).
        training: settings of the training steps; ten of them by default.
        bound: largest allowed error of the forward pass; 1e-11 in float64, 2e-5 in float32, see `parity.compare`.
        bounds: the same by check.
        narrow: divide all channel counts by this, to judge the wiring of a large model in seconds; seeded weights only.
        small_rates: take 1, 2, 3, ... for the rates of the branches, so that small images keep every tap live; seeded
            weights only.
        trace: also compare every node's value on the first input, and name the first to blame.
        against: weights of another model of the same nodes, which the backends run, while the referee runs the first.
        pythons: Python interpreters of other environments, by backend.
        time_limit: seconds that a single call of a backend may take.
        progress: called with a line before each longer step.
        **options: as for `spec`.

    Raises:
        BackendError: a backend is not installed here, or nobody has a GPU.
        SpecError, GraphError, WeightsError, ImageError: a wrong model, a size it can't take, a photo that is none.
    """
    tell = progress or (lambda line: None)
    elsewhere = by_full_name(pythons)
    chosen = _backends(backends, elsewhere, dtype, device)
    limits = _limits(bound, bounds or {}, checks)
    checks = tuple(check for check in CHECKS if check in checks)  # in their order: training moves the weights
    for check in checks:
        usual_bound(dtype, check)
    check_time_limit(time_limit)
    it = subject(arch, weights=weights, seed=seed, narrow=narrow, small_rates=small_rates, **options)
    given = None if sizes is None else [case_of(it.graph, 2, *size) for size in sizes]
    cases = default_cases(it.spec) if given is None and not images else given or []
    photos = [photo_case(it, Path(file)) for file in images]
    everything = [*cases, *(case for case, _ in photos)]
    if not everything:
        raise GraphError("no image size was given: expected at least one")
    if len(set(everything)) < len(everything):
        twice = next(case for case in everything if everything.count(case) > 1)
        raise GraphError(f"input {twice} was given twice: give each size and photo once")
    first = everything[0]
    theirs: Subject | None = None
    notes: tuple[str, ...] = ()
    if against is not None:
        other, notes = counterpart(against, it.spec)
        theirs = subject(weights=other)
        _check_comparable(it, theirs, first, checks, trace, notes)
    exam = make_exam(
        it.graph,
        it.weights,
        cases,
        checks=checks,
        training=training,
        lesson=case_of(it.graph, LESSON_BATCH, first.height, first.width) if "training" in checks else None,
        seed=seed,
        photos=photos,
        other=None if theirs is None else (theirs.graph, theirs.weights),
    )
    with Team(chosen, dtype, device, elsewhere, time_limit) as team:
        if device == "gpu":
            team.check_device()
        truths = team.answer(exam, tell)
        answers = {player.name: player.answers for player in team.players}
        rows = tuple(compare(exam, truths, answers, dtype=dtype, bounds=limits, dtypes=team.dtypes))
        found = _trace(it, exam, team, dtype, limits.get("forward"), tell) if trace else None
        return Report(
            it.title if theirs is None else f"{theirs.title}, against {it.title}",
            it.spec.to_dict(),
            it.graph.digest(),
            weights_digest(it.graph, it.weights),
            it.source,
            dtype,
            device,
            tuple(checks),
            tuple(player.side(checks) for player in team.players),
            rows,
            tuple(_blamed(it, rows, list(answers))),
            found,
            tuple(pictures(exam, truths, answers)),
            environment(),
            notes,
        )


def environment() -> dict[str, str]:
    """What this process runs on: machine, system, Python, numpy, this package."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "deeplabzoo": __version__,
    }


def _trace(it: Subject, exam: Exam, team: Team, dtype: str, bound: float | None, tell: Progress) -> Trace:
    """Every node on the first input, by all who are still there; they load again, because training moves weights."""
    sides, versions = {}, {}
    for player in team.players:
        if player.failure is None:
            with player.failing():
                player.worker.load(*(exam.other or (exam.graph, exam.weights)), dtype=player.dtype)
                sides[player.name] = player.worker.trace(exam.images[0])
                versions[player.name] = dict(player.worker.versions)
    found = trace_sides(
        exam.graph,
        exam.weights,
        (exam.cases[0], exam.images[0]),
        sides,
        dtype=dtype,
        run=None if exam.other is None else exam.other[0],
        title=it.title,
        bound=bound,
        versions=versions,
        progress=tell,
    )
    for player in team.players:
        player.failure = found.failures.get(player.name, player.failure)
    return found


def _blamed(it: Subject, rows: Sequence[Row], sides: Sequence[str]) -> Iterator[Row]:
    # Where the forward pass differs the way back does too, whoever is right there.
    wrong = {row.first for row in rows if row.check == "forward" and row.second == REFEREE and not row.passed}
    for check in CHECKS[1:]:
        for side in (side for side in sides if side not in wrong):
            if (row := blamed_parameter(it.graph, rows, check, side, REFEREE)) is not None:
                yield row


def _backends(names: Sequence[str], pythons: Mapping[str, str], dtype: str, device: str) -> list[Backend]:
    if dtype not in DTYPES:
        raise BackendError(unknown("dtype", dtype, DTYPES))
    if device == "gpu" and dtype == "float64":
        raise BackendError("device gpu is judged in strict float32 against the float64 truth: use --dtype float32")
    chosen = taking_part(names, pythons)
    for backend in chosen:
        if backend.name not in pythons:
            check_runtime(backend, dtype, device)
    if not any(dtype in backend.flags.DTYPES for backend in chosen):
        names = ", ".join(backend.name for backend in chosen)
        raise BackendError(f"dtype {dtype}: none of {names} computes in it; take another dtype, or torch or keras")
    return chosen


def _check_comparable(
    it: Subject, theirs: Subject, case: Case, checks: Sequence[Check], trace: bool, notes: Sequence[str]
) -> None:
    """`GraphError` where two models have other outputs, parameters or nodes than what is asked compares."""
    try:
        if trace:
            check_same_nodes(it.graph, theirs.graph)
    except GraphError as error:
        raise GraphError("; ".join((str(error), *notes))) from None
    sides = []
    for one in (it, theirs):
        shapes = one.graph.shapes(case.height, case.width)
        held: dict[str, tuple[int, ...]] = {f"output {name}": shapes[node] for name, node in one.graph.outputs}
        if set(checks) - {"forward"}:
            held.update(one.graph.parameters())
        sides.append(held)
    ours, other = sides
    if differing := [name for name in {**ours, **other} if ours.get(name) != other.get(name)]:
        name = differing[0]
        raise GraphError(
            f"{theirs.title} can't be judged against {it.title}: {name} is {other.get(name, 'not there')}, expected "
            f"{ours.get(name, 'none')}; give two models of one architecture" + "".join(f"; {note}" for note in notes)
        )


def _limits(bound: float | None, bounds: Mapping[Check, float], checks: Sequence[Check]) -> dict[Check, float]:
    if isinstance(checks, str):
        raise BackendError(f"checks = {checks!r}: expected a list of names, such as [{checks!r}]")
    for check in (*checks, *bounds):
        if check not in CHECKS:
            raise BackendError(unknown("check", check, CHECKS))
    if not checks:
        raise BackendError(f"no check was named: expected any of {', '.join(CHECKS)}")
    limits = dict(bounds)
    if bound is not None:
        limits["forward"] = bound
    for check, value in limits.items():
        if not 0 < value < float("inf"):
            raise BackendError(f"bound = {value!r} for {check}: expected a finite number above 0")
    return limits
