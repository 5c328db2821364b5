import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_grpo.text_match import batch_targets, edit_distance, normalise, prompt_targets, quoted_targets, similarity

WORDS = st.text(alphabet="abcXY 12", max_size=12)


@pytest.mark.parametrize(
    ("prompt", "targets"),
    [
        ('a sign that says "HUT"', ["HUT"]),
        ('displaying "Spring Collection 2024", in bold', ["Spring Collection 2024"]),
        ("a sign that says “HUT”", ["HUT"]),
        ('"OPEN" above “CLOSED” and "SOON"', ["OPEN", "CLOSED", "SOON"]),
        ('twice "HA" and "HA"', ["HA", "HA"]),
        ('a door with " HUT "', ["HUT"]),
        ('nothing in "" but "HUT"', ["HUT"]),
        ("a sign that says 'HUT'", ["HUT"]),
        ("a sign that says ‘HUT’.", ["HUT"]),
        ("Bob's sign says 'don't stop'", ["don't stop"]),
        ("'ONE' and 'TWO'", ["ONE", "TWO"]),
        ("Bob's 'old' sign says \"HUT\"", ["HUT"]),
        ("a sign that says \"DON'T 'PANIC'\"", ["DON'T 'PANIC'"]),
        ("a sign that says 'n 2'", ["n 2"]),
    ],
)
def test_quoted_spans_are_the_targets(prompt, targets):
    assert quoted_targets(prompt) == targets


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle",
        "the dogs' bowl and the cats' bed",
        "it's Bob's, isn't it",
        "rock 'n' roll",
        "the '90s kids' club",
        "a sign “",
        'an inch is 1"',
        "it’s the dogs’ bowl",
    ],
)
def test_apostrophes_and_lone_quotes_are_not_targets(prompt):
    assert quoted_targets(prompt) == []


@given(st.text(st.characters(exclude_characters='"“”', exclude_categories=["Cs"]), max_size=30))
def test_what_stands_between_double_quotes_comes_back(text):
    assert quoted_targets(f'a sign that says "{text}" on a hill') == ([text.strip()] if text.strip() else [])


@pytest.mark.parametrize("prompt", ["a red circle", 'a sign that says ""', 'a sign that says "  "'])
def test_prompt_without_target_is_refused_with_the_prompt_and_a_remedy(prompt):
    with pytest.raises(ValueError, match="no quoted text") as error:
        prompt_targets(prompt)
    assert repr(prompt) in str(error.value) and "double quotes" in str(error.value)


def test_metadata_targets_come_before_the_prompt():
    assert prompt_targets('says "HUT"', {"targets": ["HAT", "CAP"]}) == ["HAT", "CAP"]
    assert prompt_targets('says "HUT"', {"seed": 3}) == ["HUT"]
    assert prompt_targets('says "HUT"', {}) == ["HUT"]


@pytest.mark.parametrize("targets", ["HUT", [], [" "], [3], None])
def test_wrong_metadata_targets_are_refused(targets):
    with pytest.raises(ValueError, match="targets"):
        prompt_targets('says "HUT"', {"targets": targets})


def test_batch_takes_metadata_per_prompt():
    prompts = ['says "A"', 'says "B"']
    assert batch_targets(prompts, None) == [["A"], ["B"]]
    assert batch_targets(prompts, [{}, {"targets": ["C"]}]) == [["A"], ["C"]]


def test_normalised_text_is_lower_case_without_spaces():
    assert normalise(" Spring Collection 2024") == "springcollection2024"


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
