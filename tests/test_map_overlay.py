"""Pictures of maps: the colours' three anchors by hand, tiles at their places on a sheet, and figures with their legends."""

import numpy as np
import pytest
from PIL import ImageFont

from flow_grpo.map_overlay import COLORS, Panel, color_map, drawable, figure, overlay, sheet, wrapped

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


@pytest.mark.filterwarnings("error")
def test_a_pixel_that_holds_no_number_is_grey():
    """A map that is not valid may hold anything, and is still shown."""
    assert color_map(np.array([[np.nan, 0.5]])).tolist() == [[[128] * 3, [255] * 3]]


def test_importance_runs_from_dark_to_light_without_a_turn():
    colors = color_map(np.linspace(0, 1, 101)[None], "importance")[0].astype(float)
    assert [tuple(colors[i]) for i in (0, 50, 100)] == list(COLORS["importance"])
    luminance = colors @ (0.2126, 0.7152, 0.0722)  # Rec. 709
    assert (np.diff(luminance) > 0).all()


def test_neutral_differs_from_both_ends_and_the_ends_from_each_other():
    low, middle, high = (np.array(color) for color in COLORS["reward"])
    assert middle.tolist() == [255, 255, 255]
    assert min(np.abs(low - high).max(), np.abs(low - middle).max(), np.abs(high - middle).max()) > 100


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


def test_sheet_gives_a_row_the_lines_of_its_longest_label_and_cuts_what_is_too_wide():
    picture = np.asarray(sheet([solid(255)] * 3, ["", "1\n1\n1", "W" * 40], columns=2, tile_size=16))
    assert picture.shape[:2] == (16 + 5 + 3 * 15 + 16 + 20, 2 * 20)
    rows, columns = (picture < 128).all(axis=2).nonzero()
    assert columns[rows >= 66].max() < 20


def test_sheet_keeps_a_wide_tiles_proportions():
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    assert sheet([wide], [""], columns=1, tile_size=16).size == (32 + 4, 16 + 20)


def test_sheet_shows_a_tile_that_is_thinner_than_a_pixel():
    thin = np.zeros((2000, 4, 3), dtype=np.uint8)
    assert sheet([thin], [""], columns=1, tile_size=16).size == (1 + 4, 16 + 20)


def test_sheet_of_several_shapes_keeps_the_proportions_of_each():
    tall, wide = np.zeros((16, 8, 3), dtype=np.uint8), np.zeros((8, 16, 3), dtype=np.uint8)
    picture = np.asarray(sheet([tall, wide], ["", ""], columns=2, tile_size=16))
    assert picture.shape == (16 + 20, 2 * (32 + 4), 3)
    dark = (picture < 128).all(axis=2)
    assert dark[:, :36].sum() == 8 * 16 and dark[:, 36:].sum() == 32 * 16


def test_sheet_wants_one_label_a_tile():
    with pytest.raises(ValueError):
        sheet([solid(0), solid(0)], ["one"], columns=2)


# The figure


def panel(value, map_kind="reward", size=(8, 8), **fields):
    return Panel("clip_gradcam", 0.25, np.full(size, value), map_kind, **fields)


def test_figure_shows_the_image_and_then_each_map_in_its_kinds_colours():
    image = solid(128)
    picture = np.asarray(figure(image, "a sign", [panel(1.0), panel(1.0, "importance")], tile_size=300))
    middle = picture[picture.shape[0] // 2 - 20]
    expected = [image, overlay(image, np.ones((8, 8))), overlay(image, np.ones((8, 8)), map_kind="importance")]
    for index, tile in enumerate(expected):
        assert tuple(middle[16 + 312 * index + 150]) == tuple(tile[4, 4])  # a margin of 16, columns of 300 + 12


@pytest.mark.parametrize("map_kind", ["reward", "importance"])
def test_figure_ends_with_a_bar_of_the_kinds_colours(map_kind):
    picture = np.asarray(figure(solid(128), "a sign", [panel(0.5, map_kind)], tile_size=300))
    bar = color_map(np.linspace(0, 1, 300)[None], map_kind)[0]
    column = picture[:, 16 + 312 : 16 + 612]
    inside = slice(1, -1)  # its frame
    assert (column[:, inside] == bar[inside]).all(axis=(1, 2)).sum() == 8


def test_figure_keeps_proportions_and_grows_by_a_column_a_map():
    def drawn(height, width, num_panels):
        panels = [panel(0.5, size=(height, width))] * num_panels
        return figure(np.zeros((height, width, 3), np.uint8), "", panels, tile_size=300)

    widths, heights = zip(*(drawn(20, 40, num_panels).size for num_panels in (1, 2, 3)))
    assert len(set(heights)) == 1 and widths[1] - widths[0] == widths[2] - widths[1] == 312
    assert drawn(40, 20, 1).height - heights[0] == 150


def test_caption_says_the_score_and_whether_the_map_counts():
    assert panel(0.5).caption == "score 0.250"
    assert panel(0.5, valid=False).caption == "score 0.250, map not valid"
    assert panel(0.5, read="HAT / 2").caption == "score 0.250, read 'HAT / 2'"
    assert panel(0.5, read="").caption == "score 0.250, nothing read"


def test_long_prompts_break_between_words_and_a_longer_word_within_itself():
    font = ImageFont.load_default(size=17)
    text = f'a sign that says "{"W" * 60}" above a door'
    lines = wrapped(text, font, 200)
    assert max(font.getlength(line) for line in lines) <= 200
    assert lines[0] == "a sign that says" and "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped("", font, 200) == [""] and wrapped("one line", font, 200) == ["one line"]


def test_a_longer_prompt_makes_the_figure_taller_not_wider():
    short, long = (figure(solid(128), prompt, [panel(0.5)]) for prompt in ("a sign", "a sign " * 40))
    assert long.width == short.width and long.height > short.height


@pytest.mark.parametrize("text", ["SALE 50% OFF", "Café Zürich", "МОСКВА", "ΑΒΓ", "你好", "한글 ☂"])
def test_labels_have_no_box_in_the_place_of_a_letter(text):
    shown, font = drawable(text, size=12)
    boxes = [
        char for char in shown if not char.isspace() and bytes(font.getmask(char)) == bytes(font.getmask("\uffff"))
    ]
    assert not boxes and (shown == text or "U+" in shown)


def test_character_that_no_font_has_is_written_as_its_code_point():
    assert drawable("a 你好", size=12)[0] == "a U+4F60U+597D"
    assert drawable("SALE", size=12)[0] == "SALE"
