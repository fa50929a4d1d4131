"""Linear resampling of one axis, a band of targets at a time.

From logits to a photo lead several resizes (logits to the network's input, input to the resized photo, that to the
photo). Each is linear and reads two points a target, so that a band of targets needs few points of the source: what is
built is as large as the band, never as large as the photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Resize:
    """One axis of a bilinear resize, from a map to a plane that the map, or a window over the plane, covers.

    With `scaled == target`, `start == 0` and `side == target` it is the plain resize of
    `core.interpolation.interpolation_matrix`. Else the map belongs to a window on the plane at another scale: plane
    and scaled plane lie on each other as a resize would lay them, and the map lies on its window in the same way.

    Attributes:
        source: points of the map.
        target: points of the plane.
        align_corners: whether the outermost points of two grids coincide; else their outer edges do.
        scaled: points of the plane at the scale at which the window was cut.
        start: where the window starts on the scaled plane.
        side: points of the scaled plane that the window covers.
    """

    source: int
    target: int
    align_corners: bool
    scaled: int
    start: int
    side: int

    @classmethod
    def plain(cls, source: int, target: int, *, align_corners: bool) -> Resize:
        """The resize of a whole map."""
        return cls(source, target, align_corners, target, 0, target)

    def on_scaled(self, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Positions on the scaled plane of positions on the plane, cut to the points there are."""
        if self.scaled == self.target:
            return at
        if not self.align_corners:
            at = (at + 0.5) * self.scaled / self.target - 0.5
        elif self.target > 1:
            at = at * (self.scaled - 1) / (self.target - 1)
        return np.clip(at, 0, self.scaled - 1)

    def positions(self, index: Indices) -> npt.NDArray[np.float64]:
        """Where the points `index` of the plane read the map, from 0 to `source - 1`."""
        at = self.on_scaled(index.astype(np.float64)) - self.start
        if not self.align_corners:
            at = (at + 0.5) * self.source / self.side - 0.5
        elif self.side > 1:
            at = at * (self.source - 1) / (self.side - 1)
        else:
            at = np.zeros(len(index))
        return np.clip(at, 0, self.source - 1)


@dataclass(frozen=True)
class Band:
    """How some targets are made: `weights @ source[index]`.

    Attributes:
        index: points read, ascending, each once.
        weights: float64 [targets, points]; each row sums to 1.
    """

    index: Indices
    weights: npt.NDArray[np.float64]


def band(targets: Indices, last: Resize, *before: Resize) -> Band:
    """Some targets of one or several resizes.

    Args:
        targets: points made by the resize `last`, in ascending order; at least one.
        last: the resize that makes the targets.
        before: the resizes before it, backwards: each makes the source of the one named before it.

    Returns:
        points and weights on the source of the last one named: the product of the resizes' matrices, cut to the rows
        asked for and to the columns that are read.
    """
    made = _step(targets, last)
    for resize in before:
        step = _step(made.index, resize)
        made = Band(step.index, made.weights @ step.weights)
    return made


def _step(targets: Indices, resize: Resize) -> Band:
    at = resize.positions(targets)
    low = np.floor(at).astype(np.intp)
    share = at - low
    apart = share > 0
    index = np.unique(np.concatenate([low, low[apart] + 1]))
    weights = np.zeros((len(targets), len(index)))
    rows = np.arange(len(targets))
    weights[rows, np.searchsorted(index, low)] = 1 - share
    weights[rows[apart], np.searchsorted(index, low[apart] + 1)] = share[apart]
    return Band(index, weights)
