import random as randomness

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.text_maps.engine import TextLine
from flow_grpo.text_maps.line_match import match_lines
from flow_grpo.text_maps.reading_order import reading_order
from flow_grpo.text_maps.targets import normalise, similarity

TARGET = "Spring Collection 2024"
# Rewards of equals are decided by terms of up to 1e-7 a line.
TIE = 1e-5


def line(text, x=0, y=0, confidence=1.0, height=10):
    """A line of upright text whose box begins at (x, y), 6 pixels a character."""
    right, bottom = x + 6 * max(len(text), 1), y + height
    return TextLine([[x, y], [right, y], [right, bottom], [x, bottom]], text, confidence)


def column(*texts, confidence=1.0):
    """Lines one under the other."""
    return [line(text, y=20 * i, confidence=confidence) for i, text in enumerate(texts)]


LINES = st.lists(
    st.builds(
        line,
        st.text("HUTAX ", max_size=6),
        st.integers(0, 60),
        st.integers(0, 60),
        st.floats(0, 1),
    ),
    max_size=6,
    unique_by=lambda line: (line.text, line.quad.tobytes(), line.confidence),
)
TARGETS = st.lists(st.sampled_from(["HUT", "HAT TAX", "A", "TAX A HUT", "X-AT"]), min_size=1, max_size=3)


def test_box_reward_is_confidence_times_similarity():
    match = match_lines([line("HAT", confidence=0.9)], ["HUT"])
    assert match.spans == ("hut",) and match.box_rewards.tolist() == pytest.approx([0.6])
    assert match.reward == pytest.approx(0.6) and match.missing == 0
    assert match.similarity == pytest.approx(2 / 3) and match.confidence == pytest.approx(0.9) and match.exact == 0


@given(st.text("abcXY 12", max_size=12), st.floats(0, 1))
def test_single_line_is_compared_with_the_whole_target(text, confidence):
    match = match_lines([line(text, confidence=confidence)], [TARGET])
    expected = confidence * similarity(normalise(text), normalise(TARGET))
    assert match.reward == pytest.approx(expected) and match.box_rewards.tolist() == pytest.approx([expected])


def test_best_line_shows_the_target_and_the_others_match_nothing():
    lines = [line("HAT", confidence=0.9), line("h ut", y=20, confidence=0.8), line("X", y=40)]
    match = match_lines(lines, ["HUT"])
    assert match.spans == (None, "hut", None) and match.box_rewards.tolist() == pytest.approx([0, 0.8, 0])
    assert (match.reward, match.similarity, match.exact) == (pytest.approx(0.8), 1.0, 1.0)


def test_same_text_twice_shows_a_target_once_and_two_targets_twice():
    twice = column("HA", "HA")
    assert match_lines(twice, ["HA"]).spans.count("ha") == 1
    assert match_lines(twice, ["HA", "HA"]).reward == 1
    assert match_lines(twice[:1], ["HA", "HA"]).reward == 0.5


def test_lines_are_shared_so_that_the_sum_is_largest():
    # by itself either target would take the first line, for 0.75
    match = match_lines([line("ABXD"), line("ABCZ", y=20, confidence=0.9)], ["ABCD", "ABXX"])
    assert match.spans == ("abxx", "abcd") and match.reward == pytest.approx((0.75 + 0.9 * 0.75) / 2)


