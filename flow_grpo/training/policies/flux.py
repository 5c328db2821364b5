"""FLUX.1 as a policy: any diffusers `FluxPipeline`, with LoRA on its attention and feed-forward layers."""

from dataclasses import replace

import torch
from diffusers import FluxPipeline

from flow_grpo.training.patches import places, unpatchify
from flow_grpo.training.policies.base import PolicySettings, PromptEmbeds
from flow_grpo.training.policies.lora_pipeline import PackedPipeline

# Flow-GRPO's targets. The double blocks have all of them, for image and text. In the single blocks, where both run in one
# stream, to_q, to_k and to_v are adapted; the MLP, which shares their output projection, is not.
LORA_TARGETS = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
]


class FluxPolicy(PackedPipeline):
    """See `Policy`. Latents are packed as the pipeline packs them, (B, N, 4 C), so they are tokens already.

    guidance_scale: FLUX.1-dev reads it as an embedding. The model has learned to draw in one pass what classifier-free
        guidance of that scale draws in two, so there is no unconditional pass, and the guidance costs nothing. The value
        1 does not switch it off. The pipeline's default is 3.5. Sampling and training use the same value.
    Raises ValueError where the resolution is not a whole number of tokens, and for a guidance_scale other than 1 where
    the model has no such embedding (FLUX.1-schnell).
    """

    pipeline_class = FluxPipeline
    lora_targets = LORA_TARGETS

    def __init__(self, pipeline: FluxPipeline, settings: PolicySettings):
        reads_guidance = pipeline.transformer.config.guidance_embeds
        if settings.guidance_scale != 1 and not reads_guidance:
            raise ValueError(
                f"guidance_scale={settings.guidance_scale} would be ignored: this model has no guidance embedding "
                "(FLUX.1-schnell has none); set it to 1"
            )
        super().__init__(pipeline, replace(settings, guidance_scale=1.0))
        self._guidance = torch.tensor([settings.guidance_scale], device=self.device) if reads_guidance else None

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        tokens, pooled, _ = self.pipeline.encode_prompt(
            prompts, prompts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return PromptEmbeds(tokens=tokens, pooled=pooled)

    def num_tokens(self, prompt: str) -> int:
        return len(self.pipeline.tokenizer_2(prompt).input_ids)

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        batch = len(latents)
        velocity = self.forward_module(
            hidden_states=latents.to(self.network.dtype),
            timestep=sigma.expand(batch),
            guidance=None if self._guidance is None else self._guidance.expand(batch),
            encoder_hidden_states=embeds.tokens,
            pooled_projections=embeds.pooled,
            img_ids=places(1, *self.token_grid, device=self.device),  # (N, 3): 0, row and column of each token
            txt_ids=latents.new_zeros(embeds.tokens.shape[1], 3),  # text has no position in the image
            return_dict=False,
        )[0]
        return velocity.float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return super().decode(unpatchify(latents, self.token_grid, self.patch_size))
