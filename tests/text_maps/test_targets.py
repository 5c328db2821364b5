import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_grpo.text_maps.targets import (
    batch_targets,
    edit_distance,
    edit_operations,
    normalise,
    prompt_targets,
    similarity,
)

WORDS = st.text(alphabet="abcXY 12", max_size=12)


@pytest.mark.parametrize("prompt", ["a red circle", 'a sign that says ""', 'a sign that says "  "'])
def test_prompt_without_target_is_refused_with_the_prompt_and_a_remedy(prompt):
    with pytest.raises(ValueError, match="no quoted text") as error:
        prompt_targets(prompt)
    assert repr(prompt) in str(error.value) and "double quotes" in str(error.value)


def test_metadata_targets_come_before_the_prompt():
    assert prompt_targets('says "HUT"', {"targets": ["HAT", "CAP"]}) == ["HAT", "CAP"]
    assert prompt_targets('says "HUT"', {"seed": 3}) == ["HUT"]
    assert prompt_targets('says "HUT"', {}) == ["HUT"]


@pytest.mark.parametrize("targets", ["HUT", [], [" "], [3], None, 3, iter(["HUT"])])
def test_wrong_metadata_targets_are_refused(targets):
    with pytest.raises(ValueError, match="targets"):
        prompt_targets('says "HUT"', {"targets": targets})


def test_target_that_normalisation_leaves_empty_is_refused():
    with pytest.raises(ValueError, match=r"'\\u200b' of the prompt .* is empty once normalised \('unicode'\)"):
        prompt_targets('says "\u200b" and "HUT"', normalisation="unicode")
    with pytest.raises(ValueError, match="empty once normalised"):
        prompt_targets("says HUT", {"targets": ["\u200b"]}, "unicode")


def test_batch_takes_metadata_per_prompt():
    prompts = ['says "A"', 'says "B"']
    assert batch_targets(prompts, None) == [["A"], ["B"]]
    assert batch_targets(prompts, [{}, {"targets": ["C"]}]) == [["A"], ["C"]]


def test_normalised_text_is_lower_case_without_spaces():
    assert normalise(" Spring Collection 2024") == "springcollection2024"


@given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Cf"]), max_size=20))
def test_default_normalisation_is_flow_grpos(text):
    assert normalise(text) == text.replace(" ", "").replace("\N{NO-BREAK SPACE}", "").lower()


NORMALISATIONS = ["flow_grpo", "unicode"]
UNSEEN = "\t\n\u0085\u00a0\u2003\u2028\u3000\u200b\u200d\u2060\ufeff\u00ad\u034f\u2800\u3164\ufe0f"


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@given(text=st.text(max_size=20), unseen=st.sampled_from(UNSEEN), place=st.integers(0, 20))
def test_what_takes_no_ink_is_not_compared(normalisation, text, unseen, place):
    shown = unicodedata.normalize("NFC", text)
    assert normalise(shown[:place] + unseen + shown[place:], normalisation) == normalise(shown, normalisation)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@given(text=st.text(max_size=20))
def test_accents_in_one_code_point_or_two_are_alike(normalisation, text):
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert normalise(composed, normalisation) == normalise(apart, normalisation)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@given(text=st.text(max_size=20))
def test_normalising_twice_changes_nothing(normalisation, text):
    once = normalise(text, normalisation)
    assert normalise(once, normalisation) == once


def test_prompt_and_targets_too_long_are_refused_by_their_length():
    with pytest.raises(ValueError, match=r"a prompt of 60000 characters is too long .*give at most 20000"):
        prompt_targets(" 'a" * 20_000)
    with pytest.raises(ValueError, match=r"asks for 2000 characters of text; ask for at most 1000"):
        prompt_targets("a page", {"targets": ["ab " * 500, "cd " * 500]})
    assert prompt_targets("a page", {"targets": ["a" * 1000]}) == ["a" * 1000]


@pytest.mark.parametrize(
    "prompt",
    [
        '"New York skyline with "Hello World" written in fireworks"',
        'a poster "ONE" and ""TWO""',
        'a sign "HELLO" beside "WORLD',
        'a sign HELLO" and "WORLD"',
        "signs “ONE” and “TWO",
        "a poster 'ONE' and 'TWO",
        "'Tis the season banner that reads 'JOY'",
        "a poster that says 'the dogs' bowl'",
    ],
)
def test_quotes_that_cannot_be_paired_are_refused_with_the_place_and_a_remedy(prompt):
    with pytest.raises(ValueError, match="cannot be paired: the quote in .*; put each text") as error:
        prompt_targets(prompt)
    assert repr(prompt) in str(error.value)
    assert prompt_targets(prompt, {"targets": ["JOY"]}) == ["JOY"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t  STOP\n", "don'tstop"),
        ("“Quoted” – «so»", '"quoted"-"so"'),
        ("ＦＵＬＬ　ｗｉｄｔｈ ①", "fullwidth1"),
        ("ﬁne Straße", "finestrasse"),
        ("e\u0301te\u0301", "été"),
        ("a\u200bb\ufeffc\u200f", "abc"),
        ("5″ and 6′", "5\"and6'"),
    ],
)
def test_unicode_normalisation_makes_alike_what_looks_alike(text, expected):
    assert normalise(text, "unicode") == expected


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match='unknown normalisation \'upper\'; choose "flow_grpo" or "unicode"'):
        normalise("HUT", "upper")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("hut", "hut", 1), ("hut", "hat", 2 / 3), ("hut", "", 0), ("", "", 1), ("abc", "xyz", 0), ("ab", "abcd", 0.5)],
)
def test_similarity_by_hand(a, b, expected):
    assert similarity(a, b) == pytest.approx(expected)


def test_similarity_is_not_the_indel_ratio():
    assert edit_distance("hut", "hat") == 1  # a substitution costs 1; Levenshtein.ratio would count 2


@given(WORDS, WORDS)
def test_similarity_is_symmetric_bounded_and_one_only_for_equal_texts(a, b):
    assert 0 <= similarity(a, b) <= 1
    assert similarity(a, b) == similarity(b, a)
    assert (similarity(a, b) == 1) == (a == b)


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric(a, b, c):
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert edit_distance(a, b) == len(edit_operations(a, b))


def test_edit_operations_say_where():
    assert edit_operations("hat", "hut") == [("replace", 1, 1)]
    assert edit_operations("hxut", "hut") == [("delete", 1, 1)]
    assert edit_operations("ht", "hut") == [("insert", 1, 1)]
    assert edit_operations("hu", "hut") == [("insert", 2, 2)]
