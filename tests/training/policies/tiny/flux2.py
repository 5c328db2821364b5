"""FLUX.2-dev in tiny, and what FLUX.2-klein shares with it."""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from tests.training.policies.tiny.layout import Layout
from tests.training.policies.tiny.parts import LATENT_CHANNELS, VAE_TRAITS, kept_in_place, tokenizer

MISTRAL_CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}"


def save(folder):
    """FLUX.2-dev's traits: Mistral's hidden states of three depths, guidance as an embedding.

    The published pipeline holds a PixtralProcessor, which wants torchvision; here it is a tokenizer in the same folder.
    """
    text = {
        **{"model_type": "mistral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 30},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 600},
    }
    vision = {
        **{"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    }
    pipeline = Flux2Pipeline(
        transformer=flux2_transformer(guidance_embeds=True),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)),
        tokenizer=tokenizer(MISTRAL_CHAT),
    )
    pipeline.register_to_config(tokenizer=("transformers", "PixtralProcessor"))
    pipeline.save_pretrained(folder)


def flux2_transformer(guidance_embeds):
    return Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
        timestep_guidance_channels=32,
        guidance_embeds=guidance_embeds,
    )


def flux2_vae():
    """The VAE of parts.py with a batch norm, whose mean and variance differ by channel, in place of a scale and a shift."""
    torch.manual_seed(0)
    model = kept_in_place(AutoencoderKLFlux2(**VAE_TRAITS))
    channels = torch.arange(4.0 * LATENT_CHANNELS)
    model.bn.running_mean.copy_(channels / 40)
    model.bn.running_var.copy_(1 + channels / 20)
    return model


def pack(latents):
    return Flux2KleinPipeline._pack_latents(Flux2KleinPipeline._patchify_latents(latents))


def unpack(latents, columns):
    return latents.transpose(1, 2).unflatten(2, (-1, columns))  # (B, 4 C, rows, columns)


LAYOUT = Layout(pack=pack, start=unpack)
