"""Which images an update is over, and what each weighs in it, worked by hand."""

import pytest
import torch

from flow_grpo.training.records import Credit
from flow_grpo.training.update import earning_batches, has_advantage, kl_loss

# eight images in batches of two; 1, 4 and 5 have an advantage
HAS_ANY = [False, True, False, False, True, True, False, False]


def weights(batches, num_counted):
    """What each image weighs in an update: the mean of a batch, the mean over batches, times the update's share."""
    share = len(batches) * len(batches[0]) / num_counted
    return {row: share / len(batches) / len(batch) for batch in batches for row in batch}


@pytest.mark.parametrize(("drop", "weight"), [(False, 1 / 8), (True, 1 / 3)])
def test_an_image_weighs_its_share_of_those_that_the_mean_is_over(drop, weight):
    batches, num_counted = earning_batches(HAS_ANY, [3], batch_size=2, drop=drop)
    assert batches == [[1, 4], [5, 0]]
    assert weights(batches, num_counted) == pytest.approx(dict.fromkeys((1, 4, 5, 0), weight))


def test_an_image_weighs_the_same_whichever_process_has_it():
    """Three in one process and one in the other; their gradients are averaged, so each of the four weighs 1/4."""
    for has_any in (HAS_ANY, [False] * 7 + [True]):
        batches, num_counted = earning_batches(has_any, [3, 1], batch_size=2, drop=True)
        assert len(batches) == 2  # as many in both: each backward pass waits for the other process
        assert set(weights(batches, num_counted).values()) == {1 / 2}  # half of it in the mean over two processes


def test_an_update_without_any_advantage_is_one_batch_of_no_weight():
    batches, num_counted = earning_batches([False] * 4, [0, 0], batch_size=2, drop=True)
    credit = Credit(torch.zeros(1, 2, 3), None, None)
    assert batches == [[0, 1]] and num_counted == 1
    assert kl_loss(torch.ones(2, 3), credit, drop=True).item() == 0


def test_a_dropped_image_has_no_kl_and_a_kept_one_its_own():
    advantages = torch.zeros(2, 3, 2)  # (S, B, N)
    advantages[1, 2, 0] = -1.0  # the last of three images, at one step and token
    kl = torch.tensor([[4.0, 4.0], [2.0, 2.0], [6.0, 12.0]])
    credit = Credit(advantages, None, None)
    assert has_advantage(credit).tolist() == [False, False, True]
    assert kl_loss(kl, credit, drop=False).item() == 5.0  # 30 / 6
    assert kl_loss(kl, credit, drop=True).item() == 3.0  # 18 / 6
    weighted = Credit(advantages, None, torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 0.0]]))
    assert kl_loss(kl, weighted, drop=True).item() == 2.0  # 12 / 6
