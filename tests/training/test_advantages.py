"""Who is praised, and where: group statistics by hand, and the invariants that keep a map from changing how much."""

import itertools
import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.training.advantages import (
    faded_alpha,
    group_advantages,
    token_advantages,
    token_residuals,
    token_weights,
    weight_metrics,
)
from flow_grpo.training.modes import residual_metrics

FP32_ROUNDING = 1e-5  # of numbers up to 8 that were computed in float64 and rounded once, and their fp32 mean

finite_maps = st.integers(1, 40).flatmap(
    lambda num_tokens: st.lists(
        st.lists(st.floats(0, 1, width=32), min_size=num_tokens, max_size=num_tokens), min_size=1, max_size=5
    )
)


def random_maps(batch, num_tokens, seed=0):
    return torch.rand(batch, num_tokens, generator=torch.Generator().manual_seed(seed))


def test_group_std_by_hand():
    # group 7: 0, 1, 2 has mean 1 and population std sqrt(2/3); group 3: 5, 7 has mean 6 and std 1
    rewards, ids = torch.tensor([0.0, 5.0, 1.0, 7.0, 2.0]), torch.tensor([7, 3, 7, 3, 7])
    std = math.sqrt(2 / 3) + 1e-4
    expected = torch.tensor([-1 / std, -1 / 1.0001, 0.0, 1 / 1.0001, 1 / std])
    torch.testing.assert_close(group_advantages(rewards, ids), expected)


def test_global_std_is_numpys_of_all_rewards():
    rewards, ids = torch.tensor([0.0, 5.0, 1.0, 7.0, 2.0]), torch.tensor([7, 3, 7, 3, 7])
    expected = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]) / (numpy.std(rewards.numpy()).item() + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, ids, std="global"), expected)


@pytest.mark.parametrize("std", ["group", "global"])
@pytest.mark.parametrize(
    "rewards, ids", [([0.3], [5]), ([0.1, 0.1, 0.1], [0, 0, 0]), ([0.7, 0.1, 0.1, 0.1], [1, 0, 0, 0])]
)
def test_group_of_one_and_equal_rewards_give_exactly_zero(std, rewards, ids):
    for dtype in (torch.float32, torch.float64):
        advantages = group_advantages(torch.tensor(rewards, dtype=dtype), torch.tensor(ids), std)
        assert torch.equal(advantages, torch.zeros(len(ids)))


@pytest.mark.parametrize("std", ["group", "global"])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_order_of_batch_and_groups_changes_no_bit_of_the_advantages(std, data):
    size = data.draw(st.integers(1, 30))
    rewards = torch.tensor(data.draw(st.lists(st.floats(-10, 10, width=32), min_size=size, max_size=size)))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)))
    order = torch.tensor(data.draw(st.permutations(range(size))))
    names = torch.tensor(data.draw(st.permutations(range(5)))) * 1000 - 2000
    advantages = group_advantages(rewards, ids, std)
    assert advantages.isfinite().all()
    assert torch.equal(group_advantages(rewards[order], names[ids][order], std), advantages[order])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_order_changes_no_bit_even_where_sums_lose_digits(order):
    # in float64, (1e17 + 1) - 1e17 is 0, but (1e17 - 1e17) + 1 is 1
    rewards, ids = torch.tensor([1e17, 1.0, -1e17], dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    order = torch.tensor(order)
    assert torch.equal(group_advantages(rewards[order], ids), group_advantages(rewards, ids)[order])


def test_a_group_is_untouched_by_its_neighbours_under_group_std():
    rewards, ids = torch.tensor([0.1, 0.4, 0.9, 100.0, -3.0]), torch.tensor([0, 0, 0, 1, 1])
    assert torch.equal(group_advantages(rewards, ids)[:3], group_advantages(rewards[:3], ids[:3]))


@pytest.mark.parametrize(
    "rewards, ids, std, words",
    [
        (torch.zeros(2), torch.zeros(2), "group", "integer tensor"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.bool), "group", "integer tensor"),
        (torch.zeros(2), torch.zeros(3, dtype=torch.long), "group", r"shape \(2,\)"),
        (torch.zeros(2), ["a cat", "a cat"], "group", "integer tensor"),
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), "group", r"rewards must be \(B,\)"),
        (torch.tensor([0.0, math.nan]), torch.zeros(2, dtype=torch.long), "group", "1 of 2 rewards are NaN"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.long), "batch", "unknown std 'batch'"),
    ],
)
def test_group_advantages_refuses_bad_input(rewards, ids, std, words):
    with pytest.raises(ValueError, match=words):
        group_advantages(rewards, ids, std)


