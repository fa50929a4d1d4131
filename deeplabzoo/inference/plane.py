"""A photo as a network's input plane, of which only the part asked for is ever made."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from deeplabzoo.errors import ImageError
from deeplabzoo.inference.colours import check_photo
from deeplabzoo.inference.preprocessing import Placement, Preprocessing, place
from deeplabzoo.inference.resampling import Indices, Resize, band

MOST_PIXELS = 1 << 27
"""Pixels of the largest piece made at once (1.6 GB of float32). Beyond it lies no photo but a strip like 10 x 10000,
which a rule on the shortest side blows up."""

TILE = 256
"""Side of the squares in which planes and labels are made, so that nothing in between is there all at once."""


class Plane:
    """The network's input for one photo: resized, padded, normalised, and scaled where that is asked for.

    Held are the photo's bytes, or those of the resized photo; floats are made part by part.

    Args:
        image: uint8 [H, W, 3], RGB.
        pre: what the network expects.

    Raises:
        ImageError: `image` is no photo, or the resized photo would be too large.
    """

    def __init__(self, image: npt.NDArray[np.uint8], pre: Preprocessing) -> None:
        check_photo(image)
        self.pre = pre
        self.placement: Placement = place(image.shape[0], image.shape[1], pre)
        self._pixels = image
        resized = self.placement.resized
        if resized != self.placement.original and pre.antialias:
            self._check_size(resized)
            self._pixels = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR))

    def cut(
        self, rows: slice, columns: slice, size: tuple[int, int] | None = None, *, align_corners: bool = False
    ) -> npt.NDArray[np.float32]:
        """A window of the plane, or of the plane at another scale.

        Args:
            rows: rows of the scaled plane, start and stop.
            columns: its columns.
            size: height and width of the scaled plane; the plane's own by default.
            align_corners: rule of the bilinear resize from the plane to that size, without antialiasing.

        Returns:
            float32 array [1, 3, rows, columns], computed in float64 and rounded once.

        Raises:
            ImageError: the window is too large to be made at once.
        """
        padded = self.placement.padded
        size = size or padded
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        self._check_size((tall, wide))
        x = np.empty((1, 3, tall, wide), np.float32)
        height, width = (
            Resize.plain(source, target, align_corners=align_corners)
            for source, target in zip(padded, size, strict=True)
        )
        for down in tiles(rows):
            # Pixels are read and normalised tile by tile: float64 of a large photo takes much memory.
            from_rows = band(np.arange(down.start, down.stop), height)
            for across in tiles(columns):
                from_columns = band(np.arange(across.start, across.stop), width)
                part = self._part(from_rows.index, from_columns.index)
                if size != padded:
                    part = from_rows.weights @ part @ from_columns.weights.T
                at_row, at_column = down.start - rows.start, across.start - columns.start
                x[0, :, at_row : at_row + part.shape[1], at_column : at_column + part.shape[2]] = part
        return x

    def _part(self, rows: Indices, columns: Indices) -> npt.NDArray[np.float64]:
        """Rows and columns of the plane, float64 [3, rows, columns], normalised."""
        resized, pre = self.placement.resized, self.pre
        rows_inside, columns_inside = rows[rows < resized[0]], columns[columns < resized[1]]
        inside = self._resized(rows_inside, columns_inside)
        if pre.channel_order == "bgr":
            inside = inside[::-1]
        part = np.empty((3, len(rows), len(columns)))
        for channel, (mean, std, pad) in enumerate(zip(pre.mean, pre.std, pre.pad_value, strict=True)):
            part[channel] = (pad * pre.scale - mean) / std
            part[channel, : len(rows_inside), : len(columns_inside)] = (inside[channel] * pre.scale - mean) / std
        return part

    def _resized(self, rows: Indices, columns: Indices) -> npt.NDArray[np.float64]:
        """Pixels of the resized photo, float64 [3, rows, columns], 0 to 255, RGB."""
        stored, resized = self._pixels.shape[:2], self.placement.resized
        if stored == resized or not (len(rows) and len(columns)):
            return np.moveaxis(self._pixels[np.ix_(rows, columns)], 2, 0).astype(np.float64)
        down, across = (
            band(index, Resize.plain(source, target, align_corners=False))
            for index, source, target in zip((rows, columns), stored, resized, strict=True)
        )
        pixels = np.moveaxis(self._pixels[np.ix_(down.index, across.index)], 2, 0).astype(np.float64)
        made: npt.NDArray[np.float64] = down.weights @ pixels @ across.weights.T
        return made

    def _check_size(self, size: tuple[int, int]) -> None:
        if math.prod(size) > MOST_PIXELS:
            (height, width), (tall, wide) = self.placement.original, size
            raise ImageError(
                f"photo of {height} x {width} would become {tall} x {wide} (resize = {self.pre.resize!r}): expected at "
                f"most {MOST_PIXELS} pixels at once; crop it, or, where it is not resized, have it labelled in windows"
            )


def prepare(image: npt.NDArray[np.uint8], pre: Preprocessing) -> tuple[npt.NDArray[np.float32], Placement]:
    """Make a network's whole input from a photo.

    Args:
        image: uint8 [H, W, 3], RGB.
        pre: what the network expects.

    Returns:
        float32 array [1, 3, h, w], computed in float64 and rounded once, and the place of the photo in it.

    Raises:
        ImageError: `image` is no photo, or would become too large.
    """
    plane = Plane(image, pre)
    tall, wide = plane.placement.padded
    return plane.cut(slice(0, tall), slice(0, wide)), plane.placement


def tiles(whole: slice) -> Iterator[slice]:
    """A range in pieces of `TILE`, the last one shorter where it does not divide."""
    return (slice(at, min(at + TILE, whole.stop)) for at in range(whole.start, whole.stop, TILE))
