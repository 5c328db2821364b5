"""Every model family on its tiny pipeline, saved to a folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, Flux2KleinPipeline, FluxPipeline, QwenImagePipeline

from flow_grpo.training.policies.base import Policy
from flow_grpo.training.policies.load import find_policy, load_policy
from tests.training.policies import tiny_pipelines

MAX_SEQUENCE_LENGTH = 72


def same(latents):
    return latents


@dataclass(frozen=True)
class Layout:
    """What a test must know to ask a family's pipeline itself.

    pack: from the VAE's latents (B, C, h, w) to the policy's. start: from the policy's latents, of so many columns, to what
    the pipeline takes as `latents`. finish: from what the pipeline returns as latents to the policy's, by the pipeline's VAE. guidance: the
    pipeline's arguments for a batch's guidance of a scale in our sense. pixels, multiple: along a token's side, and what an
    image's side must be a multiple of. options: the pipeline's other arguments.
    """

    pack: Callable[[torch.Tensor], torch.Tensor] = same
    start: Callable[[torch.Tensor, int], torch.Tensor] = lambda latents, columns: latents
    finish: Callable[[torch.Tensor, torch.nn.Module], torch.Tensor] = lambda latents, vae: latents
    guidance: Callable[[float, int], dict] = lambda scale, batch: {"guidance_scale": scale}
    pixels: int = 8
    multiple: int = 8
    options: dict = field(default_factory=lambda: {"max_sequence_length": MAX_SEQUENCE_LENGTH})


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
    "qwenimage21": Layout(
        pack=lambda latents: latents.flatten(2).transpose(1, 2),
        guidance=lambda scale, batch: {"true_cfg_scale": scale, "negative_prompt": [" "] * batch},
        **{"pixels": 16, "multiple": 32, "options": {}},
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

    def side(self, num_tokens: int) -> int:
        """The pixels of so many tokens."""
        return num_tokens * self.layout.pixels

    def make_policy(self, mixed_precision: str = "no", lora: Path | None = None, **options) -> Policy:
        settings = dict(resolution=self.side(4), lora_rank=4, lora_alpha=8, guidance_scale=1.0)
        settings |= dict(max_sequence_length=MAX_SEQUENCE_LENGTH) | options
        return load_policy(self.name, str(self.folder), mixed_precision, lora, **settings)

    def encode(self, vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """The policy's latents of pixels (B, 3, H, W) in [-1, 1], up to their scale."""
        is_film = self.name.startswith("qwenimage")
        if self.name == "qwenimage21":
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)  # opaque
        latents = vae.encode(pixels.unsqueeze(2) if is_film else pixels).latent_dist.mean
        return self.layout.pack(latents.squeeze(2) if is_film else latents)

    def draw(self, pipeline, prompts, latents, guidance_scale=1.0, num_steps=3, output_type="latent", columns=4):
        """What the pipeline itself draws from the policy's latents, by its own scheduler."""
        if self.name == "qwenimage21" and len(prompts) > 1:  # beside a longer prompt it draws another image
            alone = (
                self.draw(pipeline, [prompt], latents[row : row + 1], guidance_scale, num_steps, output_type, columns)
                for row, prompt in enumerate(prompts)
            )
            return torch.cat(list(alone))
        drawn = pipeline(
            prompt=list(prompts),
            height=self.side(4),
            width=self.side(columns),
            num_inference_steps=num_steps,
            latents=self.layout.start(latents, columns),
            output_type=output_type,
            **self.layout.options,
            **self.layout.guidance(guidance_scale, len(prompts)),
        ).images
        if output_type == "latent":
            return self.layout.finish(drawn, pipeline.vae)
        colours, opacity = drawn[:, :3], drawn[:, 3:]
        return colours * opacity + 1 - opacity if opacity.shape[1] else colours  # on white


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
