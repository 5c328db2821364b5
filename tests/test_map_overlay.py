"""Pictures of maps: the colours' three anchors by hand, and tiles at their places on a sheet."""

import numpy as np
import pytest

from flow_grpo.map_overlay import color_map, overlay, sheet

BLUE, WHITE, RED = (40, 80, 200), (255, 255, 255), (200, 40, 40)


def solid(color, size=8):
    return np.full((size, size, 3), color, dtype=np.uint8)


def test_bad_is_blue_neutral_white_and_good_red():
    colors = color_map(np.array([[0.0, 0.5, 1.0]]))
    assert colors.dtype == np.uint8 and colors.shape == (1, 3, 3)
    assert [tuple(color) for color in colors[0].tolist()] == [BLUE, WHITE, RED]


def test_halfway_colours_are_halfway():
    low, high = color_map(np.array([[0.25, 0.75]]))[0].astype(float)
    # half a level of rounding
    np.testing.assert_allclose(low, (np.array(BLUE) + WHITE) / 2, atol=0.5)
    np.testing.assert_allclose(high, (np.array(RED) + WHITE) / 2, atol=0.5)


def test_values_outside_the_range_take_the_nearest_colour():
    assert [tuple(c) for c in color_map(np.array([[-1.0, 2.0]]))[0].tolist()] == [BLUE, RED]


def test_overlay_mixes_the_colours_with_the_greyed_image_by_opacity():
    image = solid((30, 60, 90))  # grey 60
    assert tuple(overlay(image, np.ones((8, 8)), opacity=0.0)[0, 0].tolist()) == (60, 60, 60)
    assert tuple(overlay(image, np.ones((8, 8)), opacity=1.0)[0, 0].tolist()) == RED
    assert tuple(overlay(image, np.ones((8, 8)), opacity=0.5)[0, 0].tolist()) == (130, 50, 50)


def test_overlay_shows_the_map_where_it_is():
    reward_map = np.full((8, 8), 0.5)
    reward_map[0, 7] = 1.0
    shown = overlay(solid((100, 100, 100)), reward_map)
    different = (shown != shown[4, 4]).any(axis=2)
    assert different.nonzero()[0].tolist() == [0] and different.nonzero()[1].tolist() == [7]


def test_sheet_places_tiles_row_by_row():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    picture = np.asarray(sheet([solid(c) for c in colors], ["a", "b", "c"], columns=2, tile_size=16))
    assert picture.shape == (2 * (16 + 20), 2 * (16 + 4), 3)
    assert tuple(picture[10, 10]) == colors[0] and tuple(picture[10, 30]) == colors[1]
    assert tuple(picture[46, 10]) == colors[2] and tuple(picture[46, 30]) == (255, 255, 255)


def test_sheet_writes_each_label_below_its_tile():
    with_label = np.asarray(sheet([solid(255), solid(255)], ["", "0.73"], columns=2, tile_size=16))
    dark = (with_label < 128).any(axis=2).nonzero()
    assert dark[0].min() >= 18 and dark[1].min() >= 20


def test_sheet_keeps_a_wide_tiles_proportions():
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    assert sheet([wide], [""], columns=1, tile_size=16).size == (32 + 4, 16 + 20)


def test_sheet_wants_one_label_a_tile():
    with pytest.raises(ValueError):
        sheet([solid(0), solid(0)], ["one"], columns=2)
