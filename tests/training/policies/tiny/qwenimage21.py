"""Qwen-Image 2.1 in tiny. Its token is 16 x 16 pixels, one latent of 16 channels."""

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from flow_grpo.training.policies.qwenimage21 import PromptProcessor
from tests.training.policies.tiny.layout import Layout, of_films, true_cfg
from tests.training.policies.tiny.parts import LATENT_CHANNELS, kept_in_place, tokenizer

QWEN3_VL_CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n{% endfor %}"


def save(folder, sample_sigmas=None):
    """Qwen-Image 2.1's traits: text and image in one sequence, a VAE with opacity, tokens of one latent.

    The published pipeline holds a Qwen3VLProcessor, which wants torchvision; here it is a tokenizer in the same folder.
    """
    text = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 600, "max_position_embeddings": 512},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {
        **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
        **{"patch_size": 4, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    }
    transformer = QwenImage21Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    processor = folder / "processor"
    words = tokenizer(QWEN3_VL_CHAT)
    words.add_tokens(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"], special_tokens=True)
    words.save_pretrained(processor)
    pipeline = QwenImage21Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192),
        vae=qwenimage21_vae(),
        text_encoder=Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)),
        processor=PromptProcessor(processor),
        sample_sigmas=sample_sigmas,
    )
    pipeline.register_to_config(processor=("transformers", "Qwen3VLProcessor"))
    pipeline.save_pretrained(folder)


def qwenimage21_vae():
    """16 pixels per latent, and a fourth channel, the opacity."""
    torch.manual_seed(0)
    channels = torch.arange(4.0 * LATENT_CHANNELS)
    model = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=len(channels),
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=(channels / 40).tolist(),
        latents_std=(1 + channels / 20).tolist(),
    )
    return kept_in_place(model)


def encode(vae, pixels):
    opaque = torch.ones_like(pixels[:, :1])
    return of_films(vae, torch.cat([pixels, opaque], dim=1))


def pack(latents):
    return latents.flatten(2).transpose(1, 2)


def on_white(images):
    colours, opacity = images.split([3, 1], dim=1)
    return colours * opacity + 1 - opacity


LAYOUT = Layout(
    encode=encode, pack=pack, shown=on_white, guidance=true_cfg, options={}, pixels=16, multiple=32, draws_alone=True
)
