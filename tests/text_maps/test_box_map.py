import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flow_grpo.reward_map import gaussian_blur, pool_to_tokens
from flow_grpo.text_maps.box_map import blend_boxes, fill_quad, line_height, text_area
from flow_grpo.text_maps.character_strips import Strips

NEUTRAL = 0.5
SIGMA = 0.125


def box(left, top, right, bottom):
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float32)


def rotated(quad, degrees, centre):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return ((quad - centre) @ turn.T + centre).astype(np.float32)


BOXES = st.lists(
    st.tuples(st.integers(-9, 30), st.integers(-9, 30), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1)),
    max_size=5,
)


def quads_and_rewards(boxes):
    quads = [box(left, top, left + width, top + height) for left, top, width, height, _ in boxes]
    return quads, [reward for *_, reward in boxes]


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
    quad = np.array([[10, 12], [30, 18], [28, 26], [8, 20]], dtype=np.float32)
    assert line_height(quad) == pytest.approx(np.hypot(2, 8))
    mask = gaussian_blur(fill_quad(quad, slice(0, 40), slice(0, 40))[None], SIGMA * np.hypot(2, 8))[0]
    blended = blend_boxes([quad], [0.9], (40, 40), NEUTRAL, SIGMA)
    torch.testing.assert_close(blended, NEUTRAL + mask * (0.9 - NEUTRAL))


def test_wide_blur_is_the_gaussian_to_a_hundredth():
    """A box 256 pixels high, blurred on cells of 4 pixels, against the blur of every pixel."""
    quad = rotated(box(60, 130, 460, 386), 20, centre=(260, 260))
    mask = gaussian_blur(fill_quad(quad, slice(0, 519), slice(0, 517))[None], 32.0)[0]
    blended = blend_boxes([quad], [1.0], (519, 517), 0.0, SIGMA)
    torch.testing.assert_close(blended, mask, rtol=0, atol=0.01)
    assert blended.mean().item() == pytest.approx(mask.mean().item(), rel=1e-3)


def test_box_keeps_its_reward_in_the_middle_and_the_background_far_away():
    blended = blend_boxes([box(8, 8, 40, 24)], [0.2], (64, 64), NEUTRAL, SIGMA)
    assert blended[16, 24].item() == pytest.approx(0.2, abs=1e-3)  # the mask's tails: erf of 4 / sqrt(2)
    assert NEUTRAL > blended[8, 24] > 0.2 and NEUTRAL > blended[7, 24] > 0.2
    assert (blended[32:] == NEUTRAL).all() and (blended[:, 48:] == NEUTRAL).all()


def test_without_sigma_the_edge_is_hard():
    blended = blend_boxes([box(8, 8, 40, 24)], [1.0], (64, 64), NEUTRAL, 0.0)
    assert blended[8, 8] == 1 and blended[7, 8] == NEUTRAL and blended.unique().numel() == 2


def test_text_at_the_border_does_not_fade_there():
    blended = blend_boxes([box(0, 0, 32, 16)], [1.0], (64, 64), NEUTRAL, SIGMA)
    assert blended[0, 0].item() == pytest.approx(1.0, abs=1e-3)


def test_same_box_twice_changes_nothing():
    once = blend_boxes([box(8, 8, 40, 24)], [0.8], (64, 64), NEUTRAL, SIGMA)
    twice = blend_boxes([box(8, 8, 40, 24)] * 2, [0.8, 0.8], (64, 64), NEUTRAL, SIGMA)
    torch.testing.assert_close(twice, once)


def test_overlapping_boxes_meet_in_between():
    blended = blend_boxes([box(0, 16, 40, 32), box(24, 16, 64, 32)], [0.2, 1.0], (64, 64), NEUTRAL, SIGMA)
    assert blended[24, 32].item() == pytest.approx(0.6, abs=1e-3)
    assert blended[24, 8].item() == pytest.approx(0.2, abs=1e-3)
    assert blended[24, 56].item() == pytest.approx(1.0, abs=1e-3)


def test_box_outside_the_image_leaves_the_background():
    blended = blend_boxes([box(70, 70, 90, 80), box(-30, 0, -20, 9)], [1.0, 1.0], (64, 64), NEUTRAL, SIGMA)
    assert (blended == NEUTRAL).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (64, 64)])
