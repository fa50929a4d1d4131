"""One file over HTTP: resumed where it broke, bounded in size and time, never glued together from two versions.

Bytes go to a `.part` file; `.part.json` beside it says of which version of the file they are (ETag, date, length). A
download goes on from there only where the server confirms that version, and starts again otherwise.
"""

from __future__ import annotations

import contextlib
import http
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from tqdm import tqdm

from deeplabzoo.core.fields import shown

REDIRECTS = 10
"""More in a row are taken for a loop."""

FRUITLESS = 3
"""Attempts in a row that bring nothing, after which a download is given up."""

_PAUSE = 1.0  # seconds before another attempt, doubled each time that one brings nothing
_BLOCK = 1 << 18


class Broken(Exception):  # noqa: N818 - it says what became of a download; the caller makes it an error of the package
    """Why a download ended early."""


class _Again(Exception):  # noqa: N818
    """Why one attempt ended where another one may do better."""


class _Changed(_Again):
    """The server has another version of the file than the one begun."""


@dataclass(frozen=True)
class Limits:
    """What a download may take.

    Attributes:
        size: bytes.
        stall: seconds without a byte before a connection is given up.
        total: seconds in all.
    """

    size: int
    stall: float
    total: float


@dataclass(frozen=True)
class _Version:
    """Which version of a file the bytes of a `.part` are of."""

    url: str
    etag: str = ""
    modified: str = ""
    total: int | None = None

    @classmethod
    def of(cls, url: str, response: requests.Response) -> _Version:
        headers = response.headers
        return cls(url, headers.get("ETag", ""), headers.get("Last-Modified", ""), _length(headers))

    @property
    def condition(self) -> str:
        """What `If-Range` takes: a strong ETag or a date."""
        return self.modified if not self.etag or self.etag.startswith("W/") else self.etag


