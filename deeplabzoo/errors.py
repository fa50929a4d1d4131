"""Every error this package raises on purpose.

A message says what happened, what was expected and what to do, with the received value. The command line prints it
as one line and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeepLabZooError(Exception):
    """Base of all errors of this package; `exit_code` is the command line's status (1 failure, 2 wrong use)."""

    exit_code = 1


class SpecError(DeepLabZooError):
    """An architecture description that is wrong or contradicts itself; names field, value and legal values."""

    exit_code = 2


class GraphError(DeepLabZooError):
    """A graph that breaks one of its own rules (unknown input, clashing names, shapes that do not fit)."""


class FormatError(DeepLabZooError):
    """A file that is missing, truncated, of another format, or tries to execute something."""


class LayoutError(DeepLabZooError):
    """Tensors whose layout can't be told, or that do not fit the layout; lists both sides."""


class WeightsError(DeepLabZooError):
    """Canonical weights that do not fit a graph; lists missing, unexpected and misshapen tensors."""


class BackendError(DeepLabZooError):
    """A backend that is unknown, not installed, can't do what was asked, or can't live in this process."""


class WorkerError(DeepLabZooError):
    """A worker process that died, hung or reported a failure; carries the framework's own last lines."""


class ImageError(DeepLabZooError):
    """An image or a mask that can't be used."""


class DataError(DeepLabZooError):
    """A data folder that does not hold what it should."""


class OutputError(DeepLabZooError):
    """An output that exists already or can't be written."""


class DownloadError(DeepLabZooError):
    """A download that failed or whose digest is wrong."""


def near_match(value: object, legal: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` when one of `legal` is close to `value`, else an empty string."""
    close = difflib.get_close_matches(str(value), list(legal), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


_MOST_NAMES = 24
_LONGEST = 120


def unknown(what: str, value: object, legal: Iterable[str]) -> str:
    """Say that `value` is no legal `what`, list the legal ones (of many, the nearest) and suggest a near one."""
    names = [str(name) for name in legal]
    received = repr(value)
    if len(received) > _LONGEST:  # a whole graph where a name belongs
        received = f"{received[: _LONGEST - 3]}..."
    if len(names) <= _MOST_NAMES:
        return f"unknown {what} {received}: expected one of {', '.join(names)}{near_match(value, names)}"
    shown = difflib.get_close_matches(str(value), names, n=6, cutoff=0.3) or names[:6]
    return (
        f"unknown {what} {received}: expected one of {len(names)} names, such as {', '.join(shown)}"
        f"{near_match(value, names)}"
    )
