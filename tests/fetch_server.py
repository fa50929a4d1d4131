"""A local HTTP server whose files can be cut, stalled, changed, moved and lied about."""

from __future__ import annotations

import http.server
import re
import threading
from dataclasses import dataclass, field
from typing import ClassVar, Self


@dataclass
class Site:
    """What one path answers.

    Attributes:
        body: the file.
        ranges: whether parts can be asked for.
        etag: sent as ETag, unless empty.
        modified: sent as Last-Modified, unless empty.
        cuts: bytes after which the connection ends, one a request; when they are used up, none is cut.
        stalls: the connection is kept open after a cut, until the server ends.
        drips: bytes are sent one at a time after a cut.
        statuses: answers without a body, one a request.
        moved: address to send on to, with a body that never ends.
        length: what Content-Length claims; -1 leaves it out.
        content_range: what Content-Range claims.
        unconditional: If-Range is ignored.
    """

    body: bytes = b""
    ranges: bool = True
    etag: str = '"1"'
    modified: str = ""
    cuts: list[int] = field(default_factory=list)
    stalls: bool = False
    drips: bool = False
    statuses: list[int] = field(default_factory=list)
    moved: str = ""
    length: int | None = None
    content_range: str = ""
    unconditional: bool = False


class _Handler(http.server.BaseHTTPRequestHandler):
    sites: ClassVar[dict[str, Site]] = {}
    asked: ClassVar[list[tuple[str, str, str]]] = []
    over: ClassVar[threading.Event]

    def do_GET(self):
        name = self.path.lstrip("/")
        self.asked.append((name, self.headers.get("Range", ""), self.headers.get("If-Range", "")))
        site = self.sites.get(name)
        if site is None or site.statuses:
            self.send_error(site.statuses.pop(0) if site else 404)
        elif site.moved:
            self.send_response(302)
            self.send_header("Location", site.moved)
            self.send_header("Content-Length", str(10**12))
            self.end_headers()
            self.wfile.write(b"moved")
            self.over.wait()
        else:
            self._send(site)

    def _send(self, site):
        start, asked = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range", site.etag or site.modified)
        if asked and site.ranges and (site.unconditional or condition in (site.etag, site.modified)):
            start = int(asked[1])
            if start >= len(site.body):
                self.send_error(416)
                return
            self.send_response(206)
            last = f"bytes {start}-{len(site.body) - 1}/{len(site.body)}"
            self.send_header("Content-Range", site.content_range or last)
        else:
            self.send_response(200)
        rest = site.body[start:]
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.modified:
            self.send_header("Last-Modified", site.modified)
        if site.length != -1:
            self.send_header("Content-Length", str(len(rest) if site.length is None else site.length))
        self.end_headers()
        cut = site.cuts.pop(0) if site.cuts else len(rest)
        self.wfile.write(rest[:cut])
        self.wfile.flush()
        if cut < len(rest) and site.stalls:
            self.over.wait()
        for n in range(cut, len(rest) if site.drips else 0):
            self.wfile.write(rest[n : n + 1])
            if self.over.wait(0.01):
                return

    def log_message(self, *arguments):
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is what several tests are about."""


class Server:
    """Runs in a thread; `sites` by path, `asked` holds (path, Range, If-Range) of every request."""

    def __enter__(self) -> Self:
        self.sites, self.asked = {}, []
        self.over = threading.Event()
        handler = type("Handler", (_Handler,), {"sites": self.sites, "asked": self.asked, "over": self.over})
        self.running = _Server(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.running.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.running.server_port}"
        return self

    def __exit__(self, *error) -> None:
        self.over.set()
        self.running.shutdown()
        self.thread.join()
        self.running.server_close()