@pytest.mark.parametrize(
    ("target", "broken"),
    [
        (TARGET, ["Spring Collection", "2024"]),
        (TARGET, ["SPRING", "COLLECTION", "2024"]),
        ("Self-Care Day", ["SELF-", "CARE DAY"]),
        ("春季系列", ["春季", "系列"]),
        ("I LOVE NY", ["I", "LOVE", "NY"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("OPEN 😀😀", ["open", "😀😀"]),
    ],
)
def test_perfect_rendering_in_several_lines_scores_one(target, broken):
    match = match_lines(column(*broken), [target])
    assert match.reward == match.similarity == match.exact == 1
    assert match.box_rewards.tolist() == [1] * len(broken)
    assert "".join(match.spans) == normalise(target)


def test_broken_target_is_the_mean_of_its_lines_by_length():
    lines = [line("Spring Colection", confidence=0.9), line("2024", y=20, confidence=0.5)]
    match = match_lines(lines, [TARGET])
    assert match.box_rewards.tolist() == pytest.approx([0.9 * 15 / 16, 0.5])
    assert match.reward == pytest.approx((0.9 * 15 + 0.5 * 4) / 20)
    assert match.similarity == pytest.approx(19 / 20) and match.exact == 0
    assert match.confidence == pytest.approx((0.9 * 16 + 0.5 * 4) / 20)


def test_lines_out_of_order_are_not_the_target():
    assert match_lines(column("2024", "Spring Collection"), [TARGET]).reward == pytest.approx(16 / 20)


def test_lines_between_the_lines_of_a_target_are_extra():
    match = match_lines(column("Spring", "made by us", "Collection", "Q", "2024"), [TARGET])
    assert match.spans == ("spring", None, "collection", None, "2024") and match.reward == 1


def test_word_that_no_line_shows_counts_against_the_line_before_it():
    match = match_lines(column("Spring", "2024"), [TARGET])
    assert match.spans == ("springcollection", "2024")
    assert match.box_rewards.tolist() == pytest.approx([6 / 16, 1]) and match.reward == pytest.approx(10 / 20)


@pytest.mark.parametrize(
    ("lone", "target", "expected"),
    [("S", "Spring", 1 / 6), ("I", "I LOVE NY", 1 / 7), ("春", "春季系列", 1 / 4), ("Spring", TARGET, 6 / 20)],
)
def test_lone_letter_lacks_all_the_rest(lone, target, expected):
    match = match_lines([line(lone)], [target])
    assert match.reward == pytest.approx(expected) and match.box_rewards.tolist() == pytest.approx([expected])


def test_scattered_letters_are_not_a_word():
    letters = [line(letter, y=80 * i) for i, letter in enumerate("SPRING")]  # seven heights between two of them
    assert match_lines(letters, ["Spring"]).reward == pytest.approx(1 / 6)
    assert match_lines(letters, [TARGET]).reward < 0.25


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("HOTEL", column(*"HOTEL")),
        ("HOTEL", [line(letter, x=30 * i) for i, letter in enumerate("HOTEL")]),
        ("HOTEL", [line(letter, x=15 * i, y=12 * i) for i, letter in enumerate("HOTEL")]),
        ("HOTEL ROMA", [*column(*"HOTEL"), line("ROMA", y=100)]),
        ("OPENING", column("OPEN", "ING")),
        ("OPENING", column("OPEN-", "ING")),
        ("Grand Opening", column("GRAND OPEN‑", "ING")),
        ("MON–FRI", column("MON–", "FRI")),
        ("Self-Care", column("SELF-", "CARE")),
        ("AND/OR", column("AND/", "OR")),
        ("Spring Collection 2024", [line("Spring Colle"), line("ction 2024", x=75)]),
    ],
)
def test_text_that_is_read_in_pieces_scores_one_and_no_piece_is_blamed(target, lines):
    match = match_lines(lines, [target])
    assert match.reward == match.exact == 1 and match.box_rewards.tolist() == [1] * len(lines)


@given(st.text("ABCDEFGH", min_size=2, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_a_word_in_pieces_one_under_the_other_is_that_word(word, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(word) - 1))))
    pieces = [word[start:end] for start, end in zip([0, *cuts], [*cuts, len(word)])]
    match = match_lines(column(*pieces), [word])
    assert match.reward == pytest.approx(1) and match.exact == 1


def test_wrong_letter_of_a_stacked_word_is_blamed_alone():
    match = match_lines(column(*"HOXEL"), ["HOTEL"])
    assert match.reward == pytest.approx(4 / 5) and match.box_rewards.tolist() == [1, 1, 0, 1, 1]
    assert match_lines(column(*"XOTEL"), ["HOTEL"]).box_rewards.tolist() == [0, 1, 1, 1, 1]
    assert match_lines(column(*"HOTEX"), ["HOTEL"]).box_rewards.tolist() == [1, 1, 1, 1, 0]


