"""Both forms of a data folder, and what may be wrong with them."""

import numpy as np
import pytest

from deeplabzoo.errors import DataError
from deeplabzoo.inference import Pair, draw_scene, find_pairs, write_labels, write_png

IMAGE, LABELS = draw_scene(8, 8, 0), np.zeros((8, 8), np.uint8)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    for name in ("2007_b", "2007_a", "2008_c"):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"photo")
        write_labels(root / "SegmentationClass" / f"{name}.png", LABELS)
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_b\n2007_a\n\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("2008_c\r\n")
    return root


def refused(folder, *words, **options):
    with pytest.raises(DataError) as caught:
        find_pairs(folder, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_voc(voc):
    pairs = find_pairs(voc)
    image, mask = voc / "JPEGImages/2007_b.jpg", voc / "SegmentationClass/2007_b.png"
    assert pairs[0] == Pair("2007_b", image, mask)
    assert [pair.name for pair in pairs] == ["2007_b", "2007_a"]
    assert pairs.note == ""
    assert [pair.name for pair in find_pairs(voc, split="train")] == ["2008_c"]


def test_voc_from_above(voc):
    assert find_pairs(voc.parent) == find_pairs(voc.parent.parent) == find_pairs(str(voc)) == find_pairs(voc)


def test_voc_split_missing(voc):
    refused(voc, "'vall'", "train, val", "did you mean 'val'?", split="vall")


@pytest.mark.parametrize("part", ["JPEGImages/2007_a.jpg", "SegmentationClass/2007_a.png"])
def test_voc_listed_file_missing(voc, part):
    (voc / part).unlink()
    refused(voc, "val.txt lists 2007_a", str(voc / part))


def test_voc_list_that_is_empty_or_no_text(voc):
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n")
    refused(voc, "is empty")
    (voc / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe\x00")
    refused(voc, "can't be read")


def test_flat(tmp_path):
    for name in ("b.png", "a.png"):
        write_png(tmp_path / name, IMAGE)
    (tmp_path / "c.JPG").write_bytes(b"photo")
    (tmp_path / "notes.txt").write_text("")
    for name in "abc":
        write_labels(tmp_path / f"{name}_mask.png", LABELS)
    pairs = find_pairs(tmp_path)
    assert [(p.name, p.image_path.name, p.mask_path.name) for p in pairs] == [
        ("a", "a.png", "a_mask.png"),
        ("b", "b.png", "b_mask.png"),
        ("c", "c.JPG", "c_mask.png"),
    ]
    assert pairs.note == ""


def test_flat_says_what_it_left_out(tmp_path):
    for name in "abcdefgh":
        write_png(tmp_path / f"{name}.png", IMAGE)
    for name in "az":
        write_labels(tmp_path / f"{name}_mask.png", LABELS)
    pairs = find_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["a"]
    assert pairs.note == (
        "7 photos without mask left out (b, c, d, e, f and 2 more); 1 mask without photo left out (z)"
    )


def test_flat_with_two_photos_for_a_mask(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"photo")
    write_labels(tmp_path / "a_mask.png", LABELS)
    refused(tmp_path, "a.jpg, a.png", "expected one")


def test_no_folder(tmp_path):
    refused(tmp_path / "nowhere", "missing")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "a file")


def test_neither_form(tmp_path):
    refused(tmp_path, "JPEGImages", "NAME_mask.png", "found nothing")
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "readme.txt").write_text("")
    refused(tmp_path, "SegmentationClass", "found JPEGImages/, readme.txt")


def test_no_pair(tmp_path):
    write_png(tmp_path / "a.png", IMAGE)
    refused(tmp_path, "holds no pair", "1 photo and 0 masks")
    write_labels(tmp_path / "b_mask.png", LABELS)
    refused(tmp_path, "1 photo and 1 mask")
