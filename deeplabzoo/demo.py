"""The main job end to end: one public checkpoint, every framework, pictures to look at and numbers to believe."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplabzoo.backends import resolve
from deeplabzoo.core.weights import seeded_weights
from deeplabzoo.errors import BackendError, DataError, DownloadError
from deeplabzoo.files import make_folder
from deeplabzoo.inference.colours import VOC_CLASSES
from deeplabzoo.inference.datasets import find_pairs
from deeplabzoo.inference.images import read_image, read_mask
from deeplabzoo.inference.metrics import Scores, agreement, confusion
from deeplabzoo.inference.pictures import contact_sheet, panel, write_png
from deeplabzoo.inference.preprocessing import TF_DEEPLAB
from deeplabzoo.inference.scenes import draw_scene
from deeplabzoo.parity import Report, parity
from deeplabzoo.parity.html import write_html
from deeplabzoo.prediction import Predictor
from deeplabzoo.weights_converter.canonical import Canonical, Card
from deeplabzoo.weights_converter.convert import FORMAT_OF_BACKEND, SUFFIXES, read_source, write_model
from deeplabzoo.zoo.fetch import fetch
from deeplabzoo.zoo.models import PUBLISHED, named_spec

BACKENDS = ("torch", "paddle", "keras")
WEIGHTS = "v3_mobilenet_v2.tf_voc_trainval"
CHECKPOINT = Path("weights/deeplabv3_mnv2_pascal_trainval/model.ckpt-30000")
PHOTOS = Path("photos")
PARITY_SIZES = ((129, 161), (96, 128))
DRAWN_SIZE = (385, 513)
DOWNLOAD_LIMIT = 10.0
"""Seconds: the demo goes on without the download rather than keep anybody waiting."""

Bar = Callable[[int, str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Photo:
    """A photo and, where there is one, its true labels."""

    name: str
    image: np.ndarray
    truth: np.ndarray | None


@dataclass(frozen=True)
class Outcome:
    """What the demo found.

    Attributes:
        pictures: one picture a photo, and the contact sheet last.
        scores: scores of each backend; none where there is no truth.
        agreements: (backend, backend, share of pixels with equal labels).
        report: the float64 parity of the same model and weights.
        real: whether the weights are the public checkpoint's.
        page: the report as a page.
    """

    pictures: tuple[Path, ...]
    scores: Mapping[str, Scores | None]
    agreements: tuple[tuple[str, str, float], ...]
    report: Report
    real: bool
    page: Path


def run_demo(output: Path, data: Path | None, *, tell: Callable[[str], None], bar: Bar) -> Outcome:
    """Convert, run, draw, compare.

    Args:
        output: folder for weights and pictures; made if need be, files in it are replaced.
        data: folder with the checkpoint and the photos; `DEEPLABZOO_DATA` by default. Without it the checkpoint is
            downloaded, and without a network seeded weights and a drawn image take their places.
        tell: called with a line for people.
        bar: makes a progress bar from a number of steps and a label.

    Raises:
        BackendError: no backend is installed.
        OutputError: the folder can't be written.
    """
    make_folder(output)
    present = [name for name in BACKENDS if not resolve(name).missing()]
    for name in BACKENDS:
        if name not in present:
            tell(f"{name} is not installed and is left out")
    if not present:
        raise BackendError('no backend is installed here: run pip install "deeplabzoo[torch]", [paddle] or [keras]')
    model, real = _model(data, tell)
    photos = _photos(data)
    files = _convert(model, output, present, tell)
    labels: dict[str, list[np.ndarray]] = {}
    for name in present:
        source = read_source(files[name])  # each framework reads its own file, as its users would
        with bar(len(photos), name) as step, Predictor(source.model, backend=name) as predictor:
            labels[name] = []
            for photo in photos:
                labels[name].append(predictor.labels(photo.image))
                step(photo.name)
    pictures = _draw(output, photos, labels)
    with bar((len(present) + 1) * len(PARITY_SIZES), "parity") as step:
        report = parity(backends=present, weights=model, sizes=PARITY_SIZES, trace=True, progress=step)
    page = output / "parity.html"
    write_html(report, page)
    return Outcome(
        tuple(pictures),
        {name: _score(photos, made, model.spec.num_classes) for name, made in labels.items()},
        tuple((a, b, _agreement(labels[a], labels[b])) for a, b in itertools.combinations(present, 2)),
        report,
        real,
        page,
    )


def data_folder(given: Path | None) -> Path | None:
    """The folder named by the caller, or by `DEEPLABZOO_DATA` where it exists.

    Raises:
        DataError: the caller's folder does not exist.
    """
    if given is not None and not given.is_dir():
        raise DataError(f"data folder {given}: no such folder; check the path, or leave it out")
    named = given or (Path(os.environ["DEEPLABZOO_DATA"]) if os.environ.get("DEEPLABZOO_DATA") else None)
    return named if named is not None and named.is_dir() else None


def _model(data: Path | None, tell: Callable[[str], None]) -> tuple[Canonical, bool]:
    checkpoint: Path | None = None
    if data is not None and (data / CHECKPOINT).with_name(CHECKPOINT.name + ".index").is_file():
        checkpoint = data / CHECKPOINT
    else:
        tell(
            f"no checkpoint at hand (set DEEPLABZOO_DATA): downloading {WEIGHTS}, at most {DOWNLOAD_LIMIT:g} s for an answer"
        )
        try:
            checkpoint = fetch(WEIGHTS, time_limit=DOWNLOAD_LIMIT)
        except DownloadError:
            tell("no data and no network: going on with seeded weights and a drawn image")
    if checkpoint is not None:
        source = read_source(checkpoint, layout=PUBLISHED[WEIGHTS].layout)
        tell(f"read {checkpoint.name}: {len(source.ledger)} tensors, {source.format}, layout {source.layout}")
        return source.model, True
    spec = named_spec("v3_mobilenet_v2.tf")
    weights = seeded_weights(Canonical(spec, {}).graph, 0, statistics="lively")
    return Canonical(
        spec, weights, Card(TF_DEEPLAB.to_dict(), VOC_CLASSES, {"source": "seeded weights, seed 0"})
    ), False


def _photos(data: Path | None) -> list[Photo]:
    if data is not None and (data / PHOTOS).is_dir():
        pairs = find_pairs(data / PHOTOS)
        return [Photo(pair.name, read_image(pair.image_path), read_mask(pair.mask_path)) for pair in pairs]
    return [Photo("drawn", draw_scene(*DRAWN_SIZE, 0), None)]


def _convert(model: Canonical, output: Path, present: Sequence[str], tell: Callable[[str], None]) -> dict[str, Path]:
    canonical = output / "model.safetensors"
    write_model(model, canonical, force=True)
    tell(f"wrote {canonical}")
    files = {}
    for name in present:
        files[name] = output / f"model{SUFFIXES[FORMAT_OF_BACKEND[name]]}"
        write_model(read_source(canonical).model, files[name], force=True)
        tell(f"wrote {files[name]}")
    return files


def _draw(output: Path, photos: Sequence[Photo], labels: Mapping[str, Sequence[np.ndarray]]) -> list[Path]:
    panels, paths = [], []
    for n, photo in enumerate(photos):
        panels.append(panel(photo.image, photo.truth, {name: made[n] for name, made in labels.items()}, photo.name))
        paths.append(output / f"{photo.name}.png")
        write_png(paths[-1], panels[-1], force=True)
    paths.append(output / "contact_sheet.png")
    write_png(paths[-1], contact_sheet(panels), force=True)
    return paths


def _score(photos: Sequence[Photo], labels: Sequence[np.ndarray], classes: int) -> Scores | None:
    counts = [confusion(p.truth, made, classes) for p, made in zip(photos, labels, strict=True) if p.truth is not None]
    return Scores.of(np.sum(counts, axis=0)) if counts else None


def _agreement(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Share of equal labels over all pixels of all photos, whatever their sizes."""
    pixels = [one.size for one in a]
    return float(np.average([agreement(x, y) for x, y in zip(a, b, strict=True)], weights=pixels))
