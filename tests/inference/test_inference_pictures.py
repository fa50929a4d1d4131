"""Panels, sheets, scenes and files."""

import numpy as np
import pytest
from PIL import Image

from deeplabzoo.errors import DataError, ImageError, OutputError
from deeplabzoo.inference import (
    PALETTE,
    contact_sheet,
    draw_scene,
    find_pairs,
    panel,
    read_image,
    read_mask,
    write_labels,
    write_png,
)

CELL, GAP = 400, 12
IMAGE = draw_scene(60, 90, 0)
TRUTH = np.zeros((60, 90), np.uint8)
TRUTH[10:30, 20:60] = 15
TRUTH[10, 20:60] = 255


def tile(picture, number, top=GAP):
    """The pixels of one tile of a panel without title."""
    left = GAP + number * (CELL + GAP)
    return picture[top : top + 267, left : left + CELL]


def test_panel_has_a_tile_for_each():
    for predictions, tiles in ((0, 2), (1, 3), (2, 5), (4, 7)):
        drawn = panel(IMAGE, TRUTH, {f"backend {n}": TRUTH for n in range(predictions)})
        assert drawn.dtype == np.uint8
        assert drawn.ndim == 3
        assert drawn.shape[1] == tiles * (CELL + GAP) + GAP
    assert panel(IMAGE, None, {"torch": TRUTH}).shape[1] == 2 * (CELL + GAP) + GAP
    assert panel(IMAGE, None, {}).shape[1] == CELL + 2 * GAP