@pytest.mark.parametrize("mode, map_kind", [("weight", "reward"), ("weight", "importance"), ("residual", "reward")])
@given(
    value=st.floats(0, 1, width=32),
    advantage=st.floats(-4, 4, width=32),
    alpha=st.floats(0, 1),
    num_tokens=st.integers(1, 50),
)
@settings(max_examples=40, deadline=None)
def test_constant_map_of_any_value_gives_scalar(mode, map_kind, value, advantage, alpha, num_tokens):
    # a sibling with contrast stands beside it
    maps = torch.stack([torch.full((num_tokens,), value), torch.linspace(0, 1, num_tokens)])
    ids = torch.zeros(2, dtype=torch.long)
    spread = token_advantages(torch.tensor([advantage, 1.0]), maps, mode, map_kind, alpha=alpha, group_ids=ids)
    assert torch.equal(spread[0], torch.full((num_tokens,), advantage))


@pytest.mark.parametrize("mode, map_kind", [("weight", "reward"), ("weight", "importance"), ("residual", "reward")])
@pytest.mark.parametrize("alpha", [0, 0.0, torch.zeros(4)])
def test_no_strength_gives_scalar(mode, map_kind, alpha):
    advantages, maps = torch.tensor([0.3, -0.7, 5.0, 0.0]), random_maps(4, 33)
    spread = token_advantages(advantages, maps, mode, map_kind, alpha=alpha, group_ids=torch.tensor([0, 0, 1, 1]))
    assert torch.equal(spread, advantages[:, None].expand(4, 33))


@pytest.mark.parametrize("mode", ["scalar", "weight", "residual"])
def test_no_map_gives_scalar(mode):
    advantages = torch.tensor([0.3, -0.7])
    assert torch.equal(token_advantages(advantages, None, mode, None), advantages[:, None])


def test_scalar_mode_ignores_the_map():
    advantages = torch.tensor([0.3, -0.7])
    assert torch.equal(
        token_advantages(advantages, random_maps(2, 5), "scalar", None), advantages[:, None].expand(2, 5)
    )


@pytest.mark.parametrize("mode", ["weight", "residual"])
def test_image_without_a_text_box_gives_scalar(mode):
    maps = torch.full((3, 16), 0.5)
    maps[1, 2:5], maps[2, 3:9] = 0.9, 0.2
    ids = torch.zeros(3, dtype=torch.long)
    spread = token_advantages(torch.tensor([1.3, 1.0, -1.0]), maps, mode, "reward", group_ids=ids)
    assert torch.equal(spread[0], torch.full((16,), 1.3))
    assert not torch.equal(spread[1], torch.full((16,), 1.0))


@pytest.mark.parametrize("mode", ["weight", "residual"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "invalid"])
def test_unusable_map_gives_scalar_and_leaves_its_siblings_alone(mode, bad):
    advantages, maps, ids = torch.tensor([1.0, -1.0, 0.5]), random_maps(3, 12), torch.zeros(3, dtype=torch.long)
    valid = torch.ones(3, dtype=torch.bool)
    if bad == "invalid":
        valid[1] = False
    else:
        maps[1, 4] = bad
    spread = token_advantages(advantages, maps, mode, "reward", map_valid=valid, group_ids=ids)
    others = torch.tensor([0, 2])
    without = token_advantages(advantages[others], maps[others], mode, "reward", group_ids=ids[others])
    assert torch.equal(spread[1], torch.full((12,), -1.0))
    assert torch.equal(spread[others], without)


@pytest.mark.parametrize("mode, map_kind", [("weight", "reward"), ("weight", "importance"), ("residual", "reward")])
@given(rows=finite_maps, alpha=st.floats(0, 1), data=st.data())
@settings(max_examples=80, deadline=None)
def test_mean_over_tokens_is_the_images_advantage(mode, map_kind, rows, alpha, data):
    maps = torch.tensor(rows)
    batch = maps.shape[0]
    advantages = torch.tensor(data.draw(st.lists(st.floats(-5, 5, width=32), min_size=batch, max_size=batch)))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=batch, max_size=batch)))
    spread = token_advantages(advantages, maps, mode, map_kind, alpha=alpha, group_ids=ids)
    # one rounding a token to fp32, of numbers up to 5 * 8
    torch.testing.assert_close(spread.double().mean(dim=1), advantages.double(), rtol=0, atol=5e-6)


