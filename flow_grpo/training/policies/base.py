"""What the trainer asks of a model family; one file beside this one answers for each.

Only a policy knows a model's layout: its latents, how they fall into tokens, its prompt embeddings, its LoRA targets.
Everything after it sees latents as an opaque tensor and tokens as (B, N, D).
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class PromptEmbeds:
    """What conditions a model on prompts. tokens: (B, L, D). pooled: (B, P)."""

    tokens: torch.Tensor
    pooled: torch.Tensor

    def __getitem__(self, rows: torch.Tensor | slice) -> "PromptEmbeds":
        return PromptEmbeds(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def cat(parts: Iterable["PromptEmbeds"]) -> "PromptEmbeds":
        parts = list(parts)
        return PromptEmbeds(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(PromptEmbeds)))


class Policy(Protocol):
    """A flow-matching model under training.

    network: the bare denoiser with its LoRA, whose trainable parameters are the adapter's alone. forward_module: what
    `velocity` calls; the network itself, or the wrapper that a distributed run puts around it.
    latent_shape: of one image's latent, without the batch. token_grid: (rows, columns), in `to_tokens`' row-major order.
    """

    network: nn.Module
    forward_module: nn.Module
    latent_shape: tuple[int, ...]
    token_grid: tuple[int, int]

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        """The frozen text encoders' embeddings of prompts."""

    def sigmas(self, num_steps: int) -> torch.Tensor:
        """The noise levels (num_steps + 1,) of a sampling run, from 1 down to 0."""

    def velocity(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        """The predicted velocity, shaped as the latents (B, ...), at the noise level sigma (0-dim)."""

    def to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, ...) as tokens (B, N, D); token 0 holds the image's top-left corner."""

    def from_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_tokens`."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1], fp32; decoded one by one, so that memory does not grow with B."""

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Within the context the policy is its frozen base model, wrapped for distribution or not."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The adapter's; under FSDP2 they are others after the network was prepared."""

    def lora_state(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by peft's names, whole; where they lie in parts, every process must call it."""

    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over tensors that `lora_state` gave; a missing or unexpected name raises ValueError."""

    def save_lora(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write what `lora_state` gave so that it acts alike in every reader: `load_lora_weights`, peft, bare matrices."""

    def enable_gradient_checkpointing(self) -> None:
        """From now on keep a block's input alone for the backward pass and compute the rest again there."""

    def compile(self, backend: str | Callable = "inductor") -> None:
        """Compile the transformer block by block with torch.compile; names and values of its weights stay."""
