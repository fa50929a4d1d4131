"""For test suites: hold a line for parity and for recorded goldens.

    from deeplabzoo.testing import assert_parity

    def test_our_checkpoint_is_the_same_everywhere():
        assert_parity("model.safetensors", backends=("torch", "keras"))

    def test_our_own_class_is_what_its_weights_say():
        assert_parity(MyDeepLab().double(), against="v3plus_resnet50.mmseg")

With pytest installed the fixture `parity` is the same function with the command line's backends: `docs/testing.md`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from deeplabzoo.backends import by_full_name, default_backend, resolve
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.spec import ARCHITECTURES, ArchSpec
from deeplabzoo.errors import BackendError, FormatError, GraphError, near_match, unknown
from deeplabzoo.models import WeightsLike
from deeplabzoo.parity.blame import blamed_parameter
from deeplabzoo.parity.cases import REFEREE
from deeplabzoo.parity.report import Check, Report, Row
from deeplabzoo.parity.run import parity
from deeplabzoo.weights_converter.native import is_native
from deeplabzoo.zoo.models import PRESETS, PUBLISHED

if TYPE_CHECKING:
    from deeplabzoo.parity.drift import Drift
    from deeplabzoo.parity.golden_file import Golden
    from deeplabzoo.parity.own_model import ModelTrace

__all__ = ["assert_golden", "assert_parity"]

_MOST_ROWS = 12


def assert_parity(
    model: Any,
    *,
    backends: Sequence[str] | None = None,
    against: ArchSpec | WeightsLike | None = None,
    checks: Sequence[Check] = ("forward",),
    dtype: str | None = None,
    sizes: Iterable[tuple[int, int]] | None = None,
    bound: float | None = None,
    seed: int = 0,
    pythons: Mapping[str, str] | None = None,
    **options: Any,
) -> Report | ModelTrace:
    """Fail, naming the first node to blame, where a model is not the same function on all sides.

    An architecture or a file runs in every backend, each in a process of its own, and is judged as `deeplabzoo.parity`
    does. A live model of PyTorch, Paddle or Keras, of any class, runs here and now, and each of its modules is judged
    against the numpy referee: see `parity.own_model.trace_model`.

    Args:
        model: name of an architecture or a preset, a spec, a weights file, name of published weights, canonical arrays
            or model, or a live model.
        backends: by default every one of PyTorch, Paddle and Keras that is installed; none for a live model, which has
            its own.
        against: for files, other weights of the same network; for a live model the spec, the preset or the weights to
            judge it against.
        checks: any of `forward`, `gradients` and `training`; a live model is judged forward.
        dtype: `float64` by default; a live model is judged in its own, and must have the one that is asked for.
        sizes: heights and widths; by default such that all taps of atrous kernels are live.
        bound: largest allowed error of the forward pass.
        seed: of weights and images.
        pythons: Python interpreters of other environments, by backend.
        **options: as for `deeplabzoo.parity`; for a live model as for `trace_model`.

    Returns:
        The report, or, of a live model, the trace at the last size.

    Raises:
        AssertionError: it is not the same function, or a check that was asked for could not be made.
        DeepLabZooError: the question can't be asked, as for `deeplabzoo.parity` and `trace_model`.
    """
    __tracebackhide__ = True
    if model is None:
        raise FormatError("model = None: expected an architecture, a preset, a spec, weights or a live model")
    sizes = None if sizes is None else _pairs(sizes)
    if is_native(model):
        if backends is not None or pythons:
            raise BackendError(
                "a live model runs in its own framework and in this process: leave backends and pythons out, or give "
                "its weights file instead"
            )
        if tuple(checks) != ("forward",):
            raise BackendError(
                f"checks = {tuple(checks)}: a live model is judged forward; give its weights file instead"
            )
        return _assert_live(model, against, dtype, sizes, {"bound": bound, "seed": seed, **options})
    pythons = by_full_name(pythons)
    chosen = _installed(pythons) if backends is None else [resolve(name).name for name in backends]
    question = {**_question(model), "seed": seed, "pythons": pythons, "against": against, **options}
    report = parity(
        backends=chosen, dtype=dtype or "float64", sizes=sizes, checks=tuple(checks), bound=bound, **question
    )
    lacking = [check for check in checks if report.worst(check) is None]
    if report.passed and not lacking:
        return report
    lines = [_title(report), *_table(report), *_causes(report)]
    lines += [f"{check}: nobody was judged" for check in lacking]
    lines += [f"{side}: {failure}" for side, failure in report.failures.items()]
    wrong = [row for row in report.rows if row.check == "forward" and not row.passed]
    if wrong and report.trace is None:
        size = (wrong[0].case.height, wrong[0].case.width)
        off = [row.first for row in wrong if row.second == REFEREE]
        # A side is called as its backend, perhaps with more behind it.
        guilty = [name for name in chosen if any(side.startswith(name) for side in off)] or chosen
        try:
            traced = parity(
                backends=guilty, dtype=report.dtype, sizes=[size], bound=bound, trace=True,
                **{**question, "pythons": {name: path for name, path in pythons.items() if name in guilty}},
            )  # fmt: skip
            lines += [] if traced.trace is None else traced.trace.lines()
        except GraphError as error:  # two networks of other nodes, whose outputs could be compared all the same
            lines.append(f"no trace: {error}")
    raise AssertionError("\n".join(lines))


def assert_golden(
    golden: str | Path | Golden,
    *,
    backends: Sequence[str] | None = None,
    weights: WeightsLike | None = None,
    pythons: Mapping[str, str] | None = None,
    **options: Any,
) -> Drift:
    """Fail where a backend no longer gives what a golden recorded.

    Args:
        golden: the file that `deeplabzoo golden record` wrote, or what was read from it.
        backends: the recorded ones by default.
        weights: those that it was recorded with; not needed for seeded ones.
        pythons: Python interpreters of other environments, by backend.
        **options: `bounds` and `device`, as for `parity.golden.check`.

    Raises:
        AssertionError: something drifted over its bound, or a backend failed.
        DeepLabZooError: the golden can't be read or replayed.
    """
    __tracebackhide__ = True
    from deeplabzoo.parity.golden import check
    from deeplabzoo.parity.golden_file import Golden

    if not isinstance(golden, str | Path | Golden):
        raise FormatError(f"golden = {golden!r}: expected the file of a golden, or what Golden.load read from it")
    read = Golden.load(golden) if isinstance(golden, str | Path) else golden
    drift = check(read, backends=backends, weights=weights, pythons=pythons, **options)
    if drift.passed:
        return drift
    wrong = sorted((row for row in drift.rows if not row.passed), key=lambda row: -row.worst / row.bound)
    table = tabulate(
        [
            [row.check, row.case, row.name, row.side, row.dtype, f"{row.worst:.1e}", f"{row.bound:g}"]
            for row in wrong[:_MOST_ROWS]
        ],
        ("check", "input", "of", "side", "dtype", "error", "bound"),
        disable_numparse=True,
    )
    lines = [f"{drift.model}: not what was recorded", *([table] if wrong else [])]
    lines += [f"{side}: {failure}" for side, failure in drift.failures.items()]
    lines += [f"since then: {change.what} {change.then} -> {change.now}" for change in drift.changes]
    raise AssertionError("\n".join(lines))


def _assert_live(
    model: Any,
    against: ArchSpec | WeightsLike | None,
    dtype: str | None,
    sizes: Iterable[tuple[int, int]] | None,
    options: dict[str, Any],
) -> ModelTrace:
    __tracebackhide__ = True
    from deeplabzoo.parity.own_model import trace_model

    known = [name for name in inspect.signature(trace_model).parameters if name not in ("model", "size")]
    for name in options:
        if name not in known:
            raise BackendError(unknown("option of a live model", name, [*known, "against", "dtype", "sizes"]))
    named = isinstance(against, ArchSpec) or (isinstance(against, str) and "arch" in _question(against))
    for name, twin, given in (("spec" if named else "weights", "against", against), ("x", "sizes", sizes)):
        if given is not None and options.get(name) is not None:
            raise BackendError(f"{twin} and {name} both say what a live model is judged on: give one of them")
    if against is not None:
        options["spec" if named else "weights"] = against
    wanted: list[tuple[int, int] | None] = [*(sizes or ())]
    for size in wanted or [None]:
        found = trace_model(model, size=size, **options)
        if dtype not in (None, found.dtype):
            raise BackendError(
                f"dtype = {dtype!r} was asked for, but the model is in {found.dtype}: turn it into it first"
            )
        if not found.passed:
            lines = [f"{found.model}: not the same function in {found.dtype}, bound {found.bound:g}", *found.lines()]
            raise AssertionError("\n".join(lines))
    return found


def _pairs(sizes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    pairs = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    for size in pairs:
        if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, Integral) for side in size):
            raise BackendError(f"size {size!r}: expected height and width of each, such as sizes=[(65, 65)]")
    return pairs


def _question(model: Any) -> dict[str, Any]:
    """What to judge in the words of `parity`: a network, or weights."""
    names = [*ARCHITECTURES, *PRESETS]
    if isinstance(model, ArchSpec) or model in names:
        return {"arch": model}
    missing = isinstance(model, str) and model not in PUBLISHED and not os.path.lexists(model)
    # A name that is nearly one of a network is told of with those, not as a file that is missing.
    return {"arch" if missing and near_match(model, names) else "weights": model}


def _installed(pythons: Mapping[str, str]) -> list[str]:
    found = [backend.name for backend in map(resolve, ("torch", "paddle", "keras")) if not backend.missing()]
    return list(dict.fromkeys((*found, *pythons))) or [default_backend().name]


def _title(report: Report) -> str:
    judged_wrong = any(not row.passed for row in report.rows) or (report.trace is not None and not report.trace.passed)
    what = "not the same function" if judged_wrong else "not judged by everybody"
    return f"{report.model}: {what} in {report.dtype} on {report.device}"


def _table(report: Report) -> Iterator[str]:
    """The worst comparison of each check and pair that is over its bound."""
    worst: dict[tuple[str, str, str], Row] = {}
    for row in report.rows:
        key = (row.check, row.first, row.second)
        if not row.passed and (key not in worst or row.error / row.bound > worst[key].error / worst[key].bound):
            worst[key] = row
    rows = list(worst.values())
    if rows:
        yield tabulate(
            [
                [
                    row.check,
                    row.case,
                    row.name if row.step is None else f"{row.name} after step {row.step}",
                    f"{row.first} against {row.second}",
                    f"{row.error:.1e}",
                    f"{row.bound:g}",
                ]
                for row in rows[:_MOST_ROWS]
            ],
            ("check", "input", "of", "sides", "error", "bound"),
            disable_numparse=True,
        )
    if len(rows) > _MOST_ROWS:
        yield f"and {len(rows) - _MOST_ROWS} more"


def _causes(report: Report) -> Iterator[str]:
    """Who is to blame by what the report holds: the trace, and the parameters of gradients and training steps."""
    if report.trace is not None:
        yield from report.trace.lines()
    graph = build_graph(ArchSpec.from_dict(report.spec))
    for check in report.checks:
        for side in report.sides if check != "forward" else ():
            row = blamed_parameter(graph, report.rows, check, side.name, REFEREE)
            if row is not None:
                yield f"{side.name}: {check} first go wrong at {row.name}, error {row.error:.1e}"