def test_advantages_are_clamped_before_they_are_spread():
    maps = torch.tensor([[0.5, 0.9], [0.5, 0.9]])
    spread = token_advantages(torch.tensor([80.0, 5.0]), maps, "weight", "reward")
    assert torch.equal(spread[0], spread[1])
    assert token_advantages(torch.tensor([80.0]), None, "scalar", None, adv_clip_max=2).item() == 2


@pytest.mark.parametrize("mode", ["weight", "residual"])
def test_order_of_batch_and_groups_changes_no_bit_of_the_token_advantages(mode):
    advantages, maps, ids = random_maps(12, 1, seed=9)[:, 0] - 0.5, random_maps(12, 31), torch.arange(12) % 3
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    names = torch.tensor([40, -2, 7])
    spread = token_advantages(advantages, maps, mode, "reward", group_ids=ids)
    permuted = token_advantages(advantages[order], maps[order], mode, "reward", group_ids=names[ids][order])
    assert torch.equal(permuted, spread[order])


def test_weights_of_part_of_a_batch_are_those_of_the_whole():
    advantages, maps = random_maps(12, 1, seed=9)[:, 0] - 0.5, random_maps(12, 31)
    whole = token_advantages(advantages, maps, "weight", "reward")
    parts = [token_advantages(advantages[half], maps[half], "weight", "reward") for half in (slice(0, 5), slice(5, 12))]
    assert torch.equal(torch.cat(parts), whole)


def test_token_advantages_carry_no_gradient():
    maps, advantages = random_maps(2, 4).requires_grad_(), torch.ones(2, requires_grad=True)
    for mode in ("scalar", "weight", "residual"):
        assert not token_advantages(advantages, maps, mode, "reward", group_ids=torch.tensor([0, 0])).requires_grad


def test_praise_goes_where_evidence_is_good_and_blame_where_it_is_bad():
    # tokens: nothing, good, bad, nothing. x of praise 0 .4 0 0, mean .1; of blame 0 0 .2 0, mean .05
    maps = torch.tensor([[0.5, 0.9, 0.3, 0.5]]).expand(2, 4)
    spread = token_advantages(torch.tensor([1.0, -1.0]), maps, "weight", "reward", alpha=0.5)
    expected = torch.tensor([[0.5, 2.5, 0.5, 0.5], [-0.5, -0.5, -2.5, -0.5]])
    torch.testing.assert_close(spread, expected, rtol=0, atol=FP32_ROUNDING)


def test_image_without_such_a_place_takes_the_evidence_there_is():
    # only bad text, but praised over its siblings; only good text, but blamed
    maps = torch.tensor([[0.5, 0.1, 0.5, 0.5], [0.5, 0.5, 0.5, 0.9]])
    weights, fallback = token_weights(torch.tensor([1.0, -1.0]), maps, "reward", alpha=0.5)
    expected = torch.tensor([[0.5, 2.5, 0.5, 0.5], [0.5, 0.5, 0.5, 2.5]])
    torch.testing.assert_close(weights, expected, rtol=0, atol=FP32_ROUNDING)
    assert not fallback.any()


def test_importance_map_weighs_praise_and_blame_alike():
    # m / mean(m) is .5, 1.5 around a mean of .4
    weights, _ = token_weights(
        torch.tensor([2.0, -2.0]), torch.tensor([[0.2, 0.6]]).expand(2, 2), "importance", alpha=0.5
    )
    torch.testing.assert_close(weights, torch.tensor([[0.75, 1.25]]).expand(2, 2), rtol=0, atol=FP32_ROUNDING)


