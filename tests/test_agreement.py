"""Values of Flow-GRPO's formulas, worked by hand: what docs/agreement.md says stays so."""

import math

import pytest
import torch

from flow_grpo.training.advantages import group_advantages
from flow_grpo.training.objective import grpo_loss
from flow_grpo.training.sde import kl_per_token, log_prob_per_token, sde_step

# x = 2, v = 1, sigma = 0.8 -> 0.6, thus dt = -0.2
X, V = torch.tensor([[2.0]]), torch.tensor([[1.0]])


def test_a_step_of_the_sde():
    mean, std = sde_step(X, V, sigma=0.8, sigma_next=0.6, noise_level=0.5, kind="flow")
    # std_t = sqrt(0.8 / 0.2) * 0.5 = 1; mean = 2 (1 - 0.2 / 1.6) - 0.2 (1 + 0.2 / 1.6) = 1.75 - 0.225
    assert mean.item() == pytest.approx(1.525, abs=1e-6)
    assert float(std) == pytest.approx(math.sqrt(0.2), abs=1e-7)


def test_the_first_step_takes_the_next_sigma_for_its_denominator():
    _, std = sde_step(X, V, sigma=1.0, sigma_next=0.8, noise_level=0.5, kind="flow")
    # std_t = sqrt(1 / 0.2) * 0.5 = 1.118034, times sqrt(0.2)
    assert float(std) == pytest.approx(0.5, abs=1e-7)


def test_a_step_of_cps():
    mean, std = sde_step(X, V, sigma=0.8, sigma_next=0.6, noise_level=2 / 3, kind="cps")
    # std = 0.6 sin(60 degrees); x0_hat = 2 - 0.8 = 1.2; x1_hat = 2 + 0.2 = 2.2; mean = 0.4 * 1.2 + 0.6 cos(60 degrees) * 2.2
    assert float(std) == pytest.approx(0.6 * math.sqrt(3) / 2, abs=1e-6)
    assert mean.item() == pytest.approx(0.48 + 0.66, abs=1e-6)


def test_log_prob_of_an_image():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # one image of two tokens of two values, mean 0, std 0.5
    log_prob = log_prob_per_token(tokens, torch.zeros_like(tokens), 0.5)
    # -1 / (2 * 0.25) at one of four values: -0.5 in the mean; -log 0.5 - log sqrt(2 pi) everywhere
    assert log_prob.mean().item() == pytest.approx(-0.5 + math.log(2) - 0.9189385, abs=1e-6)
    assert log_prob_per_token(tokens, torch.zeros_like(tokens), 0.5, kind="cps").mean().item() == -0.25


def test_kl_leaves_the_steps_length_out_of_the_variance():
    shifted = torch.tensor([[[0.3, 0.1]]])
    std = math.sqrt(0.2)  # of the step above, whose std_t is 1
    kl = kl_per_token(shifted, torch.zeros_like(shifted), std, sigma=0.8, sigma_next=0.6)
    assert kl.item() == pytest.approx((0.09 + 0.01) / 2 / 2, abs=1e-7)


@pytest.mark.parametrize(("std", "scale"), [("global", math.sqrt(0.05)), ("group", 0.2)])
def test_advantages_of_two_groups(std, scale):
    rewards = torch.tensor([0.2, 0.6, 0.8, 0.4])
    advantages = group_advantages(rewards, torch.tensor([0, 0, 1, 1]), std)
    # group means 0.4 and 0.6; each value is 0.2 from its own; all four have the mean 0.5, a variance of 0.05
    expected = torch.tensor([-0.2, 0.2, 0.2, -0.2]) / (scale + 1e-4)
    torch.testing.assert_close(advantages, expected, atol=2e-7, rtol=1e-6)


def test_loss_of_two_images_one_of_them_clipped():
    old = torch.zeros(2, 3)
    log_prob = torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]], requires_grad=True)
    advantages = torch.tensor([[2.0], [-1.0]])
    loss, metrics = grpo_loss(log_prob, old, advantages, clip_range=0.1, ratio="image")
    # ratios e^0.2, clipped at 1.1, and 1: (-2 * 1.1 + 1) / 2
    assert loss.item() == pytest.approx(-0.6, abs=1e-6)
    loss.backward()
    # the clipped image has no gradient; of the other each of three tokens has -A / (2 images * 3 tokens)
    torch.testing.assert_close(log_prob.grad, torch.tensor([[0.0] * 3, [1 / 6] * 3]))
    assert metrics["approx_kl"].item() == pytest.approx(0.5 * 0.04 / 2, abs=1e-7)
