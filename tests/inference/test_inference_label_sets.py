"""Names and colours of data sets, and which a model is drawn in."""

import numpy as np
import pytest

from deeplabzoo.errors import DataError
from deeplabzoo.inference import (
    ADE20K_CLASSES,
    CITYSCAPES_CLASSES,
    LABEL_SETS,
    PALETTE,
    PALETTES,
    PASCAL_CONTEXT_CLASSES,
    VOC_CLASSES,
    colourise,
    known_label_set,
    label_set,
    legend,
    overlay,
    panel,
    read_mask,
    write_labels,
)
from deeplabzoo.inference.label_sets import ADE20K, ADE20K_TF, CITYSCAPES, PASCAL_CONTEXT, PASCAL_CONTEXT_60, VOC


def test_sizes_and_names():
    assert [len(one.classes) for one in LABEL_SETS] == [21, 19, 150, 151, 59, 60]
    for one in LABEL_SETS:
        assert len(set(one.classes)) == len(one.classes)
        assert all(name == name.strip().lower() for name in one.classes)
        assert (one.palette.shape, one.palette.dtype, one.palette.flags.writeable) == ((256, 3), np.uint8, False)
    assert PALETTES == ("voc", "cityscapes", "ade20k", "pascal_context")


@pytest.mark.parametrize(
    ("known", "label", "name", "colour"),
    [
        (CITYSCAPES, 0, "road", (128, 64, 128)),
        (CITYSCAPES, 13, "car", (0, 0, 142)),
        (CITYSCAPES, 18, "bicycle", (119, 11, 32)),
        (CITYSCAPES, 255, None, (0, 0, 0)),
        (ADE20K, 0, "wall", (120, 120, 120)),
        (ADE20K, 12, "person", (150, 5, 61)),
        (ADE20K, 149, "flag", (92, 0, 255)),
        (ADE20K_TF, 0, "background", (0, 0, 0)),
        (ADE20K_TF, 150, "flag", (92, 0, 255)),
        (PASCAL_CONTEXT, 0, "aeroplane", (180, 120, 120)),
        (PASCAL_CONTEXT, 58, "wood", (31, 0, 255)),
        (PASCAL_CONTEXT_60, 0, "background", (120, 120, 120)),
        (PASCAL_CONTEXT_60, 59, "wood", (31, 0, 255)),
        (VOC, 15, "person", (192, 128, 128)),
    ],
)
def test_published_names_and_colours(known, label, name, colour):
    assert name is None or known.classes[label] == name
    assert tuple(known.palette[label]) == colour


def test_colours_tell_classes_apart():
    for one in LABEL_SETS:
        colours = {tuple(colour) for colour in one.palette[: len(one.classes)].tolist()}
        # ADE20K's own list paints road and skyscraper alike, and Pascal-Context has its first colours.
        assert len(colours) == len(one.classes) - (one.name in ("ade20k", "pascal_context"))


def test_known_by_name():
    assert known_label_set(CITYSCAPES_CLASSES) is CITYSCAPES
    assert known_label_set([name.upper().replace(" ", "_") for name in ADE20K_CLASSES]) is ADE20K
    assert known_label_set(["background", *ADE20K_CLASSES]) is ADE20K_TF
    assert ADE20K_TF.void == 0
    assert known_label_set(["diningtable" if name == "dining table" else name for name in VOC_CLASSES]) is VOC
    assert known_label_set(VOC_CLASSES[:-1]) is None
    assert known_label_set(()) is None


def test_which_palette_a_model_gets():
    def get(name, classes, number):
        found = label_set(name, classes, number)
        return found.name, found.classes

    assert get(None, (), 19) == ("cityscapes", CITYSCAPES_CLASSES)
    assert get(None, (), 151) == ("ade20k", ADE20K_TF.classes)
    assert get(None, PASCAL_CONTEXT_CLASSES, 59) == ("pascal_context", PASCAL_CONTEXT_CLASSES)
    own = tuple(f"kind {n}" for n in range(19))
    assert get(None, own, 19) == ("cityscapes", own)  # its own names, whatever the colours
    assert get("voc", CITYSCAPES_CLASSES, 19) == ("voc", CITYSCAPES_CLASSES)
    assert get(None, (), 7) == ("voc", ())
    assert get("ade20k", (), 150) == ("ade20k", ADE20K_CLASSES)
    with pytest.raises(DataError, match=r"palette 'ade20k' for a model of 21 classes: expected 150 or 151"):
        label_set("ade20k", (), 21)
    with pytest.raises(DataError, match=r"palette 'ade': expected one of voc, cityscapes"):
        label_set("ade", (), 21)


def test_the_first_class_of_cityscapes_has_a_colour():
    image = np.full((1, 2, 3), 100, np.uint8)
    labels = np.array([[0, 0]])
    assert overlay(image, labels, 1, palette=CITYSCAPES.palette).tolist() == [[[128, 64, 128]] * 2]
    assert overlay(image, labels, 1).max() == 0


def test_the_same_labels_whatever_the_palette(tmp_path):
    labels = np.random.default_rng(0).integers(0, 150, (20, 30)).astype(np.uint8)
    for name, palette in (("ade", ADE20K.palette), ("voc", PALETTE)):
        write_labels(tmp_path / f"{name}.png", labels, palette=palette)
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), labels)
    assert (tmp_path / "ade.png").read_bytes() != (tmp_path / "voc.png").read_bytes()


def test_legend_shows_the_colours_of_the_labels_there_are():
    drawn = legend(np.array([[0, 13]]), CITYSCAPES_CLASSES, CITYSCAPES.palette)
    assert drawn.shape[1] == 800
    seen = {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}
    assert {(128, 64, 128), (0, 0, 142)} <= seen
    assert (119, 11, 32) not in seen
    longer = legend(np.arange(150)[None], ADE20K_CLASSES, ADE20K.palette)
    assert longer.shape[0] > 10 * drawn.shape[0]


def test_panel_takes_the_palette():
    labels = np.zeros((5, 5), np.uint8)
    image = np.zeros((5, 5, 3), np.uint8)
    plain, coloured = (
        panel(image, labels, {"x": labels}, palette=palette) for palette in (PALETTE, CITYSCAPES.palette)
    )
    assert (plain != coloured).any()


@pytest.mark.parametrize("palette", [np.zeros((21, 3), np.uint8), np.zeros((256, 3)), np.zeros(256, np.uint8)])
def test_what_is_no_palette_is_refused(palette, tmp_path):
    labels = np.zeros((2, 2), np.uint8)
    for call in (
        lambda: colourise(labels, palette),
        lambda: legend(labels, (), palette),
        lambda: write_labels(tmp_path / "x.png", labels, palette=palette),
    ):
        with pytest.raises(DataError, match=r"palette of dtype .* expected uint8 of shape \(256, 3\)"):
            call()


def test_a_legend_needs_room():
    with pytest.raises(DataError, match="width 20"):
        legend(np.zeros((1, 1), np.uint8), width=20)
