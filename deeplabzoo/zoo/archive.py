"""The checkpoint in a downloaded tar archive, and nothing else of it."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import IO, cast

from deeplabzoo.core.fields import shown
from deeplabzoo.errors import FormatError

_CHECKPOINT_FILE = re.compile(r"model\.ckpt[^/]*\.(index|data-\d{5}-of-\d{5})")


def folder_of(archive: Path) -> Path:
    """Where the checkpoint of an archive is unpacked."""
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def unpack(archive: Path, *, limit: int) -> Path:
    """Take the checkpoint's own files out of a tar.gz archive, and nothing else; returns the checkpoint's prefix.

    Args:
        archive: a `.tar.gz` file; where its folder (`folder_of`) is there already, that is taken.
        limit: bytes that the archive may hold.

    Raises:
        FormatError: the archive is broken, too large or holds no checkpoint.
    """
    folder = folder_of(archive)
    if not folder.is_dir():
        beside = archive.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            _extract(archive, beside, limit)
            beside.replace(folder)
        except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError) as error:
            raise FormatError(
                f"{archive.name} can't be unpacked: {type(error).__name__}: {shown(str(error))}"
            ) from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    indices = sorted(folder.glob("*.index"))
    if len(indices) != 1:
        shutil.rmtree(folder)
        raise FormatError(f"{archive.name} holds {len(indices)} checkpoints, expected one model.ckpt*.index")
    return indices[0].with_suffix("")


class _Bounded:
    """Reads at most `limit` bytes: a small archive can unpack to any size."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self.stream, self.limit, self.left = stream, limit, limit

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {self.limit:,} bytes")
        return block


def _extract(archive: Path, folder: Path, limit: int) -> None:
    with gzip.open(archive) as stream:
        bounded = cast("IO[bytes]", _Bounded(stream, limit))  # in stream mode nothing but read is called
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]  # whatever path the archive claims, only the name counts
                source = tar.extractfile(member) if member.isreg() and _CHECKPOINT_FILE.fullmatch(name) else None
                if source is not None:
                    with source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
