import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.ocr_engine import TextLine
from flow_grpo.ocr_map_scorer import OcrMapScorer, blend_boxes, fill_quad, match_lines, text_area
from flow_grpo.reward_map import gaussian_blur, pool_to_tokens

PROMPT = 'a sign that says "HUT"'
NEUTRAL = 0.5


def box(left, top, right, bottom):
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float32)


def engine_reading(*lines):
    """An engine that reads the same lines in every image."""
    return lambda image: list(lines)


BOXES = st.lists(
    st.tuples(st.integers(-9, 30), st.integers(-9, 30), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1)),
    max_size=5,
)


def quads_and_rewards(boxes):
    quads = [box(left, top, left + width, top + height) for left, top, width, height, _ in boxes]
    return quads, torch.tensor([reward for *_, reward in boxes])


def test_box_reward_is_confidence_times_similarity():
    match = match_lines([TextLine(box(0, 0, 9, 9), "HAT", 0.9)], ["HUT"])
    assert match.box_rewards.tolist() == pytest.approx([0.6])
    assert match.reward == pytest.approx(0.6)
    assert match.similarity == pytest.approx(2 / 3) and match.confidence == pytest.approx(0.9) and match.exact == 0


def test_image_reward_is_the_best_line_and_every_line_keeps_its_own():
    lines = [
        TextLine(box(0, 0, 9, 9), text, confidence) for text, confidence in [("HAT", 0.9), ("h ut", 0.8), ("X", 1.0)]
    ]
    match = match_lines(lines, ["HUT"])
    assert match.box_rewards.tolist() == pytest.approx([0.6, 0.8, 0.0])
    assert (match.reward, match.similarity, match.exact) == (pytest.approx(0.8), 1.0, 1.0)


def test_each_line_is_rewarded_by_its_best_target_and_the_image_by_the_mean():
    lines = [TextLine(box(0, 0, 9, 9), "ONE", 1.0), TextLine(box(0, 9, 9, 18), "TWOX", 1.0)]
    match = match_lines(lines, ["TWO", "ONE"])
    assert match.box_rewards.tolist() == pytest.approx([1.0, 0.75])
    assert match.reward == pytest.approx((1 + 0.75) / 2) and match.exact == 0.5


def test_no_line_is_no_reward():
    match = match_lines([], ["HUT"])
    assert len(match.box_rewards) == 0
    assert (match.reward, match.similarity, match.confidence, match.exact) == (0, 0, 0, 0)


@given(st.lists(st.tuples(st.text("HUTAX ", max_size=5), st.floats(0, 1)), min_size=1, max_size=5), st.randoms())
def test_order_of_lines_does_not_change_the_reward(read, random):
    lines = [TextLine(box(0, 0, 9, 9), text, confidence) for text, confidence in read]
    order = random.sample(range(len(lines)), len(lines))
    match, shuffled = match_lines(lines, ["HUT"]), match_lines([lines[i] for i in order], ["HUT"])
    assert shuffled.reward == match.reward
    assert torch.equal(shuffled.box_rewards, match.box_rewards[order])


def test_filled_box_covers_exactly_its_pixels():
    filled = fill_quad(box(2, 3, 7, 5), slice(0, 8), slice(0, 10))
    expected = torch.zeros(8, 10)
    expected[3:5, 2:7] = 1
    assert torch.equal(filled, expected)


def test_rotated_quad_is_filled_exactly_in_either_direction():
    diamond = np.array([[8, 0.5], [15.5, 8], [8, 15.5], [0.5, 8]], dtype=np.float32)  # no pixel's centre on an edge
    filled = fill_quad(diamond, slice(0, 16), slice(0, 16))
    centre = torch.arange(16) + 0.5
    assert torch.equal(filled.bool(), (centre[:, None] - 8).abs() + (centre[None] - 8).abs() < 7.5)
    assert torch.equal(fill_quad(diamond[::-1], slice(0, 16), slice(0, 16)), filled)


def test_window_of_a_quad_is_a_cut_of_the_whole():
    quad = np.array([[3, 2], [14, 6], [12, 13], [1, 9]], dtype=np.float32)
    whole = fill_quad(quad, slice(0, 16), slice(0, 16))
    assert torch.equal(fill_quad(quad, slice(4, 9), slice(5, 16)), whole[4:9, 5:16])


