"""A parity run as one page for people: no script, nothing from a network, no style but its own.

The page is built as a tree, so that names and messages of whatever origin are text and never markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from deeplabzoo.core.training import trainable
from deeplabzoo.files import beside_then_rename
from deeplabzoo.parity.cases import REFEREE
from deeplabzoo.parity.html_labels import figures
from deeplabzoo.parity.html_parts import cell, code, details, prose, table, tag
from deeplabzoo.parity.html_trace import trace_section
from deeplabzoo.parity.report import Check, Report, Row, Side
from deeplabzoo.parity.trace import slowly
from deeplabzoo.parity.words import (
    LEVELS,
    against,
    by_pair,
    judged,
    level,
    number,
    one_line,
    percent,
    sentence,
    share,
    where,
)

SHOWN = 20
"""Rows of a pair in a table; a network has hundreds of parameters."""

_LOSS = "loss"


def html(report: Report) -> str:
    """The report as one self-contained HTML page.

    Its policy lets the browser load nothing but the page's own style and pictures that are part of it, and run nothing.

    Args:
        report: what a run found.
    """
    style = _style()
    # The digest lets this one style pass and no other, whatever a name in the report may hold.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    verdict = "passed" if report.passed else "FAILED"
    sections = list(_sections(report))
    links = [tag("li", tag("a", section[0].text or "", href=f"#{section.get('id')}")) for section in sections]
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", name="referrer", content="no-referrer"),
            tag("title", f"{verdict}: parity of {one_line(report.model)}"),
            _raw_style(style),
        ),
        tag(
            "body",
            tag(
                "header",
                tag("p", "Parity report", class_="over-title"),
                tag("h1", one_line(report.model)),
                tag("p", _subject(report), class_="subject"),
            ),
            tag("main", _verdict(report), tag("nav", tag("ul", *links), aria_label="Contents"), *sections),
            tag("footer", tag("p", f"DeepLabZoo {report.environment.get('deeplabzoo', '')}".strip())),
        ),
        lang="en",
    )
    return "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html") + "\n"


def write_html(report: Report, path: Path) -> None:
    """Write the page; nothing half-written is left.

    Raises:
        OutputError: the file can't be written.
    """
    with beside_then_rename(path) as beside:
        beside.write_text(html(report), encoding="utf-8", newline="\n")


@cache
def _style() -> str:
    return files("deeplabzoo.parity").joinpath("page.css").read_text(encoding="utf-8").replace("\r\n", "\n")


def _raw_style(style: str) -> Element:
    element = Element("style")
    element.text = style  # the one text that the serialiser leaves as it is: our own
    return element


def _subject(report: Report) -> str:
    checks = ", ".join(report.checks) or "none"
    return f"{report.dtype} on {report.device}. Checks: {checks}. Weights: {one_line(report.weights)}."


def _sections(report: Report) -> Iterator[Element]:
    yield _section("sides", "Who agrees with whom", *_matrix(report))
    if report.trace is not None and report.trace.rows:
        yield _section("trace", "Error of every node", *trace_section(report.trace))
    if report.pictures:
        yield _section("labels", "Where labels differ", *figures(report.pictures))
    for check in report.checks:
        yield _section(check, f"Comparisons: {check}", *_check(report, check))
    yield _section("environment", "Environment", *_environment(report))


def _section(id_: str, title: str, *children: Element) -> Element:
    return tag("section", tag("h2", title), *children, id=id_)


# The verdict.


def _verdict(report: Report) -> Element:
    word = "Passed" if report.passed else "FAILED"
    parts = [tag("h2", tag("span", word, class_="badge"))]
    worsts = [row for row in map(report.worst, report.checks) if row is not None]
    worst = max(worsts, key=lambda row: row.error / row.bound, default=None)
    if worst is not None:
        farthest = "Nearest to its bound" if worst.passed else "Farthest over its bound"
        parts.append(tag("p", *prose(f"{farthest}: {sentence(worst)}.")))
    elif report.trace is None:
        parts.append(tag("p", "Nothing was compared, which proves nothing."))
    if report.trace is not None and report.trace.passed and report.trace.rows:
        largest = max(report.trace.rows, key=lambda row: row.error)
        words = f"the largest is {number(largest.error)}, of {largest.node} in {largest.side}"
        parts.append(tag("p", *prose(f"No node's error jumps; {words}.")))
    parts += [tag("p", *prose(f"Note: {one_line(note)}.")) for note in report.notes]
    if wrong := [*_wrong(report)]:
        parts.append(tag("ul", *(tag("li", tag("strong", who), *prose(f": {what}")) for who, what in wrong)))
    return tag("section", *parts, id="verdict", class_=f"verdict {'passed' if report.passed else 'failed'}")


def _wrong(report: Report) -> Iterator[tuple[str, str]]:
    """Who failed, and what about it: a line for each side and check, however many pairs show it."""
    failures = {**(report.trace.failures if report.trace is not None else {}), **report.failures}
    for name, line in failures.items():
        yield name, one_line(line)
    if report.trace is not None:
        for side, node in report.trace.blamed.items():
            if node is not None:
                yield side, f"the first node whose error jumps is {node.node}: {number(node.error)} ({node.op})"
        for side, node in report.trace.grown.items():
            yield side, slowly(node)
    for row in report.blamed:
        yield row.first, f"{row.check} differ first at {where(row)}: {judged(row.error, row.bound)}"
    for check in report.not_judged:
        yield check, f"nobody was judged in {report.dtype} on {report.device}"
    for check in report.checks:
        pairs = by_pair(row for row in report.rows if row.check == check)
        over = {pair: rows[0] for pair, rows in pairs.items() if not rows[0].passed}
        if over:
            worst = max(over.values(), key=lambda row: row.error / row.bound)
            common = set.intersection(*(set(pair) for pair in over)) if len(over) > 1 else set()
            who = f", all of them with {common.pop()}" if len(common) == 1 else ""
            words = f"{len(over)} of {len(pairs)} pairs over the bound{who}"
            pair = against(worst.first, worst.second)
            yield check, f"{words}; worst {pair}, {where(worst)}: {judged(worst.error, worst.bound)}"


# Sides against sides.


def _matrix(report: Report) -> Iterator[Element]:
    pairs = {(row.first, row.second) for row in report.rows}
    names = [side.name for side in report.sides]
    judges = dict.fromkeys((REFEREE, *names, *(second for _, second in pairs)))
    columns = [name for name in judges if any(name == second for _, second in pairs)]
    bodies = []
    for name in names:
        cells = [_meeting(report, name, column, (name, column) in pairs) for column in columns]
        if name in report.failures and not any(name == first for first, _ in pairs):
            cells = [cell("failed, no results", colspan=max(1, len(columns)), class_="none")]
        bodies.append(tag("tr", cell(name, head="row"), *cells))
    if bodies:
        heads = [cell("judged", head="col"), *(cell(f"against {name}", head="col") for name in columns)]
        yield table("Worst error of each check, side against side", heads, [bodies], "matrix")
        shown = (tag("li", tag("span", name, class_=f"chip {name}"), words) for name, words in LEVELS.items())
        yield tag("ul", *shown, class_="legend levels")
    for side in report.sides:
        if side.failure is not None:
            yield tag("p", tag("strong", side.name), f" failed: {one_line(side.failure)}", class_="failure")
        for what, why in side.left_out.items():
            yield tag("p", tag("strong", side.name), f" takes no part in {what}: {why}", class_="note")


def _meeting(report: Report, first: str, second: str, met: bool) -> Element:
    if not met:
        return cell(tag("span", "\N{EN DASH}", aria_label="not compared"), class_="none")
    chips = []
    for check in report.checks:
        if row := report.worst(check, first, second):
            near = level(row.error, row.bound)
            title = f"{where(row)}: {judged(row.error, row.bound)}"
            words = (f"{check} ", tag("b", number(row.error)), f" {near}")
            chips.append(tag("span", *words, class_=f"chip {near}", title=title))
    return cell(*chips)


# Comparisons.


def _check(report: Report, check: Check) -> Iterator[Element]:
    rows = [row for row in report.rows if row.check == check]
    if not rows:
        yield tag("p", "There is nothing to compare: no two sides have results.", class_="note")
        return
    over = sum(not row.passed for row in rows)
    count = f"{over} of {len(rows)} comparisons over" if over else f"All {len(rows)} comparisons within"
    yield tag("p", f"{count} the bound.")
    if check == "training":
        yield _by_step(rows)
    for (first, second), ordered in by_pair(rows).items():
        worst = ordered[0]
        words = prose(f" worst {judged(worst.error, worst.bound)}; {len(ordered)} compared")
        summary = tag("span", tag("b", against(first, second)), " ", _outcome(worst), *words)
        rest, caption = [], f"{check}, {against(first, second)}"
        if len(ordered) > SHOWN:
            rest = [tag("p", f"{len(ordered) - SHOWN} more, each smaller against its bound.", class_="note")]
            caption += f": the worst {SHOWN} of {len(ordered)}"
        listed = table(caption, _heads(check), [[_row(row) for row in ordered[:SHOWN]]])
        yield details(summary, listed, *rest, open_=not worst.passed)


def _heads(check: Check) -> list[str]:
    extra = {"forward": ["labels equal"], "gradients": [], "training": ["step"]}[check]
    return ["what", "error", "verdict", "share of bound", "bound", *extra, "input"]


def _row(row: Row) -> Element:
    case = str(row.case) if row.case.live else f"{row.case} (some taps read padding only)"
    extra = []
    if row.check == "forward":
        extra = [cell("" if row.labels is None else percent(row.labels), class_="number")]
    elif row.check == "training":
        extra = [cell("" if row.step is None else str(row.step), class_="number")]
    error, part, bound = (
        cell(text, class_="number") for text in (number(row.error), share(row.error, row.bound), number(row.bound))
    )
    name = cell(code(row.name), head="row")
    return tag("tr", name, error, cell(_outcome(row)), part, bound, *extra, cell(case))


def _outcome(row: Row) -> Element:
    return tag("span", "ok" if row.passed else "OVER", class_=f"chip {level(row.error, row.bound)}")


def _by_step(rows: Sequence[Row]) -> Element:
    """Loss, parameters and statistics after each step that was compared, of each pair."""
    bodies = []
    for (first, second), ordered in by_pair(rows).items():
        steps = sorted({row.step or 0 for row in ordered})
        body = []
        for step in steps:
            now = [row for row in ordered if (row.step or 0) == step]
            pair = [cell(against(first, second), head="rowgroup", rowspan=len(steps))] if step == steps[0] else []
            kinds: dict[str, list[Row]] = {_LOSS: [], "parameters": [], "statistics": []}
            for row in now:
                kinds[_LOSS if row.name == _LOSS else "parameters" if trainable(row.name) else "statistics"].append(row)
            body.append(tag("tr", *pair, cell(str(step), class_="number"), *map(_worst_of, kinds.values())))
        bodies.append(body)
    heads = ["pair", "step", "loss", "parameters: worst", "running statistics: worst"]
    return table("Worst error after each training step", heads, bodies)


def _worst_of(rows: Sequence[Row]) -> Element:
    if not rows:
        return cell("\N{EN DASH}", class_="none")
    worst = rows[0]
    near = level(worst.error, worst.bound)
    chip = tag("span", tag("b", number(worst.error)), f" {near}", class_=f"chip {near}")
    return cell(chip) if worst.name == _LOSS else cell(chip, " ", code(worst.name))


# Environment.


def _environment(report: Report) -> Iterator[Element]:
    if rows := [_side(side) for side in report.sides]:
        yield table("Who took part", ["side", "computes in", "versions", "seconds", "state"], [rows])
    facts = {
        "model": report.model,
        "weights": report.weights,
        "graph SHA-256": report.graph_digest,
        "weights SHA-256": report.weights_digest,
        **report.environment,
    }
    yield tag("dl", *(tag("div", tag("dt", name), tag("dd", one_line(value))) for name, value in facts.items()))
    import tomli_w  # only needed to write

    yield details("Spec, as TOML", tag("pre", tomli_w.dumps(dict(report.spec))), class_="long")


def _side(side: Side) -> Element:
    versions = ", ".join(f"{name} {version}" for name, version in side.versions.items()) or "unknown"
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in side.seconds.items())
    device = f"{side.dtype} on {side.device}" + (f" ({side.device_name})" if side.device_name else "")
    word, class_ = ("ok", "chip clear") if side.failure is None else ("failed", "chip OVER")
    words = [cell(text, class_="words") for text in (device, versions, seconds)]
    return tag("tr", cell(side.name, head="row"), *words, cell(tag("span", word, class_=class_)))
