"""Siblings' evidence: an image goes by what its siblings show where it shows nothing itself."""

import math

import pytest
import torch

from flow_grpo.training.spread import siblings_mean, token_weights


def sign_maps():
    """Three siblings on eight tokens: a good sign at token 2, a bad one there, and no box at all."""
    maps = torch.full((3, 8), 0.5)
    maps[0, 2], maps[1, 2] = 0.9, 0.2
    return maps, torch.zeros(3, dtype=torch.long)


def test_the_siblings_mean_leaves_the_image_out():
    values = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [8.0, 8.0]])
    means = siblings_mean(values, torch.tensor([0, 0, 0, 5]), torch.tensor([True, True, False, True]))
    # the third does not count, and has two siblings that do; the last has none
    assert means.tolist() == [[3.0, 4.0], [1.0, 0.0], [2.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_image_without_a_box_takes_its_siblings_place(advantage):
    maps, ids = sign_maps()
    advantages = torch.full((3,), advantage)
    own, alone = token_weights(advantages, maps, "reward")
    assert torch.equal(own[2], torch.ones(8)) and alone.tolist() == [False, False, True]
    weights, fallback = token_weights(advantages, maps, "reward", evidence="group", group_ids=ids)
    assert weights[2].argmax() == 2 and weights[2, 2] == 4.5 and not fallback.any()
    torch.testing.assert_close(weights.mean(dim=1), torch.ones(3))


@pytest.mark.parametrize("kind", ["reward", "importance"])
def test_a_group_of_one_goes_by_its_own_evidence(kind):
    maps = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))
    advantages = torch.tensor([1.0, -1.0, 0.5, -2.0])
    own, _ = token_weights(advantages, maps, kind)
    group, _ = token_weights(advantages, maps, kind, evidence="group", group_ids=torch.arange(4))
    assert torch.equal(group, own)


def test_a_group_without_any_evidence_stays_even():
    maps, ids = sign_maps()
    maps = torch.cat([maps, torch.full((2, 8), 0.5)])
    ids = torch.cat([ids, torch.tensor([1, 1])])
    weights, fallback = token_weights(-torch.ones(5), maps, "reward", evidence="group", group_ids=ids)
    assert torch.equal(weights[3:], torch.ones(2, 8)) and fallback.tolist() == [False] * 3 + [True] * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, "invalid"])
def test_an_unusable_sibling_shows_nothing(bad):
    maps, ids = sign_maps()
    valid = torch.ones(3, dtype=torch.bool)
    if bad == "invalid":
        valid[1] = False
    else:
        maps[1, 5] = bad
    weights, _ = token_weights(-torch.ones(3), maps, "reward", map_valid=valid, evidence="group", group_ids=ids)
    others = torch.tensor([0, 2])
    without, _ = token_weights(-torch.ones(2), maps[others], "reward", evidence="group", group_ids=ids[others])
    assert torch.equal(weights[others], without)
    assert weights[1].argmax() == 2  # and it goes by the others


def test_constant_maps_of_a_whole_group_stay_even():
    maps = torch.tensor([0.3, 0.8, 0.5])[:, None].expand(3, 9)
    weights, _ = token_weights(
        torch.tensor([1.0, -1.0, 1.0]), maps, "reward", evidence="group", group_ids=torch.zeros(3, dtype=torch.long)
    )
    assert torch.equal(weights, torch.ones(3, 9))


def test_the_evidence_of_the_group_needs_the_groups():
    with pytest.raises(ValueError, match="group_ids must be an integer tensor"):
        token_weights(torch.ones(3), sign_maps()[0], "reward", evidence="group")