@given(
    rows=finite_maps, alpha=st.floats(0, 1), w_max=st.floats(1, 50), map_kind=st.sampled_from(["reward", "importance"])
)
@settings(max_examples=150, deadline=None)
def test_weights_have_mean_one_and_keep_the_cap(rows, alpha, w_max, map_kind):
    maps = torch.tensor(rows)
    weights, _ = token_weights(torch.ones(maps.shape[0]), maps, map_kind, alpha, w_max)
    torch.testing.assert_close(weights.double().mean(dim=1), torch.ones(maps.shape[0]).double(), rtol=0, atol=1e-6)
    assert weights.min() >= 0
    assert weights.max() <= w_max * (1 + 1e-7)  # w_max itself is rounded to fp32


@given(rows=finite_maps, alpha=st.floats(0, 1), w_max=st.floats(1, 8))
@settings(max_examples=50, deadline=None)
def test_more_importance_never_weighs_less(rows, alpha, w_max):
    maps = torch.tensor(rows)
    weights, _ = token_weights(torch.ones(maps.shape[0]), maps, "importance", alpha, w_max)
    assert (weights.gather(1, maps.argsort(dim=1)).diff(dim=1) >= 0).all()


def test_cap_is_where_capping_and_renormalising_in_turn_ends():
    maps = random_maps(6, 200) ** 12  # a few tokens far above the rest
    capped, _ = token_weights(torch.ones(6), maps, "importance", alpha=0.9, w_max=4)
    weights = 0.1 + 0.9 * maps.double() / maps.double().mean(dim=1, keepdim=True)
    assert (weights > 4).any(dim=1).all()
    for _ in range(1000):
        weights = weights.clamp(max=4)
        weights = weights / weights.mean(dim=1, keepdim=True)
    torch.testing.assert_close(capped.double(), weights, rtol=0, atol=FP32_ROUNDING)


def test_cap_by_hand():
    # one of 16 tokens has all the evidence: 0.5 + 8 = 8.5 is cut to 4, the others share 12 of 15
    maps = torch.full((1, 16), 0.5)
    maps[0, 3] = 1.0
    weights, _ = token_weights(torch.ones(1), maps, "reward", alpha=0.5, w_max=4)
    expected = torch.full((1, 16), 0.8)
    expected[0, 3] = 4
    torch.testing.assert_close(weights, expected, rtol=0, atol=FP32_ROUNDING)


def test_cap_holds_where_all_weight_is_on_one_token():
    # alpha = 1 leaves the others weight 0, which no scaling raises: they share what the cap takes away evenly
    maps = torch.zeros(1, 16)
    maps[0, 3] = 1.0
    weights, _ = token_weights(torch.ones(1), maps, "importance", alpha=1, w_max=4)
    expected = torch.full((1, 16), 0.8)
    expected[0, 3] = 4
    torch.testing.assert_close(weights, expected, rtol=0, atol=FP32_ROUNDING)


def test_infinite_cap_is_none():
    maps = torch.zeros(1, 16)
    maps[0, 3] = 1.0
    weights, _ = token_weights(torch.ones(1), maps, "importance", alpha=1, w_max=math.inf)
    torch.testing.assert_close(weights, 16 * maps)


def test_fallback_counts_every_map_that_was_not_used():
    good = [0.5, 0.9, 0.5]
    maps = torch.tensor([good, good, [0.5, math.nan, 0.5], [0.5, math.inf, 0.5], [0.5] * 3, [0.8] * 3])
    valid = torch.tensor([True, False, True, True, True, True])
    weights, fallback = token_weights(torch.ones(6), maps, "reward", map_valid=valid)
    assert fallback.tolist() == [False, True, True, True, True, False]
    assert torch.equal(weights[1:], torch.ones(5, 3))


@pytest.mark.parametrize("largest, is_fallback", [(0.9e-4, True), (2e-4, False)])
@pytest.mark.parametrize("num_tokens", [2, 64, 16384])
def test_faint_evidence_falls_back_at_any_resolution(num_tokens, largest, is_fallback):
    maps = torch.zeros(1, num_tokens)
    maps[0, 1] = largest
    weights, fallback = token_weights(torch.ones(1), maps, "importance")
    assert fallback.item() is is_fallback
    assert (weights == 1).all().item() is is_fallback


def test_evidence_that_fades_away_fades_out_without_a_jump():
    maps = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    levels = torch.linspace(0, 2e-3, 400)[:, None]
    weights, _ = token_weights(torch.ones(400), levels * maps / maps.max(), "importance", alpha=1)
    assert torch.equal(weights[0], torch.ones(64))
    # the steepest part takes 9e-4 to go from even to all
    assert weights.diff(dim=0).abs().max() < 1.1 * weights[-1].sub(1).abs().max() * (2e-3 / 399) / 9e-4


