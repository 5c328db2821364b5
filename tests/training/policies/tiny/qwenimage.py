"""Qwen-Image in tiny."""

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.training.policies.tiny.layout import Layout, of_films, true_cfg
from tests.training.policies.tiny.parts import LATENT_CHANNELS, QWEN3_CHAT, kept_in_place, tokenizer


def save(folder):
    """Qwen-Image's traits: a chat template whose head is dropped, masked padding, a VAE for films, a terminal shift."""
    text = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "vocab_size": 600, "max_position_embeddings": 512},
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    vision = {
        **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
        **{"patch_size": 4, "fullatt_block_indexes": [0]},
    }
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9, max_image_seq_len=8192
        ),
        vae=qwenimage_vae(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer(QWEN3_CHAT),
    ).save_pretrained(folder)


def qwenimage_vae():
    torch.manual_seed(0)
    model = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.8, 1.2, 0.9, 1.1],
    )
    return kept_in_place(model)


def pack(latents):
    return QwenImagePipeline._pack_latents(latents, *latents.shape)


LAYOUT = Layout(encode=of_films, pack=pack, guidance=true_cfg)