def test_panel_shows_the_photo_and_the_labels():
    drawn = panel(IMAGE, TRUTH, {"torch": TRUTH})
    enlarged = np.asarray(Image.fromarray(IMAGE).resize((400, 267), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(tile(drawn, 0), enlarged)
    np.testing.assert_array_equal(tile(drawn, 1), tile(drawn, 2))
    assert (tile(drawn, 0) != tile(drawn, 1)).any()


def test_a_prediction_that_differs_is_seen():
    other = TRUTH.copy()
    other[50, 70] = 3
    same = panel(IMAGE, TRUTH, {"torch": TRUTH, "paddle": TRUTH})
    differing = panel(IMAGE, TRUTH, {"torch": TRUTH, "paddle": other})
    assert tile(same, 4).max() == 0
    np.testing.assert_array_equal(tile(same, 2), tile(differing, 2))
    assert (tile(same, 3) != tile(differing, 3)).any()
    where = tile(differing, 4)
    white = np.argwhere((where == 255).all(axis=2))
    # pixel (50, 70) of 60 x 90, enlarged by 400 / 90
    np.testing.assert_allclose(white.mean(axis=0), np.array([50.5, 70.5]) * 400 / 90, atol=2)
    assert ((where == (255, 0, 0)).all(axis=2)).any()


@pytest.mark.parametrize("shape", [(1500, 1000), (400, 400), (401, 17), (1, 1)])
def test_a_lone_differing_pixel_survives_any_scale(shape):
    image = np.zeros((*shape, 3), np.uint8)
    labels = np.zeros(shape, np.uint8)
    other = labels.copy()
    other[-1, -1] = 1
    drawn = panel(image, None, {"a": labels, "b": other})
    last = drawn[:, GAP + 3 * (CELL + GAP) :]
    assert (last[: GAP + CELL] == (255, 0, 0)).all(axis=2).any() or shape == (1, 1)
    assert (panel(image, None, {"a": labels, "b": labels})[: GAP + CELL] != (255, 0, 0)).any(axis=2).all()


def test_legend_names_what_is_there():
    def colours(picture):
        """Colours of the legend's swatches, below the captions."""
        return {tuple(colour) for colour in picture[-45:, :].reshape(-1, 3).tolist()}

    shown = colours(panel(IMAGE, TRUTH, {"torch": TRUTH}))
    assert {tuple(PALETTE[label].tolist()) for label in (0, 15, 255)} <= shown
    assert tuple(PALETTE[17].tolist()) not in shown
    assert tuple(PALETTE[17].tolist()) in colours(panel(IMAGE, TRUTH, {"torch": np.where(TRUTH == 15, 17, TRUTH)}))


def test_legend_takes_as_many_lines_as_it_needs():
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.zeros((16, 16, 3), np.uint8)
    assert panel(image, labels, {}).shape[0] > panel(image, labels * 0, {}).shape[0] + 300
    assert panel(image, labels, {}, class_names=["x" * 500]).shape[1] == 2 * (CELL + GAP) + GAP


def test_title_and_captions_are_drawn():
    bare = panel(IMAGE, TRUTH, {"torch": TRUTH})
    titled = panel(IMAGE, TRUTH, {"torch": TRUTH}, title="A scene")
    added = titled.shape[0] - bare.shape[0]
    assert added > 20
    np.testing.assert_array_equal(titled[added + GAP :], bare[GAP:])
    assert titled[:added].min() < 60
    renamed = panel(IMAGE, TRUTH, {"paddle": TRUTH})
    assert renamed.shape == bare.shape
    assert (renamed != bare).any()
    np.testing.assert_array_equal(tile(renamed, 2), tile(bare, 2))


def test_long_names_stay_in_their_cell():
    drawn = panel(IMAGE, None, {"a name of many words " * 20: TRUTH, "two\nlines": TRUTH})
    gaps = [drawn[:-50, number * (CELL + GAP) : number * (CELL + GAP) + GAP] for number in range(5)]
    assert all((gap == 255).all() for gap in gaps)


def test_panel_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="one size"):
        panel(IMAGE, TRUTH, {"torch": TRUTH.T})
    with pytest.raises(DataError, match="one size"):
        panel(IMAGE, TRUTH[1:], {})
    with pytest.raises(DataError, match="whole numbers"):
        panel(IMAGE, None, {"torch": TRUTH.astype(float)})
    with pytest.raises(ImageError):
        panel(IMAGE[:, :, 0], None, {})


def test_panels_of_real_photos(photos):
    pair = find_pairs(photos)[0]
    image, truth = read_image(pair.image_path), read_mask(pair.mask_path)
    sheet = contact_sheet([panel(image, truth, {"torch": truth, "paddle": truth}, title=pair.name)] * 2, width=900)
    assert sheet.shape[1] == 900
    assert 400 < sheet.shape[0] < 900


def test_contact_sheet():
    red, wide = np.full((20, 30, 3), (255, 0, 0), np.uint8), np.zeros((100, 2000, 3), np.uint8)
    sheet = contact_sheet([red, red, wide], columns=2, width=12 + 2 * 112)
    assert sheet.shape == (12 + 20 + 12 + 5 + 12, 236, 3)
    assert (sheet[12:32, 12:42] == (255, 0, 0)).all()  # never enlarged
    assert (sheet[12:32, 124:154] == (255, 0, 0)).all()
    assert (sheet[44:49, 12:112] == 0).all()
    assert (sheet[44:49, 124:] == 255).all()
    for panels, options in (([], {}), ([red], {"columns": 0}), ([red], {"columns": 3, "width": 60})):
        with pytest.raises(DataError):
            contact_sheet(panels, **options)


def test_scenes():
    scene = draw_scene(120, 180, 1)
    assert scene.shape == (120, 180, 3)
    assert scene.dtype == np.uint8
    np.testing.assert_array_equal(scene, draw_scene(120, 180, 1))
    assert (scene != draw_scene(120, 180, 2)).any()
    assert scene.std() > 30
    for size in ((1, 1), (1, 40), (40, 1), (7, 3)):
        assert draw_scene(*size, 0).shape == (*size, 3)
    for wrong in ((0, 5, 0), (5, 0, 0), (5, 5, -1)):
        with pytest.raises(DataError, match="scene"):
            draw_scene(*wrong)


def test_png_both_ways(tmp_path):
    write_png(tmp_path / "a.png", IMAGE)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), IMAGE)
    write_png(tmp_path / "grey.png", TRUTH)
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), TRUTH)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_both_ways(tmp_path, dtype):
    labels = np.arange(256, dtype=dtype).reshape(16, 16)
    write_labels(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PALETTE[labels])


def test_writing_replaces_only_when_told(tmp_path):
    write_png(tmp_path / "a.png", IMAGE)
    with pytest.raises(OutputError, match="exists"):
        write_labels(tmp_path / "a.png", TRUTH)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), IMAGE)
    write_labels(tmp_path / "a.png", TRUTH, force=True)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), TRUTH)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_writing_refuses_what_is_no_picture(tmp_path):
    with pytest.raises(OutputError, match=r"ends in \.png"):
        write_png(tmp_path / "a.jpg", IMAGE)
    with pytest.raises(DataError, match="uint8"):
        write_png(tmp_path / "a.png", IMAGE.astype(float))
    with pytest.raises(DataError, match="256"):
        write_labels(tmp_path / "a.png", np.array([[256]]))
    with pytest.raises(OutputError, match="no folder"):
        write_png(tmp_path / "nowhere" / "a.png", IMAGE)
    assert list(tmp_path.iterdir()) == []