def test_a_side_that_fades_away_fades_into_the_other_without_a_jump():
    """One token is bad throughout; one is good, ever less. Praise moves from the good one to where there is anything."""
    good = torch.linspace(0.02, 0, 2001)
    maps = torch.full((2001, 8), 0.5)
    maps[:, 0], maps[:, 1] = 0.5 + good, 0.1
    weights, fallback = token_weights(torch.ones(2001), maps, "reward", alpha=0.5)
    assert not fallback.any() and weights[0, 0] > 4 and weights[-1, 1] > 4
    assert weights.diff(dim=0).abs().max() < 0.02


def test_strength_may_differ_by_image():
    advantages, maps = torch.ones(2), random_maps(2, 9)
    both, _ = token_weights(advantages, maps, "importance", alpha=torch.tensor([0.25, 0.75]))
    for i, alpha in enumerate([0.25, 0.75]):
        assert torch.equal(both[i], token_weights(advantages, maps, "importance", alpha=alpha)[0][i])


def test_faded_alpha_trusts_the_map_more_as_the_image_forms():
    assert faded_alpha(0.5, 0.75, 2) == 0.5 / 16
    assert faded_alpha(0.5, 1.0, 1) == 0
    assert faded_alpha(0.5, 1.0, 0) == 0.5
    torch.testing.assert_close(faded_alpha(0.5, torch.tensor([1.0, 0.5, 0.0]), 1), torch.tensor([0.0, 0.25, 0.5]))


def test_residual_by_hand():
    # the group mean is .5 .5; u is .4 0, 0 0 and -.4 0; centred +-.2, 0 and -+.2, with a pooled std of sqrt(.08 / 3)
    maps = torch.tensor([[0.9, 0.5], [0.5, 0.5], [0.1, 0.5]])
    residuals, fallback = token_residuals(maps, torch.zeros(3, dtype=torch.long), "reward")
    scaled = 0.2 / math.sqrt(0.08 / 3)
    expected = torch.tensor([[scaled, -scaled], [0.0, 0.0], [-scaled, scaled]])
    torch.testing.assert_close(residuals, expected, rtol=0, atol=FP32_ROUNDING)
    assert fallback.tolist() == [False, True, False]


def test_residual_of_siblings_that_hardly_differ_is_not_blown_up():
    # u centred is +-.01, far under the least std of .05
    maps = torch.tensor([[0.52, 0.5], [0.48, 0.5]])
    residuals, _ = token_residuals(maps, torch.zeros(2, dtype=torch.long), "reward")
    torch.testing.assert_close(residuals, torch.tensor([[0.2, -0.2], [-0.2, 0.2]]), rtol=0, atol=FP32_ROUNDING)


def test_residual_is_clipped_and_its_mean_still_zero():
    maps = torch.full((2, 400), 0.5)
    maps[0, 7] = 1.0  # u is .25 in one token of 400: twenty standard deviations
    maps[1, 9] = 0.49
    residuals, _ = token_residuals(maps, torch.zeros(2, dtype=torch.long), "reward")
    assert residuals[0, 7].item() == pytest.approx(3, abs=0.05)  # centred again after the clip, 3 / 400 and less
    torch.testing.assert_close(residuals.double().mean(dim=1), torch.zeros(2).double(), rtol=0, atol=1e-6)


def test_residual_learns_where_the_whole_group_has_one_score():
    maps = torch.tensor([[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]])
    spread = token_advantages(torch.zeros(2), maps, "residual", "reward", lam=0.3, group_ids=torch.tensor([4, 4]))
    assert (spread[0, 0] > 0) and (spread[0, 2] < 0) and (spread[1, 0] < 0) and (spread[1, 2] > 0)


def test_lam_scales_the_residual():
    advantages, maps, ids = torch.tensor([1.0, -1.0]), random_maps(2, 6), torch.tensor([0, 0])
    residuals, _ = token_residuals(maps, ids, "reward")
    spread = token_advantages(advantages, maps, "residual", "reward", lam=0.3, group_ids=ids)
    torch.testing.assert_close(spread, advantages[:, None] + 0.3 * residuals)
    default = token_advantages(advantages, maps, "residual", "reward", alpha=0.3, group_ids=ids)
    assert torch.equal(default, spread)


