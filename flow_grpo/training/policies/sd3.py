"""Stable Diffusion 3 and 3.5 as a policy: any diffusers `StableDiffusion3Pipeline`, with LoRA on its attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from flow_grpo.training.policies.base import PromptEmbeds

# Flow-GRPO's targets: both streams of the joint attention.
LORA_TARGETS = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
]


class SD3Policy:
    """See `Policy`. Latents are (B, C, h, w); a token is a patch of patch_size x patch_size latents.

    resolution: of the square images, in pixels. guidance_scale: classifier-free guidance, in sampling and in training
    alike; 1 leaves it out. The frozen weights keep the pipeline's dtype; the adapter is fp32, and so is the VAE.
    Raises ValueError where the resolution does not fall into whole tokens.
    """

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        resolution: int,
        lora_rank: int,
        lora_alpha: int,
        guidance_scale: float = 1.0,
        max_sequence_length: int = 256,
        device: str | torch.device = "cpu",
    ):
        self.pipeline = pipeline
        self.guidance_scale = guidance_scale
        self.max_sequence_length = max_sequence_length
        self.device = torch.device(device)
        self._patch_size = pipeline.transformer.config.patch_size
        pixels_per_token = pipeline.vae_scale_factor * self._patch_size
        if resolution % pixels_per_token:
            raise ValueError(f"resolution={resolution} must be a multiple of {pixels_per_token}, the pixels of a token")
        side = resolution // pipeline.vae_scale_factor
        self.latent_shape = (pipeline.transformer.config.in_channels, side, side)
        self.token_grid = (side // self._patch_size,) * 2

        pipeline.to(self.device)
        pipeline.vae.to(torch.float32)
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                component.requires_grad_(False).eval()
        self.network = pipeline.transformer
        self.lora_config = LoraConfig(
            r=lora_rank, lora_alpha=lora_alpha, init_lora_weights="gaussian", target_modules=LORA_TARGETS
        )
        self.network.add_adapter(self.lora_config)
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # AdamW loses small updates in half precision
        self.forward_module = self.network
        # Guidance needs the empty prompt beside every other; it is encoded once.
        self._no_prompt = self.encode_prompts([""]) if guidance_scale > 1 else None

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
        return PromptEmbeds(tokens, pooled)

    def sigmas(self, num_steps: int) -> torch.Tensor:
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(num_steps, device=self.device)
        return scheduler.sigmas.clone().float()

    def velocity(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        if self._no_prompt is None:
            return self._forward(latents, sigma, embeds)
        # One pass for both halves: the conditional one first, as in `embeds`.
        unconditional = PromptEmbeds(
            self._no_prompt.tokens.expand_as(embeds.tokens), self._no_prompt.pooled.expand_as(embeds.pooled)
        )
        both = self._forward(torch.cat([latents, latents]), sigma, PromptEmbeds.cat([embeds, unconditional]))
        conditional, unconditional = both.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _forward(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
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
        (rows, columns), patch = self.token_grid, self._patch_size
        batch, channels = latents.shape[:2]
        patches = latents.reshape(batch, channels, rows, patch, columns, patch)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch * patch)

    def from_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        (rows, columns), patch = self.token_grid, self._patch_size
        patches = tokens.reshape(len(tokens), rows, columns, -1, patch, patch)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), *self.latent_shape)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
        images = vae.decode(latents, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        # On the bare network: its layers are the wrapper's too, so the context holds with and without DDP.
        self.network.disable_lora()
        try:
            yield
        finally:
            self.network.enable_lora()

    def lora_state(self) -> dict[str, torch.Tensor]:
        return get_peft_model_state_dict(self.network)

    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None:
        expected = self.lora_state()
        if state.keys() != expected.keys():
            odd = sorted(state.keys() ^ expected.keys())[:3]
            raise ValueError(f"these LoRA weights belong to another model or another set of targets; e.g. {odd}")
        set_peft_model_state_dict(self.network, state)

    def save_lora(self, folder: Path) -> None:
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers={name: tensor.detach().cpu() for name, tensor in self.lora_state().items()},
            # Without it the scale alpha / rank is lost, and the adapter loads at 1.
            transformer_lora_adapter_metadata=self.lora_config.to_dict(),
        )
