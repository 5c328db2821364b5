"""Where maps say something, and the KL weights that hold the rest to the base model."""

import math
from dataclasses import replace

import pytest
import torch

from config.grpo import get_config
from config.validation import resolve
from flow_grpo.training.credit import (
    CreditRule,
    assign_credit,
    background_weights,
    evidence_metrics,
    map_evidence,
    rewarded_region,
)
from flow_grpo.training.modes import MODES, Mode
from flow_grpo.training.records import Scored, TokenMap

MAPS = torch.tensor([[0.5, 0.9, 0.1, 0.5], [0.5, 0.5, 0.5, 0.5]])


def test_evidence_of_a_reward_map_is_its_distance_from_neutral():
    torch.testing.assert_close(map_evidence(MAPS, "reward"), torch.tensor([[0, 0.4, 0.4, 0], [0, 0, 0, 0]]))


def test_evidence_is_counted_from_the_neutral_that_the_map_came_with():
    torch.testing.assert_close(map_evidence(MAPS, "reward", neutral=0.9)[1], torch.full((4,), 0.4))


def test_credit_of_a_map_with_a_neutral_of_its_own_is_that_of_the_map_moved_to_a_half():
    rule = CreditRule("global", "sum", "weight", "group", "none", 0.5, 0.0, 8.0, 5.0)
    maps = 0.4 * torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    rewards, valid, ids = torch.arange(6.0), torch.ones(6, dtype=torch.bool), torch.tensor([0, 0, 0, 1, 1, 1])

    def advantages(values, neutral, control):
        token_map = TokenMap(values, "reward", valid, neutral)
        scored = Scored(rewards, valid, ids, {"ocr": token_map}, {"ocr": rewards})
        with_control = replace(rule, control=control)
        return assign_credit(scored, [1.0, 0.5], 3, {"ocr": 1.0}, with_control, 0.0, (4, 4))[0].advantages

    for control in ("none", "rolled", "shuffled", "inverted"):
        moved = advantages(maps, 0.2, control), advantages(maps + 0.3, 0.5, control)
        torch.testing.assert_close(*moved, rtol=0, atol=1e-5)  # maps of fp32, moved by 0.3


def test_evidence_of_an_importance_map_is_the_map():
    assert torch.equal(map_evidence(MAPS, "importance"), MAPS)


def test_evidence_of_a_reward_map_is_its_distance_from_its_neutral():
    maps = torch.tensor([[0.2, 0.3, 0.9]])
    torch.testing.assert_close(map_evidence(maps, "reward", neutral=0.3), torch.tensor([[0.1, 0.0, 0.6]]))


@pytest.mark.parametrize("neutral", [0.2, 0.5, 0.8])
def test_credit_is_the_same_whatever_the_neutral_is(neutral):
    """A map that is moved with its neutral says the same."""
    change = torch.tensor([[0.15, 0, 0, 0], [-0.15, 0, 0, 0], [0, 0.1, 0, 0], [0, 0, 0, 0]])

    def credit(level):
        maps = {"text": TokenMap(change + level, "reward", torch.ones(4, dtype=torch.bool), level)}
        rewards = torch.tensor([1.0, 0.0, 0.7, 0.2])
        scored = Scored(
            rewards, torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.long), maps, {"text": rewards}
        )
        rule = CreditRule("group", "sum", "weight", "own", "none", 0.5, 0.0, 8.0, 5.0)
        return assign_credit(scored, [1.0], 0, {"text": 1.0}, rule, spatial_kl=0.5)

    (one, metrics), (other, expected) = credit(neutral), credit(0.5)
    torch.testing.assert_close(one.advantages, other.advantages, rtol=0, atol=1e-4)  # fp32 of the moved map
    torch.testing.assert_close(one.kl_weights, other.kl_weights, rtol=0, atol=1e-4)
    assert metrics == pytest.approx(expected, abs=1e-4)


def test_a_map_that_cannot_be_used_has_no_evidence():
    maps = torch.cat([MAPS, torch.tensor([[math.nan, 1, 1, 1]])])
    evidence = map_evidence(maps, "importance", torch.tensor([True, False, True]))
    assert torch.equal(evidence, torch.stack([MAPS[0], torch.zeros(4), torch.zeros(4)]))


