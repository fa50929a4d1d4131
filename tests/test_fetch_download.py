"""Downloads that break off, stall, change, lie and lead astray: resumed or refused, never glued together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from fetch_server import Server, Site

from deeplabzoo.zoo import download as downloading
from deeplabzoo.zoo.download import FRUITLESS, Broken, Limits, download, note_of

BODY = bytes(range(256)) * 400
OTHER = bytes(reversed(BODY))
DATE = "Wed, 01 Oct 2025 10:00:00 GMT"


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloading, "_PAUSE", 0.01)
    with Server() as running:
        yield running


@pytest.fixture
def part(tmp_path):
    return tmp_path / "m.bin.part"


def get(server, part, *, name="m.bin", size=10**6, stall=5.0, total=20.0):
    download(f"{server.address}/{name}", part, limits=Limits(size, stall, total))


def ranges(server):
    return [wanted for _, wanted, _ in server.asked]


@pytest.mark.parametrize("site", [Site(BODY), Site(BODY, length=-1), Site(BODY, ranges=False, etag="")])
def test_whole(server, part, site):
    server.sites["m.bin"] = site
    get(server, part)
    assert part.read_bytes() == BODY
    assert server.asked == [("m.bin", "", "")]


@pytest.mark.parametrize(
    ("site", "condition"),
    [
        (Site(BODY), '"1"'),
        (Site(BODY, etag="", modified=DATE), DATE),
        (Site(BODY, etag='W/"1"', modified=DATE), DATE),  # a weak ETag does not vouch for bytes
        (Site(BODY, etag=""), ""),  # the length alone
    ],
)
def test_truncated_once(server, part, site, condition):
    site.cuts = [30_000]
    server.sites["m.bin"] = site
    get(server, part)
    assert part.read_bytes() == BODY
    assert server.asked == [("m.bin", "", ""), ("m.bin", "bytes=30000-", condition)]


def test_truncated_often(server, part):
    """Every connection that brings something is followed by another one."""
    server.sites["m.bin"] = Site(BODY, cuts=[9_000] * 8)
    get(server, part)
    assert part.read_bytes() == BODY
    assert ranges(server) == ["", *(f"bytes={9_000 * n}-" for n in range(1, 9))]


def test_truncated_always(server, part):
    server.sites["m.bin"] = Site(BODY, cuts=[30_000] + [0] * 10)
    with pytest.raises(Broken, match=r"the connection ended after 30,000 of 102,400 bytes"):
        get(server, part)
    assert part.read_bytes() == BODY[:30_000]
    assert len(server.asked) == 1 + FRUITLESS


def test_another_call_goes_on(server, part):
    server.sites["m.bin"] = Site(BODY, cuts=[30_000] + [0] * FRUITLESS)
    with pytest.raises(Broken):
        get(server, part)
    server.asked.clear()
    get(server, part)
    assert part.read_bytes() == BODY
    assert ranges(server) == ["bytes=30000-"]
    get(server, part)  # all there: nobody is asked
    assert len(server.asked) == 1


def test_no_ranges(server, part):
    """Such a server sends the file from its start, and nothing is glued together."""
    server.sites["m.bin"] = Site(BODY, ranges=False, cuts=[30_000])
    get(server, part)
    assert part.read_bytes() == BODY
    assert ranges(server) == ["", "bytes=30000-"]


@pytest.mark.parametrize("etag", ['"1"', ""])
def test_changed_between_parts(server, part, etag):
    """By its ETag, or where there is none by its length."""
    server.sites["m.bin"] = Site(BODY, etag=etag, cuts=[30_000] + [0] * FRUITLESS)
    with pytest.raises(Broken):
        get(server, part)
    server.sites["m.bin"] = Site(OTHER[:-1], etag=etag and '"2"')
    get(server, part)
    assert part.read_bytes() == OTHER[:-1]


@pytest.mark.parametrize(
    "site",
    [
        Site(OTHER, etag='"2"', unconditional=True),
        Site(BODY, content_range=f"bytes 0-{len(BODY) - 1}/{len(BODY)}"),
        Site(BODY, content_range=f"bytes 30000-{len(BODY) - 1}/{len(BODY) + 5}"),
        Site(BODY, content_range="bytes what/ever"),
    ],
)
def test_a_part_that_is_not_the_rest(server, part, site):
    """Even where the server ignores If-Range, or sends another range than it was asked for."""
    server.sites["m.bin"] = Site(BODY, cuts=[30_000] + [0] * FRUITLESS)
    with pytest.raises(Broken):
        get(server, part)
    server.sites["m.bin"] = site
    get(server, part)
    assert part.read_bytes() == site.body
    assert ranges(server)[-2:] == ["bytes=30000-", ""]


def test_a_file_that_got_shorter(server, part):
    server.sites["m.bin"] = Site(BODY, cuts=[30_000] + [0] * FRUITLESS)
    with pytest.raises(Broken):
        get(server, part)
    server.sites["m.bin"] = Site(BODY[:20_000])  # the same ETag, and the rest can't be had: 416
    get(server, part)
    assert part.read_bytes() == BODY[:20_000]


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"url": "URL", "etag": 1}', '{"url": "http://elsewhere/m.bin", "total": 102400}']
)
def test_a_note_of_no_use(server, part, note):
    part.write_bytes(b"who knows what")
    note_of(part).write_text(note.replace("URL", f"{server.address}/m.bin"))
    server.sites["m.bin"] = Site(BODY)
    get(server, part)
    assert part.read_bytes() == BODY
    assert ranges(server) == [""]


def test_stalls(server, part):
    server.sites["m.bin"] = Site(BODY, cuts=[30_000, 20_000, 0, 0, 0], stalls=True)
    start = time.monotonic()
    with pytest.raises(Broken, match=r"^nothing came for 0\.1 s$"):
        get(server, part, stall=0.1)
    assert time.monotonic() - start < 3
    assert part.read_bytes() == BODY[:50_000]


def test_slow_for_ever(server, part):
    """A byte now and then is no stall; the limit for the whole download ends it."""
    server.sites["m.bin"] = Site(BODY, cuts=[1_000], drips=True)
    start = time.monotonic()
    with pytest.raises(Broken, match=r"it took more than 0\.3 s, and 1,\d\d\d bytes had come"):
        get(server, part, total=0.3)
    assert time.monotonic() - start < 2


def test_redirects(server, part):
    server.sites |= {"a": Site(moved="b"), "b": Site(moved=f"{server.address}/m.bin"), "m.bin": Site(BODY, cuts=[9])}
    get(server, part, name="a")
    assert part.read_bytes() == BODY
    assert [name for name, _, _ in server.asked] == ["a", "b", "m.bin"] * 2
    assert server.asked[-1] == ("m.bin", "bytes=9-", '"1"')  # the range survives the way


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a", "sends us on more than 10 times"),
        ("file:///etc/passwd", "sends us on to 'file:///etc/passwd', which is not followed"),
        ("ftp://127.0.0.1/m.bin", "which is not followed"),
        ("http://[", "which is not followed"),
        ("http://" + "x" * 5000 + "/", "Failed to parse"),
    ],
)
def test_bad_redirects(server, part, target, message):
    server.sites["a"] = Site(moved=target)
    with pytest.raises(Broken, match=message) as caught:
        get(server, part, name="a")
    assert len(str(caught.value)) < 200
    assert not part.exists()


def test_https_does_not_lead_to_http(server, part, monkeypatch):
    """What was safe stays safe: whoever controls the redirect can't take the encryption away."""

    class Answer:
        is_redirect = True
        headers = {"Location": "http://127.0.0.1/m.bin"}  # noqa: RUF012

        def close(self):
            pass

    monkeypatch.setattr(downloading.requests.Session, "get", lambda *arguments, **options: Answer())
    with pytest.raises(Broken, match="which is not followed"):
        download("HTTPS://127.0.0.1/m.bin", part, limits=Limits(10, 1, 1))


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (410, 1), (500, FRUITLESS), (503, FRUITLESS)])
def test_errors_of_the_server(server, part, status, asked):
    """The server's own trouble may pass; that there is no such file will not."""
    server.sites["m.bin"] = Site(BODY, statuses=[status] * 10)
    with pytest.raises(Broken, match=f"^the server answers {status} "):
        get(server, part)
    assert len(server.asked) == asked
    assert not part.exists()


