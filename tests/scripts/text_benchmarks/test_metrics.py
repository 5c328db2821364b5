"""The benchmarks' metrics against cases worked by hand."""

import pytest

from scripts.text_benchmarks.metrics import Reading, cvtg, longtext, oneig


def test_cvtg_counts_words_over_all_images_and_takes_the_nearest_word_that_was_read():
    readings = [
        Reading(["OPEN", "Fresh bread!"], "fresh Open bred"),  # bread: bred is 1 edit of 5 away
        Reading(["no"], ""),
    ]
    expected = {"word_accuracy": 2 / 4, "ned": (1 + 1 + 0.8 + 0) / 4, "exact": 0}
    assert cvtg(readings, "en") == pytest.approx(expected)


def test_a_word_that_is_asked_for_twice_must_be_read_twice():
    assert cvtg([Reading(["sale sale"], "SALE")], "en")["word_accuracy"] == 0.5
    assert cvtg([Reading(["sale sale"], "SALE, sale")], "en")["exact"] == 1


def test_cvtg_is_in_english():
    with pytest.raises(ValueError, match="cvtg-2k is in en, got --language zh"):
        cvtg([Reading(["a"], "a")], "zh")


def test_longtext_counts_words_in_english_and_characters_in_chinese():
    english = [Reading(["It's late.", "Go home"], "its LATE"), Reading(["yes"], "yes no")]
    assert longtext(english, "en") == pytest.approx({"text_score": 3 / 5, "exact": 1 / 2})
    chinese = [Reading(["新鲜 面包"], "面包，新")]
    assert longtext(chinese, "zh") == pytest.approx({"text_score": 3 / 4, "exact": 0})


def test_oneig_by_hand():
    # the first is whole; of the second, "Bred" is 1 edit from "Bread", and only "Fresh" is a word of it
    readings = [Reading(["OPEN now"], "OPEN, now"), Reading(["Fresh Bread"], "Fresh Bred")]
    expected = {"edit_distance": 0.5, "completion_rate": 0.5, "word_accuracy": 3 / 4}
    expected["text_score"] = 1 - 0.5 / 100 * 0.5 * 0.25
    assert oneig(readings, "en") == pytest.approx(expected)


def test_oneig_keeps_the_case_and_caps_the_distance():
    assert oneig([Reading(["OPEN"], "open")], "en")["edit_distance"] == 4
    far = oneig([Reading(["面" * 60], "")], "zh")
    assert far["edit_distance"] == 60 and far["text_score"] == 0
