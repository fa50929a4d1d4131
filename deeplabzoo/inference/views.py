"""How a photo is shown to a network: at which scales, mirrored or not, whole or window by window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deeplabzoo.core.fields import Section, check_bool, check_choice, check_int, check_number, shown
from deeplabzoo.errors import DataError, SpecError
from deeplabzoo.inference.plane import Plane
from deeplabzoo.inference.preprocessing import Placement
from deeplabzoo.inference.resampling import Band, Resize, band

Forward = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating[Any]]]
"""A network: float32 [N, C, H, W] to logits [N, K, h, w]."""

Map = npt.NDArray[np.float32]
"""Logits of one view, float32 [K, h, w]."""

Compute = Callable[[slice, slice], list[Map]]
"""Rows and columns of a scaled plane to the maps of all views of that window."""


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(Section):
    """What is shown to the network, and how its answers become one.

    Attributes:
        scales: sizes of the network's input relative to the prepared photo, each from 0.05 to 8, none twice.
        flip: whether each input is shown mirrored left to right as well.
        fusion: `mean` averages the probabilities of scales and flips (TensorFlow, research/deeplab, `model.py`,
            `predict_labels_multi_scale`); `max` takes the largest logit of each class (DeepLab v2, section 4).
        window: side in input pixels of the square windows that are laid over each scaled input; none shows it whole.
        overlap: share of a window that its neighbour sees too, at least 0 and below 1.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fusion: Literal["mean", "max"] = "mean"
    window: int | None = None
    overlap: float = 1 / 3

    def validate(self) -> None:
        """Check every field."""
        legal = isinstance(self.scales, tuple) and all(
            isinstance(scale, int | float) and not isinstance(scale, bool) and 0.05 <= scale <= 8
            for scale in self.scales
        )
        if not legal or not self.scales or len(set(self.scales)) != len(self.scales):
            raise SpecError(
                f"scales = {shown(self.scales)}: expected at least one number, each from 0.05 to 8 and none twice, such as "
                f"(0.5, 1.0)"
            )
        check_bool("flip", self.flip)
        check_choice("fusion", self.fusion, ("mean", "max"))
        if self.window is not None:
            check_int("window", self.window)
        check_number("overlap", self.overlap, 0, 1)


def scaled_size(size: tuple[int, int], scale: float, *, align_corners: bool) -> tuple[int, int]:
    """Height and width of a plane at another scale, each at least 1.

    With `align_corners` TensorFlow's rule (research/deeplab, `core/utils.py`, `scale_dimension`), which keeps sizes
    of the form `stride * k + 1`: `int((side - 1) * scale + 1)`. Else the nearest whole number, of two the even one.
    """
    if align_corners:
        height, width = (int((side - 1.0) * scale + 1.0) for side in size)
    else:
        height, width = (round(side * scale) for side in size)
    return max(1, height), max(1, width)


def lay_windows(length: int, side: int, overlap: float) -> list[slice]:
    """Windows over one axis: all of `side` points, or of `length` where that is less.

    Neighbours share at least `overlap` of their points; the last window is moved back so that it ends with the axis.
    """
    if side >= length:
        return [slice(0, length)]
    step = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / step) + 1
    starts = (min(number * step, length - side) for number in range(count))
    return [slice(start, start + side) for start in starts]


@dataclass(frozen=True)
class AxisWindow:
    """One axis of a window.

    Attributes:
        span: the points of the scaled plane that the window shows.
        first: first pixel of the photo that it covers.
        last: pixel after the last.
        shares: float32 [last - first], above 0: its weight at each pixel; over all windows of the axis they sum to 1.
    """

    span: slice
    first: int
    last: int
    shares: npt.NDArray[np.float32]


def axis_windows(
    placement: Placement, axis: int, scaled: int, spans: Sequence[slice], *, align_corners: bool
) -> list[AxisWindow]:
    """Which pixels of the photo each window covers along one axis, and with what weight.

    Weights rise linearly from a window's edge over as many points as neighbours share; at the plane's own edge, where
    there is no neighbour, a window has it all. Windows that show padding alone are left out.
    """
    original, resized, padded = placement.original[axis], placement.resized[axis], placement.padded[axis]
    at = Resize.plain(resized, original, align_corners=False).positions(np.arange(original))
    # Distances are measured from a window's outer edge, half a point beyond the centre of its first point.
    at = Resize(1, padded, align_corners, scaled, 0, scaled).on_scaled(at) + 0.5
    ramp = spans[0].stop - spans[1].start if len(spans) > 1 else 0
    found, total = [], np.zeros(original)
    for span in spans:
        first, last = (int(n) for n in np.searchsorted(at, (span.start, span.stop)))
        if first == last:
            continue
        inside = at[first:last]
        depth = np.minimum(inside - span.start, span.stop - inside)
        weights = np.minimum(np.maximum(depth, 0.5) / max(ramp, 0.5), 1)
        total[first:last] += weights
        found.append((span, first, last, weights))
    return [
        AxisWindow(span, first, last, (weights / total[first:last]).astype(np.float32))
        for span, first, last, weights in found
    ]


