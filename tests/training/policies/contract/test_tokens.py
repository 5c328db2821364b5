"""Every family: an image's tokens are where its maps are pooled to."""

import math

import pytest
import torch

from flow_grpo.reward_map import pool_to_tokens
from tests.training.policies.asking import some_latents, velocity, with_changed_token

TOKENS = range(16)


@pytest.mark.parametrize("token, is_pixel", [(0, True), *((token, False) for token in TOKENS)])
@torch.no_grad()
def test_bright_pixels_reach_the_token_that_their_map_is_pooled_to(family, policy, token, is_pixel):
    """One pixel at the top left, and each token's square, by the VAE's encoder and the pipeline's own packing."""
    row, column, side = family.side(token // 4), family.side(token % 4), 1 if is_pixel else family.side(1)
    square = (..., slice(row, row + side), slice(column, column + side))
    bright_map = torch.zeros(1, family.side(4), family.side(4))
    bright_map[square] = 1
    images = 2 * torch.rand(8, 3, *bright_map.shape[1:], generator=torch.Generator().manual_seed(0)) - 1
    bright_images = images.clone()
    bright_images[square] = 1

    def tokens(pixels):
        return policy.to_tokens(family.encode(policy.pipeline.vae, pixels))

    change = (tokens(bright_images) - tokens(images)).abs().mean(dim=(0, 2))  # (N,)
    assert pool_to_tokens(bright_map, policy.token_grid)[0].nonzero().tolist() == [[token]]
    assert change.argmax().item() == token


@pytest.mark.parametrize("token", TOKENS)
def test_a_changed_token_changes_the_pixels_that_the_map_pools_to_it(policy, token):
    latents = some_latents(policy, batch=8)
    changed = with_changed_token(policy, latents, token)
    change = (policy.decode(changed) - policy.decode(latents)).abs().mean(dim=(0, 1))  # (H, W)
    assert pool_to_tokens(change[None], policy.token_grid).argmax().item() == token


@pytest.mark.parametrize("token", TOKENS)
def test_a_changed_token_changes_its_own_velocity_most(policy, token, prompts):
    """The transformer's own order of tokens is ours, so that a token's log-prob is of the token that was weighted."""
    latents, embeds = some_latents(policy), policy.encode_prompts(prompts)
    changed = with_changed_token(policy, latents, token)
    change = velocity(policy, changed, embeds) - velocity(policy, latents, embeds)
    assert policy.to_tokens(change).square().mean(dim=(0, 2)).argmax().item() == token


def test_tokens_hold_every_latent_exactly_once(policy):
    latents = torch.arange(3.0 * math.prod(policy.latent_shape)).reshape(3, *policy.latent_shape)
    tokens = policy.to_tokens(latents)
    assert tokens.shape == (3, 4 * 4, 4 * 2 * 2)
    for image, its_tokens in zip(latents, tokens, strict=True):
        assert torch.equal(its_tokens.flatten().sort().values, image.flatten().sort().values)


def test_a_resolution_of_broken_tokens_is_refused(family):
    broken = family.side(4) + family.layout.multiple // 2
    with pytest.raises(ValueError, match=f"resolution={broken} must be a multiple of {family.layout.multiple}"):
        family.make_policy(resolution=broken)
