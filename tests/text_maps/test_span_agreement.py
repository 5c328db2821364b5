import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.text_maps.span_agreement import span_agreements
from flow_grpo.text_maps.targets import edit_distance

WORDS = st.text("hutax-", min_size=1, max_size=9)


@given(st.lists(st.text("hutax-", max_size=20), min_size=1, max_size=3), WORDS, st.integers(1, 9))
@settings(deadline=None)
def test_agreements_are_those_of_the_edit_distances(texts, target, width):
    check(texts, target, min(width, len(target)))


@pytest.mark.parametrize("length", [7, 8, 9, 16, 32, 33, 63, 64, 65, 130])
def test_a_text_of_any_length_fits_into_its_bits(length):
    text = ("hut axe hat" * 12)[:length]
    check([text, text[1:], "x"], ("hat axe hut" * 4)[:40], 40)


def check(texts, target, width):
    for text, agreements in zip(texts, span_agreements(texts, target, width), strict=True):
        for end in range(len(target) + 1):
            for length in range(1, width + 1):
                span = target[end - length : end] if length <= end else None
                expected = 0 if span is None else max(len(text), length) - edit_distance(text, span)
                assert agreements[end, length - 1] == expected
