"""Folders of photos with masks: Pascal VOC's own form, or files side by side."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deeplabzoo.errors import DataError, near_match

_PHOTO = (".jpg", ".jpeg", ".png")
_MASK = "_mask.png"
_VOC_PARTS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


@dataclass(frozen=True)
class Pair:
    """A photo and the mask of its true labels.

    Attributes:
        name: the photo's file name without suffix.
        image_path: the photo, for `read_image`.
        mask_path: the mask, for `read_mask`.
    """

    name: str
    image_path: Path
    mask_path: Path


class Pairs(list[Pair]):
    """The pairs of a folder, by name.

    Attributes:
        note: one line about files that were left out, empty where none was.
    """

    def __init__(self, pairs: Iterable[Pair], note: str = "") -> None:
        super().__init__(pairs)
        self.note = note


def find_pairs(folder: str | os.PathLike[str], *, split: str = "val") -> Pairs:
    """Find the photos with masks in a folder.

    Two forms are known. Pascal VOC: `JPEGImages`, `SegmentationClass` and the list of names
    `ImageSets/Segmentation/<split>.txt`, in the folder itself, in its `VOC2012` or in its `VOCdevkit/VOC2012`.
    Flat: `NAME.png`, `.jpg` or `.jpeg` beside `NAME_mask.png`; photos without mask, and masks without photo, are left
    out, and the result's `note` says so.

    Args:
        folder: where to look.
        split: which of VOC's lists to read; a flat folder has none and does not look at it.

    Returns:
        at least one pair; in the order of VOC's list, or by name.

    Raises:
        DataError: there is no such folder, it has neither form, holds no pair, has no such split, or lacks a listed
            file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"data folder {folder} is {'a file' if folder.exists() else 'missing'}: expected a folder")
    for root in (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012"):
        if all((root / part).is_dir() for part in _VOC_PARTS):
            return _voc(root, split)
    return _flat(folder)


def _voc(root: Path, split: str) -> Pairs:
    lists = root / "ImageSets" / "Segmentation"
    splits = sorted(path.stem for path in lists.glob("*.txt"))
    if split not in splits:
        raise DataError(
            f"split {split!r} is not in {lists}: expected one of {', '.join(splits) or '(no list there)'}"
            f"{near_match(split, splits)}"
        )
    path = lists / f"{split}.txt"
    try:
        names = [name for line in path.read_text(encoding="utf-8").splitlines() if (name := line.strip())]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {path} can't be read: expected a text file with a name a line ({error})") from error
    if not names:
        raise DataError(f"list {path} is empty: expected a name a line; get the data again")
    pairs = []
    for name in names:
        choices = [root / "JPEGImages" / f"{name}{suffix}" for suffix in _PHOTO]
        image = next((choice for choice in choices if choice.is_file()), choices[0])
        pair = Pair(name, image, root / "SegmentationClass" / f"{name}.png")
        for file in (pair.image_path, pair.mask_path):
            if not file.is_file():
                raise DataError(f"{path} lists {name}, but {file} is missing: get the file, or take the line out")
        pairs.append(pair)
    return Pairs(pairs)


def _flat(folder: Path) -> Pairs:
    photos: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_MASK):
            masks[path.name.removesuffix(_MASK)] = path
        elif path.suffix.lower() in _PHOTO:
            photos[path.stem].append(path)
    if not photos and not masks:
        raise DataError(
            f"data folder {folder} has no form that is known: expected a VOC folder ({', '.join(_VOC_PARTS)}) or "
            f"photos NAME.jpg or NAME.png beside NAME_mask.png; found {_contents(folder)}"
        )
    pairs = []
    for name in sorted(photos.keys() & masks.keys()):
        if len(photos[name]) > 1:
            raise DataError(
                f"mask {masks[name]} has several photos ({', '.join(photo.name for photo in photos[name])}): expected "
                f"one; rename the others"
            )
        pairs.append(Pair(name, photos[name][0], masks[name]))
    if not pairs:
        raise DataError(
            f"data folder {folder} holds no pair: found {_count(len(photos), 'photo')} and "
            f"{_count(len(masks), 'mask')}, expected NAME_mask.png for a photo NAME.jpg or NAME.png; rename the masks"
        )
    alone = {"photo": photos.keys() - masks.keys(), "mask": masks.keys() - photos.keys()}
    notes = [
        f"{_count(len(names), what)} without {other} left out ({_few(sorted(names))})"
        for (what, names), other in zip(alone.items(), ("mask", "photo"), strict=True)
        if names
    ]
    return Pairs(pairs, "; ".join(notes))


def _contents(folder: Path) -> str:
    return _few(sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())) or "nothing"


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
