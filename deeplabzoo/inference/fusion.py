"""From the logits of many views to one label, or one probability of each class, for every pixel of a photo.

Fusion is done in squares of the photo: what the views say is resampled to the pixels of a square, made one, and
forgotten, so that logits of the photo's size are never there all at once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplabzoo.inference.plane import Plane, tiles
from deeplabzoo.inference.preprocessing import Placement, Preprocessing
from deeplabzoo.inference.views import Forward, InferenceOptions, Map, Piece, Sweep, checked, sweeps

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

DEFAULT = InferenceOptions()
"""The whole photo once, as it is."""


def predict_labels(
    forward: Forward,
    image: npt.NDArray[np.uint8],
    pre: Preprocessing,
    *,
    align_corners: bool = False,
    options: InferenceOptions = DEFAULT,
) -> Labels:
    """Label every pixel of a photo.

    With a single view the label is the arg-max of the logits, resized bilinearly: to the network's input by
    `align_corners`, the padding cut off, then to the photo with half-pixel centres. With several the arg-max is taken
    over what `options.fusion` makes of them. Of equals the first wins.

    Args:
        forward: the network; float32 [1, 3, h, w] to logits [1, K, h', w']; with K = 1 labels are 0 (background) and 1.
        image: uint8 [H, W, 3], RGB.
        pre: what the network expects.
        align_corners: rule of the resizes between the logits and the input, and of the input to other scales, as in
            the network's own resizes.
        options: scales, mirroring, windows. Windows overlap: their probabilities (with `max`: their logits) are
            blended, each fading out towards its edges. In memory are then the photo's bytes, its labels, one window,
            and the small logits of the windows that lie on one row of squares: they grow with the photo's width, not
            with its height.

    Returns:
        labels [H, W] of the photo's own size, uint8, or uint16 where there are more than 256 classes.

    Raises:
        ImageError: `image` is no photo, or too large to be shown in one piece.
        DataError: the network's answer is no logits.
    """
    plane = Plane(image, pre)
    return _labels(sweeps(forward, plane, options, align_corners=align_corners), plane.placement, options)


def predict_probabilities(
    forward: Forward,
    image: npt.NDArray[np.uint8],
    pre: Preprocessing,
    *,
    align_corners: bool = False,
    options: InferenceOptions = DEFAULT,
) -> npt.NDArray[np.float32]:
    """Probability of each class for every pixel of a photo, softmax of what `predict_labels` takes the arg-max of.

    Args:
        forward: as for `predict_labels`.
        image: uint8 [H, W, 3], RGB.
        pre: what the network expects.
        align_corners: as for `predict_labels`.
        options: as for `predict_labels`.

    Returns:
        float32 [K, H, W], 0 to 1, summing to 1 over the classes. It is as large as it says: 21 classes of 10 million
        pixels are 840 MB.

    Raises:
        ImageError, DataError: as in `predict_labels`.
    """
    plane = Plane(image, pre)
    made = fused(sweeps(forward, plane, options, align_corners=align_corners), plane.placement, options)
    first = next(made)
    probabilities = np.empty((len(first[2]), *plane.placement.original), np.float32)
    for rows, columns, block, normalised in itertools.chain([first], made):
        probabilities[:, rows, columns] = block if normalised else softmax(block)
    return probabilities


def restore_labels(
    logits: npt.NDArray[np.floating[Any]], placement: Placement, *, align_corners: bool = False
) -> Labels:
    """Turn the logits of one whole photo into labels of its own size, as `predict_labels` does with a single view.

    Args:
        logits: floating [1, K, h, w]; computed with in float32.
        placement: where `prepare` put the photo.
        align_corners: rule of the resize from the logits' size to the input's.

    Returns:
        labels [H, W], uint8, or uint16 where there are more than 256 classes.

    Raises:
        DataError: logits of another shape, or that are not finite.
    """
    maps = [checked(logits)]
    whole = Sweep(
        placement, placement.padded, lambda _rows, _columns: maps, window=None, overlap=0, align_corners=align_corners
    )
    return _labels([whole], placement, DEFAULT)


def fused(
    all_sweeps: Sequence[Sweep], placement: Placement, options: InferenceOptions
) -> Iterator[tuple[slice, slice, Map, bool]]:
    """What the views say together, square by square and row by row.

    Yields:
        rows and columns of the photo; float32 [K, rows, columns]; whether these are probabilities (the mean of several
        views) or logits (a single view, or the maximum).
    """
    height, width = placement.original
    views = len(all_sweeps) * (1 + options.flip)
    normalised = options.fusion == "mean" and (options.flip or sum(sweep.windows for sweep in all_sweeps) > 1)
    for rows in tiles(slice(0, height)):
        for columns in tiles(slice(0, width)):
            maps = itertools.chain.from_iterable(
                _blended(
                    sweep.pieces(rows, columns), (rows.stop - rows.start, columns.stop - columns.start), normalised
                )
                for sweep in all_sweeps
            )
            if normalised:
                yield rows, columns, functools.reduce(np.add, maps) / np.float32(views), True
            else:
                yield rows, columns, functools.reduce(np.maximum, maps), False


def _blended(pieces: Iterable[Piece], size: tuple[int, int], normalised: bool) -> Iterable[Map]:
    """The windows of one scale as one map of a square, and as a second one where they were mirrored as well."""
    maps: list[Map] = []
    for piece in pieces:
        if not maps:
            maps = [np.zeros((len(logits), *size), np.float32) for logits in piece.logits]
        for whole, logits in zip(maps, piece.logits, strict=True):
            whole[:, piece.rows, piece.columns] += (softmax(logits) if normalised else logits) * piece.shares
    return maps


def softmax(logits: Map) -> Map:
    """Probabilities [K, ...] of logits [K, ...], float32."""
    powers: Map = np.exp(logits - logits.max(axis=0))
    powers /= powers.sum(axis=0)
    return powers


def argmax(values: npt.NDArray[np.floating[Any]]) -> Labels:
    """Index of the largest of [K, H, W] along the first axis, of equals the first: uint8, or uint16 beyond 256."""
    labels: Labels = values.argmax(axis=0).astype(np.uint8 if len(values) <= 256 else np.uint16)
    return labels


def _labels(all_sweeps: Sequence[Sweep], placement: Placement, options: InferenceOptions) -> Labels:
    made = fused(all_sweeps, placement, options)
    first = next(made)
    labels = np.empty(placement.original, argmax(first[2]).dtype)
    for rows, columns, block, _ in itertools.chain([first], made):
        labels[rows, columns] = argmax(block)
    return labels
