"""Maps made wrong on purpose: what each control keeps and what it takes away."""

import pytest
import torch

from flow_grpo.training.controls import CONTROLS, controlled_maps

IDS = torch.tensor([4, 4, 4, 9, 9, 9, 11, 11, 11])


def maps(seed=0):
    return torch.rand(9, 24, generator=torch.Generator().manual_seed(seed))


def test_rolled_keeps_each_maps_values_and_moves_siblings_alike_on_the_torus():
    rolled, _ = controlled_maps(maps(), "reward", "rolled", IDS, token_grid=(4, 6), seed=1)
    before, after = maps().view(9, 4, 6), rolled.view(9, 4, 6)
    for group_id in (4, 9, 11):
        members = IDS == group_id
        fits = [
            (down, right)
            for down in range(4)
            for right in range(6)
            if torch.equal(before[members].roll((down, right), dims=(1, 2)), after[members])
        ]
        assert len(fits) == 1 and fits != [(0, 0)]


def test_another_seed_rolls_elsewhere_and_another_group_too():
    many = torch.arange(50)
    same = torch.rand(1, 64).expand(50, 64)
    one, again, other = (
        controlled_maps(same, "reward", "rolled", many, token_grid=(8, 8), seed=seed)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert len(one.unique(dim=0)) > 25  # of 63 offsets


def test_shuffled_gives_each_group_the_maps_of_another():
    rewards = torch.tensor([0.1, 0.5, 0.9] * 3)
    shuffled, _ = controlled_maps(maps(), "reward", "shuffled", IDS, rewards=rewards)
    givers = [int((maps() == row).all(dim=1).nonzero()) for row in shuffled]
    assert sorted(givers) == list(range(9))
    assert all(IDS[giver] != IDS[row] and giver % 3 == row % 3 for row, giver in enumerate(givers))  # of its own rank


def test_a_map_that_is_shuffled_brings_its_validity():
    valid = torch.ones(9, dtype=torch.bool)
    valid[4] = False
    rewards = torch.tensor([0.1, 0.5, 0.9] * 3)
    shuffled, ok = controlled_maps(maps(), "reward", "shuffled", IDS, valid, rewards=rewards)
    (taker,) = (~ok).nonzero()[:, 0].tolist()
    assert torch.equal(shuffled[taker], maps()[4])


def test_inverted_turns_evidence_around():
    inverted, _ = controlled_maps(maps(), "reward", "inverted", IDS, neutral=0.3)
    torch.testing.assert_close(inverted - 0.3, 0.3 - maps())
    inverted, _ = controlled_maps(maps(), "importance", "inverted", IDS)
    torch.testing.assert_close(inverted, 1 - maps())


def test_constant_leaves_the_mean():
    constant, _ = controlled_maps(maps(), "importance", "constant", IDS)
    assert torch.equal(constant, maps().mean(dim=1, keepdim=True).expand(9, 24))


@pytest.mark.parametrize("control", CONTROLS)
def test_a_constant_map_stays_constant(control):
    flat = torch.rand(9, 1).expand(9, 24)
    controlled, _ = controlled_maps(flat, "reward", control, IDS, token_grid=(4, 6))
    assert torch.equal(controlled, controlled[:, :1].expand(9, 24))
