import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_grpo.text_maps.targets import (
    batch_targets,
    edit_distance,
    edit_operations,
    normalise,
    prompt_targets,
    quoted_targets,
    similarity,
)

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
        ("ein Schild „Guten Tag“ und „Hallo”", ["Guten Tag", "Hallo"]),
        ("un panneau « Bonjour »", ["Bonjour"]),
        ("招牌「你好」和『世界』", ["你好", "世界"]),
        ("a note 「the『inner』one」", ["the『inner』one"]),
        (r'a sign that says "say \"hi\" now"', ['say "hi" now']),
        (r"a sign that says \"HUT\", escaped as a whole", ["HUT"]),
        (r"\"ONE\" and \"TWO\"", ["ONE", "TWO"]),
        ('a path "C:\\" on a screen', ["C:\\"]),
        ("„dogs' bowl“ and 'no target'", ["dogs' bowl"]),
        ('"OPEN 😀" on a door', ["OPEN 😀"]),
        ('"שלום עולם" on a wall', ["שלום עולם"]),
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
        "„ never closed",
        "« neither",
    ],
)
def test_apostrophes_and_lone_quotes_are_not_targets(prompt):
    assert quoted_targets(prompt) == []


QUOTES = ['""', "“”", "„“", "„”", "«»", "「」", "『』"]
QUOTED_TEXT = st.text(st.characters(exclude_characters='"\\“”„«»「」『』', exclude_categories=["Cs"]), max_size=30)


@given(QUOTED_TEXT, st.sampled_from(QUOTES))
def test_what_stands_between_double_quotes_comes_back(text, quotes):
    opening, closing = quotes
    prompt = f"A storefront at dusk, its sign displaying {opening}{text}{closing} in the owner's bold letters"
    assert quoted_targets(prompt) == ([text.strip()] if text.strip() else [])


@given(st.lists(st.tuples(QUOTED_TEXT.filter(str.strip), st.sampled_from(QUOTES)), min_size=1, max_size=20))
def test_every_target_comes_back_in_its_place(quoted):
    prompt = "a wall with " + ", ".join(f"{opening}{text}{closing}" for text, (opening, closing) in quoted)
    assert quoted_targets(prompt) == [text.strip() for text, _ in quoted]


@given(st.text(st.characters(exclude_characters="\\“”„«»「」『』", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_escaped_quotes_inside_a_target_come_back_as_quotes(text):
    escaped = text.replace('"', '\\"')
    assert quoted_targets(f'a sign that says "{escaped}" on a hill') == ([text.strip()] if text.strip() else [])


def test_many_quotes_that_match_nothing_take_no_time():
    # one pass over each: backtracking without bound would not end here
    assert quoted_targets("„" * 20_000) == quoted_targets("\\" * 20_000 + '"') == []
    assert len(quoted_targets('"a" ' * 20_000)) == 20_000


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


@given(st.text(max_size=20))
def test_default_normalisation_is_flow_grpos(text):
    assert normalise(text) == text.replace(" ", "").lower()


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