def test_text_area_counts_overlapping_pixels_once():
    assert text_area([box(0, 0, 8, 4), box(0, 0, 8, 4), box(4, 0, 12, 4)], (8, 16)) == pytest.approx(12 * 4 / (8 * 16))
    assert text_area([], (8, 16)) == 0
    assert text_area([box(-8, -8, 40, 40)], (8, 16)) == 1


def test_map_of_one_box_is_the_formula_on_the_whole_image():
    quad, sigma = np.array([[10, 12], [30, 18], [28, 26], [8, 20]], dtype=np.float32), 0.125
    height = np.hypot(2, 8)  # of this quad's side edges
    mask = gaussian_blur(fill_quad(quad, slice(0, 40), slice(0, 40))[None], sigma * height)[0]
    blended = blend_boxes([quad], torch.tensor([0.9]), (40, 40), NEUTRAL, sigma)
    torch.testing.assert_close(blended, NEUTRAL + mask * (0.9 - NEUTRAL))


def test_box_keeps_its_reward_in_the_middle_and_the_background_far_away():
    blended = blend_boxes([box(8, 8, 40, 24)], torch.tensor([0.2]), (64, 64), NEUTRAL, 0.125)
    assert blended[16, 24].item() == pytest.approx(0.2, abs=1e-3)  # the mask's tails: erf of 4 / sqrt(2)
    assert NEUTRAL > blended[8, 24] > 0.2 and NEUTRAL > blended[7, 24] > 0.2
    assert (blended[32:] == NEUTRAL).all() and (blended[:, 48:] == NEUTRAL).all()


def test_without_sigma_the_edge_is_hard():
    blended = blend_boxes([box(8, 8, 40, 24)], torch.tensor([1.0]), (64, 64), NEUTRAL, 0.0)
    assert blended[8, 8] == 1 and blended[7, 8] == NEUTRAL and blended.unique().numel() == 2


def test_text_at_the_border_does_not_fade_there():
    blended = blend_boxes([box(0, 0, 32, 16)], torch.tensor([1.0]), (64, 64), NEUTRAL, 0.125)
    assert blended[0, 0].item() == pytest.approx(1.0, abs=1e-3)


def test_same_box_twice_changes_nothing():
    once = blend_boxes([box(8, 8, 40, 24)], torch.tensor([0.8]), (64, 64), NEUTRAL, 0.125)
    twice = blend_boxes([box(8, 8, 40, 24)] * 2, torch.tensor([0.8, 0.8]), (64, 64), NEUTRAL, 0.125)
    torch.testing.assert_close(twice, once)


def test_overlapping_boxes_meet_in_between():
    blended = blend_boxes([box(0, 16, 40, 32), box(24, 16, 64, 32)], torch.tensor([0.2, 1.0]), (64, 64), NEUTRAL, 0.125)
    assert blended[24, 32].item() == pytest.approx(0.6, abs=1e-3)
    assert blended[24, 8].item() == pytest.approx(0.2, abs=1e-3)
    assert blended[24, 56].item() == pytest.approx(1.0, abs=1e-3)


def test_box_outside_the_image_leaves_the_background():
    blended = blend_boxes(
        [box(70, 70, 90, 80), box(-30, 0, -20, 9)], torch.tensor([1.0, 1.0]), (64, 64), NEUTRAL, 0.125
    )
    assert (blended == NEUTRAL).all()


@given(BOXES, st.floats(0, 1), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_map_never_leaves_the_range_of_its_rewards_and_background(boxes, reward_bg, mask_sigma):
    quads, rewards = quads_and_rewards(boxes)
    blended = blend_boxes(quads, rewards, (32, 32), reward_bg, mask_sigma)
    involved = torch.cat([rewards, torch.tensor([reward_bg])])
    assert blended.min() >= involved.min() and blended.max() <= involved.max()


@given(BOXES, st.randoms())
@settings(max_examples=40, deadline=None)
def test_order_of_boxes_does_not_change_the_map(boxes, random):
    shuffled = random.sample(boxes, len(boxes))
    maps = [blend_boxes(*quads_and_rewards(some), (32, 32), NEUTRAL, 0.125) for some in (boxes, shuffled)]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-5)  # fp32 sums in another order