def test_residual_compares_siblings_only():
    maps, ids = random_maps(4, 6), torch.tensor([0, 0, 1, 1])
    maps[2:] = maps[:2] * 0.5 + 0.25  # a second group with half the contrast, so only the pooled std is shared
    residuals, _ = token_residuals(maps, ids, "reward")
    torch.testing.assert_close(residuals[2:], residuals[:2] / 2, rtol=0, atol=1e-4)


def test_residual_of_an_image_alone_is_zero():
    advantages = token_advantages(
        torch.tensor([1.5]), random_maps(1, 6), "residual", "reward", group_ids=torch.tensor([0])
    )
    assert torch.equal(advantages, torch.full((1, 6), 1.5))


def test_residual_of_a_batch_without_a_usable_map_is_zero():
    residuals, fallback = token_residuals(torch.full((2, 5), math.nan), torch.tensor([0, 0]), "reward")
    assert torch.equal(residuals, torch.zeros(2, 5)) and fallback.all()


def test_residual_metrics_by_hand():
    change = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, -2.0, 0.0, 0.0]])
    metrics = residual_metrics(change, torch.tensor([True, False]))
    assert metrics == {"fallback_share": 0.5, "residual_rms": 1}


def test_weight_metrics_by_hand():
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0]])
    metrics = weight_metrics(weights, torch.tensor([True, False]))
    assert metrics["fallback_share"] == 0.5
    assert metrics["effective_token_share"] == (1 + 0.25) / 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"mode": "pixel"}, "unknown mode 'pixel'"),
        ({"map_kind": "attention"}, "unknown map_kind 'attention'"),
        ({"map_kind": None}, "unknown map_kind None"),
        ({"token_maps": torch.zeros(3, 4)}, r"token_maps must be \(2, N\)"),
        ({"token_maps": torch.zeros(2, 2, 2)}, r"token_maps must be \(2, N\)"),
        ({"advantages": torch.zeros(2, 1)}, r"advantages must be \(B,\)"),
        ({"mode": "scalar", "map_kind": "attention"}, "unknown map_kind 'attention'"),
        ({"mode": "scalar", "evidence": "siblings"}, "unknown evidence 'siblings'"),
        ({"advantages": torch.tensor([0.0, math.nan])}, r"advantages must be \(B,\) and finite"),
        ({"adv_clip_max": -5.0}, "adv_clip_max=-5.0"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": torch.tensor([0.5, 1.5])}, "alpha=tensor"),
        ({"mode": "residual", "alpha": 1.5}, "alpha=1.5"),
        ({"w_max": 0.5}, "w_max=0.5"),
        ({"w_max": math.nan}, "w_max=nan"),
        ({"map_valid": torch.ones(3, dtype=torch.bool)}, r"map_valid must be bool \(2,\)"),
        ({"map_valid": torch.ones(2)}, r"map_valid must be bool \(2,\)"),
        ({"mode": "residual", "map_kind": "importance"}, 'takes "reward" maps'),
        ({"mode": "residual", "group_ids": None}, "group_ids must be an integer tensor"),
        ({"mode": "residual", "group_ids": torch.zeros(2)}, "group_ids must be an integer tensor"),
    ],
)
def test_token_advantages_refuses_bad_input(change, words):
    good = {
        "advantages": torch.zeros(2),
        "token_maps": torch.rand(2, 4),
        "mode": "weight",
        "map_kind": "reward",
        "group_ids": torch.tensor([0, 0]),
    }
    with pytest.raises(ValueError, match=words):
        token_advantages(**(good | change))


@pytest.mark.parametrize("std", ["group", "global"])
def test_image_that_could_not_be_scored_counts_nowhere(std):
    rewards, ids = torch.tensor([0.1, 0.5, 99.0, 0.2, 0.9, -99.0]), torch.tensor([0, 0, 0, 1, 1, 2])
    valid = torch.tensor([True, True, False, True, True, False])
    advantages = group_advantages(rewards, ids, std, valid)
    assert advantages[~valid].tolist() == [0, 0]
    assert torch.equal(advantages[valid], group_advantages(rewards[valid], ids[valid], std))
