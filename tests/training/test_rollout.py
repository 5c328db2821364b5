"""Rollout and replay on the real pipeline: one policy in both, so that before an update nothing has moved."""

import math

import pytest
import torch

from flow_grpo.training.advantages import token_advantages
from flow_grpo.training.objective import RATIOS, grpo_loss
from flow_grpo.training.rollout import (
    SDE,
    draw_window,
    kl_to_base,
    pack,
    replay,
    rollout,
    sample_noise,
)
from flow_grpo.training.sde import KINDS, sde_step

NUM_KEPT = 3


@pytest.fixture(scope="module")
def trained(make_policy):
    """A policy whose adapter has moved away from the base model."""
    policy = make_policy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture(scope="module")
def drawn(trained, prompts):
    """Four samples of two prompts: two groups of siblings."""
    return rollout(trained, [prompts[0], prompts[0], prompts[1], prompts[1]], [1, 2, 3, 4], SDE(4, 0.7), NUM_KEPT)


def gradient(policy, loss):
    parameters = policy.trainable_parameters()
    return torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_the_ratio_is_exactly_one_before_the_first_update(make_policy, prompts, kind, guidance_scale):
    policy, sde = make_policy(guidance_scale=guidance_scale), SDE(4, 0.7, kind)
    trajectories = rollout(policy, prompts, [1, 2], sde, NUM_KEPT)
    for step in range(NUM_KEPT):
        density = replay(policy, trajectories, step, sde)
        assert density.log_prob.requires_grad
        assert torch.equal(density.log_prob, trajectories.log_probs[:, step])
        _, metrics = grpo_loss(density.log_prob, trajectories.log_probs[:, step], torch.ones(2, 1), 1e-4, "token")
        assert metrics["ratio_deviation_max"] == 0


def test_samples_of_one_start_seed_share_the_first_latent_and_not_the_second(trained, prompts):
    drawn = rollout(trained, [prompts[0]] * 2, [1, 2], SDE(4, 0.7), NUM_KEPT, start_seeds=[1, 1])
    assert torch.equal(drawn.latents[0, 0], drawn.latents[1, 0])
    assert not torch.equal(drawn.latents[0, 1], drawn.latents[1, 1])
    own = rollout(trained, [prompts[0]] * 2, [1, 2], SDE(4, 0.7), NUM_KEPT)
    assert torch.equal(drawn.latents[0], own.latents[0]) and not torch.equal(drawn.latents[1], own.latents[1])


def test_the_ratio_leaves_one_once_the_policy_has_moved(trained, drawn):
    weight = trained.trainable_parameters()[0]
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(0.05)
        moved = replay(trained, drawn, 0, SDE(4, 0.7)).log_prob
        weight.copy_(kept)
    assert not torch.equal(moved, drawn.log_probs[:, 0])


def test_the_mean_of_the_tokens_log_probs_is_flow_grpos_image_log_prob(trained, drawn):
    for step in range(NUM_KEPT):
        sigma, sigma_next = drawn.sigmas[step], drawn.sigmas[step + 1]
        velocity = trained.velocity(drawn.latents[:, step], sigma, drawn.embeds)
        mean, std = sde_step(drawn.latents[:, step], velocity, sigma, sigma_next, 0.7, "flow")
        # Flow-GRPO, sd3_sde_with_logprob.py: the Gaussian log-density, averaged over all values of the latent
        error = (drawn.next_latents[:, step].detach() - mean) ** 2
        image = (-error / (2 * std**2) - torch.log(std) - math.log(math.sqrt(2 * math.pi))).mean(dim=(1, 2, 3))
        # the order of a mean of 2048 fp32 values
        torch.testing.assert_close(drawn.log_probs[:, step].mean(dim=1), image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kind", ["reward", "importance"])
@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 1.0])
def test_a_constant_map_gives_the_scalar_loss_and_gradient_bit_for_bit(trained, drawn, ratio, kind, level):
    advantages = torch.tensor([1.3, -1.3, 0.4, -0.4])
    density = replay(trained, drawn, 1, SDE(4, 0.7))
    old = drawn.log_probs[:, 1] + 1e-5  # off the exact ratio of 1

    def loss_with(mode, maps):
        spread = token_advantages(advantages, maps, mode, kind)
        return grpo_loss(density.log_prob, old, spread, 1e-4, ratio)[0]

    scalar, mapped = loss_with("scalar", None), loss_with("weight", torch.full((4, 64), level))
    assert torch.equal(scalar, mapped)
    by_density = [torch.autograd.grad(loss, density.log_prob, retain_graph=True)[0] for loss in (scalar, mapped)]
    assert torch.equal(*by_density) and by_density[0].any()