def test_right_text_is_praised_and_wrong_text_blamed_where_it_stands(rapidocr_engine, draw_text):
    images = torch.stack([draw_text("HUT", (32, 16)), draw_text("BOX", (32, 16)), draw_text("HAT", (32, 16))])
    score = OcrMapScorer(rapidocr_engine)(images, [PROMPT] * 3)
    assert score.map_kind == "reward" and score.map_valid.all()
    assert score.reward[0] > 0.9 and score.reward[1] < 0.1 and 0.5 < score.reward[2] < 0.7
    assert score.details["exact"].tolist() == [1, 0, 0]
    assert score.details["num_lines"].tolist() == [1, 1, 1]
    assert ((0.1 < score.details["text_area"]) & (score.details["text_area"] < 0.6)).all()
    middle = score.reward_map[:, 16, 32]
    torch.testing.assert_close(middle, score.reward, rtol=0, atol=1e-2)  # the box's own middle is a pixel or two away
    assert (score.reward_map[:, 56:] == NEUTRAL).all()


def test_pixels_of_the_text_reach_its_tokens(rapidocr_engine, draw_text):
    score = OcrMapScorer(rapidocr_engine)(draw_text("HUT", (24, 10), font_size=16)[None], [PROMPT])
    tokens = pool_to_tokens(score.reward_map, (2, 2))[0]
    assert tokens[0] == tokens.max() > 0.7
    torch.testing.assert_close(
        tokens[2:], torch.full((2,), NEUTRAL), rtol=0, atol=1e-2
    )  # the soft edge may reach there


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 64, 64), torch.ones(3, 64, 64), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))],
    ids=["black", "blank", "noise"],
)
def test_image_without_text_has_no_reward_and_a_neutral_valid_map(rapidocr_engine, image):
    score = OcrMapScorer(rapidocr_engine)(image[None], [PROMPT])
    assert score.reward.tolist() == [0] and score.map_valid.tolist() == [True]
    assert (score.reward_map == NEUTRAL).all()
    assert all(values.tolist() == [0] for values in score.details.values())


def test_batch_is_scored_like_its_images_alone(rapidocr_engine, draw_text):
    scorer = OcrMapScorer(rapidocr_engine)
    images, prompts = torch.stack([draw_text("HUT"), draw_text("CAP")]), [PROMPT, 'says "CAP"']
    together = scorer(images, prompts)
    for i in range(2):
        alone = scorer(images[i : i + 1], prompts[i : i + 1])
        assert torch.equal(alone.reward_map[0], together.reward_map[i]) and alone.reward[0] == together.reward[i]


def test_map_has_the_images_height_and_width():
    scorer = OcrMapScorer(engine_reading(TextLine(box(2, 2, 12, 8), "HUT", 0.9)))
    score = scorer(torch.rand(2, 3, 16, 24), [PROMPT] * 2)
    assert score.reward_map.shape == (2, 16, 24) and score.reward_map.argmax() // 24 < 8


def test_metadata_targets_take_the_prompts_place():
    scorer = OcrMapScorer(engine_reading(TextLine(box(2, 2, 12, 8), "CAP", 1.0)))
    assert scorer(torch.rand(1, 3, 16, 16), ["a sign"], [{"targets": ["cap"]}]).reward.item() == 1


def test_prompt_without_target_is_refused_before_any_reading():
    def engine(image):
        raise AssertionError("read")

    with pytest.raises(ValueError, match="no quoted text"):
        OcrMapScorer(engine)(torch.rand(2, 3, 8, 8), [PROMPT, "a red circle"])


def test_bad_images_are_refused(rapidocr_engine):
    with pytest.raises(ValueError, match="divide 8-bit levels by 255"):
        OcrMapScorer(rapidocr_engine)(torch.full((1, 3, 8, 8), 255.0), [PROMPT])


def test_engine_that_fails_raises_and_gives_no_low_reward():
    def engine(image):
        raise RuntimeError("session lost")

    with pytest.raises(RuntimeError, match="session lost"):
        OcrMapScorer(engine)(torch.rand(1, 3, 8, 8), [PROMPT])


@pytest.mark.parametrize("option", [{"reward_bg": 1.5}, {"reward_bg": float("nan")}, {"mask_sigma": -1}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        OcrMapScorer(engine_reading(), **option)
