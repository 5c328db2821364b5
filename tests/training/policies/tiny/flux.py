"""FLUX.1-dev in tiny."""

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import AutoTokenizer, ByT5Tokenizer, CLIPTextModel

from tests.training.policies.tiny.layout import Layout
from tests.training.policies.tiny.parts import LATENT_CHANNELS, TOKENIZERS, clip, t5, vae


def save(folder, guidance_embeds=True):
    """FLUX.1-dev's traits: a double and a single block, guidance as an embedding, the shift by resolution.

    Without guidance_embeds those of FLUX.1-schnell, which has neither the embedding nor the shift.
    """
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance_embeds,
    )
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        vae=vae(),
        text_encoder=clip(CLIPTextModel),
        text_encoder_2=t5(),
        tokenizer=AutoTokenizer.from_pretrained(TOKENIZERS / "tokenizer"),
        tokenizer_2=ByT5Tokenizer(),
    ).save_pretrained(folder)


def pack(latents):
    return FluxPipeline._pack_latents(latents, *latents.shape)


LAYOUT = Layout(pack=pack)
