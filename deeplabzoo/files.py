"""Writing files so that nothing half-written is ever left under the final name."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from deeplabzoo.errors import OutputError


def check_output(path: Path, *, force: bool = False) -> None:
    """Raise `OutputError` where `path` can't become an output.

    It exists (without `force`), is no regular file (a device, a pipe: never replaced), its folder does not exist or
    can't be written, or its name is impossible.
    """
    try:
        if path.is_dir():
            raise OutputError(f"output {path} is a folder; give the name of a file")
        if path.exists() and not path.is_file():
            raise OutputError(f"output {path} is no regular file; give another name")
        if (path.exists() or path.is_symlink()) and not force:
            raise OutputError(f"output {path} exists; give another name, or --force to replace it")
        if not path.parent.is_dir():
            raise OutputError(f"output {path}: there is no folder {path.parent}; make it first")
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise OutputError(
            f"output {str(path)[:80]}: {getattr(error, 'strerror', None) or error}; give another"
        ) from None
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"output {path}: folder {path.parent} can't be written; choose another")


def reason(error: OSError) -> str:
    """Return why the system refused, in its own words on one line: h5py adds addresses and breaks the line."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


def make_folder(path: Path) -> None:
    """Make a folder for outputs, and those above it; `OutputError` where that can't be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"output folder {path} can't be made: {error.strerror}; give another") from None


@contextlib.contextmanager
def beside_then_rename(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Yield a path in the same folder to write to; on success it replaces `path`, on any failure it is removed.

    The temporary name keeps the suffix of `path`, because some writers choose the format by it. Where `path` is a
    link, the file it points to is replaced and the link stays. Without `force` a file that somebody else has put there
    in the meantime stays as well.

    Raises:
        OutputError: the file can't be written (full disk, no permission), has come into being, or is a folder, device
            or pipe.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise OutputError(f"output {path} is no regular file; give another name")
    beside = target.with_name(f".{secrets.token_hex(6)}{target.suffix[:16]}")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        if force:
            beside.replace(target)
        else:
            _rename_to_new(beside, target)
    except FileExistsError:
        raise OutputError(f"output {path} exists by now; give another name, or --force to replace it") from None
    except OSError as error:
        raise OutputError(f"output {path} can't be written: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # the first failure is the one worth telling
            beside.unlink(missing_ok=True)


def _rename_to_new(beside: Path, target: Path) -> None:
    """Rename, or `FileExistsError`: a link is made in one step, or not at all."""
    try:
        target.hardlink_to(beside)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: between the look and the rename lies next to no time
        if target.exists():
            raise FileExistsError(target) from None
        beside.replace(target)


def check_not_read(output: Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise `OutputError` where `output` is a file that is read, which it would replace; links are followed.

    Args:
        output: what is to be written.
        inputs: what is read: files, names of published weights, or None.
    """
    # Not `Path.resolve`, which fails at links in a circle: what is wrong with an input is told where it is read.
    if output.exists() and os.path.realpath(output) in {os.path.realpath(one) for one in inputs if one is not None}:
        raise OutputError(f"output {output} is what is read; give another name")
