"""The JUnit file of a parity run: what readers of such files need, and when it tells of a failure."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections import Counter

import pytest
import report_samples as samples

from deeplabzoo.parity.cases import REFEREE
from deeplabzoo.parity.html import html
from deeplabzoo.parity.junit import WORST, junit

SAMPLES = {name: getattr(samples, name)() for name in ("passed", "failed", "hostile")}
FILES = {name: junit(report) for name, report in SAMPLES.items()}
EVERY = pytest.mark.parametrize("name", SAMPLES)

ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"classname", "name", "time"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message"},
}
CHILDREN = {"testsuites": {"testsuite"}, "testsuite": {"properties", "testcase"}, "properties": {"property"}}
CHILDREN["testcase"] = {"failure", "error", "skipped"}


def strange_to_readers(text):
    """What Jenkins' schema or GitLab's reader would stumble over."""
    root = ET.fromstring(text)
    found = [] if root.tag == "testsuites" else ["root"]
    for element in root.iter():
        if element.attrib.keys() != ATTRIBUTES.get(element.tag):
            found.append(f"attributes of {element.tag}")
        if {child.tag for child in element} - CHILDREN.get(element.tag, set()):
            found.append(f"children of {element.tag}")
        if not re.fullmatch(r"\d+\.\d+", element.get("time", "0.0")):
            found.append("time")
    cases = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    found += ["name twice"] if len(set(cases)) < len(cases) else []
    found += ["more than one outcome"] if any(len(case) > 1 for case in root.iter("testcase")) else []
    for suite in (root, *root):
        counted = Counter(outcome.tag for outcome in suite.iterfind(".//testcase/*"))
        sums = {"tests": len(suite.findall(".//testcase")), "failures": counted["failure"], "errors": counted["error"]}
        found += [f"sum of {key}" for key, total in sums.items() if suite.get(key) != str(total)]
        if suite is not root and (suite[0].tag != "properties" or suite.get("skipped") != str(counted["skipped"])):
            found.append("suite")
    return found


@EVERY
def test_readers_of_junit_can_read_it(name):
    assert strange_to_readers(FILES[name]) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [('failures="', 'failures="1'), ("<failure", "<skipped/><failure"), ('time="', 'time="a'), ("<properties>", "<system-out/><properties>"), ('type="', 'kind="')],
)  # fmt: skip
def test_a_strange_file_would_be_found(old, new):
    assert strange_to_readers(FILES["failed"].replace(old, new, 1)) != []


def test_junit_tells_what_failed():
    root = ET.fromstring(FILES["failed"])
    suites = {suite.get("name").removeprefix("deeplabzoo.parity."): suite for suite in root}
    assert list(suites) == ["sides", "forward", "gradients", "training", "trace"]
    died = suites["sides"].find("testcase[@name='keras/jax']/error")
    assert died.get("message").startswith("worker of keras/jax ended with signal 9")
    assert [case.get("name") for case in suites["trace"].findall("testcase[failure]")] == ["keras"]
    assert samples.BLAMED in suites["trace"].find("testcase/failure").get("message")
    assert (
        suites["training"].find("testcase[@name='onnx']/skipped").get("message") == "an exported model has no gradients"
    )
    gradients = {case.get("name"): case for case in suites["gradients"].findall("testcase[failure]")}
    assert len(gradients) == 6 and all("keras" in name for name in gradients)
    failure = gradients["torch against keras: 2x417x449"].find("failure")
    assert failure.get("message").startswith(
        "1 of 328 over the bound: aspp.branch2.depthwise.conv.weight, 2x417x449: 2.5e-1"
    )
    fault = gradients[f"keras against {REFEREE}: 2x417x449"].find("failure")
    assert fault.text.startswith(f"differs first at {samples.BLAMED}.weight, 2x417x449\n")
    assert "differs first" not in failure.text
    assert "torch against paddle: out, 2x96x128" in {case.get("name") for case in suites["forward"]}
    properties = {p.get("name"): p.get("value") for p in suites["sides"].iter("property")}
    assert properties["graph_sha256"] == SAMPLES["failed"].graph_digest and properties["torch.torch"] == "3.1.4"


def test_errors_that_grow_slowly_are_a_failure():
    """Nobody is to blame, but what a side returns is over the bound: lines, file and page say why it failed."""
    report = SAMPLES["passed"]
    (out,) = report.trace.outputs
    rows = [
        dataclasses.replace(row, error=1e-9) if (row.side, row.node) == ("keras", out) else row
        for row in report.trace.rows
    ]
    report = dataclasses.replace(report, trace=dataclasses.replace(report.trace, rows=tuple(rows)))
    assert not report.passed
    told = f"errors grow slowly to 1.0e-09 at {out}, which is over the bound"
    assert any(line.startswith(f"keras: {told}") for line in report.lines())
    root = ET.fromstring(junit(report))
    assert (root.get("failures"), root.get("errors")) == ("1", "0")
    assert root.find(".//failure").get("message").startswith(told)
    assert told in re.sub("<[^>]*>", "", html(report))


def test_what_a_side_spent_stands_where_it_spent_it():
    report = SAMPLES["passed"]
    sides = tuple(
        dataclasses.replace(side, seconds={"start": 4.0, "load": 1.0, "training": 6.0, "trace": 3.0})
        for side in report.sides
    )
    root = ET.fromstring(junit(dataclasses.replace(report, sides=sides)))
    suites = {suite.get("name").removeprefix("deeplabzoo.parity."): float(suite.get("time")) for suite in root}
    count = len(sides)
    assert suites["sides"] == 5 * count
    assert suites["training"] == pytest.approx(6 * count, abs=0.1)
    assert suites["trace"] == 3 * count


def test_of_many_failures_the_worst_are_listed():
    report = samples.with_row(SAMPLES["passed"], 0.5, check="gradients", first="torch", second="paddle")
    report = samples.with_row(report, 0.75, check="gradients", first="torch", second="paddle", name="input")
    failure = ET.fromstring(junit(report)).find(".//failure")
    lines = failure.text.split("\n")
    assert len(lines) == WORST + 1 and lines[0].startswith("input, ") and lines[-1] == f"{328 - WORST} more"


def test_there_is_a_failure_exactly_where_the_run_has_not_passed():
    good = SAMPLES["passed"]
    last = good.rows[-1]
    side = dataclasses.replace(good.sides[1], failure="it died")
    variants = [
        good,
        *SAMPLES.values(),
        dataclasses.replace(good, rows=()),
        dataclasses.replace(good, rows=(), trace=None),
        dataclasses.replace(good, sides=(side, *good.sides[2:])),
        dataclasses.replace(good, rows=(*good.rows[:-1], dataclasses.replace(last, error=last.bound * 1.01))),
        dataclasses.replace(good, rows=(*good.rows[:-1], dataclasses.replace(last, error=last.bound))),
        dataclasses.replace(good, trace=samples.trace("torch", blamed={"torch": samples.BLAMED})),
    ]
    outcomes = [("<failure" in junit(report) or "<error" in junit(report)) for report in variants]
    assert outcomes == [not report.passed for report in variants]
    assert outcomes == [False, False, True, True, True, True, True, True, False, True]


def test_seconds_add_up_to_those_of_the_sides():
    root = ET.fromstring(FILES["passed"])
    spent = sum(sum(side.seconds.values()) for side in SAMPLES["passed"].sides)
    assert float(root.get("time")) == pytest.approx(spent)
    assert sum(float(case.get("time")) for case in root.iter("testcase")) == pytest.approx(spent, rel=1e-3)
    training = root.find("testsuite[@name='deeplabzoo.parity.training']")
    assert float(training.get("time")) == pytest.approx(3 * 8.0)
