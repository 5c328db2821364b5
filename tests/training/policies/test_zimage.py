"""What is Z-Image's own: prompts of their own lengths, and a pipeline that writes into the list of them."""

import pytest
import torch


@pytest.fixture(scope="module")
def policy(make_family):
    return make_family("zimage").make_policy()


def test_the_callers_prompts_stay_as_they_are(policy, prompts):
    mine = list(prompts)
    policy.encode_prompts(mine)
    assert mine == prompts


def test_the_mask_holds_a_prompts_own_tokens_and_the_rest_is_zero(policy):
    embeds = policy.encode_prompts(["a sign", "a red sign beside a green one"])
    lengths = embeds.mask.sum(dim=1)
    assert lengths[0] < lengths[1] < embeds.mask.shape[1] == 72
    assert not embeds.tokens[~embeds.mask].any() and embeds.tokens[embeds.mask].any(dim=-1).all()


def test_refiners_and_blocks_are_adapted_in_attention_and_feed_forward(policy):
    names = {name.rsplit(".lora_", 1)[0] for name in policy.adapter_state()}
    targets = {"attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"}
    targets |= {"feed_forward.w1", "feed_forward.w2", "feed_forward.w3"}
    stacks = ("noise_refiner", "context_refiner", "layers")
    assert names == {f"{stack}.0.{target}" for stack in stacks for target in targets}


def test_what_stands_behind_a_prompts_end_changes_nothing(policy, prompts):
    embeds, sigma = policy.encode_prompts(prompts), torch.tensor(0.6)
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    noisy = type(embeds)(tokens=embeds.tokens + ~embeds.mask[..., None], mask=embeds.mask)
    with torch.no_grad():
        assert torch.equal(policy.velocity(latents, sigma, noisy), policy.velocity(latents, sigma, embeds))
