"""Stable Diffusion 3 and 3.5 as a policy: any diffusers `StableDiffusion3Pipeline`, with LoRA on its attention."""

import torch
from diffusers import StableDiffusion3Pipeline

from flow_grpo.training.image_size import Resolution
from flow_grpo.training.patches import patchify
from flow_grpo.training.policies.base import PolicySettings, PromptEmbeds
from flow_grpo.training.policies.lora_pipeline import LoraPipeline

# Flow-GRPO's targets: both streams of the joint attention.
LORA_TARGETS = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
]


class SD3Policy(LoraPipeline):
    """See `Policy`. Latents are (B, C, h, w); a token is a patch of patch_size x patch_size latents.

    guidance_scale: of classifier-free guidance; 1 switches it off.
    Raises ValueError where the resolution is not a whole number of tokens, or has more tokens than the model has positions
    for.
    """

    pipeline_class = StableDiffusion3Pipeline
    lora_targets = LORA_TARGETS

    def __init__(self, pipeline: StableDiffusion3Pipeline, settings: PolicySettings):
        self.patch_size = pipeline.transformer.config.patch_size
        super().__init__(pipeline, settings)

    def set_resolution(self, resolution: Resolution) -> None:
        super().set_resolution(resolution)
        most = self.pipeline.transformer.config.pos_embed_max_size
        if max(self.token_grid) > most:
            raise ValueError(
                f"resolution={resolution} has {max(self.token_grid)} tokens along a side; this model has places for {most}"
            )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        rows, columns = self.token_grid
        return self.network.config.in_channels, rows * self.patch_size, columns * self.patch_size

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompts,
            prompts,
            prompts,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return PromptEmbeds(tokens=tokens, pooled=pooled)

    def num_tokens(self, prompt: str) -> int:
        tokenizer = self.pipeline.tokenizer_3 or self.pipeline.tokenizer  # a pipeline may come without T5
        return len(tokenizer(prompt).input_ids)

    def sigmas(self, num_steps: int) -> torch.Tensor:
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(num_steps, device=self.device)
        return scheduler.sigmas.clone().float()

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        dtype = self.network.dtype
        timestep = (sigma * self.pipeline.scheduler.config.num_train_timesteps).expand(len(latents))  # (B,)
        velocity = self.forward_module(
            hidden_states=latents.to(dtype),
            timestep=timestep,
            encoder_hidden_states=embeds.tokens,
            pooled_projections=embeds.pooled,
            return_dict=False,
        )[0]
        return velocity.float()

    def to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        return patchify(latents, self.patch_size)