class _Session(requests.Session):
    """Leaves redirects to us: requests would read their bodies, of any size, and follow them from https to http."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        del resp


def note_of(path: Path) -> Path:
    """The note beside an unfinished file."""
    return path.with_name(f"{path.name}.json")


class _Part:
    """The unfinished file."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self.note = note_of(path)
        self.version = self._read_note()
        self.size = path.stat().st_size if self.version and path.is_file() else 0

    @property
    def complete(self) -> bool:
        return self.version is not None and self.size > 0 and self.size == self.version.total

    @property
    def broken_off(self) -> str:
        of = f" of {self.version.total:,}" if self.version and self.version.total is not None else ""
        return f"the connection ended after {self.size:,}{of} bytes"

    def begin(self, version: _Version) -> None:
        """Throw away what there is, and note what comes."""
        self.path.write_bytes(b"")
        self.note.write_text(json.dumps(asdict(version)), encoding="utf-8")
        self.version, self.size = version, 0

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.version, self.size = None, 0

    def wanted(self) -> dict[str, str]:
        """Headers that ask for the rest; none where the server could not be held to the version begun."""
        if not self.size or self.version is None or not (self.version.condition or self.version.total):
            return {}
        condition = {"If-Range": self.version.condition} if self.version.condition else {}
        return {"Range": f"bytes={self.size}-", **condition}

    def _read_note(self) -> _Version | None:
        """None where there is no note, it is damaged, or it is that of another address."""
        try:
            version = _Version(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        texts = all(isinstance(text, str) for text in (version.etag, version.modified))
        return version if version.url == self.url and texts and isinstance(version.total, int | None) else None


def download(url: str, path: Path, *, limits: Limits, progress: bool = False) -> None:
    """Bring `url` to `path`, going on from what an earlier call left there.

    Args:
        url: http or https; redirects are followed, but never from https to http or to another scheme.
        path: the file to write; a note of its version lies beside it, after a success too (`note_of`).
        limits: see `Limits`.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        Broken: the file did not come, with the reason.
        OSError: it can't be written.
    """
    part = _Part(path, url)
    deadline = time.monotonic() + limits.total
    start = most = part.size
    fruitless = 0
    bar = tqdm(desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True, leave=False, disable=None if progress else True)
    with bar, _Session() as session:
        while not part.complete:
            try:
                _attempt(session, part, limits, deadline, bar)
                break
            except _Again as error:
                reason = str(error)
                if isinstance(error, _Changed):
                    part.forget()
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = _said(error, part, limits)
                if isinstance(error, requests.ConnectionError) and part.size == start:
                    raise Broken(reason) from None  # no network: there is nothing to wait for
            fruitless = 0 if part.size > most else fruitless + 1  # what comes a second time is no fruit
            most = max(most, part.size)
            pause = _PAUSE * 2**fruitless
            if fruitless >= FRUITLESS or time.monotonic() + pause > deadline:
                raise Broken(reason)
            time.sleep(pause)


def _attempt(session: requests.Session, part: _Part, limits: Limits, deadline: float, bar: tqdm[Any]) -> None:
    """One connection; returns when the file is complete."""
    with contextlib.closing(_open(session, part, limits)) as response:
        _check_status(response, part)
        if response.status_code == http.HTTPStatus.OK:
            part.begin(_Version.of(part.url, response))
        total = part.version.total if part.version else None
        if total is not None and total > limits.size:
            part.forget()
            raise Broken(f"the server announces {total:,} bytes, expected at most {limits.size:,}")
        bar.total, bar.n = total, part.size
        bar.refresh()
        with part.path.open("ab") as file:
            while block := response.raw.read1(_BLOCK):
                if part.size + len(block) > limits.size:
                    part.forget()
                    raise Broken(f"the server sends more than {limits.size:,} bytes")
                file.write(block)
                part.size += len(block)
                bar.update(len(block))
                if time.monotonic() > deadline:
                    raise Broken(f"it took more than {limits.total:g} s, and {part.size:,} bytes had come")
    if total is not None and part.size != total:
        raise _Again(part.broken_off)


def _open(session: requests.Session, part: _Part, limits: Limits) -> requests.Response:
    """The answer after all redirects; the bodies of redirects are never read."""
    url = part.url
    headers = {"Accept-Encoding": "identity", **part.wanted()}
    for _ in range(REDIRECTS + 1):
        response = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=limits.stall)
        if not response.is_redirect:
            return response
        response.close()
        try:
            target = urljoin(url, response.headers["Location"])
            scheme = urlsplit(target).scheme
        except ValueError:
            target, scheme = response.headers["Location"], "unreadable"
        if scheme != "https" and (scheme, urlsplit(url).scheme) != ("http", "http"):
            raise Broken(f"the server sends us on to {shown(target)}, which is not followed")
        url = target
    raise Broken(f"the server sends us on more than {REDIRECTS} times")


def _check_status(response: requests.Response, part: _Part) -> None:
    """Raise where the answer is neither the whole file nor the rest of the version begun."""
    status = response.status_code
    if status == http.HTTPStatus.OK:
        return
    if status == http.HTTPStatus.PARTIAL_CONTENT and part.size and part.version is not None:
        sent = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        etag = response.headers.get("ETag", part.version.etag)
        same = sent is not None and sent[2] == str(part.version.total or "*") and etag == part.version.etag
        if sent is None or not same or int(sent[1]) != part.size:
            raise _Changed("the file changed while it was downloaded")
        return
    if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise _Changed("the server has less of the file than it sent before")
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "unknown status"
    answer = f"the server answers {status} {phrase}"
    if status == http.HTTPStatus.TOO_MANY_REQUESTS or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _Again(answer)
    raise Broken(answer)


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _said(error: BaseException, part: _Part, limits: Limits) -> str:
    """One line; the HTTP library's own texts hold whole object dumps."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return f"nothing came for {limits.stall:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "no safe connection: TLS failed"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return part.broken_off
    return f"{type(error).__name__}: {shown(str(error))}"
