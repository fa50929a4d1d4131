"""Reading photos and masks: whatever the file, either the pixels that were meant or an error of one line."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from deeplabzoo.errors import ImageError, near_match
from deeplabzoo.inference.classes import VOC_CLASSES
from deeplabzoo.inference.label_sets import PALETTE, VOID

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Pillow's names of the formats read. Others stay closed: EPS, for one, would start Ghostscript on the file."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read a photo as RGB.

    Grey, palette, CMYK and HSV or YCbCr pictures become RGB by Pillow's conversion. 16-bit grey is scaled to 8 bits
    (65535 becomes 255, rounded to nearest). Transparency is composited over white, which is what viewers show: what
    lies under a transparent pixel is arbitrary. The EXIF orientation is applied. Of several frames the first is read.

    Args:
        path: a file of one of `FORMATS`, known by its content and not by its name.

    Returns:
        uint8 array [H, W, 3], 0 to 255, RGB.

    Raises:
        ImageError: the file is missing, a folder, empty, broken, of another format or depth, or larger than Pillow's
            `Image.MAX_IMAGE_PIXELS`.
    """
    path = Path(path)
    image, file_format = _load(path, "image")
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        # Mode I holds 32 bits, but these two formats fill 16 of them; in Pillow that is older for PNG, always for PPM.
        wide = np.asarray(image).astype(np.uint32)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F", "LAB"):
        raise ImageError(
            f"image {path} holds pixels of mode {image.mode}, whose range is not known: expected 8 bits a channel or "
            f"16-bit grey; save it as an 8-bit PNG"
        )
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, (255, 255, 255, 255)), seen)
    return np.array(image.convert("RGB"))


def read_mask(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read the labels of a mask.

    A palette picture gives its indices whatever its colours, an 8-bit grey picture its values. An RGB picture is read
    only where every colour is one of Pascal VOC's 21 classes or its void, which leaves no doubt about the labels.

    Args:
        path: a lossless picture file.

    Returns:
        uint8 array [H, W] of labels; 255 is void by Pascal VOC's convention.

    Raises:
        ImageError: the file can't be read (as in `read_image`), is a JPEG, or holds no labels.
    """
    path = Path(path)
    image, file_format = _load(path, "mask")
    if file_format in ("JPEG", "MPO"):  # Pillow calls a JPEG of several pictures MPO
        raise ImageError(f"mask {path} is a JPEG, which changes labels: expected a PNG; make it again from its source")
    if image.mode in ("P", "L"):
        return np.array(image)
    if image.mode in ("RGB", "RGBA"):
        return _decoded(path, np.asarray(image))
    raise ImageError(
        f"mask {path} holds pixels of mode {image.mode}: expected a palette or 8-bit grey picture of class numbers; "
        f"save it as one"
    )


def _load(path: Path, what: str) -> tuple[Image.Image, str | None]:
    """Decode the file; return it upright, and Pillow's name of its format."""
    _check_file(path, what)
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, which does not matter here, and of huge pictures, which does.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return ImageOps.exif_transpose(image), image.format
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{what} {path} is too large: expected at most {Image.MAX_IMAGE_PIXELS} pixels, as a guard against "
            f"decompression bombs; scale it down first ({error})"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{what} {path} is not a picture: expected one of {', '.join(FORMATS)}; convert it, or check its name"
        ) from error
    except Exception as error:  # decoders meet broken bytes with errors of many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{what} {path} is broken ({reason}): expected a complete picture; get the file again"
        ) from error


def _check_file(path: Path, what: str) -> None:
    if path.is_dir():
        raise ImageError(f"{what} {path} is a folder: expected a picture file; name one of those in it")
    if not path.exists():
        siblings: list[str] = []
        if path.parent.is_dir():
            siblings = [file.name for file in path.parent.iterdir() if file.suffix.lower() in _SUFFIXES]
        raise ImageError(
            f"{what} {path} is missing: expected a picture file; check the name{near_match(path.name, siblings)}"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise ImageError(f"{what} {path} is empty: expected a picture file; get the file again")


def _decoded(path: Path, colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Labels of a mask [H, W, 3 or 4] painted in VOC's colours."""
    codes = _code(colours)
    legal = np.array([*range(len(VOC_CLASSES)), VOID], np.uint8)
    known = _code(PALETTE[legal])
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known, codes, sorter=order), len(known) - 1)
    labels: npt.NDArray[np.uint8] = legal[order[at]]
    opaque = colours.shape[2] == 3 or bool((colours[:, :, 3] == 255).all())
    if not opaque or not np.array_equal(_code(PALETTE[labels]), codes):
        raise ImageError(
            f"mask {path} is an RGB picture whose colours are not those of Pascal VOC: expected a palette or 8-bit "
            f"grey picture of class numbers; replace each colour by its class number and save that with write_labels"
        )
    return labels


def _code(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """One number a colour; the channels are the last axis."""
    red, green, blue = (colours[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue
