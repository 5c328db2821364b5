import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.text_maps.rendering import TargetLines, _agreements, reward_of
from flow_grpo.text_maps.targets import edit_distance

WORDS = st.text("hutax-", min_size=1, max_size=9)


def codes(text):
    return np.array([ord(char) for char in text])


@given(WORDS, WORDS, st.integers(1, 9))
@settings(deadline=None)
def test_agreements_are_those_of_the_edit_distances(text, target, width):
    width = min(width, len(target))
    for shown, agreements in zip((text, text[:-1]), _agreements(codes(text), codes(target), width)):
        for end in range(len(target) + 1):
            for length in range(1, width + 1):
                span = target[end - length : end] if length <= end else None
                expected = 0 if span is None else max(len(shown), length) - edit_distance(shown, span)
                assert agreements[end, length - 1] == expected


def rendering_of(target, *texts):
    lines = TargetLines(target, texts, [1.0] * len(texts), [[] for _ in texts], "flow_grpo")
    return lines.best_rendering(range(len(texts)))


def test_worked_example():
    rendering = rendering_of("BIG SALE", "big", "sal")
    assert [(part.span, part.agreement, part.size) for part in rendering] == [("big", 3, 3), ("sale", 3, 4)]
    assert reward_of(rendering) == pytest.approx(6 / 7)


@pytest.mark.parametrize("shown", [0, 1, 5, 11])
def test_a_lone_word_of_a_long_target_lacks_all_the_rest(shown):
    """Longer than the spans that are compared one by one: what is left out still counts."""
    words = [f"{letter * 5}" for letter in "abcdefghijkl"]
    assert reward_of(rendering_of(" ".join(words), words[shown])) == pytest.approx(1 / 12)


def test_words_left_out_belong_to_the_line_before_them():
    words = [f"{letter * 5}" for letter in "abcdefghijkl"]
    rendering = rendering_of(" ".join(words), words[2], words[7])
    assert [(part.start, part.end) for part in rendering] == [(0, 35), (35, 60)]
    assert reward_of(rendering) == pytest.approx(2 / 12)


def test_a_word_longer_than_any_may_break_anywhere():
    text = "".join(map(chr, range(0x0E01, 0x0E01 + 45)))  # Thai has no spaces
    assert reward_of(rendering_of(text, text[:20], text[20:])) == 1