def test_box_far_larger_than_the_image_covers_it(size):
    blended = blend_boxes([box(-1e6, -1e6, 1e6, 1e6)], [0.8], size, NEUTRAL, SIGMA)
    torch.testing.assert_close(blended, torch.full(size, 0.8))


@pytest.mark.parametrize("mask_sigma", [0.0, 0.125])
def test_box_beyond_the_range_of_squares_covers_the_image(mask_sigma):
    """An engine's box of 1e30 pixels is absurd, but no reason to end a run: in float32 its height's square is infinite."""
    quad = np.array([[0, 0], [1e30, 0], [1e30, 1e30], [0, 1e30]], dtype=np.float32)
    assert (blend_boxes([quad], [1.0], (8, 8), 0.5, mask_sigma) > 0.99).all()


def test_large_image_with_a_large_box():
    """4096 pixels: a blur of every pixel with this sigma would take minutes."""
    blended = blend_boxes([box(600, 600, 3500, 3500)], [1.0], (4096, 4096), 0.0, SIGMA)
    assert blended[2050, 2050].item() == pytest.approx(1, abs=1e-3) and blended[2050, 600].item() == pytest.approx(
        0.5, abs=0.01
    )
    assert blended[0, 0] < 0.1


def test_a_thousand_boxes_are_laid():
    quads = [box(i % 500, i // 2, i % 500 + 20, i // 2 + 10) for i in range(1000)]
    blended = blend_boxes(quads, [0.2, 1.0] * 500, (512, 512), NEUTRAL, SIGMA)
    assert 0.2 <= blended.min() < 0.5 < blended.max() <= 1


@given(BOXES, st.floats(0, 1), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_map_never_leaves_the_range_of_its_rewards_and_background(boxes, reward_bg, mask_sigma):
    quads, rewards = quads_and_rewards(boxes)
    blended = blend_boxes(quads, rewards, (32, 32), reward_bg, mask_sigma)
    involved = torch.tensor([*rewards, reward_bg])
    assert blended.min() >= involved.min() and blended.max() <= involved.max()


@given(BOXES, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_order_of_boxes_does_not_change_the_map(boxes, random):
    shuffled = random.sample(boxes, len(boxes))
    maps = [blend_boxes(*quads_and_rewards(some), (32, 32), NEUTRAL, SIGMA) for some in (boxes, shuffled)]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-5)  # fp32 sums in another order


@given(BOXES.filter(bool), st.data())
@settings(max_examples=40, deadline=None)
def test_higher_reward_lowers_the_map_nowhere(boxes, data):
    quads, rewards = quads_and_rewards(boxes)
    i = data.draw(st.integers(0, len(boxes) - 1))
    raised = [*rewards[:i], data.draw(st.floats(rewards[i], 1)), *rewards[i + 1 :]]
    lower, higher = (blend_boxes(quads, some, (32, 32), NEUTRAL, SIGMA) for some in (rewards, raised))
    assert (higher - lower).min() >= -1e-6  # fp32 rounding of a sum of five


@given(
    st.integers(20, 60),
    st.integers(8, 20),
    st.floats(-180, 180),
    st.floats(0.02, 0.3),
    st.floats(0, 1),
    st.floats(0, 1),
)
@example(20, 10, 3.0, 0.3 - 1e-16, 0.0, 1.0)  # turned, the box is a rounding error higher than 10
@settings(max_examples=40, deadline=None)
def test_softening_keeps_the_mean_and_ends_three_sigma_away(width, height, degrees, mask_sigma, reward, reward_bg):
    quad = rotated(box(64 - width / 2, 64 - height / 2, 64 + width / 2, 64 + height / 2), degrees, centre=(64, 64))
    hard, soft = (blend_boxes([quad], [reward], (128, 128), reward_bg, sigma) for sigma in (0.0, mask_sigma))
    assert soft.double().mean().item() == pytest.approx(hard.double().mean().item(), abs=1e-6)  # fp32 sums of the blur
    reach = np.ceil(3 * mask_sigma * height + 1e-4) + 1  # the corners are in fp32
    rows, cols = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    (left, top), (right, bottom) = quad.min(0) - reach, quad.max(0) + reach
    outside = (cols < left) | (cols > right) | (rows < top) | (rows > bottom)
    assert (soft[outside] == np.float32(reward_bg)).all()


@given(st.integers(4, 40), st.integers(4, 40), st.integers(10, 50), st.integers(8, 20), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_map_of_the_image_at_twice_the_size_is_the_same_map(left, top, width, height, reward):
    quad = box(left, top, left + width, top + height)
    small = blend_boxes([quad], [reward], (64, 96), NEUTRAL, SIGMA)
    large = blend_boxes([2 * quad], [reward], (128, 192), NEUTRAL, SIGMA)
    # sigma is 1 to 2.5 pixels of the small image, sampled and cut off more coarsely there
    torch.testing.assert_close(pool_to_tokens(large[None], (64, 96)), small.view(1, -1), rtol=0, atol=0.05)


def test_strips_share_a_box_by_the_way_along_it():
    blended = blend_boxes([box(8, 8, 48, 24)], [Strips((0.25, 0.75, 1.0), (0.9, 0.1, 0.7))], (32, 64), NEUTRAL, 0.0)
    assert (blended[8:24, 8:18] == 0.9).all()
    assert (blended[8:24, 18:38] == 0.1).all()
    assert (blended[8:24, 38:48] == 0.7).all()
    assert (blended[:8] == NEUTRAL).all() and (blended[:, 48:] == NEUTRAL).all()


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_strips_turn_with_their_box(degrees):
    strips = Strips((0.25, 0.75, 1.0), (0.9, 0.1, 0.7))
    quad = box(12, 24, 52, 40)
    upright = blend_boxes([quad], [strips], (64, 64), NEUTRAL, SIGMA)
    turned = blend_boxes([rotated(quad, degrees, centre=(32, 32))], [strips], (64, 64), NEUTRAL, SIGMA)
    # clockwise on an image whose rows run down; borders of strips lie between pixels, but for rounding
    torch.testing.assert_close(turned, torch.rot90(upright, -degrees // 90), rtol=0, atol=1e-4)


def test_strips_of_a_tilted_box_lie_across_it():
    quad = rotated(box(24, 54, 104, 74), 30, centre=(64, 64))
    blended = blend_boxes([quad], [Strips((0.5, 1.0), (1.0, 0.0))], (128, 128), NEUTRAL, SIGMA)
    along = np.array([np.cos(np.radians(30)), np.sin(np.radians(30))])
    for distance, expected in ((-30, 1.0), (-15, 1.0), (15, 0.0), (30, 0.0)):
        x, y = 64 + distance * along
        assert blended[int(y), int(x)].item() == pytest.approx(expected, abs=0.01)


def test_equal_strips_are_one():
    quad = rotated(box(12, 24, 52, 40), 17, centre=(32, 32))
    whole = blend_boxes([quad], [0.8], (64, 64), NEUTRAL, SIGMA)
    cut = blend_boxes([quad], [Strips((0.3, 0.6, 1.0), (0.8, 0.8, 0.8))], (64, 64), NEUTRAL, SIGMA)
    torch.testing.assert_close(cut, whole)


def test_strips_beside_another_box_stay_in_the_range():
    strips = Strips((0.5, 1.0), (0.0, 1.0))
    blended = blend_boxes([box(0, 0, 40, 16), box(20, 8, 60, 24)], [strips, 0.6], (32, 64), NEUTRAL, SIGMA)
    assert 0 <= blended.min() < 0.05 and 0.9 < blended.max() <= 1


def test_corners_that_fall_together_are_no_error():
    point, edge = box(8, 8, 8, 8), np.array([[8, 8], [20, 8], [20, 8], [8, 8]], dtype=np.float32)
    triangle = np.array([[8, 8], [40, 2], [40, 20], [8, 8]], dtype=np.float32)
    for quad in (point, edge, triangle):
        blended = blend_boxes([quad], [Strips((0.5, 1.0), (0.0, 1.0))], (32, 64), NEUTRAL, SIGMA)
        assert blended.isfinite().all() and 0 <= blended.min() <= blended.max() <= 1
