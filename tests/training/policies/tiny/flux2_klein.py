"""FLUX.2-klein in tiny."""

from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from transformers import Qwen3ForCausalLM

from tests.training.policies.tiny.flux2 import flux2_transformer, flux2_vae, pack, unpack
from tests.training.policies.tiny.layout import Layout
from tests.training.policies.tiny.parts import QWEN3_CHAT, qwen3_config, tokenizer


def save(folder, is_distilled=False):
    """FLUX.2-klein-base's traits: Qwen3's hidden states of three depths, no guidance embedding."""
    Flux2KleinPipeline(
        transformer=flux2_transformer(guidance_embeds=False),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=Qwen3ForCausalLM(qwen3_config(width=16, num_layers=28)),
        tokenizer=tokenizer(QWEN3_CHAT),
        is_distilled=is_distilled,
    ).save_pretrained(folder)


def normalise(latents, vae):
    """The pipeline returns latents that are ready for the VAE; back to those it denoises."""
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return (pack(latents) - vae.bn.running_mean) / std


LAYOUT = Layout(pack=pack, start=unpack, finish=normalise)