@dataclass(frozen=True)
class Piece:
    """What one window says about a tile of the photo.

    Attributes:
        rows: rows of the tile that the window covers.
        columns: its columns.
        shares: float32 [rows, columns]: weight of the window among the windows of its scale.
        logits: float32 [K, rows, columns] of each view of the window: as it is, and mirrored where that was asked for.
    """

    rows: slice
    columns: slice
    shares: npt.NDArray[np.float32]
    logits: list[Map]


class Sweep:
    """All windows over the plane at one scale, computed when a tile of the photo first needs them.

    Tiles have to be asked for row by row: windows above the current row of tiles are dropped, so that at most the
    rows of windows that one row of tiles touches are in memory, as logits of the network's own small size.

    Args:
        placement: where the photo lies on the plane.
        size: height and width of the scaled plane.
        compute: the network on a window.
        window: side of the windows, or none for one over all.
        overlap: share of a window that its neighbour sees too.
        align_corners: rule of all resizes between logits, window and plane.
    """

    def __init__(
        self,
        placement: Placement,
        size: tuple[int, int],
        compute: Compute,
        *,
        window: int | None,
        overlap: float,
        align_corners: bool,
    ) -> None:
        self._placement, self._size, self._compute, self._align_corners = placement, size, compute, align_corners
        self._rows, self._columns = (
            axis_windows(
                placement,
                axis,
                length,
                lay_windows(length, window or length, overlap),
                align_corners=align_corners,
            )
            for axis, length in enumerate(size)
        )
        self._maps: dict[int, list[list[Map]]] = {}

    @property
    def windows(self) -> int:
        """How many windows show a part of the photo."""
        return len(self._rows) * len(self._columns)

    def pieces(self, rows: slice, columns: slice) -> Iterator[Piece]:
        """What each window says about the tile of the photo in `rows` and `columns`."""
        for number in [number for number in self._maps if self._rows[number].last <= rows.start]:
            del self._maps[number]
        for number, down in enumerate(self._rows):
            if down.first >= rows.stop or down.last <= rows.start:
                continue
            if number not in self._maps:
                self._maps[number] = [self._compute(down.span, across.span) for across in self._columns]
            for across, views in zip(self._columns, self._maps[number], strict=True):
                if across.first < columns.stop and across.last > columns.start:
                    yield self._piece(down, across, views, rows, columns)

    def _piece(self, down: AxisWindow, across: AxisWindow, views: list[Map], rows: slice, columns: slice) -> Piece:
        places, shares, ways = [], [], []
        for axis, (window, tile) in enumerate(((down, rows), (across, columns))):
            first, last = max(window.first, tile.start), min(window.last, tile.stop)
            places.append(slice(first - tile.start, last - tile.start))
            shares.append(window.shares[first - window.first : last - window.first])
            ways.append(band(np.arange(first, last), *self._chain(axis, window, views[0].shape[1 + axis])))
        logits = [_resampled(view, *ways) for view in views]
        return Piece(places[0], places[1], shares[0][:, None] * shares[1], logits)

    def _chain(self, axis: int, window: AxisWindow, points: int) -> list[Resize]:
        """The way from the photo to the window's map along one axis."""
        original, resized = self._placement.original[axis], self._placement.resized[axis]
        span, padded = window.span, self._placement.padded[axis]
        to_map = Resize(points, padded, self._align_corners, self._size[axis], span.start, span.stop - span.start)
        return [Resize.plain(resized, original, align_corners=False), to_map] if resized != original else [to_map]


def _resampled(view: Map, down: Band, across: Band) -> Map:
    """The classes' maps [K, h, w] at the bands' pixels, [K, rows, columns]."""
    read = view[:, down.index[:, None], across.index]
    made: Map = np.matmul(np.matmul(down.weights.astype(np.float32), read), across.weights.astype(np.float32).T)
    return made


def sweeps(forward: Forward, plane: Plane, options: InferenceOptions, *, align_corners: bool) -> list[Sweep]:
    """The sweeps over a photo, one a scale; nothing is computed yet."""

    def sweep(scale: float) -> Sweep:
        size = scaled_size(plane.placement.padded, scale, align_corners=align_corners)

        def compute(rows: slice, columns: slice) -> list[Map]:
            x = plane.cut(rows, columns, size, align_corners=align_corners)
            maps = [checked(forward(x))]
            if options.flip:
                maps.append(checked(forward(np.ascontiguousarray(x[..., ::-1])))[..., ::-1])
            return maps

        return Sweep(
            plane.placement,
            size,
            compute,
            window=options.window,
            overlap=options.overlap,
            align_corners=align_corners,
        )

    return [sweep(scale) for scale in options.scales]


def checked(answer: npt.ArrayLike) -> Map:
    """A network's answer for one image as float32 [K, h, w], K at least 2.

    A single logit is that of a foreground against a background whose logit is 0: softmax of the two is its sigmoid.

    Raises:
        DataError: logits of another shape, or that are not finite.
    """
    logits = np.asarray(answer)
    if logits.ndim != 4 or len(logits) != 1 or 0 in logits.shape:
        raise DataError(
            f"logits of shape {logits.shape}: expected (1, K, h, w), a map a class; give one photo at a time, channels "
            f"first"
        )
    if not np.isfinite(logits).all():
        raise DataError("logits hold NaN or infinity: expected finite numbers; check the weights and the float type")
    found = logits[0].astype(np.float32, copy=False)
    return np.concatenate([np.zeros_like(found), found]) if len(found) == 1 else found
