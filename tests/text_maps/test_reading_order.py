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
