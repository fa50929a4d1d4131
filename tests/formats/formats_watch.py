"""Whether reading a file does more than reading: Python tells of every import, call of the system and opened file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of these nothing may happen while a file is read (docs.python.org/3/library/audit_events.html).
_FORBIDDEN = (
    "compile", "ctypes.", "exec", "fcntl.", "ftplib.", "gc.", "http.", "import", "marshal.", "os.chmod", "os.exec",
    "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn", "os.putenv", "os.remove", "os.rename", "os.rmdir",
    "os.spawn", "os.startfile", "os.symlink", "os.system", "os.truncate", "pickle.", "pty.", "shutil.", "socket.",
    "subprocess.", "urllib.", "webbrowser.",
)  # fmt: skip
_TEMPORARY = Path(tempfile.gettempdir())  # found out by writing, so not in the hook
_folders: list[Path] = []
_seen: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _folders:
        return
    if event == "open":
        # A descriptor is of a file that was opened before.
        if isinstance(arguments[0], str | bytes | os.PathLike) and not _allowed(*arguments):
            _seen.append(f"open {arguments}")
    elif event.startswith(_FORBIDDEN) and not _is_temporary(event, arguments):
        _seen.append(f"{event} {str(arguments)[:200]}")


def _allowed(path: Any, mode: str | None, flags: int) -> bool:
    where = Path(os.fsdecode(path))
    if where.parent == _TEMPORARY:
        return True
    # Python itself shows lines of source in a traceback.
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return not writes and (_folders[0] in where.parents or where.suffix == ".py")


def _is_temporary(event: str, arguments: tuple[Any, ...]) -> bool:
    """Where the system has no files without names, Python makes one and removes it."""
    return event == "os.remove" and Path(os.fsdecode(arguments[0])).parent == _TEMPORARY


@contextlib.contextmanager
def only_reading(folder: Path) -> Iterator[None]:
    """Fail where what happens inside imports, executes, connects, changes a file or opens one outside of `folder`.

    Whatever is imported on first use must have been: read a sound file of the same format before.
    """
    _seen.clear()
    _folders.append(folder)
    try:
        yield
    finally:
        _folders.clear()
    assert not _seen, _seen


sys.addaudithook(_hook)
