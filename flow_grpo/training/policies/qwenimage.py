"""Qwen-Image as a policy: any diffusers `QwenImagePipeline`, with LoRA on its attention and feed-forward layers."""

from typing import Any

import torch
from diffusers import QwenImagePipeline

from flow_grpo.training.patches import unpatchify
from flow_grpo.training.policies.base import PolicySettings, PromptEmbeds
from flow_grpo.training.policies.lora_pipeline import PackedPipeline, padded_embeds

TEXT_TARGETS = ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"]
LORA_TARGETS = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", *TEXT_TARGETS),
    *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
]
# Nothing reads the text that leaves the last block, so these layers would have no gradient. DDP takes that for an error.
UNUSED_IN_LAST_BLOCK = ["attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2"]


def vae_latents(config: Any, latents: torch.Tensor) -> torch.Tensor:
    """The transformer's latents (B, C, h, w) on the scale of the VAE with this configuration."""
    mean, std = (
        torch.tensor(values, device=latents.device).reshape(1, -1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    return latents * std + mean


class QwenImagePolicy(PackedPipeline):
    """See `Policy`. Latents are packed as the pipeline packs them, (B, N, 4 C), so they are tokens already.

    guidance_scale: of classifier-free guidance (the pipeline's true_cfg_scale), with a negative prompt of one space; 1
        switches it off.
    max_sequence_length: without the head of the chat template. Every prompt is padded to it; the transformer does not see
        the padding.
    Raises ValueError where the resolution is not a whole number of tokens, and for a model that reads its guidance as an
    embedding (no such model of this pipeline is published).
    """

    pipeline_class = QwenImagePipeline
    lora_targets = LORA_TARGETS
    empty_prompt = " "

    def __init__(self, pipeline: QwenImagePipeline, settings: PolicySettings):
        if pipeline.transformer.config.guidance_embeds:
            raise ValueError("guidance_embeds=True: only models without a guidance embedding are supported")
        super().__init__(pipeline, settings)

    def lora_excluded(self) -> list[str]:
        last = self.network.config.num_layers - 1
        return [f"transformer_blocks.{last}.{name}" for name in UNUSED_IN_LAST_BLOCK]

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        tokens, mask = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return padded_embeds(tokens, mask, self.max_sequence_length)

    def num_tokens(self, prompt: str) -> int:
        pipeline = self.pipeline
        tokens = pipeline.tokenizer(pipeline.prompt_template_encode.format(prompt)).input_ids
        return len(tokens) - pipeline.prompt_template_encode_start_idx

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        batch = len(latents)
        velocity = self.forward_module(
            hidden_states=latents.to(self.network.dtype),
            timestep=sigma.expand(batch),
            encoder_hidden_states=embeds.tokens,
            encoder_hidden_states_mask=embeds.mask,
            img_shapes=[[(1, *self.token_grid)]] * batch,  # one frame
            return_dict=False,
        )[0]
        return velocity.float()

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Guidance that keeps the norm of each token: the result is scaled to the norm of the conditional velocity."""
        guided = super().guide(conditional, unconditional)  # (B, N, D)
        return guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = unpatchify(latents.float(), self.token_grid, self.patch_size)  # (B, C, h, w)
        latents = vae_latents(vae.config, latents)
        images = vae.decode(latents.unsqueeze(2), return_dict=False)[0][:, :, 0]  # an image is a film of one frame
        return (images / 2 + 0.5).clamp(0, 1)