def test_trouble_that_passes(server, part):
    server.sites["m.bin"] = Site(BODY, statuses=[500, 429])
    get(server, part)
    assert part.read_bytes() == BODY


def test_content_length_that_says_less(server, part):
    """Nothing tells the rest from rubbish after the file; the digest does."""
    server.sites["m.bin"] = Site(BODY, length=1000)
    get(server, part)
    assert part.read_bytes() == BODY[:1000]


def test_content_length_that_says_more(server, part):
    server.sites["m.bin"] = Site(BODY, length=len(BODY) + 7)
    with pytest.raises(Broken, match=r"ended after 102,400 of 102,407 bytes|less of the file than it sent before"):
        get(server, part)


def test_too_large(server, part):
    server.sites["m.bin"] = Site(BODY)
    with pytest.raises(Broken, match="announces 102,400 bytes, expected at most 50,000"):
        get(server, part, size=50_000)
    assert not part.exists()
    server.sites["m.bin"] = Site(BODY, length=-1)  # and where it is not announced
    with pytest.raises(Broken, match="sends more than 50,000 bytes"):
        get(server, part, size=50_000)
    assert not part.exists()


def test_no_network(part):
    start = time.monotonic()
    with pytest.raises(Broken, match=r"^no connection$"):
        download("http://127.0.0.1:9/m.bin", part, limits=Limits(10, 5, 20))
    assert time.monotonic() - start < 1  # where nobody answers there is nothing to wait for


def test_no_room(server, tmp_path):
    server.sites["m.bin"] = Site(BODY)
    with pytest.raises(OSError, match="nowhere"):
        get(server, tmp_path / "nowhere" / "m.part")


def test_interrupted(server, part):
    """Ctrl-C leaves the part and its note, from which the next call goes on."""
    server.sites["m.bin"] = Site(BODY, cuts=[30_000], stalls=True)
    code = (
        "import sys; from pathlib import Path; from deeplabzoo.zoo.download import *\n"
        "download(sys.argv[1], Path(sys.argv[2]), limits=Limits(10**6, 60, 60))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, f"{server.address}/m.bin", str(part)], stderr=subprocess.PIPE, text=True
    )
    while not part.exists() or part.stat().st_size < 30_000:
        time.sleep(0.02)
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in running.communicate(timeout=10)[1]
    assert sorted(path.name for path in part.parent.iterdir()) == ["m.bin.part", "m.bin.part.json"]
    assert json.loads(note_of(part).read_text())["total"] == len(BODY)
    get(server, part)
    assert part.read_bytes() == BODY
    assert ranges(server) == ["", "bytes=30000-"]
