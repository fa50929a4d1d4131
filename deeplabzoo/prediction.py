"""Labels for photos: a canonical model in a worker, with all that comes before and after the network in numpy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deeplabzoo.backends import default_backend
from deeplabzoo.backends.worker import Worker
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.spec import ArchSpec
from deeplabzoo.core.weights import counters
from deeplabzoo.errors import GraphError, ImageError, SpecError, unknown
from deeplabzoo.inference.colours import check_photo
from deeplabzoo.inference.crf import CRF, named_crf
from deeplabzoo.inference.fusion import argmax, predict_labels, predict_probabilities
from deeplabzoo.inference.images import read_image
from deeplabzoo.inference.label_sets import VOID, known_label_set
from deeplabzoo.inference.memory import available_bytes, too_large, window_that_fits
from deeplabzoo.inference.metrics import Scores, confusion
from deeplabzoo.inference.plane import MOST_PIXELS
from deeplabzoo.inference.preprocessing import Preprocessing, place
from deeplabzoo.inference.views import InferenceOptions, scaled_size
from deeplabzoo.models import WeightsLike, canonical_model, default_preprocessing
from deeplabzoo.weights_converter.canonical import Canonical


class Predictor:
    """Labels photos with one model on one backend; a context manager that holds a worker.

    The network is run up to its classifier's own small map, whatever its output contract says; the last resize, by the
    spec's rule, and all that follows are done in numpy and are the same for every backend. A network that resizes the
    features before the classifier gives the same logits, because a 1x1 convolution and a resize may change places.
    Auxiliary heads are left out.

    A photo whose input is too large for memory in one piece is labelled in windows; `notes` is told so.

    Args:
        model: weights, spec and card; without preprocessing in the card the backbone's usual one is taken.
        backend: name of the backend.
        device: `cpu` or `gpu`.
        scales: sizes of the network's input relative to the prepared photo, from 0.05 to 8.
        flip: whether each input is shown mirrored as well.
        fusion: `mean` of the probabilities or `max` of the logits of scales and flips.
        window: side in input pixels of the windows that are laid over each input; none shows it whole where it fits.
        overlap: share of a window that its neighbour sees too, at least 0 and below 1.
        crf: name of a preset or settings of a fully connected CRF that follows; none by default.
        memory_limit: bytes that the network's maps may take; by default what is free at the time, or no limit on a
            GPU, whose memory is not asked for.
        notes: called with a line for people; by default it becomes a Python warning.

    Raises:
        SpecError: an option that is wrong.
        BackendError, WorkerError: the backend is not there, or died, or a CRF is asked for and not installed.
        WeightsError: the weights do not fit the spec.
    """

    def __init__(
        self,
        model: Canonical,
        *,
        backend: str = "torch",
        device: str = "cpu",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        fusion: str = "mean",
        window: int | None = None,
        overlap: float = 1 / 3,
        crf: CRF | str | None = None,
        memory_limit: int | None = None,
        notes: Callable[[str], None] | None = None,
    ) -> None:
        self.options = InferenceOptions.from_dict(
            {"scales": scales, "flip": flip, "fusion": fusion, "window": window, "overlap": overlap}
        )
        self.crf = None if crf is None else named_crf(crf)
        if memory_limit is not None and (type(memory_limit) is not int or memory_limit < 1):
            raise SpecError(f"memory_limit = {memory_limit!r}: expected a whole number of bytes of at least 1, or None")
        self._limit, self._on_gpu, self._notes = memory_limit, device == "gpu", notes
        self._told: set[tuple[str, tuple[int, int]]] = set()
        # A network with a single logit says background where it is not above 0.
        alone = model.spec.num_classes == 1
        self.classes = ("background", *model.card.classes) if alone and model.card.classes else model.card.classes
        self.num_classes = 2 if alone else model.spec.num_classes
        self.preprocessing = Preprocessing.from_dict(
            model.card.preprocessing or default_preprocessing(model.spec), where="preprocessing."
        )
        known = known_label_set(self.classes)
        self.void = VOID if known is None else known.void
        self._align_corners = model.spec.output.align_corners
        self._stride = model.spec.output_stride
        if model.spec.in_channels != 3:
            raise SpecError(
                f"in_channels = {model.spec.in_channels}: photos have 3 channels; use deeplabzoo.run instead"
            )
        self._graph, weights = logits_alone(model)
        self._worker = Worker(backend, device=device)
        self.backend = self._worker.backend.name
        try:
            self._worker.load(self._graph, weights)
        except BaseException:
            self._worker.close()
            raise

    def labels(self, image: np.ndarray) -> np.ndarray:
        """Labels of a photo: uint8 or uint16 [H, W] for uint8 [H, W, 3], RGB, at the photo's own size.

        Raises:
            ImageError: no photo, or one that fits into memory in no way.
            DataError: the network's answer is no logits.
        """
        if self.crf is not None:
            return argmax(self.probabilities(image))
        return predict_labels(
            self._forward,
            image,
            self.preprocessing,
            align_corners=self._align_corners,
            options=self._options_for(image),
        )

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, after the CRF where there is one.

        Args:
            image: uint8 [H, W, 3], RGB.

        Returns:
            float32 [K, H, W] at the photo's own size, 0 to 1, summing to 1 over the classes.

        Raises:
            ImageError, DataError: as in `labels`.
        """
        made = predict_probabilities(
            self._forward,
            image,
            self.preprocessing,
            align_corners=self._align_corners,
            options=self._options_for(image),
        )
        return made if self.crf is None else self.crf.refine(image, made)

    def evaluate(self, photos: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        """Confusion counts [K, K] of each pair of photo and true labels, in turn.

        True pixels of the void label do not count: 255, or what the data set says whose classes the model has.
        """
        for image, truth in photos:
            yield confusion(truth, self.labels(image), self.num_classes, self.void)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forward(self, x: Any) -> Any:
        return self._worker.forward(x)["out"]

    def _options_for(self, image: np.ndarray) -> InferenceOptions:
        """The options, with windows (or smaller ones) where what is shown at once does not fit into memory.

        Raises:
            ImageError: no photo, or one that is too small for the network or for the memory there is.
        """
        check_photo(image)
        padded = place(image.shape[0], image.shape[1], self.preprocessing).padded
        self._check_least(image, padded)
        largest = self._shown(padded, max(self.options.scales))
        whole = scaled_size(padded, max(self.options.scales), align_corners=self._align_corners)
        if self.options.window is not None and self.options.window >= max(whole):
            self._tell_once(
                ("window", whole),
                f"a window of {self.options.window} covers the whole prepared input of {whole[0]} x {whole[1]}: there "
                "is but one",
            )
        limit = self._limit or (math.inf if self._on_gpu else available_bytes())
        reason = too_large(self._graph, largest, limit)
        if not reason and math.prod(largest) > MOST_PIXELS:
            reason = (
                f"an input of {largest[0]} x {largest[1]} has more than the {MOST_PIXELS} pixels shown in one piece"
            )
        if not reason:
            return self.options
        window = window_that_fits(self._graph, self._stride, limit)
        self._tell_once(("memory", largest), f"{reason}: labelled in windows of {window} x {window} instead")
        return self.options.replace(window=window)

    def _shown(self, padded: tuple[int, int], scale: float) -> tuple[int, int]:
        """Height and width of the largest piece that the network sees at a scale."""
        most = self.options.window or MOST_PIXELS
        height, width = scaled_size(padded, scale, align_corners=self._align_corners)
        return min(height, most), min(width, most)

    def _check_least(self, image: np.ndarray, padded: tuple[int, int]) -> None:
        smallest = self._shown(padded, min(self.options.scales))
        try:
            self._graph.shapes(*smallest)
        except GraphError:
            raise ImageError(
                f"photo of {image.shape[0]} x {image.shape[1]} is shown to the network as {smallest[0]} x {smallest[1]}, "
                "which is too small for its unpadded convolutions: take a larger photo, scale or window"
            ) from None

    def _tell_once(self, about: tuple[str, tuple[int, int]], line: str) -> None:
        """A line for people, once a size: a data set has many photos of one."""
        if about in self._told:
            return
        self._told.add(about)
        if self._notes is None:
            warnings.warn(line, stacklevel=4)
        else:
            self._notes(line)


def logits_alone(model: Canonical) -> tuple[Graph, Mapping[str, np.ndarray]]:
    """Graph and weights of a model up to the logits of its classifier: no last resize, no auxiliary head.

    Weights of nodes that the smaller graph lacks are left out; what neither graph has stays, for the backend to refuse.
    """
    spec: ArchSpec = model.spec.replace(
        aux=None,
        output=model.spec.output.replace(size="feature", align_corners=False, resize="logits", values="logits"),
    )
    graph = Canonical(spec, {}).graph
    dropped = {*model.graph.parameters(), *counters(model.graph)} - {*graph.parameters(), *counters(graph)}
    return graph, {name: array for name, array in model.weights.items() if name not in dropped}


def scores_dict(scores: Scores, classes: tuple[str, ...]) -> dict[str, Any]:
    """Scores as plain data; classes that neither truth nor prediction holds are left out."""
    names = classes or tuple(f"class {n}" for n in range(len(scores.iou)))
    return {
        "pixel_accuracy": scores.pixel_accuracy,
        "miou": scores.miou,
        "iou": {name: value for name, value in zip(names, scores.iou, strict=True) if value == value},
        "classes_in_truth": [name for name, there in zip(names, scores.present, strict=True) if there],
    }


_OPTIONS = ("scales", "flip", "fusion", "window", "overlap", "crf", "memory_limit", "notes")


def predict(
    weights: WeightsLike,
    image: str | Path | np.ndarray,
    *,
    backend: str | None = None,
    device: str = "cpu",
    output_stride: int | None = None,
    **options: Any,
) -> np.ndarray:
    """Labels [H, W] of one photo, at its own size, in an isolated worker.

    Args:
        weights: name of published weights, path of a file, or a canonical model.
        image: path of a photo, or uint8 [H, W, 3], RGB.
        backend: name of the backend; the first installed one by default.
        device: `cpu` or `gpu`.
        output_stride: run the same weights at another one, rates rescaled.
        **options: `scales`, `flip`, `fusion`, `window`, `overlap`, `crf`, `memory_limit`, `notes`, as for `Predictor`.

    Raises:
        ImageError: no photo.
        SpecError: an option that is wrong.
        BackendError, WorkerError: the backend is not there, or died.
    """
    for name in options:
        if name not in _OPTIONS:
            raise SpecError(unknown("option of predict", name, _OPTIONS))
    photo = image if isinstance(image, np.ndarray) else read_image(image)
    changes: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    model, _ = canonical_model(weights=weights, **changes)
    with Predictor(model, backend=backend or default_backend().name, device=device, **options) as predictor:
        return predictor.labels(photo)
