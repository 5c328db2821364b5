"""What is FLUX's own: packed latents, guidance as an embedding, the shift by resolution, its LoRA targets."""

import math

import pytest
import torch
from diffusers import FluxPipeline

from flow_grpo.training.rollout import SDE, rollout


@pytest.fixture(scope="module")
def flux(make_family):
    return make_family("flux")


@pytest.fixture(scope="module")
def schnell(make_family):
    """Of FLUX.1-schnell's kind: neither a guidance embedding nor a shift."""
    return make_family("flux", guidance_embeds=False)


def test_latents_are_packed_as_the_pipeline_packs_them(flux):
    policy = flux.make_policy()
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))  # (B, C, h, w)
    packed = FluxPipeline._pack_latents(latents, *latents.shape)
    assert packed.shape[1:] == policy.latent_shape == (16, 16)
    assert policy.to_tokens(packed) is packed
    shift, scale = policy.pipeline.vae.config.shift_factor, policy.pipeline.vae.config.scaling_factor
    with torch.no_grad():
        expected = torch.cat([policy.pipeline.vae.decode(one[None] / scale + shift).sample for one in latents])
    # not to the bit: the policy decodes in channels_last
    torch.testing.assert_close(policy.decode(packed), (expected / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("resolution, shift", [(128, 0.5), (256, 0.63), (512, 1.15)])
def test_the_schedule_shifts_with_the_number_of_tokens(flux, resolution, shift):
    """256 tokens: base_shift. 4096: max_shift. 1024, FLUX at 512 px: 0.5 + 0.65 * 768 / 3840 = 0.63."""
    policy = flux.make_policy(resolution=resolution)
    # exp(shift) / (exp(shift) + 1 / t - 1) at t = 3/4, 1/2 and 1/4
    expected = [1.0, *(math.exp(shift) / (math.exp(shift) + 1 / t - 1) for t in (0.75, 0.5, 0.25)), 0.0]
    torch.testing.assert_close(policy.sigmas(4), torch.tensor(expected))


def test_without_shift_the_sigmas_are_even(schnell):
    assert schnell.make_policy().sigmas(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_model_without_guidance_embedding_draws_what_its_pipeline_draws(schnell, prompts):
    drawn = rollout(schnell.make_policy(), prompts, [5, 6], SDE(2, noise_level=0.0), 1)
    expected = schnell.draw(schnell.load_pipeline(), prompts, drawn.latents[:, 0], num_steps=2, output_type="pt")
    # the pipeline decodes both images at once
    torch.testing.assert_close(drawn.images, expected, atol=1e-5, rtol=0)


def test_a_guidance_that_would_be_ignored_is_refused(schnell):
    with pytest.raises(ValueError, match="guidance_scale=3.5 would be ignored.*set it to 1"):
        schnell.make_policy(guidance_scale=3.5)


def test_attention_and_feed_forward_of_both_streams_are_adapted(flux):
    names = {name.rsplit(".lora_", 1)[0] for name in flux.make_policy().adapter_state()}
    image = {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"}
    text = {"attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"}
    text |= {"ff_context.net.0.proj", "ff_context.net.2"}
    single = {"attn.to_q", "attn.to_k", "attn.to_v"}
    assert names == {
        *(f"transformer_blocks.0.{name}" for name in image | text),
        *(f"single_transformer_blocks.0.{name}" for name in single),
    }
