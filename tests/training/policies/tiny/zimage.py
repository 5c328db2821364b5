"""Z-Image in tiny."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Model

from tests.training.policies.tiny.layout import Layout
from tests.training.policies.tiny.parts import LATENT_CHANNELS, QWEN3_CHAT, qwen3_config, tokenizer, vae


def save(folder):
    """Z-Image's traits: refiners before the blocks, prompts of their own lengths, time and velocity the other way round."""
    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=Qwen3Model(qwen3_config(width=32, num_layers=2)),
        tokenizer=tokenizer(QWEN3_CHAT),
    ).save_pretrained(folder)


LAYOUT = Layout(guidance=lambda scale, batch: {"guidance_scale": scale - 1})  # it counts from 0
