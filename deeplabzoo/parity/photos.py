"""Photos as inputs of a parity run, and pictures of where labels differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from deeplabzoo.errors import GraphError
from deeplabzoo.inference.images import read_image
from deeplabzoo.inference.plane import prepare
from deeplabzoo.inference.preprocessing import Preprocessing
from deeplabzoo.models import default_preprocessing
from deeplabzoo.parity.cases import REFEREE, Case, Subject, case_of
from deeplabzoo.parity.judge import Answers, Exam
from deeplabzoo.parity.report import Picture


def photo_case(it: Subject, file: Path) -> tuple[Case, np.ndarray]:
    """A photo as an input: the case, and the image 1, 3, H, W after the preprocessing that the weights ask for.

    Raises:
        ImageError: no photo.
        GraphError: the network reads other than three channels, or can't take the size.
    """
    channels = it.graph.input.op.attributes()["channels"]
    if channels != 3:
        raise GraphError(f"image {file}: the network reads {channels} channels, a photo has 3; leave it out")
    pre = Preprocessing.from_dict(it.preprocessing or default_preprocessing(it.spec))
    x, placement = prepare(read_image(file), pre)
    case = case_of(it.graph, 1, *placement.padded)
    # With its folder: photos of two folders often have the same name.
    return Case(1, case.height, case.width, case.live, "/".join(file.absolute().parts[-2:])), x.astype(np.float64)


def pictures(exam: Exam, truth: Answers, answers: Mapping[str, Answers]) -> Iterator[Picture]:
    """Where the labels of each side differ from the referee's: for every photo, and for seeded images that show any.

    Outputs of another size than the image (`output.size = 'feature'`) have no such picture.
    """
    for place, (case, image) in enumerate(zip(exam.cases, exam.images, strict=True)):
        for name, made in answers.items():
            if place >= len(made.outputs) or made.outputs[place]["out"].shape[2:] != image.shape[2:]:
                continue
            labels, right = (side.outputs[place]["out"][0].argmax(axis=0) for side in (made, truth))
            differs = labels != right
            if case.photo is not None or differs.any():
                yield Picture(case, name, REFEREE, _visible(image[0]), differs)


def _visible(x: np.ndarray) -> np.ndarray:
    """An input C, H, W as pixels: uint8 H, W, 3, stretched from its smallest to its largest value."""
    shown = np.broadcast_to(x[:1], (3, *x.shape[1:])) if x.shape[0] < 3 else x[:3]
    low, high = float(shown.min()), float(shown.max())
    return np.round((shown - low) / max(high - low, 1e-12) * 255).astype(np.uint8).transpose(1, 2, 0)
