"""Pictures of what networks saw: panels, contact sheets, and image files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from deeplabzoo.errors import DataError, OutputError
from deeplabzoo.files import beside_then_rename, check_output
from deeplabzoo.inference.classes import VOC_CLASSES
from deeplabzoo.inference.colours import check_drawable, check_palette, check_photo, overlay
from deeplabzoo.inference.label_sets import PALETTE, VOID, Palette

Labels = npt.NDArray[np.integer[Any]]
Picture = npt.NDArray[np.uint8]

_CELL = 400
"""Side of the square that each tile of a panel fits into; captions fit its width."""
_GAP = 12
_TEXT, _HEADING = 20, 26
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def panel(
    image: Picture,
    truth: Labels | None,
    predictions: Mapping[str, Labels],
    title: str | None = None,
    *,
    class_names: Sequence[str] = VOC_CLASSES,
    palette: Palette = PALETTE,
) -> Picture:
    """Draw a photo, its truth and its predictions side by side, with captions and a legend of the classes.

    With two predictions or more the last tile shows where they differ: black where all are equal, white where not, in
    a red rim that keeps a lone pixel from being overlooked. Photos are scaled to one tile size.

    Args:
        image: the photo, uint8 [H, W, 3], RGB.
        truth: its true labels [H, W], or None; void pixels count for no prediction.
        predictions: labels [H, W] of each backend, by the name to put under the tile.
        title: a heading, or None.
        class_names: names of the labels from 0; a label beyond them is called by its number, 255 is void.
        palette: uint8 [256, 3], the colour of each label.

    Returns:
        uint8 array [height, width, 3], RGB, on white.

    Raises:
        ImageError: `image` is no photo.
        DataError: labels that do not fit the photo or have no colour.
    """
    check_photo(image)
    labels = [*([] if truth is None else [truth]), *predictions.values()]
    for one in labels:
        check_drawable(one)
    cells = [_cell(_scaled(image), ["photo"])]
    if truth is not None:
        cells.append(_cell(_scaled(overlay(image, truth, palette=palette)), ["truth"]))
    for name, prediction in predictions.items():
        tile = _scaled(overlay(image, prediction, palette=palette))
        cells.append(_cell(tile, [name] if truth is None else [name, _accuracy(truth, prediction)]))
    if len(predictions) > 1:
        cells.append(_disagreement(list(predictions.values())))

    width = len(cells) * (_CELL + _GAP) + _GAP
    row = Image.new("RGB", (width, max(cell.height for cell in cells)), _PAPER)
    for number, cell in enumerate(cells):
        row.paste(cell, (_GAP + number * (_CELL + _GAP), 0))
    parts = [row, _legend(labels, class_names, palette, width)]
    if title is not None:
        parts.insert(0, _text([title], width, _HEADING))
    sheet = Image.new("RGB", (width, sum(part.height + _GAP for part in parts) + _GAP), _PAPER)
    top = _GAP
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + _GAP
    return np.array(sheet)


def legend(
    labels: Labels, class_names: Sequence[str] = VOC_CLASSES, palette: Palette = PALETTE, *, width: int = 800
) -> Picture:
    """Draw colour and name of each class that labels hold.

    Args:
        labels: whole numbers [H, W] from 0 to 255.
        class_names: names of the labels from 0; a label beyond them is called by its number, 255 is void.
        palette: uint8 [256, 3], the colour of each label.
        width: of the picture, in pixels, at least 100.

    Returns:
        uint8 array [height, width, 3], RGB, on white, as high as the names need.

    Raises:
        DataError: `labels` are none or have no colour, `palette` is none, or `width` is too small.
    """
    check_drawable(labels)
    check_palette(palette)
    if width < 100:
        raise DataError(f"legend of width {width}: expected at least 100 pixels")
    return np.array(_legend([labels], class_names, palette, width))


def contact_sheet(panels: Sequence[Picture], *, columns: int = 1, width: int = 1600) -> Picture:
    """Lay pictures out in a grid, row by row, scaled down where they are wider than their column.

    Args:
        panels: pictures, uint8 [H, W, 3].
        columns: pictures beside each other, at least 1.
        width: of the sheet, in pixels; enough for columns of at least 16.

    Returns:
        uint8 array [height, width, 3], on white.

    Raises:
        ImageError: one of `panels` is no picture.
        DataError: there is none, or `columns` or `width` is too small.
    """
    if not panels:
        raise DataError("contact sheet of no picture: expected at least one panel")
    column = (width - _GAP) // columns - _GAP if columns > 0 else 0
    if column < 16:
        raise DataError(f"contact sheet of {columns} columns and width {width}: expected columns of at least 16 pixels")
    tiles = []
    for picture in panels:
        check_photo(picture)
        tile = Image.fromarray(picture)
        if tile.width > column:
            height = max(1, round(tile.height * column / tile.width))
            tile = tile.resize((column, height), Image.Resampling.LANCZOS)
        tiles.append(tile)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), _PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for number, tile in enumerate(row):
            sheet.paste(tile, (_GAP + number * (column + _GAP), top))
        top += height + _GAP
    return np.array(sheet)


def write_png(path: str | os.PathLike[str], array: Picture, *, force: bool = False) -> None:
    """Write a picture as PNG, or leave nothing behind.

    Args:
        path: file to make; its name ends in `.png`.
        array: uint8, [H, W] grey or [H, W, 3] RGB.
        force: whether to replace a file that is there.

    Raises:
        OutputError: another suffix, a file that is there, no such folder, or a write that fails.
        DataError: `array` is no picture.
    """
    if array.dtype != np.uint8 or array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise DataError(
            f"picture of dtype {array.dtype} and shape {array.shape}: expected uint8 of shape (H, W) or (H, W, 3)"
        )
    _save(Path(path), Image.fromarray(array), force)


def write_labels(
    path: str | os.PathLike[str], labels: Labels, *, force: bool = False, palette: Palette = PALETTE
) -> None:
    """Write labels as a palette PNG, as Pascal VOC's own masks are; `read_mask` reads it back.

    Args:
        path: file to make; its name ends in `.png`.
        labels: whole numbers [H, W] from 0 to 255.
        force: whether to replace a file that is there.
        palette: uint8 [256, 3], the colour of each label; the file's values are the labels whatever it says.

    Raises:
        OutputError: as in `write_png`.
        DataError: `labels` has another shape, type or range, or `palette` is none.
    """
    check_drawable(labels)
    check_palette(palette)
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    _save(Path(path), picture, force)


def _save(path: Path, picture: Image.Image, force: bool) -> None:
    if path.suffix.lower() != ".png":
        raise OutputError(f"output {path} is to be a PNG: expected a name that ends in .png; change it")
    check_output(path, force=force)
    with beside_then_rename(path) as beside:
        picture.save(beside, format="PNG")


def _tile_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a picture whose longest side is that of a tile."""
    factor = _CELL / max(picture.size)
    return max(1, round(picture.width * factor)), max(1, round(picture.height * factor))


