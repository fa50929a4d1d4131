"""Scores of labels against the truth, and of labels against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deeplabzoo.errors import DataError
from deeplabzoo.inference.colours import check_labels
from deeplabzoo.inference.label_sets import VOID

Labels = npt.NDArray[np.integer[Any]]


def confusion(truth: Labels, prediction: Labels, num_classes: int, ignore: int | None = VOID) -> npt.NDArray[np.int64]:
    """Count how often each class was taken for each.

    Args:
        truth: labels [H, W].
        prediction: labels [H, W].
        num_classes: K; labels run from 0 to K - 1.
        ignore: label of the truth whose pixels are not counted, whatever was predicted there; None counts all.

    Returns:
        int64 array [K, K]: pixels of the true class (row) that were predicted as the class (column). The counts of
        several photos may be added.

    Raises:
        DataError: arrays that are no labels or differ in shape, or a counted label outside the classes.
    """
    _check_pair(truth, prediction)
    counted = np.ones(truth.shape, np.bool_) if ignore is None else truth != ignore
    true, predicted = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for what, labels in (("truth", true), ("prediction", predicted)):
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            wrong = labels[(labels < 0) | (labels >= num_classes)][0]
            raise DataError(
                f"{what} holds the label {wrong}: expected 0 to {num_classes - 1}"
                f"{'' if ignore is None else f', or {ignore} in the truth for pixels to ignore'}; check that the model "
                f"and the masks have the same classes"
            )
    counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64, copy=False)


@dataclass(frozen=True)
class Scores:
    """Scores of a prediction, as shares from 0 to 1.

    Attributes:
        pixel_accuracy: share of the counted pixels whose class is right; NaN where none was counted.
        iou: intersection over union of each class; NaN for a class that neither truth nor prediction holds, 0 for one
            that was predicted but is not there.
        miou: mean of `iou` over the classes that the truth holds; NaN where there is none. Pascal VOC averages over
            all classes instead; both agree where the truth holds all of them, as VOC's own sets do, and on a handful
            of photos a few stray pixels of another class would pull VOC's figure down by a whole class.
        present: whether the truth holds each class.
    """

    pixel_accuracy: float
    iou: tuple[float, ...]
    miou: float
    present: tuple[bool, ...]

    @classmethod
    def of(cls, counts: npt.NDArray[np.integer[Any]]) -> Self:
        """Score a confusion matrix [K, K], true classes in rows.

        Raises:
            DataError: `counts` is not a square matrix of whole numbers of at least 0.
        """
        square = counts.ndim == 2 and counts.shape[0] == counts.shape[1] and counts.size > 0
        if not square or not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
            raise DataError(
                f"confusion matrix of dtype {counts.dtype} and shape {counts.shape}: expected counts of shape (K, K)"
            )
        right = np.diagonal(counts)
        in_truth = counts.sum(axis=1)
        union = in_truth + counts.sum(axis=0) - right
        iou = tuple(int(r) / int(u) if u else float("nan") for r, u in zip(right, union, strict=True))
        held = [value for value, pixels in zip(iou, in_truth, strict=True) if pixels]
        return cls(
            pixel_accuracy=int(right.sum()) / int(counts.sum()) if counts.any() else float("nan"),
            iou=iou,
            miou=sum(held) / len(held) if held else float("nan"),
            present=tuple(bool(pixels) for pixels in in_truth),
        )


def agreement(a: Labels, b: Labels) -> float:
    """Share of the pixels whose labels are equal, from 0 to 1.

    Args:
        a: labels [H, W].
        b: labels [H, W].

    Raises:
        DataError: arrays that are no labels or differ in shape.
    """
    _check_pair(a, b)
    return float(np.mean(a == b))


def _check_pair(a: Labels, b: Labels) -> None:
    check_labels("labels", a)
    check_labels("labels", b)
    if a.shape != b.shape:
        raise DataError(
            f"labels of shapes {a.shape} and {b.shape}: expected one size; restore both to the photo's size"
        )
