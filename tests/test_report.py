"""The page of a parity run: what it holds, and the words it says it in."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
import report_samples as samples

from deeplabzoo.errors import OutputError
from deeplabzoo.parity.cases import REFEREE
from deeplabzoo.parity.html import SHOWN, html, write_html
from deeplabzoo.parity.html_labels import CORE, RIM, heat_map
from deeplabzoo.parity.html_trace import curve
from deeplabzoo.parity.junit import junit, write_junit
from deeplabzoo.parity.report import Picture
from deeplabzoo.parity.words import judged, level, number, percent, printable, share

SAMPLES = {name: getattr(samples, name)() for name in ("passed", "failed", "hostile")}
PAGES = {name: html(report) for name, report in SAMPLES.items()}
EVERY = pytest.mark.parametrize("name", SAMPLES)


class Tags(HTMLParser):
    """Elements with their attributes and the text in them, as a browser without style would read them."""

    VOID = ("meta", "img", "wbr")

    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, name, attributes):
        if name not in self.VOID:
            self.open.append(name)
        self.found.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        if "style" not in self.open:
            self.text += text

    def all(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


def breaches(page):
    """What a page without network, script and foreign style must not have."""
    found = []
    for name, attributes in Tags(page).found:
        if name in ("script", "link", "iframe", "object", "embed", "base", "form"):
            found.append(name)
        found += [f"{name} {key}" for key in attributes if key == "style" or key.startswith("on")]
        if not attributes.get("src", "data:image/png;").startswith("data:image/png;"):
            found.append(f"{name} src")
        if not attributes.get("href", "#").startswith("#"):
            found.append(f"{name} href")
    return found


def words(fragment):
    """Text of a part of a page."""
    return re.sub("<[^>]*>", "", fragment)


# Words.


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.24e-15, "3.2e-15"), (1e-11, "1e-11"), (1e-8, "1e-8"), (0.0, "0"), (math.inf, "not finite"), (250.0, "2.5e2")],
)
def test_numbers_are_short_and_exact_in_what_they_say(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.00032, "0.032 %"),
        (0.5, "50.0 %"),
        (0.9999999, "99.9999900 %"),
        (1e-9, "under 0.0001 %"),
    ],
)
def test_a_share_is_all_or_nothing_only_where_it_is(value, text):
    assert percent(value) == text


def test_an_error_is_told_against_its_bound():
    assert share(5e-12, 1e-11) == "50.0 %" and level(5e-12, 1e-11) == "near"
    assert share(4e-10, 1e-11) == "40 times" and level(4e-10, 1e-11) == "OVER"
    assert share(3e-3, 1e-11) == "3e8 times" and share(math.inf, 1e-11) == ""
    assert [level(error, 1.0) for error in (0.0, 0.01, 0.02, 0.3, 0.31, 1.0, 1.01, math.inf, math.nan)] == [
        "clear", "clear", "below", "below", "near", "near", "OVER", "OVER", "OVER",
    ]  # fmt: skip
    assert judged(1e-12, 1e-11) == "1e-12, 10.0 % of the bound 1e-11"


def test_what_can_not_be_seen_is_escaped():
    assert printable("a\x00\x1b\udc80\u202e\nb\u00e9") == "a\\x00\\x1b\\udc80\\u202e\nb\u00e9"


# The page as text.


@EVERY
def test_the_page_holds_no_way_out(name):
    assert breaches(PAGES[name]) == []


@pytest.mark.parametrize(
    "addition",
    [
        "<script></script>",
        "<p style='color:red'></p>",
        "<p onclick='x'></p>",
        "<img src='http://x/'>",
        "<a href='//x'></a>",
    ],
)
def test_a_way_out_would_be_found(addition):
    assert breaches(PAGES["passed"].replace("<footer>", addition + "<footer>")) != []


@EVERY
def test_the_policy_allows_the_page_s_own_style_alone(name):
    policy = next(
        a["content"] for a in Tags(PAGES[name]).all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    style = PAGES[name].split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (
        rules["default-src"] == "'none'" and rules["style-src"] == f"'sha256-{digest}'" and rules["img-src"] == "data:"
    )
    assert "script-src" not in rules
    assert PAGES[name].index("Content-Security-Policy") < PAGES[name].index("<style>")


@EVERY
def test_headings_tables_and_pictures_are_named(name):
    tags = Tags(PAGES[name])
    assert tags.open == []
    assert len(tags.all("h1")) == 1 and tags.all("html") == [{"lang": "en"}]
    assert len(tags.all("table")) == len(tags.all("caption")) > 3
    assert all(heading.get("scope") in ("col", "row", "rowgroup") for heading in tags.all("th"))
    assert all(len(picture["alt"]) > 10 for picture in tags.all("img"))
    targets = {attributes.get("id") for _, attributes in tags.found}
    assert {link["href"][1:] for link in tags.all("a")} <= targets
    names = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(set(names)) == len(names)


def test_a_good_run_says_passed_and_how_near_to_the_bound():
    text = Tags(PAGES["passed"]).text
    worst = max(SAMPLES["passed"].rows, key=lambda row: row.error / row.bound)
    assert "Passed" in text and "FAILED" not in text and "OVER " not in text.replace("OVERover the bound", "")
    assert f"Nearest to its bound: {worst.check}, {worst.first} against {worst.second}: {worst.name}" in text
    assert f"{number(worst.error)}, {share(worst.error, worst.bound)} of the bound {number(worst.bound)}" in text
    assert "No node's error jumps" in text and "No pixel differs, street.jpg 1x120x160" in text


def test_a_bad_run_says_who_what_and_where():
    text = Tags(PAGES["failed"]).text
    assert "keras/jax: worker of keras/jax ended with signal 9 (out of memory?)" in text
    assert f"keras: the first node whose error jumps is {samples.BLAMED}: " in text
    assert (
        "forward: 3 of 10 pairs over the bound, all of them with keras; worst torch against keras, out, 2x417x449"
        in text
    )
    assert (
        "training: 3 of 6 pairs over the bound, all of them with keras; worst torch against keras, loss after step 10"
        in text
    )
    assert f"keras: gradients differ first at {samples.BLAMED}.weight, 2x417x449: 2.5e-1, 2.5e8 times the bound" in text
    assert "onnx takes no part in gradients: an exported model has no gradients" in text
    assert "failed, no results" in text
    assert "torch against keras, street.jpg 1x120x160: 81 of 19200 pixels differ (0.42 %)" in text
    for side in SAMPLES["failed"].sides:
        for package, version in side.versions.items():
            assert f"{package} {version}" in text
    assert SAMPLES["failed"].graph_digest in text and 'arch = "v3plus"' in text


def test_of_many_rows_the_worst_are_shown_and_the_rest_counted():
    page = PAGES["passed"].split('id="gradients"')[1].split("</section>")[0]
    of_pair = page.split("</details>")[0]
    rows = [
        row for row in SAMPLES["passed"].rows if (row.check, row.first, row.second) == ("gradients", "torch", "paddle")
    ]
    assert of_pair.count("<tr>") == SHOWN + 1
    assert f"{len(rows) - SHOWN} more, each smaller" in of_pair
    worst = max(rows, key=lambda row: row.error)
    assert words(of_pair.split("</tr>")[1]).startswith(worst.name)


def test_a_run_without_a_comparison_is_no_success():
    report = dataclasses.replace(SAMPLES["passed"], rows=(), trace=None, pictures=(), sides=())
    text = Tags(html(report)).text
    assert "FAILED" in text and "Nothing was compared" in text
    assert text.count("nobody was judged in float64 on cpu") == len(report.checks)
    assert junit(report).count("<error") == len(report.checks)


def test_a_side_that_failed_in_the_trace_alone_is_told():
    good = SAMPLES["passed"]
    report = dataclasses.replace(good, trace=dataclasses.replace(good.trace, failures={"paddle": "it died of cold"}))
    assert not report.passed
    assert "paddle: it died of cold" in Tags(html(report)).text
    assert ET.fromstring(junit(report)).find(".//testsuite[@name='deeplabzoo.parity.trace']/testcase/error") is not None


def test_training_is_told_by_step():
    page = PAGES["failed"].split("Worst error after each training step")[-1].split("</table>")[0]
    body = next(part for part in page.split("<tbody>")[1:] if ">torch against keras<" in part)
    first, last = (words(row) for row in body.split("</tr>")[:2])
    assert first.startswith("torch against keras1") and "not finite OVER" not in first
    assert last.startswith("10not finite OVER") and "1.1e-2 OVER aspp.branch2.depthwise.bn.running_var" in last


@EVERY
def test_hostile_text_stays_text(name):
    assert Tags(PAGES[name]).all("script") == []
    assert len(Tags(PAGES[name]).all("img")) == len(SAMPLES[name].pictures) - (name == "passed")
    text = Tags(PAGES[name]).text
    assert ("</style></title><script>document.title='owned'</script>" in text) == (name == "hostile")
    assert all(char.isprintable() or char == "\n" for char in PAGES[name])


@pytest.mark.parametrize(
    "errors", [(0.0, 0.0), (math.inf, 0.0), (5e-324, 1.7e308), (1e-11, 1e-11), (math.inf, math.inf)]
)
def test_a_curve_of_any_errors_stays_within_its_frame(errors):
    trace = samples.trace("torch")
    rows = tuple(dataclasses.replace(row, error=errors[n % 2]) for n, row in enumerate(trace.rows))
    drawing = curve(dataclasses.replace(trace, rows=rows))
    _, _, width, height = map(float, drawing.get("viewBox").split())
    points = [tuple(map(float, point.split(","))) for point in drawing.find("polyline").get("points").split()]
    assert len(points) == len(rows)
    assert all(0 < x < width and 0 < y < height for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert (points[0][1] < points[1][1]) == (errors[0] > errors[1]), "larger errors lie higher"


def test_a_lone_pixel_of_a_large_photo_is_marked():
    differs = np.zeros((1500, 3000), np.bool_)
    differs[1499, 2999] = differs[300, 600] = True
    picture = Picture(samples.PHOTO, "torch", "keras", np.full((1500, 3000, 3), 200, np.uint8), differs)
    drawn = np.asarray(heat_map(picture).convert("RGB"))
    assert drawn.shape == (512, 1024, 3)
    assert tuple(drawn[511, 1023]) == CORE and tuple(drawn[102, 204]) == CORE and tuple(drawn[104, 206]) == RIM
    assert (drawn == CORE).all(axis=2).sum() == 2
    assert tuple(drawn[200, 200]) not in (CORE, RIM)


@pytest.mark.parametrize(("make", "write"), [(html, write_html), (junit, write_junit)])
def test_a_file_is_whole_or_not_there(make, write, tmp_path):
    with pytest.raises(OutputError, match="can't be written"):
        write(SAMPLES["passed"], tmp_path / "nowhere" / "report")
    target = tmp_path / "report"
    target.write_text("old")
    write(SAMPLES["hostile"], target)
    assert target.read_text(encoding="utf-8") == make(SAMPLES["hostile"])
    broken = dataclasses.replace(SAMPLES["passed"], rows=(None,))
    with pytest.raises(AttributeError):
        write(broken, target)
    assert target.read_text(encoding="utf-8") == make(SAMPLES["hostile"])
    assert list(tmp_path.iterdir()) == [target]


def test_the_samples_hold_what_these_tests_need():
    assert SAMPLES["passed"].passed and not SAMPLES["failed"].passed and not SAMPLES["hostile"].passed
    assert {row.second for row in SAMPLES["passed"].rows} == {"paddle", "keras", REFEREE}
    assert samples.BLAMED in samples.GRAPH.by_name
