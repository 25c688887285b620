from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_ad.ranking.contact_sheet import CONTOURS, Tile, _draw, _region_of_interest, draw_contact_sheet


def tile(foreground: bool = True) -> Tile:
    rng = np.random.default_rng(0)
    maps = np.zeros((3, 40, 50), dtype=np.uint8)
    if foreground:
        for index in range(3):
            maps[index, 10 + index : 20, 5:25] = 1
    return Tile("case", rng.normal(size=(40, 50)), maps, 1.5)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_tile_is_drawn(number, tmp_path):
    draw_contact_sheet([tile()] * number, "caption", tmp_path / "sheet.tmp")
    picture = imread(tmp_path / "sheet.tmp", format="png")
    assert picture.shape[0] > 200 * -(-number // 2)
    for _, colour, _ in CONTOURS:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        assert (np.abs(picture[..., :3] - (red, green, blue)).max(-1) < 0.02).sum() > 20 * number


def test_names_with_dollar_signs_are_no_formulas(tmp_path):
    odd = replace(tile(), title="organ_$left 0.50, organ_$right 0.40")
    draw_contact_sheet([odd], "caption", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()


def test_a_case_without_foreground_is_drawn_whole(tmp_path):
    draw_contact_sheet([tile(foreground=False)], "caption", tmp_path / "sheet.png")
    assert _region_of_interest(tile(foreground=False).label_maps) == (range(40), range(50))


def test_the_frame_holds_all_that_some_decoder_predicts():
    rows, columns = _region_of_interest(tile().label_maps)
    assert rows.start <= 10
    assert rows.stop >= 20
    assert columns.start <= 5
    assert columns.stop >= 25
    assert len(rows) < 40


@pytest.mark.parametrize("decoder", [0, 1, 2])
def test_what_one_decoder_alone_predicts_is_framed_marked_and_upright(decoder):
    maps = np.zeros((3, 40, 50), dtype=np.uint8)
    maps[decoder, 20:22, 30] = 1
    rows, columns = _region_of_interest(maps)
    assert 24 <= len(rows) <= 25 and 24 <= len(columns) <= 25  # not two pixels alone
    image = np.arange(2000.0).reshape(40, 50)
    image[0, 0] = 1e6
    figure = _draw([Tile("first", image, maps, 1.5), Tile("second", image, maps, 1.5)], "caption")
    overview, closeup, other, _ = figure.axes
    assert [panel.get_title(loc="left") for panel in (overview, other)] == ["1. first", "2. second"]
    (shown,), (below, contested) = overview.images, closeup.images
    for picture in (shown, below):
        low, high = picture.get_clim()
        assert 0 <= low < 20 and 1980 < high < 2000
    assert np.array_equal(contested.get_array()[..., 3] > 0, maps[decoder] > 0)
    (frame,) = overview.patches
    assert frame.get_xy() == (columns.start - 0.5, rows.start - 0.5)
    assert (frame.get_width(), frame.get_height()) == (len(columns), len(rows))
    assert closeup.get_ylim() == (rows.stop - 0.5, rows.start - 0.5)  # first row on top, as in the overview
    assert closeup.get_xlim() == (columns.start - 0.5, columns.stop - 0.5)
    assert overview.get_aspect() == closeup.get_aspect() == 1.5


def test_the_decoders_are_told_apart_without_colour():
    assert len({style for _, _, style in CONTOURS}) == len(CONTOURS)
