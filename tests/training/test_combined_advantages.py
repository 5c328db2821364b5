"""Several rewards: each spreads its own part by its own map, and the parts add up to the image's advantage."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.training.advantages import (
    combined_token_advantages,
    group_advantages,
    part_metrics,
    reward_parts,
    token_advantages,
)

FP32_ROUNDING = 1e-5  # of numbers up to 40 that were computed in float64 and rounded once
IDS = torch.tensor([0, 0, 0, 1, 1, 1])


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def two_rewards(seed=0):
    """Rewards of six images in two groups, a map for each: OCR's a reward map, CLIP's an importance map."""
    rewards = {"ocr": rand(6, seed=seed), "clip": 20 * rand(6, seed=seed + 1)}
    maps = {"ocr": rand(6, 16, seed=seed + 2), "clip": rand(6, 16, seed=seed + 3)}
    return rewards, {"ocr": 0.7, "clip": 0.05}, maps, {"ocr": "reward", "clip": "importance"}


def test_the_parts_add_up_to_flow_grpos_advantage():
    rewards, weights, *_ = two_rewards()
    advantages, parts = reward_parts(rewards, weights, IDS)
    total = 0.7 * rewards["ocr"].double() + 0.05 * rewards["clip"].double()
    assert torch.equal(advantages, group_advantages(total, IDS, "global"))
    torch.testing.assert_close(sum(parts.values()).float(), advantages, rtol=0, atol=1e-6)


@pytest.mark.parametrize("combine", ["sum", "each"])
@pytest.mark.parametrize("std", ["global", "group"])
@pytest.mark.parametrize("mode", ["scalar", "weight"])
def test_the_mean_over_tokens_is_the_images_advantage(mode, std, combine):
    rewards, weights, maps, kinds = two_rewards()
    spread = combined_token_advantages(rewards, weights, maps, kinds, IDS, mode=mode, std=std, combine=combine)
    advantages, _ = reward_parts(rewards, weights, IDS, std, combine)
    torch.testing.assert_close(spread.double().mean(dim=1), advantages.double(), rtol=0, atol=5e-6)


def test_garbled_letters_are_never_praised_by_ocr_whatever_another_reward_says():
    """Image 0 has garbled letters (tokens 0 and 1) and the better picture by far; image 1 has clean letters there."""
    maps = torch.full((2, 8), 0.5)
    maps[0, :2], maps[1, :2] = 0.1, 0.9
    rewards = {"ocr": torch.tensor([0.1, 0.9]), "pick": torch.tensor([5.0, 1.0])}
    spread = combined_token_advantages(
        rewards, {"ocr": 0.5, "pick": 0.5}, {"ocr": maps}, {"ocr": "reward"}, torch.tensor([0, 0])
    )
    advantages, parts = reward_parts(rewards, {"ocr": 0.5, "pick": 0.5}, torch.tensor([0, 0]))
    assert advantages[0] > 0 > parts["ocr"][0]
    # the letters of the praised image get less than the rest of it, and the difference is OCR's blame
    assert spread[0, :2].max() < spread[0, 2:].min()
    torch.testing.assert_close(spread[0, 0] - spread[0, 2], (parts["ocr"][0] * 2).float(), rtol=1e-5, atol=0)


@given(pick=st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_ocrs_part_of_blamed_letters_is_blame_for_any_other_reward(pick):
    rewards = {"ocr": torch.tensor([0.1, 0.9, 0.2, 0.8]), "pick": torch.tensor(pick)}
    _, parts = reward_parts(rewards, {"ocr": 0.5, "pick": 0.5}, torch.tensor([0, 0, 1, 1]))
    assert parts["ocr"][0] <= 0 and parts["ocr"][2] <= 0


@pytest.mark.parametrize("mode", ["weight", "residual"])
def test_one_reward_is_spread_as_token_advantages_does(mode):
    rewards, maps = rand(6), rand(6, 16, seed=1)
    combined = combined_token_advantages(
        {"ocr": rewards}, {"ocr": 2.0}, {"ocr": maps}, {"ocr": "reward"}, IDS, mode=mode
    )
    alone = token_advantages(group_advantages(2 * rewards.double(), IDS, "global"), maps, mode, "reward", group_ids=IDS)
    torch.testing.assert_close(combined, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("combine", ["sum", "each"])
@pytest.mark.parametrize("change", ["constant", "alpha", "none", "invalid", "control"])
def test_maps_that_say_nothing_give_the_scalar_advantage_to_the_bit(combine, change):
    rewards, weights, maps, kinds = two_rewards()
    settings = {"combine": combine, "evidence": "group"}
    scalar = combined_token_advantages(rewards, weights, maps, kinds, IDS, mode="scalar", combine=combine)
    if change == "constant":
        maps = {"ocr": torch.full((6, 16), 0.3), "clip": rand(6, 1).expand(6, 16)}
    elif change == "alpha":
        settings["alpha"] = 0.0
    elif change == "none":
        maps, kinds = {}, {}
    elif change == "invalid":
        settings["map_valid"] = dict.fromkeys(maps, torch.zeros(6, dtype=torch.bool))
    else:
        settings["control"] = "constant"
    spread = combined_token_advantages(rewards, weights, maps, kinds, IDS, **settings)
    assert torch.equal(spread.expand(6, 16), scalar)


def test_rewards_that_cancel_leave_exactly_the_scalar_advantage_of_constant_maps():
    """Of a total of 0 every rounding would be seen."""
    rewards = {"a": torch.tensor([0.1, 0.3]), "b": torch.tensor([0.3, 0.1])}
    maps = dict.fromkeys(rewards, torch.full((2, 6), 0.7))
    spread = combined_token_advantages(
        rewards, dict.fromkeys(rewards, 1.0), maps, dict.fromkeys(rewards, "reward"), torch.tensor([0, 0])
    )
    advantages, _ = reward_parts(rewards, dict.fromkeys(rewards, 1.0), torch.tensor([0, 0]))
    assert torch.equal(spread, advantages[:, None].expand(2, 6))


def test_one_reward_less_another_is_an_advantage_too():
    rewards, _, maps, kinds = two_rewards()
    weights = {"ocr": 1.0, "clip": -1.0}
    advantages, _ = reward_parts(rewards, weights, IDS)
    spread = combined_token_advantages(rewards, weights, maps, kinds, IDS)
    torch.testing.assert_close(spread.mean(dim=1), advantages)
    assert spread.std(dim=1).min() > 0


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_each_does_not_see_a_rewards_scale(scale):
    rewards, weights, maps, kinds = two_rewards()
    spread = combined_token_advantages(rewards, weights, maps, kinds, IDS, combine="each")
    scaled = combined_token_advantages(
        rewards | {"clip": scale * rewards["clip"]}, weights, maps, kinds, IDS, combine="each"
    )
    # fp32 rewards are rounded once more by the scale
    torch.testing.assert_close(scaled, spread, rtol=0, atol=1e-5)


def test_each_by_hand():
    """Group stds of 1 and 10 for weights 1 and 1: both rewards count alike, and the batch's std of the sum divides."""
    rewards = {"a": torch.tensor([0.0, 2.0, 0.0, 2.0]), "b": torch.tensor([0.0, 20.0, 20.0, 0.0])}
    advantages, parts = reward_parts(rewards, {"a": 1.0, "b": 1.0}, torch.tensor([0, 0, 1, 1]), combine="each")
    scale = math.sqrt(2) + 1e-4  # of the sums -2, 2, 0, 0
    torch.testing.assert_close(advantages, torch.tensor([-2.0, 2.0, 0.0, 0.0]) / scale)
    expected = torch.tensor([-1.0, 1.0, 1.0, -1.0], dtype=torch.float64) / scale
    torch.testing.assert_close(parts["b"], expected)


