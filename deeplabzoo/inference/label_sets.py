"""What the labels of a data set are called and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deeplabzoo.errors import DataError
from deeplabzoo.inference.classes import ADE20K_CLASSES, CITYSCAPES_CLASSES, PASCAL_CONTEXT_CLASSES, VOC_CLASSES

Palette = npt.NDArray[np.uint8]
"""uint8 [256, 3]: the RGB colour of each label."""

VOID = 255
"""Label of the pixels that nobody is judged on: borders of objects and parts too hard to mark."""

_CITYSCAPES_COLOURS = """
    804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046
    003c64 005064 0000e6 770b20
"""
"""cityscapesScripts, `helpers/labels.py`."""

_ADE20K_COLOURS = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
    ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
    08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
    eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
    0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
    0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
    00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
    8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
    ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
    00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
"""CSAILVision/sceneparsing, `color150`. Road and skyscraper share a colour there."""


def _palette(colours: Sequence[Sequence[int]]) -> Palette:
    """Read-only, with labels beyond the colours in black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    palette.flags.writeable = False
    return palette


def _colours(text: str) -> list[tuple[int, ...]]:
    return [tuple(bytes.fromhex(word)) for word in text.split()]


def _voc_palette() -> Palette:
    """The devkit's rule (VOClabelcolormap.m): bits 0, 1, 2 of the label are bit 7 of R, G, B; bits 3 to 5 bit 6; ..."""
    label = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for triple in range(3):
        for channel in range(3):
            bit = label >> (3 * triple + channel) & 1
            colours[:, channel] |= (bit << (7 - triple)).astype(np.uint8)
    return _palette(colours)  # type: ignore[arg-type]  # an array of whole numbers, row by row


PALETTE = _voc_palette()
"""uint8 [256, 3], read-only: Pascal VOC's RGB colour of each label. All differ; void (255) is the off-white
(224, 224, 192)."""


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The labels of a data set.

    Attributes:
        name: what the command line calls it.
        classes: names in the order of the labels.
        palette: uint8 [256, 3], read-only: the RGB colour of each label; labels without a class are black, but for
            Pascal VOC, whose rule colours all 256.
        void: label of the true pixels that do not count.
        source: where names and colours come from.
    """

    name: str
    classes: tuple[str, ...]
    palette: Palette = field(repr=False)
    void: int
    source: str


_ADE20K = _colours(_ADE20K_COLOURS)
_BLACK = (0, 0, 0)

VOC = LabelSet("voc", VOC_CLASSES, PALETTE, VOID, "Pascal VOC 2012 devkit")
CITYSCAPES = LabelSet(
    "cityscapes", CITYSCAPES_CLASSES, _palette(_colours(_CITYSCAPES_COLOURS)), VOID, "cityscapesScripts"
)
ADE20K = LabelSet("ade20k", ADE20K_CLASSES, _palette(_ADE20K), VOID, "CSAILVision/sceneparsing")
ADE20K_TF = LabelSet(
    "ade20k", ("background", *ADE20K_CLASSES), _palette([_BLACK, *_ADE20K]), 0, "tensorflow/models, research/deeplab"
)
"""TensorFlow's reading of ADE20K: a label is one more, and label 0 does not count (`data_generator.py`)."""

PASCAL_CONTEXT = LabelSet(
    "pascal_context", PASCAL_CONTEXT_CLASSES, _palette(_ADE20K[1:60]), VOID, "mmsegmentation, PascalContextDataset59"
)
PASCAL_CONTEXT_60 = LabelSet(
    "pascal_context",
    ("background", *PASCAL_CONTEXT_CLASSES),
    _palette(_ADE20K[:60]),
    VOID,
    "mmsegmentation, PascalContextDataset",
)
"""mmsegmentation colours Pascal-Context with the first colours of ADE20K."""

LABEL_SETS = (VOC, CITYSCAPES, ADE20K, ADE20K_TF, PASCAL_CONTEXT, PASCAL_CONTEXT_60)
PALETTES = tuple(dict.fromkeys(one.name for one in LABEL_SETS))
"""Names that `label_set` takes."""


def known_label_set(classes: Sequence[str]) -> LabelSet | None:
    """The data set whose classes these are, whatever case, spaces and underscores; none where it is not known."""
    words = [_plain(name) for name in classes]
    return next((one for one in LABEL_SETS if words == [_plain(name) for name in one.classes]), None)


def label_set(name: str | None, classes: Sequence[str], num_classes: int) -> LabelSet:
    """Names and colours for the labels of a model.

    Args:
        name: one of `PALETTES`, or none to go by the classes' names, and where they tell nothing by their number;
            Pascal VOC's colours, which never end, serve all others.
        classes: the model's own names, in the order of its logits, or none.
        num_classes: how many labels it gives.

    Returns:
        the label set, with the model's own names where it has some, and no name at all where nobody knows any.

    Raises:
        DataError: an unknown name, or a palette of fewer colours than there are classes.
    """
    if name is not None and name not in PALETTES:
        raise DataError(f"palette {name!r}: expected one of {', '.join(PALETTES)}")
    options = [one for one in LABEL_SETS if name in (None, one.name)]
    named = known_label_set(classes)
    sized = next((one for one in options if len(one.classes) == num_classes), None)
    found = named if named in options else sized
    if found is not None:
        return LabelSet(found.name, tuple(classes) or found.classes, found.palette, found.void, found.source)
    if name not in (None, VOC.name):
        sizes = " or ".join(str(len(one.classes)) for one in LABEL_SETS if one.name == name)
        raise DataError(
            f"palette {name!r} for a model of {num_classes} classes: expected {sizes}; take voc, which has a colour for "
            f"any label"
        )
    return LabelSet(VOC.name, tuple(classes), VOC.palette, VOID, VOC.source)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
