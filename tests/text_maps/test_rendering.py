import pytest

from flow_grpo.text_maps.rendering import TargetLines, reward_of


def rendering_of(target, *texts):
    lines = TargetLines([target], texts, [1.0] * len(texts), [[] for _ in texts], "flow_grpo")
    return lines.best_renderings([0], range(len(texts)))[0]


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


def test_targets_side_by_side_are_rendered_like_each_alone():
    """One short, one that is long enough to leave letters out, and one of ideographs."""
    targets = ["BIG SALE", " ".join(letter * 5 for letter in "abcdefghijkl"), "新鲜面包每天出炉"]
    texts = ["big", "ccccc", "sal", "新鲜面", "hhhhh lllll", "天出炉"]
    lines = TargetLines(targets, texts, [0.9] * len(texts), [[] for _ in texts], "flow_grpo")
    together = lines.best_renderings([0, 1, 2], range(len(texts)))
    for target, rendering in together.items():
        alone = TargetLines([targets[target]], texts, [0.9] * len(texts), [[] for _ in texts], "flow_grpo")
        assert rendering == alone.best_renderings([0], range(len(texts)))[0]
    assert [[part.line for part in rendering] for rendering in together.values()] == [[0, 2], [0, 1, 4], [3, 5]]


@pytest.mark.parametrize(("length", "lines"), [(2_000, [0, 1]), (2_001, [1]), (10**6, [0])])
def test_a_line_longer_than_any_image_shows_is_a_whole_target_or_none(length, lines):
    """Compared with every span, a line of a million characters would take minutes."""
    words = [letter * 5 for letter in "abcdefghijkl"]
    texts = [words[0], "".join(words[1:]).rjust(length, "x")]
    fits = TargetLines([" ".join(words)], texts, [0.1, 1.0], [[], []], "flow_grpo")
    assert [part.line for part in fits.best_renderings([0], [0, 1])[0]] == lines
