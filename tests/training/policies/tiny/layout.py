"""What a test must know of a family to ask its pipeline itself, and where its tiny pipeline is found."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import torch

MAX_SEQUENCE_LENGTH = 72


def tiny(family: str) -> ModuleType:
    """The file of a family: save(folder, **options) writes its tiny pipeline, and LAYOUT says how one asks it."""
    return importlib.import_module(f"tests.training.policies.tiny.{family}")


def same(latents: torch.Tensor) -> torch.Tensor:
    return latents


def latent_means(vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return vae.encode(pixels).latent_dist.mean


def of_films(vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """For a VAE of films: an image is a film of one frame."""
    return latent_means(vae, pixels.unsqueeze(2)).squeeze(2)


@dataclass(frozen=True)
class Layout:
    """How a family's pipeline is asked, and what it answers.

    encode: pixels (B, 3, H, W) in [-1, 1], as the VAE's latents (B, C, h, w), up to their scale.
    pack: from the VAE's latents to the policy's.
    start: from the policy's latents, of so many columns, to what the pipeline takes as `latents`.
    finish: from what the pipeline returns as latents to the policy's, by the pipeline's VAE.
    shown: from the pipeline's images to those (B, 3, H, W) that one sees.
    guidance: the pipeline's arguments for a batch's guidance of a scale in our sense.
    options: the pipeline's other arguments.
    pixels, multiple: along a token's side, and what an image's side must be a multiple of.
    draws_alone: whether the pipeline draws another image where a longer prompt is in the batch.
    """

    encode: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor] = latent_means
    pack: Callable[[torch.Tensor], torch.Tensor] = same
    start: Callable[[torch.Tensor, int], torch.Tensor] = lambda latents, columns: latents
    finish: Callable[[torch.Tensor, torch.nn.Module], torch.Tensor] = lambda latents, vae: latents
    shown: Callable[[torch.Tensor], torch.Tensor] = same
    guidance: Callable[[float, int], dict] = lambda scale, batch: {"guidance_scale": scale}
    options: dict = field(default_factory=lambda: {"max_sequence_length": MAX_SEQUENCE_LENGTH})
    pixels: int = 8
    multiple: int = 8
    draws_alone: bool = False


def true_cfg(scale: float, batch: int) -> dict:
    """The guidance of both Qwen-Images."""
    return {"true_cfg_scale": scale, "negative_prompt": [" "] * batch}
