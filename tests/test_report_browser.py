"""The page of a parity run in headless Chromium: what is to be seen, at which width, in light, dark and on paper."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import report_samples as samples
from chromium import Chromium, program

from deeplabzoo.parity.html import html
from deeplabzoo.parity.html_labels import CORE, RIM

SAMPLES = {name: getattr(samples, name)() for name in ("passed", "failed", "hostile")}
PAGES = {name: html(report) for name, report in SAMPLES.items()}
EVERY = pytest.mark.parametrize("name", SAMPLES)


def installed():
    """Path of a Chromium; without one the test is skipped, or fails where nothing may be left out."""
    path = program()
    if path is None:
        message = "no chromium: install it (on Debian: apt-get install chromium)"
        if os.environ.get("DEEPLABZOO_REQUIRE_DATA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(installed(), tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, page in PAGES.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


def colour(browser, selector, what="color"):
    """A colour as the style says it, as numbers."""
    text = browser.value(f"getComputedStyle(document.querySelector('{selector}')).getPropertyValue('{what}')")
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def count(pixels, wanted):
    """How many pixels are nearly of a colour."""
    return int((np.abs(pixels.astype(int) - wanted).max(axis=2) <= 3).sum())


def light(wanted):
    """Relative luminance, as WCAG 2 has it."""
    parts = [part / 255 for part in wanted]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(first, second):
    low, high = sorted((light(first), light(second)))
    return (high + 0.05) / (low + 0.05)


def test_without_a_browser_tests_are_skipped_or_fail(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("DEEPLABZOO_REQUIRE_DATA", "0")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        installed()
    monkeypatch.setenv("DEEPLABZOO_REQUIRE_DATA", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        installed()


@pytest.mark.parametrize(
    ("scheme", "passed", "failed"),
    [("light", (0x17, 0x69, 0x3F), (0xB3, 0x21, 0x1B)), ("dark", (0x5F, 0xC4, 0x8C), (0xFF, 0x8C, 0x80))],
)
def test_the_verdict_shows_its_colour(browser, pages, scheme, passed, failed):
    found = {}
    for name in ("passed", "failed"):
        browser.open(pages / f"{name}.html", prefers_color_scheme=scheme)
        shot = browser.pixels("#verdict")
        found[name] = [count(shot, passed) > 500, count(shot, failed) > 500]
        assert browser.box("#verdict")["top"] < 300
    assert found == {"passed": [True, False], "failed": [False, True]}


@pytest.mark.parametrize("width", [1200, 360])
def test_dark_is_dark_and_light_is_light(browser, pages, width):
    shown = {}
    for scheme in ("light", "dark"):
        browser.open(pages / "failed.html", width=width, prefers_color_scheme=scheme)
        shot = browser.pixels("header, body > main > nav")
        assert shot.shape[1] <= width
        shown[scheme] = float(np.median(shot))
    assert shown["light"] > 240 and shown["dark"] < 40


@EVERY
def test_a_phone_needs_no_scrolling_aside(browser, pages, name):
    browser.open(pages / f"{name}.html", width=360, height=740)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("innerWidth") == 360
    assert browser.value("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)") <= 360
    assert browser.value("[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)")
    assert float(browser.value("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)")) >= 13
    browser.value("document.querySelectorAll('.scroll').forEach(box => box.style.overflow = 'visible')")
    assert browser.value("document.documentElement.scrollWidth") > 360, "a table outside its box would be noticed"


def test_marks_lie_where_labels_differ(browser, pages):
    browser.open(pages / "failed.html")
    shot = browser.pixels("img.heat")
    height, width, _ = shot.shape
    wrong = SAMPLES["failed"].pictures[1].differs

    def at(row, column):
        return shot[int((row + 0.5) / 120 * height), int((column + 0.5) / 160 * width)]

    for row, column in ((20, 30), (80, 100), (89, 107), (85, 104)):
        assert wrong[row, column] and np.abs(at(row, column).astype(int) - CORE).max() <= 3
    for row, column in ((18, 28), (22, 32), (78, 98), (91, 109)):
        assert not wrong[row, column] and np.abs(at(row, column).astype(int) - RIM).max() <= 3
    for row, column in ((30, 20), (20, 129), (99, 30), (60, 60)):
        assert np.ptp(at(row, column)) <= 3, "grey"
    share_of_core = count(shot, CORE) / (height * width)
    assert share_of_core == pytest.approx(wrong.mean(), rel=0.1)
    assert browser.value("document.querySelectorAll('img.heat').length") == 2
    browser.open(pages / "passed.html")
    assert browser.value("document.querySelectorAll('img.heat').length") == 0
    assert browser.value("document.querySelector('img.small').naturalWidth") == 160


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_curve_shows_every_side_the_bound_and_who_is_to_blame(browser, pages, scheme):
    above = {}
    for name in ("passed", "failed"):
        browser.open(pages / f"{name}.html", prefers_color_scheme=scheme)
        shot = browser.pixels("svg.curve")
        for side in range(3 if name == "passed" else 4):
            assert count(shot, colour(browser, f"polyline.line{side}", "stroke")) > 50
        bound = round(browser.box("svg.curve path.bound")["top"] - browser.box("svg.curve")["top"])
        dashes = (
            np.abs(shot[bound - 2 : bound + 3].astype(int) - colour(browser, "path.bound", "stroke")).max(axis=2) < 60
        ).any(axis=0)
        assert 0.4 < dashes[100:-60].mean() < 0.9, "a dashed line from left to right"
        keras = colour(browser, "polyline.line2", "stroke")
        above[name] = count(shot[: bound - 5], keras)
    assert above["passed"] == 0 and above["failed"] > 30
    ring = browser.box("svg.curve circle.blame")
    assert count(browser.pixels("svg.curve circle.blame"), colour(browser, "circle.blame", "stroke")) > 10
    place = samples.NODES.index(samples.BLAMED) / len(samples.NODES)
    frame = browser.box("svg.curve")
    assert ring["left"] + ring["width"] / 2 - frame["left"] == pytest.approx(
        (72 + place * 852) / 960 * frame["width"], abs=4
    )
    assert browser.value("document.querySelector('.blame-text').textContent") == f"{samples.BLAMED} (keras)"
    groups = browser.value("[...document.querySelectorAll('svg.curve .group')].map(t => t.textContent).join(' ')")
    assert "backbone.stage2 backbone.stage3" in groups and "aspp decoder classifier" in groups


@EVERY
def test_the_browser_loads_nothing_and_runs_nothing(browser, pages, name):
    browser.open(pages / f"{name}.html")
    assert browser.requested() == [] and browser.complaints() == []
    assert browser.value("document.scripts.length") == 0 and browser.value("document.styleSheets.length") == 1
    assert browser.value("document.title").startswith("passed: " if name == "passed" else "FAILED: ")


def test_the_policy_would_stop_what_slips_in(browser, pages, tmp_path):
    slipped = "<script>document.title='owned'</script><style>h1{color:red}</style><img src='http://127.0.0.1:9/x.png'>"
    page = PAGES["passed"].replace("<footer>", slipped + "<footer>")
    file = tmp_path / "slipped.html"
    file.write_text(page, encoding="utf-8")
    browser.open(file)
    assert browser.value("document.title") != "owned" and len(browser.complaints()) >= 3
    assert colour(browser, "h1") != (255, 0, 0)
    file.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page), encoding="utf-8")
    browser.open(file)
    assert browser.value("document.title") == "owned" and colour(browser, "h1") == (255, 0, 0)
    assert browser.requested() == ["http://127.0.0.1:9/x.png"]


def test_paper_is_white_and_shows_all_of_every_table(browser, pages):
    browser.open(pages / "failed.html", width=688, medium="print", prefers_color_scheme="dark")  # A4 less its margins
    assert float(np.median(browser.pixels("header"))) > 240 and contrast(colour(browser, "body"), (255, 255, 255)) > 10
    clipped = "[...document.querySelectorAll('.scroll, pre')].filter(b => b.getBoundingClientRect().height && b.scrollWidth > b.clientWidth + 1).length"
    assert browser.value(clipped) == 0
    closed = "[...document.querySelectorAll('details{0}:not([open]) table')].map(t => t.checkVisibility({{contentVisibilityAuto: true}}))"
    assert set(browser.value(closed.format(":not(.long)"))) == {True}
    assert set(browser.value(closed.format(".long"))) == {False}
    assert browser.pdf().startswith(b"%PDF-")
    browser.open(pages / "failed.html")
    assert set(browser.value(closed.format(":not(.long)"))) == {False}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser, pages, scheme):
    browser.open(pages / "failed.html", prefers_color_scheme=scheme)
    paper = colour(browser, "body", "background-color")
    card = colour(browser, ".scroll", "background-color")
    told = [
        (selector, colour(browser, selector), paper) for selector in ("body", ".subject", "a", ".note", "figcaption")
    ]
    told += [(selector, colour(browser, selector), card) for selector in ("td", "thead th", "caption", "td.none")]
    told += [
        (s, colour(browser, s), colour(browser, s, "background-color"))
        for s in (".badge", ".chip.clear", ".chip.below", ".chip.near", ".chip.OVER")
    ]
    told += [("verdict", colour(browser, ".verdict p"), colour(browser, ".verdict", "background-color"))]
    told += [(f"text {s}", colour(browser, s, "fill"), card) for s in ("svg .group", ".blame-text", ".bound-text")]
    weak = [(what, contrast(text, ground)) for what, text, ground in told if contrast(text, ground) < 4.5]
    weak += [
        (n, contrast(colour(browser, f".line{n}", "stroke"), card))
        for n in range(4)
        if contrast(colour(browser, f".line{n}", "stroke"), card) < 3
    ]
    assert weak == []
    assert contrast((120, 120, 120), (140, 140, 140)) < 1.5 and contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(
        21
    )


def test_colour_is_never_the_only_sign(browser, pages):
    browser.open(pages / "failed.html", prefers_contrast="more")
    chips = browser.value("[...document.querySelectorAll('.matrix .chip')].map(c => [c.className, c.textContent])")
    assert len(chips) > 10 and all(text.endswith(class_.split()[1]) for class_, text in chips)
    outline = "getComputedStyle(document.querySelector('.chip')).outlineStyle"
    assert browser.value(outline) == "solid"
    dashes = browser.value("[...document.querySelectorAll('polyline')].map(l => getComputedStyle(l).strokeDasharray)")
    assert len(set(dashes)) == 4
    browser.open(pages / "failed.html")
    assert browser.value(outline) == "none"
    browser.open(pages / "failed.html", forced_colors="active")
    assert browser.value("getComputedStyle(document.querySelector('.chip')).borderStyle") == "solid"
