"""What the trainer asks of a model family; one file beside this one answers for each.

Only a policy knows a model's layout: its latents, how they fall into tokens, its prompt embeddings, its LoRA targets.
Everything after it sees latents as an opaque tensor and tokens as (B, N, D).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import nn

from flow_grpo.training.image_size import Resolution
from flow_grpo.training.policies.adapter import FullAdapter, LoraAdapter


class PromptEmbeds(SimpleNamespace):
    """What conditions a model on B prompts: tensors (B, ...), under names that the family chooses.

    A family gives its own tensors, for instance `PromptEmbeds(tokens=..., mask=...)`, and reads them as attributes.
    Everything else handles them by the methods below and knows no name.
    """

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "PromptEmbeds":
        """The function's result for every tensor, under the same names."""
        return PromptEmbeds(**{name: function(tensor) for name, tensor in vars(self).items()})

    def __getitem__(self, rows: torch.Tensor | slice) -> "PromptEmbeds":
        return self.map(lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values())

    @staticmethod
    def cat(parts: Iterable["PromptEmbeds"]) -> "PromptEmbeds":
        """The rows of all parts. Sequences (B, L, ...) of different lengths get zeros at their end, up to the longest.

        A family whose lengths differ has a mask among its tensors: False, a zero too, is then padding.
        """
        parts = list(parts)
        return PromptEmbeds(**{name: _padded_cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _padded_cat(tensors: list[torch.Tensor]) -> torch.Tensor:
    if tensors[0].ndim < 2:
        return torch.cat(tensors)
    longest = max(tensor.shape[1] for tensor in tensors)
    rows = []
    for tensor in tensors:
        missing = tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])
        rows.append(torch.cat([tensor, missing], dim=1) if missing.shape[1] else tensor)
    return torch.cat(rows)


@dataclass(frozen=True)
class PolicySettings:
    """What a policy is told, whatever its family.

    resolution: of the images, in pixels: a side, or (height, width). guidance_scale: in sampling and training alike; a
    family says what kind of guidance it is. max_sequence_length: tokens of a prompt. device: where the model runs.
    offload: the text encoders and the VAE wait in the CPU's memory, and are on the device only while they work.
    adapter: "lora", or "full", which trains all weights and ignores the LoRA's numbers.
    """

    resolution: Resolution
    lora_rank: int
    lora_alpha: int
    guidance_scale: float = 1.0
    max_sequence_length: int = 256
    device: str | torch.device = "cpu"
    offload: bool = False
    adapter: str = "lora"


class Policy(Protocol):
    """A flow-matching model under training.

    network: the bare denoiser; what requires a gradient is trained. adapter: see adapter.py. forward_module: what
    `velocity` calls; the network itself, or the wrapper that a distributed run puts around it.
    latent_shape: of one image's latent, without the batch. token_grid: (rows, columns), in `to_tokens`' row-major order;
    both follow the resolution.
    """

    network: nn.Module
    forward_module: nn.Module
    adapter: LoraAdapter | FullAdapter
    latent_shape: tuple[int, ...]
    token_grid: tuple[int, int]

    def set_resolution(self, resolution: Resolution) -> None:
        """From now on draw images of this size: a side, or (height, width), in pixels."""

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        """The frozen text encoders' embeddings of prompts."""

    def sigmas(self, num_steps: int) -> torch.Tensor:
        """The noise levels (num_steps + 1,) of a sampling run, from 1 down to 0."""

    def velocity(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        """The predicted velocity, shaped as the latents (B, ...), at the noise level sigma (0-dim)."""

    def to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, ...) as tokens (B, N, D); token 0 holds the image's top-left corner."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1], fp32; decoded one by one, so that memory does not grow with B."""

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Within the context the policy is its frozen base model, wrapped for distribution or not."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The adapter's; under FSDP2 they are others after the network was prepared."""

    def trained_names(self) -> list[str]:
        """The names of `trainable_parameters`, in their order, as `adapter_state` has them."""

    def loaded_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything that was loaded, by name; asked before any training, it is what the run's model is known by."""

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name, whole; where they lie in parts, every process must call it."""

    def load_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over tensors that `adapter_state` gave; a missing or unexpected name raises ValueError."""

    def save_adapter(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write what `adapter_state` gave so that diffusers reads it: a LoRA with its scale, or a transformer."""

    def enable_gradient_checkpointing(self) -> None:
        """From now on keep a block's input alone for the backward pass and compute the rest again there."""

    def compile(self, backend: str | Callable = "inductor") -> None:
        """Compile the transformer block by block with torch.compile; names and values of its weights stay."""
