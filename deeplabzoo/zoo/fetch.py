"""Published weights from their official addresses: downloaded, checked, cached."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tarfile
from pathlib import Path

from deeplabzoo.errors import DownloadError, unknown
from deeplabzoo.files import beside_then_rename
from deeplabzoo.zoo.models import PUBLISHED, Published

TIME_LIMIT = 30.0
"""Seconds without an answer before a download is given up."""

_CHECKPOINT_FILE = re.compile(r"model\.ckpt[^/]*\.(index|data-\d{5}-of-\d{5})")


def cache_folder() -> Path:
    """`DEEPLABZOO_CACHE`, or the usual cache folder of the system."""
    import pooch

    return Path(os.environ.get("DEEPLABZOO_CACHE") or pooch.os_cache("deeplabzoo"))


def fetch(name: str, *, progress: bool = False, time_limit: float = TIME_LIMIT) -> Path:
    """Path of published weights on this machine, downloaded where they are not cached.

    The digest is checked where the project publishes one; where not, the first download's digest is pinned beside the
    file and every later one must agree.

    Args:
        name: a name of `PUBLISHED`.
        progress: show a bar on stderr.
        time_limit: seconds without an answer before giving up.

    Raises:
        DownloadError: an unknown name, no connection, a wrong digest, an archive without a checkpoint.
    """
    if name not in PUBLISHED:
        raise DownloadError(unknown("published weights", name, PUBLISHED))
    weights = PUBLISHED[name]
    file = download(weights, cache_folder(), progress=progress, time_limit=time_limit)
    return unpack(file) if file.name.endswith(".tar.gz") else file


def download(weights: Published, folder: Path, *, progress: bool = False, time_limit: float = TIME_LIMIT) -> Path:
    """The published file itself in `folder`; see `fetch`."""
    import pooch

    file = folder / weights.url.rsplit("/", 1)[-1]
    pin = file.with_name(f"{file.name}.sha256")
    if not file.is_file():
        pooch.get_logger().setLevel(logging.WARNING)  # the bar says enough
        downloader = pooch.HTTPDownloader(progressbar=progress, timeout=time_limit)
        try:
            pooch.retrieve(weights.url, None, fname=file.name, path=folder, downloader=downloader)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise DownloadError(
                f"{weights.name} can't be downloaded from {weights.url}: {_short(error)}; fetch it by hand, unpack it, and give the path of the checkpoint"
            ) from None
    digest = _sha256(file)
    expected = pin.read_text(encoding="ascii").strip() if pin.is_file() else weights.digest
    if not digest.startswith(expected):
        file.unlink()
        raise DownloadError(
            f"{file.name} has SHA-256 {digest[:16]}..., expected {expected[:16]}...: the file was removed; try again, "
            f"and if it stays so, remove {pin.name} only if the project has published a new file"
        )
    if not pin.is_file():
        with beside_then_rename(pin) as temporary:
            temporary.write_text(digest + "\n", encoding="ascii")
    return file


def unpack(archive: Path) -> Path:
    """Take the checkpoint's own files out of a tar archive, and nothing else; returns the checkpoint's prefix.

    Raises:
        DownloadError: the archive is broken or holds no checkpoint.
    """
    folder = archive.with_name(archive.name.removesuffix(".tar.gz"))
    if not folder.is_dir():
        beside = archive.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            _extract(archive, beside)
            beside.replace(folder)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DownloadError(
                f"{archive.name} can't be unpacked: {_short(error)}; remove it and fetch again"
            ) from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    indices = sorted(folder.glob("*.index"))
    if len(indices) != 1:
        shutil.rmtree(folder)
        raise DownloadError(f"{archive.name} holds {len(indices)} checkpoints, expected one model.ckpt*.index")
    return indices[0].with_suffix("")


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]  # whatever path the archive claims, only the name counts
            source = tar.extractfile(member) if member.isreg() and _CHECKPOINT_FILE.fullmatch(name) else None
            if source is not None:
                with source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _short(error: BaseException) -> str:
    """One line; the HTTP library's connection errors hold whole object dumps, of which the type says enough."""
    name, text = type(error).__name__, str(error).partition("\n")[0]
    return name if "object at 0x" in text or "Pool(" in text or not text else f"{name}: {text}"
