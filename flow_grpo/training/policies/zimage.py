"""Z-Image as a policy: any diffusers `ZImagePipeline`, with LoRA on its attention and feed-forward layers."""

import torch
from diffusers import ZImagePipeline

from flow_grpo.training.patches import patchify
from flow_grpo.training.policies.base import PromptEmbeds
from flow_grpo.training.policies.lora_pipeline import LoraPipeline
from flow_grpo.training.policies.schedule import linear_shift, scheduler_sigmas

LORA_TARGETS = [
    *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
]


class ZImagePolicy(LoraPipeline):
    """See `Policy`. Latents are (B, C, h, w); a token is a patch of 2 x 2 latents.

    guidance_scale: of classifier-free guidance; 1 switches it off. The pipeline counts from 0, so its 4 is 5 here.
        Z-Image-Turbo needs 1.
    max_sequence_length: with the chat template.

    The transformer takes each prompt at its own length, so a batch is as wide as its longest prompt.
    Raises ValueError where the resolution is not a whole number of tokens.
    """

    pipeline_class = ZImagePipeline
    lora_targets = LORA_TARGETS

    @property
    def latent_shape(self) -> tuple[int, ...]:
        rows, columns = self.token_grid
        return self.network.config.in_channels, rows * self.patch_size, columns * self.patch_size

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        sequences, _ = self.pipeline.encode_prompt(
            list(prompts),  # a copy: the pipeline writes the chat template into the list
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return padded_sequences(sequences, self.max_sequence_length)

    def sigmas(self, num_steps: int) -> torch.Tensor:
        scheduler, (rows, columns) = self.pipeline.scheduler, self.token_grid
        return scheduler_sigmas(scheduler, num_steps, linear_shift(scheduler.config, rows * columns), self.device)

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        images = latents.to(self.network.dtype).unsqueeze(2)  # (B, C, 1, h, w): films of one frame
        velocities = self.forward_module(
            list(images.unbind()),
            (1 - sigma).expand(len(latents)),  # the model's time runs from 0 (noise) to 1 (image)
            [tokens[mask] for tokens, mask in zip(embeds.tokens, embeds.mask, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(velocities).squeeze(2).float()  # minus: its velocity points from noise to image

    def to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        return patchify(latents, self.patch_size)


def padded_sequences(sequences: list[torch.Tensor], length: int) -> PromptEmbeds:
    """Pad sequences (L_i, D) with zeros to tokens (B, length, D). The mask (B, length) is False where there is padding."""
    tokens = sequences[0].new_zeros(len(sequences), length, sequences[0].shape[1])
    mask = torch.zeros(len(sequences), length, dtype=torch.bool, device=tokens.device)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return PromptEmbeds(tokens=tokens, mask=mask)
