"""Published weights from their official addresses: downloaded, checked, unpacked, converted, cached.

The cache has a folder a name. It holds the file as published, its digest (`.sha256`), the checkpoint unpacked where it
came in an archive, and `NAME.safetensors`, the canonical model that every command reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deeplabzoo._version import __version__
from deeplabzoo.errors import DeepLabZooError, DownloadError, FormatError, LayoutError, WeightsError, unknown
from deeplabzoo.files import beside_then_rename
from deeplabzoo.weights_converter import formats
from deeplabzoo.weights_converter.canonical import read_metadata
from deeplabzoo.weights_converter.convert import read_source, write_model
from deeplabzoo.weights_converter.layouts import get_layout
from deeplabzoo.zoo.archive import folder_of, unpack
from deeplabzoo.zoo.published import PUBLISHED, Published

TIME_LIMIT = 30.0
"""Seconds without an answer before a connection is given up."""

TOTAL_LIMIT = 6 * 3600.0
"""Seconds that one download may take in all, and that one waits for another process that fetches the same name."""

_ROOM = 4
"""How many times larger than listed a download may be: sizes are estimates where the project does not say them."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fetched:
    """Published weights on this machine.

    Attributes:
        weights: what is known of them.
        path: the canonical model, one safetensors file.
        file: the file as published; nothing needs it any more, so somebody may have removed it.
        sha256: its digest.
    """

    weights: Published
    path: Path
    file: Path
    sha256: str


def cache_folder() -> Path:
    """`DEEPLABZOO_CACHE`, or the usual cache folder of the system."""
    import platformdirs

    return Path(os.environ.get("DEEPLABZOO_CACHE") or platformdirs.user_cache_dir("deeplabzoo", appauthor=False))


def fetch(name: str, *, force: bool = False, progress: bool = False, time_limit: float = TIME_LIMIT) -> Path:
    """Path of published weights on this machine as their project publishes them, unpacked where they are an archive.

    The digest is checked where the project publishes one; the first download's digest is pinned beside the file, and
    every later one must agree.

    Args:
        name: a name of `PUBLISHED`.
        force: download again what is cached.
        progress: show a bar on stderr, where that is a terminal.
        time_limit: seconds without an answer before giving up.

    Raises:
        DownloadError: an unknown name, no connection, a wrong digest, an archive without a checkpoint.
    """
    weights = _known(name)
    with _alone(weights) as folder:
        file, sha256 = _original(weights, folder, force, progress, time_limit)
        checkpoint = _checkpoint(weights, file)
        _pin(file, sha256)
        return checkpoint


def fetch_model(name: str, *, force: bool = False, progress: bool = False, time_limit: float = TIME_LIMIT) -> Fetched:
    """Published weights as a canonical model on this machine; converted the first time, found in the cache afterwards.

    The spec is that of the preset with the weights' classes, not what the tensors tell. Arguments as for `fetch`.

    Raises:
        DownloadError: as for `fetch`, or the file can't be read.
        LayoutError, WeightsError: the file does not hold the network it should, though it is the one published.
    """
    weights = _known(name)
    if not force and (found := _cached(weights)):
        return found
    layout = get_layout(weights.layout)
    with _alone(weights) as folder:
        if not force and (found := _cached(weights)):  # another process was faster
            return found
        file, sha256 = _original(weights, folder, force, progress, time_limit)
        checkpoint = _checkpoint(weights, file)
        with _judged(weights, file):
            model = read_source(checkpoint, layout=layout.name, spec=weights.spec()).model
        prepares = weights.prepares()
        card = dataclasses.replace(
            model.card,
            preprocessing=model.card.preprocessing if prepares is None else prepares.to_dict(),
            classes=weights.classes or model.card.classes,
            provenance=_provenance(weights, sha256),
        )
        path = _path(weights)
        write_model(dataclasses.replace(model, card=card), path, force=True)
        _pin(file, sha256)  # not before: a wrong file, pinned, would keep the right one out
        return Fetched(weights, path, file, sha256)


def _known(name: str) -> Published:
    if name not in PUBLISHED:
        raise DownloadError(unknown("published weights", name, PUBLISHED))
    return PUBLISHED[name]


@contextlib.contextmanager
def _alone(weights: Published) -> Iterator[Path]:
    """The weights' folder in the cache, for this process alone; others that want the same weights wait."""
    import filelock

    folder = cache_folder() / weights.name
    lock = cache_folder() / ".locks" / f"{weights.name}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(exist_ok=True)
        with filelock.FileLock(lock, timeout=TOTAL_LIMIT):
            yield folder
    except filelock.Timeout:
        raise DownloadError(
            f"{weights.name}: another process has been fetching it for {TOTAL_LIMIT:g} s; end it, then try again"
        ) from None
    except OSError as error:
        raise DownloadError(
            f"cache folder {folder} can't be used: {error.strerror or error}; set DEEPLABZOO_CACHE to another"
        ) from None


