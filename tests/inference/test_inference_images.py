"""Every sort of image file a person may hand in."""

import warnings

import numpy as np
import pytest
from PIL import Image

from deeplabzoo.errors import ImageError
from deeplabzoo.inference import PALETTE, colourise, find_pairs, read_image, read_mask, write_labels

SMALL = (np.arange(5 * 7 * 3) * 2 % 256).astype(np.uint8).reshape(5, 7, 3)


def refused(path, *words, reader=read_image):
    """The reader's message, which is one line and holds `words`."""
    with pytest.raises(ImageError) as caught:
        reader(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in ("expected", *words):
        assert word in message, message
    return message


def test_rgb_comes_back_as_it_went_in(tmp_path):
    Image.fromarray(SMALL).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, SMALL)
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")), SMALL)


def test_grey_is_repeated(tmp_path):
    Image.fromarray(SMALL[:, :, 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(SMALL[:, :, :1], 3, axis=2))


def test_black_and_white(tmp_path):
    Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, 1], [[0, 255, 255]])


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    grey = np.array([[100, 100, 100]], np.uint8)
    alpha = np.array([[0, 255, 51]], np.uint8)
    channels = [grey] * (len(mode) - 1)
    Image.merge(mode, [Image.fromarray(c) for c in (*channels, alpha)]).save(tmp_path / "a.png")
    # 51 is a fifth: 0.2 * 100 + 0.8 * 255 = 224
    for channel in range(3):
        np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, channel], [[255, 100, 224]])


def test_palette_gives_its_colours(tmp_path):
    labels = np.array([[0, 1, 2], [15, 20, 255]], np.uint8)
    write_labels(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PALETTE[labels])


def test_palette_with_transparent_entries(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255, 255, 255], [40, 50, 60]]])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled(tmp_path, name):
    wide = np.array([[0, 128, 129, 257, 32896, 65279, 65535]], np.uint16)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 7 1 65535\n" + wide.astype(">u2").tobytes())
    else:
        Image.fromarray(wide).save(tmp_path / name)
    # 257 steps of 16 bits are one of 8, rounded to nearest
    np.testing.assert_array_equal(read_image(tmp_path / name)[:, :, 2], [[0, 0, 1, 1, 128, 254, 255]])


def test_cmyk(tmp_path):
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.broadcast_to([255, 0, 0], (3, 4, 3)))


@pytest.mark.parametrize(("name", "save"), [("a.png", {}), ("a.tif", {}), ("a.jpg", {"quality": 100})])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, name, save, orientation):
    """The upright picture is one bright quarter; its place tells each of the eight orientations from the others."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255
    # what the camera stored, by the EXIF specification's table (row 0 and column 0 as seen)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif, **save)
    read = read_image(tmp_path / name)
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).max() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_tiny(tmp_path, size):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 2, 3]] * size[0]] * size[1]


def test_broken_exif_does_not_matter(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"
    Image.fromarray(SMALL).save(tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.jpg").shape == SMALL.shape


def test_of_several_pictures_the_first_is_read(tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    for name in ("a.gif", "a.webp", "a.tif", "a.png", "a.mpo"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert read_image(tmp_path / name).max() == 0
    refused(tmp_path / "a.mpo", "JPEG", reader=read_mask)


def test_missing_file_suggests_a_sibling(tmp_path):
    Image.fromarray(SMALL).save(tmp_path / "street.png")
    (tmp_path / "streat.txt").write_text("")
    refused(tmp_path / "streat.png", "missing", "did you mean 'street.png'?")


def test_missing_folder(tmp_path):
    assert "did you mean" not in refused(tmp_path / "nowhere" / "a.png", "missing")


def test_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_empty_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    refused(tmp_path / "a.png", "is empty")


@pytest.mark.parametrize("content", [b"hello", b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "is not a picture", "PNG, JPEG")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp", "webp"])
def test_truncated_at_any_byte(tmp_path, suffix):
    """However little is left, the answer is an ImageError, or the whole picture where only a trailer is gone."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    whole, expected = (tmp_path / f"whole.{suffix}").read_bytes(), read_image(tmp_path / f"whole.{suffix}")
    cut, failures = tmp_path / f"cut.{suffix}", 0
    for length in range(1, len(whole), 3):
        cut.write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(read_image(cut), expected)
        except ImageError as error:
            failures += 1
            assert "\n" not in str(error)
    assert failures > 5


def test_broken_bytes_inside(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "is broken")


@pytest.mark.parametrize("limit", [34, 10])  # Pillow warns beyond the limit and raises beyond twice the limit
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    Image.fromarray(SMALL).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    refused(tmp_path / "a.png", "too large", f"at most {limit} pixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
    assert read_image(tmp_path / "a.png").shape == SMALL.shape


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_unknown_range_is_refused(tmp_path, dtype):
    Image.fromarray(SMALL[:, :, 0].astype(dtype)).save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", "range is not known")


def test_mask_of_a_palette_picture_is_its_indices(tmp_path):
    labels = np.array([[0, 7, 255], [20, 3, 1]], np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette([9] * 768)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)


def test_mask_of_a_grey_picture_is_its_values(tmp_path):
    labels = np.array([[0, 7, 255], [20, 3, 1]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    read = read_mask(tmp_path / "a.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_mask_in_voc_colours_is_decoded(tmp_path, mode):
    labels = np.array([[*range(21), 255]], np.uint8)
    Image.fromarray(colourise(labels)).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)


def test_mask_in_other_colours_is_refused(tmp_path):
    colours = colourise(np.array([[0, 1, 2]], np.uint8))
    colours[0, 1, 2] = 1
    Image.fromarray(colours).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "not those of Pascal VOC", "write_labels", reader=read_mask)


def test_mask_with_holes_is_refused(tmp_path):
    picture = Image.fromarray(colourise(np.array([[0, 1, 2]], np.uint8)))
    picture.putalpha(128)
    picture.save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "not those of Pascal VOC", reader=read_mask)


@pytest.mark.parametrize("mode", ["1", "LA", "I;16"])
def test_mask_of_another_mode_is_refused(tmp_path, mode):
    Image.new(mode, (3, 3)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "expected a palette or 8-bit grey", reader=read_mask)


def test_jpeg_mask_is_refused(tmp_path):
    Image.new("L", (3, 3)).save(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", "JPEG", reader=read_mask)


def test_broken_mask_is_called_a_mask(tmp_path):
    assert refused(tmp_path / "a.png", "missing", reader=read_mask).startswith("mask ")


def test_real_photos_and_masks(photos):
    pairs = find_pairs(photos)
    assert len(pairs) == 8
    assert pairs.note == ""
    seen = set()
    for pair in pairs:
        assert read_image(pair.image_path).shape == (513, 513, 3)
        mask = read_mask(pair.mask_path)
        assert mask.shape == (513, 513)
        seen |= set(np.unique(mask).tolist())
    assert seen <= {*range(21), 255}
    assert seen == {0, 1, 3, 7, 15, 17, 255}
