"""The pages that the benchmark matches; their rewards also hold the matching of long texts to what a plainer program found."""

import pytest

from flow_grpo.text_maps.line_match import match_lines
from scripts.benchmark.matching import SIZE, draw, pages

# Found by a program that filled one table of edit distances for each line and target, row by row.
REWARDS = {
    "240 letters": 0.783870968,
    "990 letters": 0.792046936,
    "200 ideographs": 0.837,
    "1000 ideographs": 0.8145,
    "60 ideographs, a line each": 0.84,
    "200 ideographs, a line each": 0.801,
    "4 texts of 240 letters": 0.800574430,
    "20 texts of 14 letters": 0.772027972,
}


def test_long_texts_have_the_rewards_of_a_plainer_program():
    rewards = {name: match_lines(lines, targets).reward for name, (lines, targets) in pages()}
    assert rewards == pytest.approx(REWARDS, abs=1e-8)


def test_a_page_is_drawn_with_every_line_within_its_box():
    for _, (lines, targets) in pages():
        assert 0 < sum(map(len, targets)) <= 1000 and all(
            0 <= line.quad.min() <= line.quad.max() <= SIZE for line in lines
        )
        assert draw(lines).shape == (SIZE, SIZE, 3)
