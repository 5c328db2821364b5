"""Every model family on its tiny pipeline, saved to a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, Flux2KleinPipeline, FluxPipeline, QwenImagePipeline

from flow_grpo.training.policies.base import Policy
from flow_grpo.training.policies.load import find_policy, load_policy
from tests.training.policies import tiny_pipelines

RESOLUTION = tiny_pipelines.RESOLUTION
MAX_SEQUENCE_LENGTH = 72


def same(latents):
    return latents


@dataclass(frozen=True)
class Layout:
    """What a test must know to ask a family's pipeline itself.

    pack: from the VAE's latents (B, C, h, w) to the policy's. start: from the policy's latents, of so many columns, to what
    the pipeline takes as `latents`. finish: from what the pipeline returns as latents to the policy's, by the pipeline's VAE. guidance: the
    pipeline's arguments for a batch's guidance of a scale in our sense.
    """

    pack: Callable[[torch.Tensor], torch.Tensor] = same
    start: Callable[[torch.Tensor, int], torch.Tensor] = lambda latents, columns: latents
    finish: Callable[[torch.Tensor, torch.nn.Module], torch.Tensor] = lambda latents, vae: latents
    guidance: Callable[[float, int], dict] = lambda scale, batch: {"guidance_scale": scale}


def pack_flux(latents):
    return FluxPipeline._pack_latents(latents, *latents.shape)


def pack_flux2(latents):
    return Flux2KleinPipeline._pack_latents(Flux2KleinPipeline._patchify_latents(latents))


def unpack_flux2(latents, columns):
    return latents.transpose(1, 2).unflatten(2, (-1, columns))  # (B, 4 C, rows, columns)


def normalise_flux2(latents, vae):
    """Klein's pipeline returns latents that are ready for the VAE; back to those it denoises."""
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return (pack_flux2(latents) - vae.bn.running_mean) / std


def pack_qwenimage(latents):
    return QwenImagePipeline._pack_latents(latents, *latents.shape)


LAYOUTS = {
    "sd3": Layout(),
    "flux": Layout(pack=pack_flux),
    "flux2": Layout(pack=pack_flux2, start=unpack_flux2),
    "flux2_klein": Layout(pack=pack_flux2, start=unpack_flux2, finish=normalise_flux2),
    "qwenimage": Layout(
        pack=pack_qwenimage,
        guidance=lambda scale, batch: {"true_cfg_scale": scale, "negative_prompt": [" "] * batch},
    ),
    "zimage": Layout(guidance=lambda scale, batch: {"guidance_scale": scale - 1}),  # it counts from 0
}


@dataclass(frozen=True)
class Family:
    """One model family: its tiny pipeline on the disk, and its layout."""

    name: str
    folder: Path
    layout: Layout

    def load_pipeline(self) -> DiffusionPipeline:
        pipeline = find_policy(self.name).pipeline_class.from_pretrained(self.folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def make_policy(self, mixed_precision: str = "no", lora: Path | None = None, **options) -> Policy:
        settings = dict(resolution=RESOLUTION, lora_rank=4, lora_alpha=8, guidance_scale=1.0)
        settings |= dict(max_sequence_length=MAX_SEQUENCE_LENGTH) | options
        return load_policy(self.name, str(self.folder), mixed_precision, lora, **settings)

    def encode(self, vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """The policy's latents of pixels (B, 3, H, W) in [-1, 1], up to their scale."""
        is_film = self.name == "qwenimage"
        latents = vae.encode(pixels.unsqueeze(2) if is_film else pixels).latent_dist.mean
        return self.layout.pack(latents.squeeze(2) if is_film else latents)

    def draw(self, pipeline, prompts, latents, guidance_scale=1.0, num_steps=3, output_type="latent", width=RESOLUTION):
        """What the pipeline itself draws from the policy's latents, by its own scheduler."""
        drawn = pipeline(
            prompt=list(prompts),
            height=RESOLUTION,
            width=width,
            num_inference_steps=num_steps,
            latents=self.layout.start(latents, width // 8),
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            output_type=output_type,
            **self.layout.guidance(guidance_scale, len(prompts)),
        ).images
        return self.layout.finish(drawn, pipeline.vae) if output_type == "latent" else drawn


@pytest.fixture(scope="session")
def make_family(tmp_path_factory):
    """make_family(name, **options of its save function) -> Family, of weights that a seed fixes."""

    def make(name, **options):
        folder = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            getattr(tiny_pipelines, f"save_{name}")(folder, **options)
        return Family(name, folder, LAYOUTS[name])

    return make


@pytest.fixture(scope="session", params=list(LAYOUTS))
def family(request, make_family):
    return make_family(request.param)