@pytest.mark.parametrize("mode", ["weight", "residual"])
def test_a_constant_map_gives_the_scalar_gradient_of_every_lora_weight(trained, drawn, mode):
    advantages, group_ids = torch.tensor([1.3, -1.3, 0.4, -0.4]), torch.tensor([0, 0, 1, 1])

    def gradient_with(mode, maps):
        density = replay(trained, drawn, 0, SDE(4, 0.7))
        spread = token_advantages(advantages, maps, mode, "reward", group_ids=group_ids)
        return gradient(trained, grpo_loss(density.log_prob, drawn.log_probs[:, 0], spread, 1e-4, "gspo_token")[0])

    scalar, mapped = gradient_with("scalar", None), gradient_with(mode, torch.full((4, 64), 0.7))
    assert all(torch.equal(one, other) for one, other in zip(scalar, mapped, strict=True))
    assert any(one.any() for one in scalar)


def test_a_map_moves_the_gradient(trained, drawn):
    """The counterpart of the constant map: what is not constant must be felt."""
    advantages, maps = torch.tensor([1.3, -1.3, 0.4, -0.4]), torch.full((4, 64), 0.5)
    maps[:, 0] = 1.0

    def gradient_with(mode):
        density = replay(trained, drawn, 0, SDE(4, 0.7))
        spread = token_advantages(advantages, maps, mode, "reward")
        return gradient(trained, grpo_loss(density.log_prob, drawn.log_probs[:, 0], spread, 1e-4, "gspo_token")[0])

    pairs = zip(gradient_with("scalar"), gradient_with("weight"), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_the_kl_to_the_base_is_zero_for_a_fresh_adapter_and_positive_for_a_trained_one(make_policy, trained, drawn):
    fresh, sde = make_policy(), SDE(4, 0.7)
    density = replay(fresh, drawn, 0, sde)
    assert not kl_to_base(fresh, drawn, 0, sde, density, exact=False).any()
    density = replay(trained, drawn, 0, sde)
    kl = kl_to_base(trained, drawn, 0, sde, density, exact=False)
    assert kl.shape == (4, 64) and (kl > 0).all()
    base = replay(fresh, drawn, 0, sde)
    variance = density.std.square() / (drawn.sigmas[0] - drawn.sigmas[1])  # Flow-GRPO's, without |dt|
    by_hand = (density.mean - base.mean).square().mean(dim=-1) / (2 * variance)
    # one more rounding in the hand-made form
    torch.testing.assert_close(kl, by_hand, rtol=1e-5, atol=1e-9)


def test_the_gradient_of_the_kl_reaches_the_adapter_and_nothing_else(trained, drawn):
    sde = SDE(4, 0.7)
    kl = kl_to_base(trained, drawn, 1, sde, replay(trained, drawn, 1, sde), exact=False).mean()
    assert any(part.any() for part in gradient(trained, kl))


def test_kept_steps_join_and_start_from_the_samples_own_noise(trained, drawn):
    assert drawn.latents.shape == drawn.next_latents.shape == (4, NUM_KEPT, *trained.latent_shape)
    assert drawn.log_probs.shape == (4, NUM_KEPT, 64) and drawn.log_probs.dtype == torch.float32
    assert torch.equal(drawn.next_latents[:, :-1], drawn.latents[:, 1:])
    assert torch.equal(drawn.latents[:, 0], sample_noise([1, 2, 3, 4], 1, trained.latent_shape, "cpu")[:, 0])


def test_a_rollout_keeps_no_graph(drawn):
    assert not any(t.requires_grad for t in (drawn.latents, drawn.next_latents, drawn.log_probs, drawn.images))


def test_noise_belongs_to_the_seed_not_to_the_place_in_the_batch():
    noise = sample_noise([5, 6, 7], 2, (3, 4), "cpu")
    assert torch.equal(sample_noise([7, 5], 2, (3, 4), "cpu"), noise[[2, 0]])
    assert not torch.equal(noise[0], noise[1])


def test_a_sample_is_the_same_in_another_batch(trained, drawn, prompts):
    alone = rollout(trained, [prompts[1]], [3], SDE(4, 0.7), NUM_KEPT)
    # another batch size takes other matrix kernels, whose fp32 rounding four steps carry on
    torch.testing.assert_close(alone.images[0], drawn.images[2], atol=1e-3, rtol=0)


def test_siblings_differ_by_their_noise_alone(drawn):
    assert torch.equal(drawn.embeds.tokens[0], drawn.embeds.tokens[1])
    assert (drawn.images[0] - drawn.images[1]).abs().max() > 0.01


def test_without_noise_the_steps_are_eulers(trained, prompts):
    drawn = rollout(trained, prompts, [1, 2], SDE(3, noise_level=0.0), num_kept=0)
    assert drawn.log_probs.numel() == 0
    sigmas, sample = trained.sigmas(3), sample_noise([1, 2], 1, trained.latent_shape, "cpu")[:, 0]
    with torch.no_grad():
        for sigma, sigma_next in zip(sigmas, sigmas[1:]):
            sample = sample + (sigma_next - sigma) * trained.velocity(sample, sigma, drawn.embeds)
    assert torch.equal(drawn.images, trained.decode(sample))


@pytest.mark.parametrize("kind", KINDS)
def test_outside_its_window_a_rollout_is_the_ode_and_within_it_the_ratio_is_one(trained, prompts, kind):
    sde = SDE(5, 0.7, kind, window=range(1, 3))
    drawn = rollout(trained, prompts, [1, 2], sde, num_kept=2)
    ode = rollout(trained, prompts, [1, 2], SDE(5, 0.0), num_kept=5)
    assert torch.equal(drawn.sigmas, trained.sigmas(5)[1:4])
    assert torch.equal(drawn.latents[:, 0], ode.latents[:, 1])  # step 0 had no noise
    assert not torch.equal(drawn.next_latents[:, 0], ode.latents[:, 2])  # step 1 had
    with torch.no_grad():
        for step in range(2):
            assert torch.equal(replay(trained, drawn, step, sde).log_prob, drawn.log_probs[:, step])
        sample, sigmas = drawn.next_latents[:, -1], trained.sigmas(5)
        for step in (3, 4):
            velocity = trained.velocity(sample, sigmas[step], drawn.embeds)
            sample = sample + (sigmas[step + 1] - sigmas[step]) * velocity
    assert torch.equal(trained.decode(sample), drawn.images)


def test_a_window_over_every_step_is_the_rollout_without_one(trained, prompts):
    windowed = rollout(trained, prompts, [1, 2], SDE(4, 0.7, window=range(4)), NUM_KEPT)
    plain = rollout(trained, prompts, [1, 2], SDE(4, 0.7), NUM_KEPT)
    assert torch.equal(windowed.images, plain.images) and torch.equal(windowed.log_probs, plain.log_probs)


def test_windows_lie_anywhere_in_their_range_and_repeat_by_their_seed():
    drawn = [draw_window(3, (1, 6), 42, epoch) for epoch in range(200)]
    assert drawn == [draw_window(3, (1, 6), 42, epoch) for epoch in range(200)]
    starts = [window.start for window in drawn]
    assert set(starts) == {1, 2, 3} and all(len(window) == 3 and window.stop <= 6 for window in drawn)
    assert all(40 < starts.count(start) < 95 for start in (1, 2, 3))  # about 67 each


def test_packed_samples_are_the_rows_of_their_batches(trained, prompts):
    batches = [rollout(trained, prompts, seeds, SDE(3, 0.7), 2, keep_means=True) for seeds in ([1, 2], [3, 4])]
    packed = pack(batches, [3, 0])
    for name in ("latents", "next_latents", "log_probs", "means"):
        first, last = getattr(batches[1], name)[1], getattr(batches[0], name)[0]
        assert torch.equal(getattr(packed, name), torch.stack([first, last]))
    assert torch.equal(packed.embeds.tokens, batches[0].embeds.tokens[[1, 0]])
    assert pack(batches, [2, 3]) is batches[1]
