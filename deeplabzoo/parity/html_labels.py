"""Where labels differ: marks over the photo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image, ImageFilter

from deeplabzoo.parity.cases import Case
from deeplabzoo.parity.html_parts import image, prose, tag
from deeplabzoo.parity.report import Picture
from deeplabzoo.parity.words import against, percent

RIM = (255, 0, 90)
"""Colour of what lies around a differing pixel, so that a lone one is not overlooked."""

CORE = (255, 230, 0)
"""Colour of a differing pixel."""

_PICTURES = 12
"""Most pictures of pairs that differ."""

_GREYS = 64
_LONGEST = 1024
_THUMBNAIL = 160


def figures(pictures: Sequence[Picture]) -> Iterator[Element]:
    """A picture for each pair whose labels differ, those with the most first, and for each case where none do."""
    equal: dict[Case, list[Picture]] = {}
    different = []
    for picture in pictures:
        if picture.differs.any():
            different.append(picture)
        else:
            equal.setdefault(picture.case, []).append(picture)
    different.sort(key=lambda picture: -float(picture.differs.mean()))
    drawn = [_different(picture) for picture in different[:_PICTURES]]
    for case, same in equal.items():
        who = "; ".join(against(picture.first, picture.second) for picture in same)
        photo = image(thumbnail(same[0]), f"the photo {case}", "small")
        drawn.append(tag("figure", photo, tag("figcaption", f"No pixel differs, {case}: {who}")))
    yield tag("div", *drawn, class_="pictures")
    if len(different) > _PICTURES:
        more = f"{len(different) - _PICTURES} more pairs differ, each in no larger share of pixels."
        yield tag("p", more, class_="note")


def _different(picture: Picture) -> Element:
    count, total = int(picture.differs.sum()), picture.differs.size
    pair = against(picture.first, picture.second)
    text = f"{pair}, {picture.case}: {count} of {total} pixels differ ({percent(count / total)})"
    return tag("figure", image(heat_map(picture), f"{text}, {_box(picture)}", "heat"), tag("figcaption", *prose(text)))


def _box(picture: Picture) -> str:
    rows, columns = picture.differs.nonzero()
    return f"between rows {rows.min()} and {rows.max()}, columns {columns.min()} and {columns.max()}"


def heat_map(picture: Picture) -> Image.Image:
    """The differing pixels, in `CORE` with a rim in `RIM`, over a dark grey photo.

    Where the photo is larger than a page, each differing pixel marks the pixel of the smaller one that it falls into.
    """
    grey = Image.fromarray(picture.image).convert("L")
    marks = picture.differs
    factor = _LONGEST / max(grey.size)
    if factor < 1:
        size = max(1, round(grey.width * factor)), max(1, round(grey.height * factor))
        rows, columns = np.nonzero(marks)
        marks = np.zeros((size[1], size[0]), np.bool_)
        marks[rows * size[1] // grey.height, columns * size[0] // grey.width] = True
        grey = grey.resize(size, Image.Resampling.LANCZOS)
    rim = np.asarray(Image.fromarray(marks.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(5))) > 0
    places = np.asarray(grey) // (256 // _GREYS)
    places = np.where(marks, _GREYS + 1, np.where(rim, _GREYS, places)).astype(np.uint8)
    drawn = Image.fromarray(places)
    # Half as bright as the photo: the marks stand out, and 66 colours make a file of a third of the size.
    greys = [value for grey in range(_GREYS) for value in [24 + grey * 2] * 3]
    drawn.putpalette([*greys, *RIM, *CORE])
    return drawn


def thumbnail(picture: Picture) -> Image.Image:
    """The photo, small."""
    photo = Image.fromarray(picture.image)
    photo.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return photo
