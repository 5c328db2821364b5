"""The published models whose memory is computed: their transformers, and a batch of inputs without data for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImage21Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import nn

from flow_grpo.training.policies import flux, flux2, qwenimage, qwenimage21, sd3, zimage
from scripts.benchmark.train import SHARED, TRANSFORMERS


@dataclass(frozen=True)
class Model:
    """A published model. encoders: billions of parameters of its text encoders. passes: 2 with classifier-free guidance."""

    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, int, int, int], dict]  # (transformer, batch, tokens along a side, length of the text)
    lora_targets: list[str]
    encoders: float
    passes: int
    lora_rank: int = 32


def tensor(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.bfloat16)


def sd3_inputs(transformer, batch, side, length):
    return dict(
        hidden_states=tensor(batch, 16, 2 * side, 2 * side),
        timestep=tensor(batch),
        encoder_hidden_states=tensor(batch, 77 + length, 4096),
        pooled_projections=tensor(batch, 2048),
    )


def flux_inputs(transformer, batch, side, length):
    return dict(
        hidden_states=tensor(batch, side**2, 64),
        timestep=tensor(batch),
        guidance=tensor(batch),
        encoder_hidden_states=tensor(batch, length, 4096),
        pooled_projections=tensor(batch, 768),
        img_ids=torch.zeros(side**2, 3, device="meta"),
        txt_ids=torch.zeros(length, 3, device="meta"),
    )


def flux2_inputs(transformer, batch, side, length):
    return dict(
        hidden_states=tensor(batch, side**2, 128),
        timestep=tensor(batch),
        guidance=tensor(batch) if transformer.config.guidance_embeds else None,
        encoder_hidden_states=tensor(batch, length, transformer.config.joint_attention_dim),
        img_ids=torch.zeros(side**2, 4, device="meta"),
        txt_ids=torch.zeros(length, 4, device="meta"),
    )


def qwenimage_inputs(transformer, batch, side, length):
    return dict(
        hidden_states=tensor(batch, side**2, 64),
        timestep=tensor(batch),
        encoder_hidden_states=tensor(batch, length, 3584),
        img_shapes=[[(1, side, side)]] * batch,
    )


def qwenimage21_inputs(transformer, batch, side, length):
    image = torch.arange(length + side**2 // qwenimage21.TOKENS_PER_SLOT) >= length
    return dict(
        hidden_states=tensor(batch, side**2, 64),
        timestep=tensor(batch),
        encoder_hidden_states=tensor(batch, length, 4096),
        encoder_hidden_states_mask=torch.ones(batch, length, dtype=torch.bool),
        img_shapes=[[(1, side, side)]] * batch,
        img_mask=image.expand(batch, -1),
    )


def zimage_inputs(transformer, batch, side, length):
    return dict(
        x=[tensor(16, 1, 2 * side, 2 * side) for _ in range(batch)],
        t=tensor(batch),
        cap_feats=[tensor(length, 2560) for _ in range(batch)],
    )


def klein(num_layers: int, num_single_layers: int, num_heads: int, text_width: int) -> Callable[[], nn.Module]:
    return lambda: Flux2Transformer2DModel(
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        num_attention_heads=num_heads,
        joint_attention_dim=3 * text_width,
        guidance_embeds=False,
    )


def qwenimage21_transformer() -> nn.Module:
    """With the policy's attention, which wants a rotation per image. Here one is all images'."""
    transformer = QwenImage21Transformer2DModel()
    transformer.set_attn_processor(qwenimage21.RowAttention())
    transformer.pos_embed.register_forward_hook(lambda rope, args, shared: shared.unsqueeze(0))
    return transformer


MODELS = {
    "SD3.5-medium": Model(
        lambda: SD3Transformer2DModel(**SHARED, **TRANSFORMERS["sd3.5-medium"]),
        *(sd3_inputs, sd3.LORA_TARGETS),
        encoders=5.6,
        passes=2,
    ),
    "FLUX.2-klein-base-4B": Model(klein(5, 20, 24, 2560), flux2_inputs, flux2.LORA_TARGETS, encoders=4.0, passes=2),
    "Z-Image": Model(ZImageTransformer2DModel, zimage_inputs, zimage.LORA_TARGETS, encoders=4.0, passes=2),
    "FLUX.2-klein-base-9B": Model(klein(8, 24, 32, 4096), flux2_inputs, flux2.LORA_TARGETS, encoders=8.2, passes=2),
    "FLUX.1-dev": Model(
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        *(flux_inputs, flux.LORA_TARGETS),
        encoders=4.9,
        passes=1,
        lora_rank=64,
    ),
    "Qwen-Image": Model(
        *(QwenImageTransformer2DModel, qwenimage_inputs, qwenimage.LORA_TARGETS), encoders=8.3, passes=2, lora_rank=64
    ),
    "Qwen-Image-2.1": Model(
        *(qwenimage21_transformer, qwenimage21_inputs, qwenimage21.LORA_TARGETS), encoders=8.8, passes=1, lora_rank=64
    ),
    "FLUX.2-dev": Model(Flux2Transformer2DModel, flux2_inputs, flux2.LORA_TARGETS, encoders=24.0, passes=1),
}
