"""A parity run as JUnit XML, for what shows test results in CI.

What such readers share: `testsuites` holds `testsuite`s, which hold `properties` and then `testcase`s; a case holds at
most one of `failure`, `error` and `skipped`; sums are attributes of the suites; times are seconds. Jenkins groups by
`classname` up to its last dot, GitLab keeps one case for each `classname` and `name`, so those pairs are unique here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from deeplabzoo.files import beside_then_rename
from deeplabzoo.parity.report import Check, Report, Row
from deeplabzoo.parity.trace import slowly
from deeplabzoo.parity.words import against, judged, number, one_line, printable, where

WORST = 10
"""Comparisons that the text of a failure lists."""

_PACKAGE = "deeplabzoo.parity"
_TRACE = "trace"


@dataclass
class _Case:
    """A case before it is written.

    Attributes:
        name: unique in its suite.
        seconds: it took.
        outcome: None where it passed.
        message: one line.
        text: the rest.
    """

    name: str
    seconds: float = 0.0
    outcome: Literal["failure", "error", "skipped"] | None = None
    message: str = ""
    text: str = ""


def junit(report: Report) -> str:
    """The report as JUnit XML: a suite of the sides, one of each check, and one of the trace.

    A case of the forward check is an output of a pair on an input; one of the other checks is a pair on an input (and
    after a step), because a network has hundreds of parameters: its failure lists the worst. The seconds that a side
    spent on a check are shared out evenly among the cases it was judged in. There is a failure or an error exactly
    where the report has not passed.

    Args:
        report: what a run found.
    """
    suites = {"sides": list(_sides(report))}
    for check in report.checks:
        suites[check] = [*_left_out(report, check), *_check(report, check)]
        if check in report.not_judged:
            message = f"nobody was judged in {report.dtype} on {report.device}"
            suites[check].append(_Case(f"{check} was judged", outcome="error", message=message))
    if report.trace is not None:
        suites["trace"] = list(_trace(report))
    root = Element("testsuites")
    for name, cases in suites.items():
        suite = SubElement(root, "testsuite", {"name": f"{_PACKAGE}.{name}", **_sums(cases, "skipped")})
        properties = SubElement(suite, "properties")
        for key, value in _properties(report, versions=name == "sides"):
            SubElement(properties, "property", name=one_line(key), value=one_line(value))
        for case in cases:
            _write(suite, f"{_PACKAGE}.{name}", case)
    for key, total in {"name": _PACKAGE, **_sums([case for cases in suites.values() for case in cases])}.items():
        root.set(key, total)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def write_junit(report: Report, path: Path) -> None:
    """Write the file; nothing half-written is left.

    Raises:
        OutputError: the file can't be written.
    """
    with beside_then_rename(path) as beside:
        beside.write_text(junit(report), encoding="utf-8", newline="\n")


def _sums(cases: Sequence[_Case], *more: str) -> dict[str, str]:
    """Attributes of a suite; the outermost element has none for what was skipped."""
    outcomes = Counter(case.outcome for case in cases)
    sums = {"tests": len(cases), "failures": outcomes["failure"], "errors": outcomes["error"]}
    sums |= dict.fromkeys(more, outcomes["skipped"])
    return {**{name: str(count) for name, count in sums.items()}, "time": f"{sum(case.seconds for case in cases):.3f}"}


def _properties(report: Report, *, versions: bool) -> Iterator[tuple[str, str]]:
    yield "model", report.model
    yield "weights", report.weights
    yield "graph_sha256", report.graph_digest
    yield "weights_sha256", report.weights_digest
    yield "dtype", report.dtype
    yield "device", report.device
    if versions:
        yield from report.environment.items()
        for side in report.sides:
            yield f"{side.name}.device", f"{side.dtype} on {side.device} {side.device_name}".strip()
            yield from ((f"{side.name}.{package}", version) for package, version in side.versions.items())


def _write(suite: Element, classname: str, case: _Case) -> None:
    element = SubElement(suite, "testcase", classname=classname, name=one_line(case.name), time=f"{case.seconds:.3f}")
    if case.outcome is not None:
        told = SubElement(element, case.outcome, message=one_line(case.message))
        if case.outcome != "skipped":
            told.set("type", "parity")
            told.text = printable(case.text)


def _sides(report: Report) -> Iterator[_Case]:
    """Whether each side could be used; its seconds are those it needed before the first check."""
    for side in report.sides:
        seconds = sum(value for key, value in side.seconds.items() if key not in (*report.checks, _TRACE))
        if side.failure is None:
            yield _Case(side.name, seconds)
        else:
            yield _Case(side.name, seconds, "error", side.failure, side.failure)


def _left_out(report: Report, check: Check) -> Iterator[_Case]:
    for side in report.sides:
        if check in side.left_out:
            yield _Case(side.name, 0.0, "skipped", side.left_out[check])


def _check(report: Report, check: Check) -> Iterator[_Case]:
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.check == check:
            name = f"{row.name}, " if check == "forward" else ""
            step = "" if row.step is None else f", step {row.step}"
            groups.setdefault(f"{against(row.first, row.second)}: {name}{row.case}{step}", []).append(row)
    judged_in = Counter(rows[0].first for rows in groups.values())
    spent = {side.name: side.seconds.get(check, 0.0) for side in report.sides}
    for name, rows in groups.items():
        rows.sort(key=lambda row: -row.error / row.bound)
        seconds = spent.get(rows[0].first, 0.0) / judged_in[rows[0].first]
        over = [row for row in rows if not row.passed]
        if not over:
            yield _Case(name, seconds)
            continue
        message = f"{len(over)} of {len(rows)} over the bound: {where(over[0])}: {judged(over[0].error, over[0].bound)}"
        lines = [f"differs first at {one_line(where(row))}" for row in report.blamed if row in over]
        lines += [f"{one_line(where(row))}: {judged(row.error, row.bound)}" for row in over[:WORST]]
        if len(over) > WORST:
            lines.append(f"{len(over) - WORST} more")
        yield _Case(name, seconds, "failure", message, "\n".join(lines))


def _trace(report: Report) -> Iterator[_Case]:
    if report.trace is None:
        return
    failures = report.trace.failures
    spent = {side.name: side.seconds.get(_TRACE, 0.0) for side in report.sides}
    for side in dict.fromkeys((*report.trace.blamed, *failures)):
        row = report.trace.blamed.get(side)
        if row is not None:
            message = f"the first node whose error jumps is {row.node}: {number(row.error)}"
            shape = "x".join(map(str, row.shape))
            values = f"mean {row.mean:.4g}, std {row.std:.4g}, max|a| {row.largest:.4g}"
            text = f"{one_line(row.op)}\nshape {shape}, {values}\ninput {one_line(report.trace.case)}"
            yield _Case(side, spent.get(side, 0.0), "failure", message, text)
        elif side in failures:
            yield _Case(side, spent.get(side, 0.0), "error", failures[side], failures[side])
        elif side in report.trace.grown:
            yield _Case(side, spent.get(side, 0.0), "failure", slowly(report.trace.grown[side]))
        else:
            yield _Case(side, spent.get(side, 0.0))
