"""Every model family on its tiny pipeline, saved to a folder."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from flow_grpo.training.policies.base import Policy
from flow_grpo.training.policies.families import FAMILIES
from flow_grpo.training.policies.load import find_policy, load_policy
from tests.training.policies.tiny.layout import MAX_SEQUENCE_LENGTH, Layout, tiny


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
        return self.layout.pack(self.layout.encode(vae, pixels))

    def draw(self, pipeline, prompts, latents, guidance_scale=1.0, num_steps=3, output_type="latent", columns=4):
        """What the pipeline itself draws from the policy's latents, by its own scheduler."""
        if self.layout.draws_alone and len(prompts) > 1:
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
        return self.layout.finish(drawn, pipeline.vae) if output_type == "latent" else self.layout.shown(drawn)


@pytest.fixture(scope="session")
def make_family(tmp_path_factory):
    """make_family(name, **options of its save function) -> Family, of weights that a seed fixes."""

    def make(name, **options):
        folder = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tiny(name).save(folder, **options)
        return Family(name, folder, tiny(name).LAYOUT)

    return make


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, make_family):
    return make_family(request.param)
