"""What is SD3's own, on the committed tiny pipeline; what it shares with every family is in contract/."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from flow_grpo.training.rollout import SDE, rollout

MODEL = "models/tiny-sd3"


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusion3Pipeline.from_pretrained(MODEL)


def draw(pipeline, prompts, **options):
    return pipeline(prompts, height=64, width=64, max_sequence_length=34, output_type="pt", **options).images


def test_the_folder_is_a_pipeline_that_loads_and_draws(pipeline, prompts):
    image = draw(pipeline, prompts, num_inference_steps=2)
    assert image.shape == (2, 3, 64, 64) and image.isfinite().all()
    # prompts and noise reach the image: no two are alike
    assert (image[0] - image[1]).abs().max() > 0.01


def test_the_tiny_model_draws_in_a_rollout_what_its_pipeline_draws(policy, pipeline, prompts):
    drawn = rollout(policy, prompts, [5, 6], SDE(4, noise_level=0.0), 1)
    expected = draw(pipeline, prompts, num_inference_steps=4, guidance_scale=1.0, latents=drawn.latents[:, 0])
    # fp32, four steps of a trained model, whose images are sharper than a random one's
    torch.testing.assert_close(drawn.images, expected, atol=1e-3, rtol=0)


def test_the_grid_of_tokens_covers_the_image(policy):
    assert policy.latent_shape == (8, 16, 16) and policy.token_grid == (8, 8)


def test_guidance_goes_past_the_prompt_away_from_the_empty_one(make_policy, policy, prompts):
    guided, sigma = make_policy(guidance_scale=4.5), torch.tensor(0.6)
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditional = policy.velocity(latents, sigma, policy.encode_prompts(prompts))
        unconditional = policy.velocity(latents, sigma, policy.encode_prompts(["", ""]))
        velocity = guided.velocity(latents, sigma, guided.encode_prompts(prompts))
    expected = unconditional + 4.5 * (conditional - unconditional)
    # both halves in one batch take other matrix kernels; 4.5 times their rounding
    torch.testing.assert_close(velocity, expected, atol=1e-4, rtol=0)


def test_both_streams_of_every_attention_are_adapted(policy):
    names = {name.rsplit(".lora_", 1)[0] for name in policy.adapter_state()}
    targets = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"}
    first, last = "transformer_blocks.0.attn.", "transformer_blocks.5.attn."
    assert {name.removeprefix(first) for name in names if name.startswith(first)} == targets | {"to_add_out"}
    assert {name.removeprefix(last) for name in names if name.startswith(last)} == targets  # it drops the text