def _scaled(pixels: Picture) -> Image.Image:
    """The picture at the size of a tile; enlarged, its pixels stay squares."""
    picture = Image.fromarray(pixels)
    shrink = max(picture.size) > _CELL
    return picture.resize(_tile_size(picture), Image.Resampling.LANCZOS if shrink else Image.Resampling.NEAREST)


def _accuracy(truth: Labels, prediction: Labels) -> str:
    counted = truth != VOID
    if not counted.any():
        return "no pixel to judge"
    return f"{_percent(np.mean(truth[counted] == prediction[counted]))} of pixels right"


def _disagreement(predictions: list[Labels]) -> Image.Image:
    """The tile of the pixels whose labels are not all equal."""
    differing = np.zeros(predictions[0].shape, np.bool_)
    for other in predictions[1:]:
        differing |= other != predictions[0]
    mask = Image.fromarray(differing.astype(np.uint8) * 255)
    size = _tile_size(mask)
    rows, columns = np.nonzero(differing)
    if max(size) >= max(mask.size):
        drawn = np.array(mask.resize(size, Image.Resampling.NEAREST))
    else:
        # Each differing pixel marks the pixel of the tile that it falls into: a filter would fade a lone one away.
        drawn = np.zeros((size[1], size[0]), np.uint8)
        drawn[rows * size[1] // mask.height, columns * size[0] // mask.width] = 255
    rim = np.asarray(Image.fromarray(drawn).filter(ImageFilter.MaxFilter(5)))
    colours = np.stack([rim, drawn, drawn], axis=2)
    count = len(rows)
    if count == 0:
        caption = ["all backends agree", f"on all {differing.size} pixels"]
    else:
        caption = [f"backends differ: {_percent(count / differing.size)}", f"{count} of {differing.size} pixels"]
    return _cell(Image.fromarray(colours), caption)


def _percent(share: float) -> str:
    """A share as percents that says 0 and 100 only where it is exactly that."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    distance = min(share, 1 - share)
    digits = max(2, 1 - math.floor(math.log10(distance * 100)))
    return f"{share * 100:.{digits}f} %"


def _cell(tile: Image.Image, caption: list[str]) -> Image.Image:
    """A tile centred in its square's width, with its caption under it."""
    words = _text(caption, _CELL, _TEXT)
    cell = Image.new("RGB", (_CELL, tile.height + words.height), _PAPER)
    cell.paste(tile, ((_CELL - tile.width) // 2, 0))
    cell.paste(words, (0, tile.height))
    return cell


def _text(lines: list[str], width: int, size: int) -> Image.Image:
    """Lines centred on white, each cut with an ellipsis where it is wider than the room there is."""
    font = ImageFont.load_default(size)
    height = round(size * 1.4)
    picture = Image.new("RGB", (width, height * len(lines) + _GAP // 2), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        line = _cut(line, width, font)
        left = (width - font.getlength(line)) / 2
        draw.text((left, number * height + height * 0.1), line, fill=_INK, font=font)
    return picture


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    line = " ".join(line.split())  # a line break would be drawn over the next line
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."


def _legend(labels: list[Labels], class_names: Sequence[str], palette: Palette, width: int) -> Image.Image:
    """Colour and name of each label there is, in as many lines as it takes."""
    font = ImageFont.load_default(_TEXT)
    height, swatch = round(_TEXT * 1.6), _TEXT
    items: list[tuple[int, int, int, str]] = []
    left, line = _GAP, 0
    for label in np.unique(np.concatenate([np.unique(one) for one in labels])) if labels else ():
        name = class_names[label] if label < len(class_names) else "void" if label == VOID else f"class {label}"
        name = _cut(name, width - swatch - 3 * _GAP, font)
        room = swatch + _GAP // 2 + math.ceil(font.getlength(name)) + 2 * _GAP
        if left + room > width and left > _GAP:
            left, line = _GAP, line + 1
        items.append((left, line, int(label), name))
        left += room
    picture = Image.new("RGB", (width, height * (line + 1)), _PAPER)
    draw = ImageDraw.Draw(picture)
    for left, line, label, name in items:
        top = line * height + (height - swatch) // 2
        red, green, blue = palette[label].tolist()
        draw.rectangle((left, top, left + swatch, top + swatch), fill=(red, green, blue), outline=_INK)
        draw.text((left + swatch + _GAP // 2, top - 2), name, fill=_INK, font=font)
    return picture
