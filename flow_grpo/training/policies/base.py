"""What the trainer needs from a model family. Each family has one file beside this one.

Only a policy knows the layout of its model: the latents, how they fall into tokens, the prompt embeddings, the LoRA
targets. All other code sees latents as an opaque tensor, and tokens as (B, N, D).
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
    """The tensors (B, ...) that condition a model on B prompts. The family chooses their names.

    A family makes, for instance, `PromptEmbeds(tokens=..., mask=...)`, and reads the tensors as attributes. All other code
    uses the methods below, and knows no name.
    """

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "PromptEmbeds":
        """Apply the function to every tensor; the names stay."""
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
        """Join the rows of all parts. Shorter sequences (B, L, ...) get zeros at their end, up to the longest.

        A family with different lengths has a mask among its tensors. The zeros in the mask are False, so they mark padding.
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
    """The settings that every family's policy takes.

    resolution: of the images, in pixels: a side, or (height, width).
    guidance_scale: the same in sampling and training. Each family says what kind of guidance it is.
    max_sequence_length: the number of tokens per prompt.
    device: where the model runs.
    offload: the text encoders and the VAE wait in CPU memory, and are on the device only while they work.
    adapter: "lora", or "full", which trains all weights and ignores the numbers of the LoRA.
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

    network: the bare denoiser. Its parameters that require a gradient are trained.
    adapter: see adapter.py.
    forward_module: what `velocity` calls: the network, or the wrapper that a distributed run puts around it.
    latent_shape: the shape of one image's latent, without the batch. It follows the resolution.
    token_grid: (rows, columns); `to_tokens` goes row by row. It follows the resolution, too.
    """

    network: nn.Module
    forward_module: nn.Module
    adapter: LoraAdapter | FullAdapter
    latent_shape: tuple[int, ...]
    token_grid: tuple[int, int]

    def set_resolution(self, resolution: Resolution) -> None:
        """From now on draw images of this size: a side, or (height, width), in pixels."""

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        """The frozen text encoders' embeddings of prompts. Those of a prompt are the same to the bit in any company."""

    def num_tokens(self, prompt: str) -> int:
        """The tokens of a prompt, with all that counts towards max_sequence_length, before any is cut off."""

    def sigmas(self, num_steps: int) -> torch.Tensor:
        """The noise levels (num_steps + 1,) of a sampling run, from 1 down to 0."""

    def velocity(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        """The predicted velocity, shaped as the latents (B, ...), at the noise level sigma (0-dim)."""

    def to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, ...) as tokens (B, N, D); token 0 holds the image's top-left corner."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1], fp32; decoded one by one, so that memory does not grow with B."""

    def keep_base(self) -> None:
        """Keep what `disable_adapter` needs. Call it after `Distributed.prepare`, and before the weights change."""

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Within the context the policy is its frozen base model, also if the network is wrapped for distribution."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters. Ask again after `Distributed.prepare`, since FSDP2 replaces them."""

    def trained_names(self) -> list[str]:
        """The names of `trainable_parameters`, in the same order. They are the keys of `adapter_state`."""

    def loaded_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All loaded weights, by name. A run asks before it trains, and identifies its model by them."""

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name: the weights themselves, as they lie in this process. `whole_copy` joins their parts."""

    def load_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load whole tensors by the names of `adapter_state`. A missing or unexpected name raises ValueError."""

    def save_adapter(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write whole tensors by these names in a form that diffusers reads: a LoRA with its scale, or a transformer."""

    def enable_gradient_checkpointing(self) -> None:
        """From now on keep only each block's input for the backward pass, which computes the rest again."""

    def compile(self, backend: str | Callable = "inductor") -> None:
        """Compile the transformer block by block with torch.compile. Its weights keep their names and values."""
