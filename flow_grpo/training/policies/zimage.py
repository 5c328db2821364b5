"""Z-Image as a policy: any diffusers `ZImagePipeline`, with LoRA on its attention and feed-forward layers."""

import torch
import torch.nn.functional as F
from diffusers import ZImagePipeline
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch.nn.utils.rnn import pad_sequence

from flow_grpo.training.patches import patchify
from flow_grpo.training.policies.base import PolicySettings, PromptEmbeds
from flow_grpo.training.policies.lora_pipeline import LoraPipeline, num_chat_tokens, padded_embeds

LORA_TARGETS = [
    *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
]


class ZImagePolicy(LoraPipeline):
    """See `Policy`. Latents are (B, C, h, w); a token is a patch of 2 x 2 latents.

    guidance_scale: of classifier-free guidance; 1 switches it off. The pipeline counts from 0, so its 4 is 5 here.
        Z-Image-Turbo needs 1.
    max_sequence_length: with the chat template. The transformer takes each prompt at its own length, and pads a batch to its
        longest prompt. Here it pads every batch to this length, so that all run the same kernels.
    Raises ValueError where the resolution is not a whole number of tokens.
    """

    pipeline_class = ZImagePipeline
    lora_targets = LORA_TARGETS

    def __init__(self, pipeline: ZImagePipeline, settings: PolicySettings):
        super().__init__(pipeline, settings)
        self._pad_prompts(-(-settings.max_sequence_length // SEQ_MULTI_OF) * SEQ_MULTI_OF)

    def _pad_prompts(self, length: int) -> None:
        """Pad the transformer's prompts to one length: as rows of a product, as a batch, and behind the images."""
        network = self.network
        embed, prepare, unify = network.cap_embedder.forward, network._prepare_sequence, network._build_unified_sequence

        def embed_padded(rows):
            missing = self._batch_size * length - len(rows)
            return embed(F.pad(rows, (0, 0, 0, missing)))[: len(rows)]

        def prepare_padded(parts, ids, pad_masks, pad_token, *others):
            prepared = prepare(parts, ids, pad_masks, pad_token, *others)
            return padded_batch(prepared, length) if pad_token is network.cap_pad_token else prepared

        def unify_padded(images, *others):
            return padded_batch(unify(images, *others), images.shape[1] + length)

        network.cap_embedder.forward = embed_padded
        network._prepare_sequence, network._build_unified_sequence = prepare_padded, unify_padded

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
        masks = [torch.ones(len(sequence), dtype=torch.bool, device=sequence.device) for sequence in sequences]
        tokens, mask = (pad_sequence(rows, batch_first=True) for rows in (sequences, masks))
        return padded_embeds(tokens, mask, self.max_sequence_length)

    def num_tokens(self, prompt: str) -> int:
        return num_chat_tokens(self.pipeline.tokenizer, prompt, enable_thinking=True)

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        self._batch_size = len(latents)
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


def padded_batch(prepared: tuple, length: int) -> tuple:
    """A batch as the transformer prepares it, with masked padding up to `length`.

    prepared: tokens (B, L, D), their rotations (B, L, d), their mask (B, L) or None, and what stays as it is.
    """
    tokens, rotations, mask, *others = prepared
    missing = length - tokens.shape[1]
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return F.pad(tokens, (0, 0, 0, missing)), F.pad(rotations, (0, 0, 0, missing)), F.pad(mask, (0, missing)), *others