def _original(weights: Published, folder: Path, force: bool, progress: bool, time_limit: float) -> tuple[Path, str]:
    """The file as published and its digest, checked."""
    file = folder / weights.file_name
    if force or not file.is_file():
        part = folder / f"{file.name}.part"
        _download(weights, part, file, progress, time_limit)
        sha256 = _checked(part, weights, file)
        shutil.rmtree(folder_of(file), ignore_errors=True)
        part.replace(file)
    else:
        sha256 = _checked(file, weights, file)
    return file, sha256


def _download(weights: Published, part: Path, file: Path, progress: bool, time_limit: float) -> None:
    from deeplabzoo.zoo.download import Broken, Limits, download

    limits = Limits(size=int(_ROOM * 1e6 * weights.megabytes), stall=time_limit, total=TOTAL_LIMIT)
    try:
        download(weights.url, part, limits=limits, progress=progress)
    except Broken as reason:
        kept = part.stat().st_size if part.is_file() else 0
        on = f"the {kept:,} bytes that came are kept, and the same command goes on from there; or " if kept else ""
        raise DownloadError(
            f"{weights.name} can't be downloaded from {weights.url}: {reason}; {on}fetch it by hand and put it at {file}"
        ) from None


def _checked(path: Path, weights: Published, file: Path) -> str:
    """The digest of `path`; where it is wrong, the file goes."""
    from deeplabzoo.zoo.download import note_of

    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    note_of(path).unlink(missing_ok=True)
    again = f"{file.name} has SHA-256 {sha256[:16]}..., expected {{}}...: the file was removed; try again, and if it stays so,"
    if not sha256.startswith(weights.digest):
        path.unlink()
        raise DownloadError(
            f"{again.format(weights.digest[:16])} the project has published another file than the one known here"
        )
    if (pinned := _pinned(file)) and sha256 != pinned:
        path.unlink()
        raise DownloadError(
            f"{again.format(pinned[:16])} remove {_pin_of(file)} only if the project has published a new file"
        )
    return sha256


def _pin_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _pinned(file: Path) -> str:
    """The digest pinned beside a file; empty where there is none, or what is there is no digest."""
    pin = _pin_of(file)
    text = pin.read_text(encoding="ascii", errors="replace").strip() if pin.is_file() else ""
    return text if _SHA256.fullmatch(text) else ""


def _pin(file: Path, sha256: str) -> None:
    """Write down the digest of a file that is good; every later one must agree."""
    if _pinned(file) != sha256:
        with beside_then_rename(_pin_of(file)) as temporary:
            temporary.write_text(sha256 + "\n", encoding="ascii")


def _checkpoint(weights: Published, file: Path) -> Path:
    if not file.name.endswith(".tar.gz"):
        return file
    with _judged(weights, file):
        return unpack(file, limit=int(2 * _ROOM * 1e6 * weights.megabytes))


@contextlib.contextmanager
def _judged(weights: Published, file: Path) -> Iterator[None]:
    """A file that can't be read, or holds another network, goes, unless its project vouches for these bytes."""
    try:
        yield
    except (FormatError, LayoutError, WeightsError) as error:
        if weights.digest and isinstance(error, FormatError):
            raise DownloadError(f"{file} is the file that its project published, but can't be read: {error}") from None
        if weights.digest:
            raise
        file.unlink(missing_ok=True)
        _pin_of(file).unlink(missing_ok=True)
        shutil.rmtree(folder_of(file), ignore_errors=True)
        raise DownloadError(
            f"{weights.url} does not hold the weights it should, and the file was removed: {error}"
        ) from None


def _provenance(weights: Published, sha256: str) -> dict[str, str]:
    return {
        "weights": weights.name,
        "source": weights.url,
        "sha256": sha256,
        "layout": weights.layout,
        "licence": weights.licence,
        "published by": weights.source,
        "converted by": f"deeplabzoo {__version__}",
    }


def _path(weights: Published) -> Path:
    return cache_folder() / weights.name / f"{weights.name}.safetensors"


def _cached(weights: Published) -> Fetched | None:
    """The canonical model, where it is there and made from the pinned bytes, for this spec, by this version."""
    path = _path(weights)
    file = path.with_name(weights.file_name)
    try:
        sha256 = _pinned(file)
        found = read_metadata(formats.read(path).metadata, path)
    except (OSError, DeepLabZooError):  # not there, or damaged
        return None
    if (
        not sha256.startswith(weights.digest)
        or found is None
        or found[0] != weights.spec()
        or found[1].provenance != _provenance(weights, sha256)
    ):
        return None
    return Fetched(weights, path, file, sha256)
