import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.reward_map import blur_radius, gaussian_blur, normalise, pool_to_tokens, resize

MAPS = torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0))


def test_min_max_reaches_zero_and_one_in_each_map():
    maps = normalise(MAPS * torch.tensor([1.0, 10.0, 1e-9]).view(3, 1, 1) - 5e-10)
    assert torch.equal(maps.amin((1, 2)), torch.zeros(3))
    assert torch.equal(maps.amax((1, 2)), torch.ones(3))


def test_min_max_is_the_first_and_the_last_of_the_quantiles():
    assert torch.equal(normalise(MAPS), normalise(MAPS, (0.0, 1 - 1e-9)))  # rounds to the last value


def test_normalising_twice_changes_nothing():
    once = normalise(MAPS)
    assert torch.equal(normalise(once), once)


@given(scale=st.floats(1e-12, 1e12))
@settings(max_examples=30, deadline=None)
def test_scale_of_a_map_does_not_matter(scale):
    torch.testing.assert_close(
        normalise(MAPS * scale), normalise(MAPS), rtol=0, atol=1e-5
    )  # fp32 rounding of the scaling


@pytest.mark.parametrize("value", [0.0, 1e-12, 0.3, -7e6])
def test_constant_map_becomes_one_half(value):
    assert torch.equal(normalise(torch.full((2, 4, 4), value)), torch.full((2, 4, 4), 0.5))


def test_quantiles_ignore_an_outlier():
    maps = MAPS.clone()
    maps[:, 0, 0] = 1e6
    assert normalise(maps)[:, 1:].amax() < 1e-5
    assert normalise(maps, (0.01, 0.99))[:, 1:].amax() == 1


@pytest.mark.parametrize("quantiles", [(0.5, 0.5), (-0.1, 1.0), (0.9, 0.1), (0.0, 1.5)])
def test_wrong_quantiles_are_refused(quantiles):
    with pytest.raises(ValueError, match="quantiles"):
        normalise(MAPS, quantiles)


def test_normalise_takes_half_precision():
    assert normalise(MAPS.bfloat16()).dtype == torch.float32


def test_blur_keeps_the_mean_away_from_edges():
    maps = torch.zeros(1, 41, 41)
    maps[0, 18:23, 15:26] = 1
    torch.testing.assert_close(gaussian_blur(maps, 2.5).mean(), maps.mean(), rtol=1e-5, atol=0)  # fp32 sums


def test_blur_reaches_no_further_than_its_radius():
    maps = torch.zeros(1, 41, 41)
    maps[0, 20, 20] = 1
    blurred = gaussian_blur(maps, 2.0)[0]
    radius = blur_radius(2.0)
    assert blurred[20, 20 + radius] > 0 and blurred[20, 20 + radius + 1] == 0
    torch.testing.assert_close(blurred, blurred.T)  # both passes have one kernel
    expected = torch.exp(torch.tensor(-0.5 * (3 / 2.0) ** 2))
    torch.testing.assert_close(blurred[20, 23] / blurred[20, 20], expected)


@given(sigma=st.floats(0, 30), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_blur_stays_within_the_range_of_the_map(sigma, seed):
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(seed))
    blurred = gaussian_blur(maps, sigma)
    tolerance = 1e-6  # fp32 rounding of the kernel's sum
    assert blurred.min() >= maps.min() - tolerance and blurred.max() <= maps.max() + tolerance


def test_blur_leaves_a_constant_and_a_region_at_the_border():
    torch.testing.assert_close(gaussian_blur(torch.full((1, 6, 6), 0.7), 3.0), torch.full((1, 6, 6), 0.7))
    maps = torch.zeros(1, 30, 30)
    maps[:, :10] = 1
    assert gaussian_blur(maps, 1.0)[0, 0].min() > 0.999


def test_no_sigma_is_no_blur_and_a_negative_one_is_refused():
    assert torch.equal(gaussian_blur(MAPS, 0), MAPS)
    with pytest.raises(ValueError, match="sigma"):
        gaussian_blur(MAPS, -1)


def test_resize_keeps_range_constants_and_place():
    small = torch.zeros(1, 4, 4)
    small[0, 0, 0] = 1
    large = resize(small, (32, 16))
    assert large.shape == (1, 32, 16) and large.argmax() == 0
    assert large.min() >= 0 and large.max() <= 1
    torch.testing.assert_close(resize(torch.full((1, 9, 9), 0.3), (4, 5)), torch.full((1, 4, 5), 0.3))


def test_one_bright_pixel_top_left_goes_to_token_0():
    maps = torch.zeros(1, 8, 12)
    maps[0, 0, 0] = 1
    assert pool_to_tokens(maps, (2, 3)).tolist() == [[1 / 16, 0, 0, 0, 0, 0]]


def test_tokens_are_row_major():
    maps = torch.arange(6.0).view(1, 2, 3).repeat_interleave(4, 1).repeat_interleave(5, 2)  # (1, 8, 15)
    assert pool_to_tokens(maps, (2, 3)).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_pooling_keeps_the_mean_and_each_image_to_itself():
    tokens = pool_to_tokens(MAPS, (3, 5))
    torch.testing.assert_close(tokens.mean(1), MAPS.mean((1, 2)))
    assert torch.equal(pool_to_tokens(MAPS[1:2], (3, 5)), tokens[1:2])


@pytest.mark.parametrize("token_grid", [(5, 5), (3, 3), (24, 40), (0, 5)])
def test_map_that_is_no_multiple_of_the_grid_is_refused(token_grid):
    with pytest.raises(ValueError, match=f"12x20 pixels .* {token_grid[0]}x{token_grid[1]}"):
        pool_to_tokens(MAPS, token_grid)


def test_blur_is_fp32_under_autocast():
    expected = gaussian_blur(MAPS, 1.5)
    with torch.autocast("cpu", torch.bfloat16):
        blurred = gaussian_blur(MAPS, 1.5)
    assert blurred.dtype == torch.float32 and torch.equal(blurred, expected)