def test_a_reward_that_is_the_same_for_all_siblings_has_no_part():
    rewards = {"a": torch.tensor([0.1, 0.1 + 1e-8, 0.1]), "b": torch.tensor([1.0, 2.0, 3.0])}
    for combine in ("sum", "each"):
        _, parts = reward_parts(rewards, {"a": 1.0, "b": 1.0}, torch.zeros(3, dtype=torch.long), combine=combine)
        assert parts["a"].abs().max() < 1e-6


def test_the_clamp_holds_for_the_sum_and_cuts_the_parts_alike():
    rewards = {"a": torch.zeros(60), "b": torch.zeros(60)}
    rewards["a"][0], rewards["b"][0] = 30.0, -10.0  # 7.7 standard deviations above the 59 others, together
    advantages, parts = reward_parts(rewards, {"a": 1.0, "b": 1.0}, torch.zeros(60, dtype=torch.long))
    assert advantages[0] == 5
    assert float(parts["a"][0] + parts["b"][0]) == pytest.approx(5)
    assert float(parts["a"][0] / parts["b"][0]) == pytest.approx(-3)


def test_rewards_against_each_other_do_not_blow_up_their_parts():
    rewards = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([1.0, 1e-6])}
    advantages, parts = reward_parts(rewards, {"a": 1.0, "b": 1.0}, torch.tensor([0, 0]))
    assert all(part.abs().max() <= 10 for part in parts.values())  # 1e4 without a limit on what cancels
    torch.testing.assert_close(sum(parts.values()).float(), advantages, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode, evidence", [("weight", "own"), ("weight", "group"), ("residual", "own")])
@pytest.mark.parametrize("control", ["none", "rolled", "shuffled", "inverted", "constant"])
def test_the_order_of_the_batch_changes_no_bit(mode, evidence, control):
    rewards, weights, maps, _ = two_rewards()
    rewards["ocr"][1] = rewards["ocr"][0]  # a tie
    settings = {"mode": mode, "evidence": evidence, "control": control, "token_grid": (4, 4), "seed": 3}
    kinds = dict.fromkeys(maps, "reward")
    order = torch.tensor([3, 5, 0, 2, 4, 1])
    spread = combined_token_advantages(rewards, weights, maps, kinds, IDS, **settings)
    permuted = combined_token_advantages(
        {name: reward[order] for name, reward in rewards.items()},
        weights,
        {name: values[order] for name, values in maps.items()},
        kinds,
        IDS[order],
        **settings,
    )
    assert torch.equal(permuted, spread[order])


def test_an_image_that_could_not_be_scored_counts_nowhere():
    rewards, weights, maps, kinds = two_rewards()
    valid = torch.tensor([True, True, False, True, True, True])
    ok = dict.fromkeys(maps, valid)
    maps["ocr"][2] = math.nan
    spread = combined_token_advantages(rewards, weights, maps, kinds, IDS, evidence="group", valid=valid, map_valid=ok)
    without = combined_token_advantages(
        {name: reward[valid] for name, reward in rewards.items()},
        weights,
        {name: values[valid] for name, values in maps.items()},
        kinds,
        IDS[valid],
        evidence="group",
    )
    assert torch.equal(spread[2], torch.zeros(16)) and torch.equal(spread[valid], without)


def test_a_neutral_of_its_own_moves_the_evidence():
    """The same picture around another neutral, as far from it: the same advantages."""
    rewards, maps = {"ocr": rand(6)}, 0.4 * rand(6, 16, seed=1)
    low = combined_token_advantages(rewards, {"ocr": 1.0}, {"ocr": maps}, {"ocr": "reward"}, IDS, neutrals={"ocr": 0.2})
    middle = combined_token_advantages(rewards, {"ocr": 1.0}, {"ocr": maps + 0.3}, {"ocr": "reward"}, IDS)
    torch.testing.assert_close(low, middle, rtol=0, atol=FP32_ROUNDING)


def test_metrics_of_the_parts_by_hand():
    rewards = {"a": torch.tensor([0.0, 2.0, 5.0, 5.0]), "b": torch.tensor([1.0, 1.0, 0.0, 6.0])}
    parts = {"a": torch.tensor([-1.0, 1.0, 1.0, 0.0]), "b": torch.tensor([0.0, 0.0, -4.0, 1.0])}
    metrics = part_metrics(rewards, parts, torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool))
    assert {name: float(value) for name, value in metrics.items()} == {
        **{"a/advantage_share": 3 / 8, "b/advantage_share": 5 / 8},
        **{"a/group_std": 0.5, "b/group_std": 1.5},
        "sign_disagreement": 0.25,
    }


