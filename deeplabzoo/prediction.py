"""Labels for photos: a canonical model in a worker, with preprocessing before and the photo's own size after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deeplabzoo.backends import default_backend
from deeplabzoo.backends.worker import Worker
from deeplabzoo.inference.images import read_image
from deeplabzoo.inference.metrics import Scores, confusion
from deeplabzoo.inference.preprocessing import Preprocessing, predict_labels
from deeplabzoo.models import WeightsLike, canonical_model, default_preprocessing
from deeplabzoo.weights_converter.canonical import Canonical


class Predictor:
    """Labels photos with one model on one backend; a context manager that holds a worker.

    The network's own output contract is set aside: labels are taken from its logits, resized as the spec says.

    Args:
        model: weights, spec and card; without preprocessing in the card the backbone's usual one is taken.
        backend: name of the backend.
        device: `cpu` or `gpu`.
    """

    def __init__(self, model: Canonical, *, backend: str = "torch", device: str = "cpu") -> None:
        spec = model.spec.replace(output=model.spec.output.replace(values="logits"))
        self.classes = model.card.classes
        self.num_classes = spec.num_classes
        self.preprocessing = Preprocessing.from_dict(
            model.card.preprocessing or default_preprocessing(spec), where="preprocessing."
        )
        self._align_corners = spec.output.align_corners
        self._worker = Worker(backend, device=device)
        self.backend = self._worker.backend.name
        try:
            self._worker.load(Canonical(spec, {}).graph, model.weights)
        except BaseException:
            self._worker.close()
            raise

    def labels(self, image: np.ndarray) -> np.ndarray:
        """Labels [H, W] of a photo uint8 [H, W, 3], at the photo's own size."""

        def forward(x: Any) -> Any:
            return self._worker.forward(x)["out"]

        return predict_labels(forward, image, self.preprocessing, align_corners=self._align_corners)

    def evaluate(self, photos: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        """Confusion counts [K, K] of each pair of photo and true labels, in turn."""
        for image, truth in photos:
            yield confusion(truth, self.labels(image), self.num_classes)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def scores_dict(scores: Scores, classes: tuple[str, ...]) -> dict[str, Any]:
    """Scores as plain data; classes that neither truth nor prediction holds are left out."""
    names = classes or tuple(f"class {n}" for n in range(len(scores.iou)))
    return {
        "pixel_accuracy": scores.pixel_accuracy,
        "miou": scores.miou,
        "iou": {name: value for name, value in zip(names, scores.iou, strict=True) if value == value},
        "classes_in_truth": [name for name, there in zip(names, scores.present, strict=True) if there],
    }


def predict(
    weights: WeightsLike, image: str | Path | np.ndarray, *, backend: str | None = None, device: str = "cpu"
) -> np.ndarray:
    """Labels [H, W] of one photo, at its own size, in an isolated worker.

    Args:
        weights: name of published weights, path of a file, or a canonical model.
        image: path of a photo, or uint8 [H, W, 3], RGB.
        backend: name of the backend; the first installed one by default.
        device: `cpu` or `gpu`.

    Raises:
        ImageError: no photo.
        BackendError, WorkerError: the backend is not there, or died.
    """
    photo = image if isinstance(image, np.ndarray) else read_image(image)
    model, _ = canonical_model(weights=weights)
    with Predictor(model, backend=backend or default_backend().name, device=device) as predictor:
        return predictor.labels(photo)
