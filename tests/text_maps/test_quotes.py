from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_grpo.text_maps.quotes import quoted_targets, read_quotes

DATASET = Path(__file__).parents[2] / "dataset"


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
        ("招牌＂你好＂和〝世界〞", ["你好", "世界"]),
        ("ein Schild »Guten Tag« und »Hallo«", ["Guten Tag", "Hallo"]),
        ("kyltar ”Hej” och »Route 66»", ["Hej", "Route 66"]),
        ("Schilder ‹Salut›, ›Hallo‹ und ‚Tag‘", ["Salut", "Hallo", "Tag"]),
        ("„Er sagt ‚Tag‘“", ["Er sagt ‚Tag‘"]),
        ('home › signs › "HUT"', ["HUT"]),
        ('red‚ blue and "HUT"', ["HUT"]),
        ("a 24” and a 27” screen with “HI”", ["HI"]),
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
        "home › signs › huts",
        "5” by 7”",
        "left ” and ” right",
        "left » and « right",
    ],
)
def test_apostrophes_and_lone_quotes_are_not_targets(prompt):
    assert quoted_targets(prompt) == []


QUOTES = ['""', "“”", "„“", "„”", "«»", "「」", "『』", "＂＂", "〝〞", "〝〟", "‹›"]
# these kinds stand right at their text, because the opening one closes another kind
CLOSE_QUOTES = ["””", "»«", "»»", "›‹", "‚‘", "‚’"]
QUOTED_TEXT = st.text(st.characters(exclude_characters="".join(QUOTES) + "\\", exclude_categories=["Cs"]), max_size=30)


@given(QUOTED_TEXT, st.sampled_from(QUOTES))
def test_what_stands_between_double_quotes_comes_back(text, quotes):
    opening, closing = quotes
    prompt = f"A storefront at dusk, its sign displaying {opening}{text}{closing} in the owner's bold letters"
    assert quoted_targets(prompt) == ([text.strip()] if text.strip() else [])


@given(
    QUOTED_TEXT.map(str.strip).filter(lambda text: text and not set("‘’") & set(text)), st.sampled_from(CLOSE_QUOTES)
)
def test_quotes_that_stand_right_at_their_text_come_back(text, quotes):
    opening, closing = quotes
    assert read_quotes(f"A sign displaying {opening}{text}{closing} in the owner's letters") == ([text], None)


@given(st.lists(st.tuples(QUOTED_TEXT.filter(str.strip), st.sampled_from(QUOTES)), min_size=1, max_size=20))
def test_every_target_comes_back_in_its_place(quoted):
    prompt = "a wall with " + ", ".join(f"{opening}{text}{closing}" for text, (opening, closing) in quoted)
    assert quoted_targets(prompt) == [text.strip() for text, _ in quoted]


@given(st.text(st.characters(exclude_characters="\\“”„«»「」『』", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_escaped_quotes_inside_a_target_come_back_as_quotes(text):
    escaped = text.replace('"', '\\"')
    assert quoted_targets(f'a sign that says "{escaped}" on a hill') == ([text.strip()] if text.strip() else [])


@pytest.mark.parametrize(
    ("prompt", "targets"),
    [
        ('a 24" monitor showing "HELLO"', ["HELLO"]),
        ('a 24", flat monitor showing "HELLO"', ["HELLO"]),
        ('a 5\'10" man holding a sign "HI"', ["HI"]),
        ('a 12" x 18" poster that says "SALE"', ["SALE"]),
        ('a 12"x18" poster that says "SALE 50"', ["SALE 50"]),
        ('the year "2024" on a 7" single', ["2024"]),
        ("a 24” screen with “HI”", ["HI"]),
        ("a 6' tall man and 'HI'", ["HI"]),
        ("a 24\" screen with 'HI'", ["HI"]),
        ("a poster saying 'Rock 'n' Roll'", ["Rock 'n' Roll"]),
    ],
)
def test_inch_marks_and_left_out_letters_open_and_close_nothing(prompt, targets):
    assert read_quotes(prompt) == (targets, None)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["ocr", "signs"])
def test_quotes_of_our_own_prompts_are_in_no_doubt(name, split):
    for prompt in (DATASET / name / f"{split}.txt").read_text().splitlines():
        targets, fault = read_quotes(prompt)
        assert fault is None and len(targets) == prompt.count('"') / 2


WORDS = st.sampled_from(["SALE", "Open 24", "don't stop", "7 PM", "HELLO, WORLD!", "(x)", "3.5", "the '90s", "你好"])
PLACES = st.sampled_from(["a sign that says {}", "{}", "Write {}, please", "({}) at dusk", "it's Bob's {}."])


@given(st.lists(st.tuples(PLACES, WORDS, st.sampled_from([*QUOTES, "''", "‘’"])), min_size=1, max_size=4))
def test_paired_quotes_are_in_no_doubt(parts):
    """Whatever stands around them; single quotes only where no double ones are."""
    prompt = " and ".join(place.format(quotes[0] + word + quotes[1]) for place, word, quotes in parts)
    double = [word for _, word, quotes in parts if quotes in QUOTES]
    assert read_quotes(prompt) == (double or [word for _, word, _ in parts], None)


@given(WORDS, st.sampled_from("\"'“"), st.sampled_from(["a sign {} and ", "{} beside "]))
def test_a_quote_without_a_partner_is_in_doubt(word, lone, place):
    closing = "”" if lone == "“" else lone
    assert read_quotes(place.format(lone + word + closing) + lone + "HUT").fault is not None


def test_many_quotes_that_match_nothing_take_no_time():
    # one pass over each: backtracking without bound would not end here
    assert quoted_targets("„" * 20_000) == quoted_targets("\\" * 20_000 + '"') == []
    assert len(quoted_targets('"a" ' * 20_000)) == 20_000
    for unit in (" 'a", "'a ", '"a ', "“ ", '\\"a " ', '24" ', "'n' ", "‘a "):
        read_quotes(unit * 50_000)
