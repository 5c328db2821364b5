"""What is FLUX.2's own: the shift by tokens and steps, its LoRA targets, a distilled model that knows no guidance."""

import pytest
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from flow_grpo.training.policies.flux2 import empirical_shift


@pytest.mark.parametrize("num_tokens", [16, 1024, 4096, 4300, 4301, 8192])
@pytest.mark.parametrize("num_steps", [4, 10, 50, 200])
def test_the_shift_is_the_pipelines(num_tokens, num_steps):
    assert empirical_shift(num_tokens, num_steps) == pytest.approx(
        compute_empirical_mu(num_tokens, num_steps), rel=1e-9
    )


def test_a_guidance_that_a_distilled_model_would_ignore_is_refused(make_family):
    distilled = make_family("flux2_klein", is_distilled=True)
    assert distilled.make_policy(guidance_scale=1.0).guidance_scale == 1
    with pytest.raises(ValueError, match="guidance_scale=4.0 would be ignored: this model is distilled"):
        distilled.make_policy(guidance_scale=4.0)


def test_both_streams_and_the_single_blocks_fused_projection_are_adapted(make_family):
    names = {name.rsplit(".lora_", 1)[0] for name in make_family("flux2_klein").make_policy().adapter_state()}
    image = {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.linear_in", "ff.linear_out"}
    text = {"attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"}
    text |= {"ff_context.linear_in", "ff_context.linear_out"}
    double = {f"transformer_blocks.0.{name}" for name in image | text}
    assert names == double | {"single_transformer_blocks.0.attn.to_qkv_mlp_proj"}