def test_the_region_is_a_share_of_the_largest_evidence():
    region = rewarded_region(torch.tensor([[0, 0.1, 0.4, 0.2], [0, 0, 0, 0]]))
    torch.testing.assert_close(region, torch.tensor([[0, 0.25, 1, 0.5], [0, 0, 0, 0]]))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_background_weights_have_mean_one_and_fall_with_the_region(strength):
    region = torch.rand(5, 64, generator=torch.Generator().manual_seed(0))
    weights = background_weights(region, strength)
    torch.testing.assert_close(weights.mean(dim=1), torch.ones(5))
    assert (weights >= 0).all()
    order = region.argsort(dim=1)
    assert (weights.gather(1, order).diff(dim=1) <= 0).all()


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_a_region_that_is_the_same_everywhere_weighs_all_tokens_alike(level):
    weights = background_weights(torch.full((2, 64), level), 1.0)
    torch.testing.assert_close(weights, torch.ones(2, 64))


def test_full_strength_leaves_the_heart_of_the_region_free():
    weights = background_weights(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 1.0)
    torch.testing.assert_close(weights, torch.tensor([[0, 4 / 3, 4 / 3, 4 / 3]]))


def test_metrics_by_hand():
    even, one = torch.full((1, 4), 0.2), torch.tensor([[0, 0, 0.3, 0]])
    assert evidence_metrics(even) == {"coverage": 1, "entropy": pytest.approx(1)}
    assert evidence_metrics(one) == {"coverage": 0.25, "entropy": pytest.approx(0)}
    assert evidence_metrics(torch.zeros(1, 4)) == {"coverage": 0, "entropy": pytest.approx(1)}
    assert evidence_metrics(torch.cat([even, one])) == {"coverage": 0.625, "entropy": pytest.approx(0.5)}


def test_a_quantity_that_only_some_images_have_is_averaged_over_those():
    details = {"ocr": torch.tensor([1.0, 0.0]), "ocr/words": torch.tensor([3.0, math.nan])}
    both = torch.tensor([True, True])
    scored = Scored(details["ocr"], both, torch.tensor([0, 0]), {}, details)
    rule = CreditRule(**get_config("tiny_ocr").advantage)
    _, metrics = assign_credit(scored, [1.0], 0, {"ocr": 1.0}, rule, 0.0)
    assert metrics["rollout/ocr/words"] == 3


# A mode of one's own


def test_a_mode_is_added_by_one_function_and_one_row(monkeypatch):
    """All praise and blame to the first token; known to validation, to credit and to its metrics."""

    def first_token(part, maps, map_kind, **_):
        change = torch.zeros_like(maps, dtype=torch.float64)
        change[:, 0] = maps.shape[1]
        return part[:, None] * (change - 1)

    def measured(part, maps, map_kind, **_):
        return {"first_share": torch.tensor(1.0)}

    monkeypatch.setitem(MODES, "first", Mode(first_token, ("reward",), measured))
    config = get_config("tiny_ocr_map")
    config.advantage.mode = "first"
    config, _ = resolve(config, num_processes=1)
    scored = Scored(
        rewards=torch.tensor([1.0, 0.0]),
        valid=torch.tensor([True, True]),
        group_ids=torch.tensor([0, 0]),
        maps={"ocr_map": TokenMap(MAPS, "reward", torch.tensor([True, True]))},
        details={"ocr_map": torch.tensor([1.0, 0.0])},
    )
    credit, metrics = assign_credit(scored, [1.0], 0, {"ocr_map": 1.0}, CreditRule(**config.advantage), 0.0)
    # the change is made in float64, of an advantage that is rounded to fp32
    expected = torch.tensor([[4.0, 0, 0, 0], [-4.0, 0, 0, 0]]) * metrics["rollout/advantage_abs_mean"]
    torch.testing.assert_close(credit.advantages[0], expected, rtol=1e-6, atol=1e-6)
    assert metrics["map/ocr_map/first_share"] == 1