def test_letters_with_others_between_them_are_not_a_word():
    assert match_lines(column(*"SXPXRXIXNXG"), ["SPRING"]).reward < 0.5


def test_two_stacked_words_side_by_side_are_told_apart():
    lines = [
        line(letter, x=40 * i, y=20 * j) for i, word in enumerate(("HOTEL", "PARIS")) for j, letter in enumerate(word)
    ]
    match = match_lines(lines, ["PARIS", "HOTEL"])
    assert match.reward == 1 and match.spans == tuple("hotelparis")


def attempts(*texts):
    """Lines so far apart that none goes on from another."""
    return [line(text, x=200 * (i % 3), y=100 * (i // 3)) for i, text in enumerate(texts)]


def test_repeated_attempts_cost_by_how_alike_they_are():
    lines = attempts("HUT", "HAT", "BOX")
    match = match_lines(lines, ["HUT"], repeat_penalty=0.5)
    # HAT repeats HUT by (2/3)**2 of its three letters
    again = 4 / 9 * 3
    assert match.repeats.tolist() == pytest.approx([0, 4 / 9, 0])
    assert match.reward == pytest.approx(1 - 0.5 * again / (again + 3)) and match.similarity == 1
    assert match_lines(lines, ["HUT"]).reward == 1


def test_repeated_attempt_costs_the_target_that_it_repeats():
    lines = attempts("HUT", "HAT", "SALE")
    assert match_lines(lines, ["HUT", "SALE"], repeat_penalty=1.0).reward == pytest.approx((3 / (3 + 4 / 3) + 1) / 2)


@pytest.mark.parametrize("accuracy", [0.5, 0.675, 0.9])
@pytest.mark.parametrize("number", [2, 3, 5])
def test_several_attempts_at_a_word_score_no_more_than_one(number, accuracy):
    random = randomness.Random(0)

    def attempt():
        return "".join(letter if random.random() < accuracy else random.choice("BCDFGJ") for letter in "HAMLET")

    pages = [attempts(*(attempt() for _ in range(number))) for _ in range(100)]
    alone = sum(match_lines(lines[:1], ["HAMLET"], repeat_penalty=0.75).reward for lines in pages)
    together = sum(match_lines(lines, ["HAMLET"], repeat_penalty=0.75).reward for lines in pages)
    best = sum(match_lines(lines, ["HAMLET"]).reward for lines in pages)
    assert together <= alone < best


def test_targets_broken_side_by_side_are_told_apart():
    lines = [line("BIG"), line("BIG", x=50), line("HUT", y=20), line("SALE", x=50, y=20)]
    match = match_lines(lines, ["BIG SALE", "BIG HUT"])
    assert match.reward == 1 and match.spans[2:] == ("hut", "sale")


def test_broken_target_leaves_a_line_to_the_target_that_needs_it_more():
    match = match_lines(column("BIG", "HUT"), ["BIG HUT", "HUT"])
    assert match.spans == ("bighut", "hut") and match.reward == pytest.approx((1 / 2 + 1) / 2)
    # without a line of its own in common, a target goes without
    match = match_lines(column("BIG", "HUT"), ["BIG HUT", "SALE"])
    assert match.spans == ("big", "hut") and (match.reward, match.missing) == (0.5, 0.5)


def test_wrong_text_is_a_failed_attempt_and_the_largest_of_it_is_blamed():
    match = match_lines([line("BOX"), line("BOX", y=30, height=30)], ["HUT"])
    assert match.spans == (None, "hut") and match.reward == match.missing == 0


def test_no_line_is_no_reward_and_every_target_missing():
    match = match_lines([], ["HUT", "BIG HAT"])
    assert match.spans == () and len(match.box_rewards) == 0
    assert (match.reward, match.similarity, match.confidence, match.exact, match.missing) == (0, 0, 0, 0, 1)


def test_normalisation_is_an_option():
    assert match_lines([line("DON'T")], ["Don’t"]).exact == 0
    assert match_lines([line("DON'T")], ["Don’t"], "unicode").exact == 1
    assert match_lines(column("DON'T", "STOP"), ["Don’t\nStop"], "unicode").exact == 1


@given(LINES, TARGETS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_lines_and_targets_changes_nothing(lines, targets, random):
    order = random.sample(range(len(lines)), len(lines))
    match = match_lines(lines, targets)
    shuffled = match_lines([lines[i] for i in order], random.sample(targets, len(targets)))
    assert shuffled.box_rewards.tolist() == [match.box_rewards[i] for i in order]
    assert shuffled.spans == tuple(match.spans[i] for i in order)
    assert (shuffled.reward, shuffled.similarity, shuffled.exact) == (match.reward, match.similarity, match.exact)


@given(LINES, TARGETS)
@settings(max_examples=60, deadline=None)
def test_rewards_are_bounded_and_no_better_than_similarity_or_confidence(lines, targets):
    match = match_lines(lines, targets)
    assert 0 <= match.reward <= min(match.similarity, match.confidence) + 1e-9 <= 1 + 2e-9  # rounding of a mean
    assert 0 <= match.exact <= match.similarity + 1e-9
    assert ((0 <= match.box_rewards) & (match.box_rewards <= 1)).all()
    assert (match.missing > 0) <= (None not in match.spans)  # no target goes without while a line is free
    assert match.reward >= max((match_lines([line], targets).reward for line in lines), default=0) - TIE


@given(LINES.filter(bool), TARGETS.filter(lambda targets: len(targets) == 1), st.data())
@settings(max_examples=60, deadline=None)
def test_reward_grows_with_confidence_and_with_similarity(lines, targets, data):
    i = data.draw(st.integers(0, len(lines) - 1))
    surer = TextLine(lines[i].quad, lines[i].text, data.draw(st.floats(lines[i].confidence, 1)))
    righter = TextLine(lines[i].quad, targets[0], lines[i].confidence)
    reward = match_lines(lines, targets).reward
    assert match_lines([*lines[:i], surer, *lines[i + 1 :]], targets).reward >= reward - TIE
    assert match_lines([righter], targets).reward >= match_lines([lines[i]], targets).reward - TIE
    assert match_lines([*lines, righter], targets).reward >= reward - TIE


@given(LINES, st.sampled_from(["HAT TAX", "TAX A HUT", "X-AT"]))
@settings(max_examples=60, deadline=None)
def test_rendering_is_the_best_of_all(lines, target):
    """Against every way to give ordered lines the pieces of the target, each to a line with a letter in common."""
    pieces = {"HAT TAX": ["hat", "tax"], "TAX A HUT": ["tax", "a", "hut"], "X-AT": ["x-", "at"]}[target]
    # far apart, so that none goes on from another within a word
    lines = [TextLine(one.quad + [0, 200 * i], one.text, one.confidence) for i, one in enumerate(lines)]
    ordered = [lines[i] for i in reading_order(lines)]

    def best(first_line, first_piece, gain, size):
        if first_piece == len(pieces):
            return gain / size
        rewards = [0.0]
        for i in range(first_line, len(ordered)):
            text = normalise(ordered[i].text)
            for end in range(first_piece + 1, len(pieces) + 1):
                span = "".join(pieces[first_piece:end])
                longer = max(len(text), len(span))
                agreement = similarity(text, span) * longer
                if agreement > 0.5:  # a whole number, but for rounding
                    rewards.append(best(i + 1, end, gain + ordered[i].confidence * agreement, size + longer))
        return max(rewards)

    assert match_lines(lines, [target]).reward == pytest.approx(best(0, 0, 0.0, 0), abs=TIE)


def test_twenty_targets_and_a_thousand_lines_are_matched():
    words = ["spring", "colection", "collection", "2024", "sale", "open", "late", "big", "hut", "zq"]
    random = randomness.Random(0)
    lines = [
        line(" ".join(random.choices(words, k=2)), random.randrange(2000), random.randrange(2000)) for _ in range(1000)
    ]
    targets = [" ".join(random.choices(words, k=3)) for _ in range(20)]
    match = match_lines(lines, targets)
    assert match.missing == 0 and 0.8 < match.reward <= 1
    assert 20 <= sum(span is not None for span in match.spans) <= 60
