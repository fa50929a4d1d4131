"""A headless Chromium driven over a pipe: pages at any width, in dark or light, on screen or paper, as pixels and facts."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_PATIENCE = 60.0
"""Seconds to wait for an answer: two cores that others use too."""


def program() -> str | None:
    """Path of an installed Chromium."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A browser with one page, spoken to in the DevTools protocol: JSON messages that end with a zero byte.

    The protocol sets width, colour scheme, contrast and medium of the page itself, where flags know only windows, which
    have a least width. The browser reads from descriptor 3 and writes to 4.
    """

    def __init__(self, path: str, profile: Path) -> None:
        with contextlib.ExitStack() as opened:
            theirs_in, self._to = _pipe()
            self._from, theirs_out = _pipe()
            opened.callback(os.close, theirs_in)
            opened.callback(os.close, theirs_out)
            self._pid = os.posix_spawn(
                path,
                [path, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs_in, 3),
                    (os.POSIX_SPAWN_DUP2, theirs_out, 4),
                ],
                setpgroup=0,
            )
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        try:
            target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
            self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask, and return the answer; what happens meanwhile is kept in `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, file: Path, *, width: int = 1200, height: int = 900, **emulated: str) -> None:
        """Show a file.

        Args:
            file: a page.
            width: of the viewport in pixels.
            height: of the viewport.
            emulated: `medium` (`screen` or `print`) and media features such as `prefers_color_scheme="dark"`.
        """
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        medium = emulated.pop("medium", "screen")
        features = {"prefers_color_scheme": "light", **emulated}
        pairs = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=medium, features=pairs)
        self.call("Page.navigate", url=file.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page; the browser's own hand, which the page's policy can't stop."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['exception']['description']}")
        return answer["result"].get("value")

    def box(self, selector: str) -> dict[str, float]:
        """Place of an element in the page: left, top, width, height."""
        return self.value(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return {left: r.left + scrollX, top: r.top + scrollY, width: r.width, height: r.height} })()"
        )

    def pixels(self, selector: str | None = None) -> np.ndarray:
        """What is to be seen of the whole page, or of an element: uint8 H, W, 3."""
        clip = {
            "left": 0,
            "top": 0,
            "width": self.value("innerWidth"),
            "height": self.value("document.body.scrollHeight"),
        }
        if selector is not None:
            clip = self.box(selector)
        area = {"x": clip["left"], "y": clip["top"], "width": clip["width"], "height": clip["height"], "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", clip=area, captureBeyondViewport=True)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB"))

    def pdf(self) -> bytes:
        """The page on paper."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])

    def requested(self) -> list[str]:
        """Addresses that the page asked for, apart from itself and pictures within it."""
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls[1:] if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """What the browser wrote into its console, such as breaches of the page's policy."""
        return [e["params"]["entry"]["text"] for e in self.events if e.get("method") == "Log.entryAdded"]

    def close(self) -> None:
        """End the browser with all its processes."""
        for descriptor in (self._to, self._from):
            os.close(descriptor)
        end = time.monotonic() + 5  # without its pipe it ends by itself
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.killpg(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                return
            time.sleep(0.05)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE)
            part = os.read(self._from, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError("Chromium ended" if ready else f"Chromium did not answer within {_PATIENCE:.0f} s")
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def _pipe() -> Iterator[int]:
    """A pipe whose ends are not 3 or 4, which the browser is given."""
    for end in os.pipe():
        yield fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(end)