@pytest.mark.parametrize(
    "change, words",
    [
        ({"combine": "mean"}, "unknown combine 'mean'"),
        ({"mode": "pixel"}, "unknown mode 'pixel'"),
        ({"evidence": "siblings"}, "unknown evidence 'siblings'"),
        ({"control": "mirrored"}, "unknown control 'mirrored'"),
        ({"control": "mirrored", "mode": "scalar"}, "unknown control 'mirrored'"),
        ({"control": "mirrored", "token_maps": {}, "map_kinds": {}}, "unknown control 'mirrored'"),
        ({"map_kinds": {"ocr": "reward", "clip": "attention"}, "mode": "scalar"}, "unknown map_kind 'attention'"),
        ({"neutrals": {"orc": 0.2}}, "neutrals name orc"),
        ({"weights": {"ocr": 1.0, "clip": math.nan}}, "weights must be finite"),
        ({"control": "rolled", "token_grid": (3, 4)}, r"token_grid=\(3, 4\) must hold the 16 tokens"),
        ({"control": "shuffled", "group_ids": torch.zeros(6, dtype=torch.long)}, "needs two groups or more"),
        ({"weights": {"ocr": 1.0}}, "must have the same names"),
        ({"map_kinds": {"ocr": "reward"}}, "must have the same names"),
        ({"std": "batch"}, "unknown std 'batch'"),
        ({"mode": "residual", "weights": {"ocr": 0.3, "clip": -0.3}}, r"weights .* cancel"),
    ],
)
def test_bad_input_is_refused(change, words):
    rewards, weights, maps, kinds = two_rewards()
    good = {"rewards": rewards, "weights": weights, "token_maps": maps, "map_kinds": kinds, "group_ids": IDS}
    with pytest.raises(ValueError, match=words):
        combined_token_advantages(**(good | change))
