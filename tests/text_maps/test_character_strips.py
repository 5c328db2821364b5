import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.text_maps.character_strips import character_strips
from flow_grpo.text_maps.engine import Character
from flow_grpo.text_maps.targets import normalise, similarity


def evenly(text, confidence=1.0):
    """The characters of a line, each as wide as the others, none with a gap."""
    borders = np.linspace(0, 1, len(text) + 1).tolist()
    return [Character(char, confidence, start, end) for char, start, end in zip(text, borders, borders[1:])]


def mean(strips):
    return float(np.diff(strips.ends, prepend=0.0) @ np.array(strips.rewards))


def test_right_characters_are_worth_their_confidence():
    characters = [Character("H", 0.9, 0.1, 0.3), Character("U", 0.4, 0.4, 0.6), Character("T", 0.8, 0.6, 1.0)]
    strips = character_strips(characters, "hut", box_reward=0.7)
    # borders in the middle of a gap; the ends of the line belong to the outer ones
    assert strips.ends == pytest.approx((0.35, 0.6, 1.0))
    total = 0.35 * 0.9 + 0.25 * 0.4 + 0.4 * 0.8
    assert strips.rewards == pytest.approx([reward * 0.7 / total for reward in (0.9, 0.4, 0.8)])


def test_wrong_character_is_blamed_at_its_place():
    strips = character_strips(evenly("HAT"), "hut", box_reward=2 / 3)
    assert strips.ends == pytest.approx((1 / 3, 2 / 3, 1)) and strips.rewards == pytest.approx((1, 0, 1))


def test_character_too_many_is_blamed_at_its_place():
    strips = character_strips(evenly("HXUT"), "hut", box_reward=3 / 4)
    assert strips.rewards == pytest.approx((1, 0, 1, 1))


def test_missing_character_is_blamed_between_its_neighbours():
    strips = character_strips(evenly("SRING"), "spring", box_reward=5 / 6)
    # a sixth of the line wide about the border at 1/5, but no more than a third of each neighbour
    width = min(1 / 6 / 2, 1 / 5 / 3)
    assert strips.ends == pytest.approx((1 / 5 - width, 1 / 5 + width, 2 / 5, 3 / 5, 4 / 5, 1))
    assert strips.rewards[1] == 0 and min(strips.rewards[0], *strips.rewards[2:]) > 0.9


@pytest.mark.parametrize(("text", "place"), [("PRING", 0), ("SPRIN", -1)])
def test_missing_character_at_an_end_is_blamed_there(text, place):
    strips = character_strips(evenly(text), "spring", box_reward=5 / 6)
    assert strips.rewards[place] == 0 and len(strips.rewards) == 6
    assert np.diff(strips.ends, prepend=0.0)[place] == pytest.approx(1 / 5 / 3)


def test_worked_example():
    strips = character_strips(evenly("HT"), "hut", box_reward=2 / 3)
    assert strips.ends == pytest.approx((1 / 3, 2 / 3, 1)) and strips.rewards == pytest.approx((1, 0, 1))


def test_lone_letter_gains_nothing_by_being_right():
    strips = character_strips(evenly("S"), "spring", box_reward=1 / 6)
    assert mean(strips) == pytest.approx(1 / 6) and max(strips.rewards) == pytest.approx(1 / 4)


def test_spaces_have_no_strip():
    strips = character_strips(evenly("A BC"), "abc", box_reward=1.0)
    assert strips.ends == pytest.approx((3 / 8, 3 / 4, 1)) and strips.rewards == pytest.approx((1, 1, 1))
    assert character_strips(evenly(" "), "abc", box_reward=0.0).rewards == (0.0,)


def test_character_that_becomes_several_shares_its_place():
    strips = character_strips(evenly("ﬁT"), "fot", box_reward=2 / 3, normalisation="unicode")
    assert strips.ends == pytest.approx((1 / 4, 1 / 2, 1)) and strips.rewards[1] == 0


@given(st.text("HUTA x", max_size=8), st.text("hutax", min_size=1, max_size=8), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_strips_cover_the_line_and_are_worth_no_more_than_the_box(text, span, confidence):
    box_reward = confidence * similarity(normalise(text), span)
    strips = character_strips(evenly(text, confidence), span, box_reward)
    assert strips.ends[-1] == 1 and (np.diff(strips.ends, prepend=0.0) > 0).all()
    assert len(strips.ends) == len(strips.rewards) and 0 <= min(strips.rewards) <= max(strips.rewards) <= 1
    # ends are rounded in fp64
    assert mean(strips) <= box_reward + 1e-9


@given(st.text("hut", min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_with_characters_only_replaced_the_mean_is_that_of_the_box(span, data):
    wrong = data.draw(st.sets(st.integers(0, len(span) - 1)))
    text = "".join("X" if i in wrong else char for i, char in enumerate(span))
    box_reward = 0.8 * (1 - len(wrong) / len(span))
    strips = character_strips(evenly(text, 0.8), span, box_reward)
    assert mean(strips) == pytest.approx(box_reward)
    assert strips.rewards == pytest.approx([0 if i in wrong else 0.8 for i in range(len(span))])
