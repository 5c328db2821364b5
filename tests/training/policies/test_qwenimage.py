"""What is Qwen-Image's own: masked padding, guidance that keeps a token's length, a last block that drops the text."""

import pytest
import torch


@pytest.fixture(scope="module")
def family(make_family):
    return make_family("qwenimage")


@pytest.fixture(scope="module")
def policy(family):
    return family.make_policy()


def latents_of(policy):
    return torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))


def test_every_prompt_is_padded_to_one_length_and_the_padding_changes_nothing(policy, prompts):
    embeds, sigma = policy.encode_prompts(prompts), torch.tensor(0.6)
    assert embeds.tokens.shape[1] == embeds.mask.shape[1] == 72 and not embeds.mask.all()
    noisy = type(embeds)(tokens=embeds.tokens + ~embeds.mask[..., None], mask=embeds.mask)
    with torch.no_grad():
        before, after = (policy.velocity(latents_of(policy), sigma, each) for each in (embeds, noisy))
    assert torch.equal(before, after)


def test_guidance_turns_a_tokens_velocity_and_keeps_its_length(family, policy, prompts):
    guided, sigma = family.make_policy(guidance_scale=4.5), torch.tensor(0.6)
    with torch.no_grad():
        conditional = policy.velocity(latents_of(policy), sigma, policy.encode_prompts(prompts))
        velocity = guided.velocity(latents_of(policy), sigma, policy.encode_prompts(prompts))
    # both halves in one batch take other matrix kernels
    torch.testing.assert_close(velocity.norm(dim=-1), conditional.norm(dim=-1), atol=1e-5, rtol=0)
    assert (velocity - conditional).abs().max() > 1e-3


def test_what_the_last_block_does_with_the_text_is_not_adapted(policy):
    names = {name.rsplit(".lora_", 1)[0] for name in policy.adapter_state()}
    first = {name.removeprefix("transformer_blocks.0.") for name in names if "blocks.0." in name}
    last = {name.removeprefix("transformer_blocks.1.") for name in names if "blocks.1." in name}
    assert first - last == {"attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2"} and last < first
