"""One way to say that a file is wrong: everything a bad file provokes leaves this room as a one-line `FormatError`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from deeplabzoo.errors import DeepLabZooError, FormatError, near_match

_SHOWN = 120  # characters of a file's own text repeated in a message; a hostile name must not flood the terminal


class Flaw(Exception):  # noqa: N818 - it never leaves this package; `reading` turns it into a FormatError
    """What is wrong with the file being read, without the file's path, which `reading` adds."""


def shown(value: object) -> str:
    """Return a value that came from a file on one line, control characters escaped, cut to a readable length.

    Only what is flat is spelled out: a few nested tuples that share their parts can take for ever to print.
    """
    if isinstance(value, tuple | list):
        text = f"({', '.join(map(_flat, value[:33]))}{', ...' if len(value) > 33 else ''})"
    else:
        text = _flat(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _flat(value: object) -> str:
    if not isinstance(value, str | bytes | int | float | BaseException | None):
        return f"<{type(value).__name__}>"
    return str(value).encode("unicode_escape", "replace").decode("ascii", "replace")


@contextlib.contextmanager
def reading(path: Path, name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `FormatError` that starts with `path`.

    Damaged input makes zipfile, struct, json, h5py and numpy raise almost any exception there is, and none of them is
    of use to a caller; hence the wide `except`.

    Args:
        path: the file being read.
        name: the format's name, for the message.

    Raises:
        FormatError: anything but the errors of this package was raised inside.
    """
    try:
        yield
    except DeepLabZooError:
        raise
    except Flaw as flaw:
        raise FormatError(f"{path}: {flaw}") from flaw
    except Exception as error:
        said = shown(error) or "no further word"
        raise FormatError(
            f"{path}: damaged, truncated or not a {name} file ({type(error).__name__}: {said}); get the file again"
        ) from error


def existing_file(path: Path) -> None:
    """Check that `path` is a file that holds something.

    Raises:
        FormatError: it is missing (with a near match among its siblings), a folder, or empty.
    """
    with reading(path, "checkpoint"):
        if path.is_dir():
            raise Flaw("a folder; expected a file (or a folder that holds one TensorFlow checkpoint)")
        if not path.exists():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise Flaw(f"no such file; check the path{near_match(path.name, siblings)}")
        if not path.is_file():
            raise Flaw("not a regular file; give the path of a checkpoint")
        if path.stat().st_size == 0:
            raise Flaw("an empty file; get the file again")


def head(path: Path, count: int = 64) -> bytes:
    """Return the first bytes of `path`, fewer where it is shorter, none where it can't be read or is no regular file.

    To open a pipe is to wait until somebody writes.
    """
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def tail(path: Path, count: int) -> bytes:
    """Return the last bytes of `path`, under the conditions of `head`."""
    try:
        if not path.is_file() or path.stat().st_size < count:
            return b""
        with path.open("rb") as file:
            file.seek(-count, 2)
            return file.read(count)
    except OSError:
        return b""
