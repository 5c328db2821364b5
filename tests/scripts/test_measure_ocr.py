from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from measure_ocr import (
    DEGRADATIONS,
    WAYS,
    break_letter,
    draw_text,
    draw_word,
    found,
    measure_characters,
    measure_degradations,
)

from flow_grpo.ocr_map_scorer import OcrMapScorer
from scripts.audit.letters import LATIN, chinese, texts_of


@pytest.mark.parametrize("kind, letters", [*((kind, LATIN) for kind in DEGRADATIONS), ("blur", chinese())])
def test_reward_falls_with_every_level_of_degradation(kind, letters):
    rows = list(measure_degradations(replace(letters, words=letters.words[:8]), size=64, seed=0, kinds=[kind]))
    rewards = np.array([row["reward"] for row in rows])
    assert rewards[0] > 0.95 and rewards[-1] < 0.15
    assert (np.diff(rewards) < 0.02).all(), rewards  # a mean of eight words; confidences near 1 differ by chance
    assert all(row["reward"] <= row["similarity"] <= row["detected"] for row in rows)


def test_map_of_characters_finds_another_letter_and_the_map_of_boxes_cannot():
    whole, per_character = islice(measure_characters(replace(LATIN, words=LATIN.words[:5]), size=64, seed=0), 2)
    assert whole["broken letter"] == per_character["broken letter"] == "another letter"
    assert per_character["found"] == 1 and whole["found"] < 0.5
    assert per_character["blame, broken"] < 2 * per_character["blame, others"] < 0
    assert whole["blame, broken"] == pytest.approx(whole["blame, others"], rel=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_only_the_broken_letter_changes(way):
    word = draw_word("SALE", 64)
    image = break_letter(word, 3, way, np.random.default_rng(0))
    left, top, right, bottom = word.letters[3]
    changed = (image != word.image).any(dim=0)
    assert changed[top:bottom, left:right].any()
    if way != "another letter":  # which may be wider, and moves the word
        changed[top:bottom, left:right] = False
        assert not changed.any()


def test_letters_within_a_hundredth_share_the_find():
    assert found(np.array([0.9, 0.2, 0.9]), 1) == 1 and found(np.array([0.9, 0.2, 0.9]), 0) == 0
    assert found(np.array([0.5, 0.5, 0.505, 0.5]), 2) == 0.25


def test_letters_lie_where_they_are_drawn():
    word = draw_word("HIL", 64)
    ink = torch.zeros(64, 64, dtype=torch.bool)
    for left, top, right, bottom in word.letters:
        assert (word.image[:, top:bottom, left:right] < 0.5).any()
        ink[top:bottom, left:right] = True
    assert (word.image[:, ~ink] == 1).all()


def test_a_chinese_text_is_read_right_in_one_line_and_in_two(rapidocr_engine):
    """Without blanks, with digits and punctuation, and broken where no word ends."""
    texts = texts_of(chinese(), 5)
    assert any(char in "，：！" for text in texts for char in text) and any(
        char.isdigit() for text in texts for char in text
    )
    scorer = OcrMapScorer(rapidocr_engine, normalisation="unicode")
    for layout in ("one line", "two lines"):
        images = torch.stack([draw_text(text, layout, 256, chinese()) for text in texts])
        assert (scorer(images, [f"牌子上写着“{text}”。" for text in texts]).reward > 0.9).all()


def test_font_that_is_not_there_is_named_and_how_to_get_one():
    with pytest.raises(FileNotFoundError, match="nofont.ttf; pip install noto-cjk-sans-otc"):
        chinese(Path("nofont.ttf"))
