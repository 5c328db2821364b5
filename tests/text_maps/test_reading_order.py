import random as randomness

import numpy as np
import pytest

from flow_grpo.text_maps.engine import TextLine
from flow_grpo.text_maps.reading_order import reading_order, steps_within_words


def line(text, x=0, y=0, width=None, height=10):
    right, bottom = x + (width or 6 * len(text)), y + height
    return TextLine([[x, y], [right, y], [right, bottom], [x, bottom]], text, 1.0)


def rotated(quad, degrees):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (np.asarray(quad) @ turn.T + 200).astype(np.float32)


def steps(lines):
    return [[step.line for step in steps] for steps in steps_within_words(lines)]


@pytest.mark.parametrize("degrees", [-30, -12, -3, 0, 3, 12, 30])
def test_reading_order_is_by_rows_however_tilted(degrees):
    upright = [line("a"), line("b", x=90, y=2), line("c", x=200, y=-2), line("d", y=16), line("e", x=90, y=15)]
    lines = [TextLine(rotated(line.quad, degrees), line.text, 1.0) for line in upright]
    randomness.Random(degrees).shuffle(lines)
    assert "".join(lines[i].text for i in reading_order(lines)) == "abcde"


def test_lines_that_run_every_which_way_are_read_upright():
    lines = [line("a"), line("b", y=40), line("c", y=80)]
    lines[1] = TextLine(lines[1].quad[[2, 3, 0, 1]], "b", 1.0)  # upside down
    lines[2] = TextLine(rotated(lines[2].quad, 90), "c", 1.0)
    assert [lines[i].text for i in reading_order(lines)] == ["a", "b", "c"]


@pytest.mark.parametrize("degrees", [0, 8, -25])
def test_stacked_letters_go_on_each_from_the_one_above(degrees):
    lines = [TextLine(rotated(line(letter, y=14 * i).quad, degrees), letter, 1.0) for i, letter in enumerate("HOTEL")]
    assert steps(lines) == [[], [0], [1], [2], [3]]


def test_a_word_goes_on_neither_far_away_nor_in_another_size():
    assert steps([line("OPEN"), line("ING", y=20)]) == [[], [0]]
    assert steps([line("OPEN"), line("ING", y=60)]) == [[], []]
    assert steps([line("OPEN"), line("ING", y=20, height=30)]) == [[], []]


def test_narrow_letter_whose_box_is_turned_has_its_height():
    # the engines turn the box of an upright I by a quarter, so that its edge across the line is 3 pixels long
    turned = TextLine(np.roll(line("I", x=20, width=3).quad, -1, axis=0), "I", 1.0)
    assert steps([line("H"), turned, line("T", x=40)]) == [[], [0], [1]]


def test_no_line_has_no_order():
    assert reading_order([]) == [] and steps_within_words([]) == []


def test_steps_of_many_lines_are_those_of_each_pair_by_itself():
    """Against the plain definition, on more lines than are compared at once; all upright, so no line needs turning."""
    rng = np.random.default_rng(0)
    heights, corners = rng.choice([8.0, 10, 12, 30], 150), rng.uniform(0, 300, (150, 2))
    lines = [line("word", *corner, height=height) for corner, height in zip(corners, heights)]
    low = np.array([line.quad[0] for line in lines], float)
    high = np.array([line.quad[2] for line in lines], float)
    heights, centres = (high - low)[:, 1], (low + high) / 2

    def gap(i, j):
        return np.hypot(*np.maximum(np.maximum(low[i] - high[j], low[j] - high[i]), 0)) / min(heights[i], heights[j])

    def is_near(i, j):
        return gap(i, j) <= 2.5 and max(heights[i], heights[j]) / min(heights[i], heights[j]) <= 2

    def stands_between(k, i, j):
        way, to_k = centres[i] - centres[j], centres[k] - centres[j]
        aside = abs(to_k[0] * way[1] - to_k[1] * way[0]) / np.hypot(*way)
        return 0.1 < to_k @ way / (way @ way) < 0.9 and aside < heights[k] / 2

    found = steps_within_words(lines)
    for i in range(150):
        others = [k for k in range(150) if k != i and is_near(i, k)]
        expected = [j for j in others if j < i and not any(stands_between(k, i, j) for k in others)]
        assert [step.line for step in found[i]] == expected
        assert [step.gap for step in found[i]] == pytest.approx([gap(i, j) for j in expected])
    assert 200 < sum(map(len, found)) < 5000


def test_a_line_among_boxes_on_top_of_one_another_continues_some_of_them():
    """A thousand such boxes had half a million steps, and matching them took twenty seconds."""
    assert max(map(len, steps([line("a") for _ in range(200)]))) == 64
