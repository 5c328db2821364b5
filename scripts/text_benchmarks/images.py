"""A benchmark's images. Any diffusers pipeline samples them, and an OCR engine reads them. Each is kept as soon as it is there.

OUT/images/NAME_K.png      the K-th image of a prompt
OUT/readings/NAME_K.json   what was read in it: {"read": "...", "clip_score": 0.31}

If an evaluation ends early, the next one goes on with what is missing. Images that were made elsewhere may be there, too.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from flow_grpo.clip_scorer import ClipScorer
from flow_grpo.text_maps.engine import OcrEngine
from flow_grpo.text_maps.reading_order import reading_order
from flow_grpo.training.precision import WEIGHT_DTYPES
from flow_grpo.training.seeds import sample_seed
from scripts.text_benchmarks.prompts import Prompt


@dataclass(frozen=True)
class Job:
    """One image to be made and read. number: of it in the whole benchmark, which draws its noise."""

    prompt: Prompt
    number: int
    image: Path
    reading: Path


def jobs(prompts: Sequence[Prompt], num_images: int, out: Path) -> list[Job]:
    """num_images images of each prompt, in order; their folders are made."""
    folders = out / "images", out / "readings"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return [
        Job(prompt, i * num_images + k, folders[0] / f"{prompt.name}_{k}.png", folders[1] / f"{prompt.name}_{k}.json")
        for i, prompt in enumerate(prompts)
        for k in range(num_images)
    ]


def load_pipeline(model: str, lora: str | None, mixed_precision: str, device: torch.device):
    """Any text-to-image pipeline of diffusers, with a LoRA where there is one."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model, dtype=WEIGHT_DTYPES[mixed_precision])
    if lora is not None:
        if not Path(lora).is_dir():
            raise ValueError(f"--lora {lora} is no folder; give a checkpoint's lora or lora_ema")
        pipeline.load_lora_weights(lora)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def sample(pipeline: Callable, wanted: Sequence[Job], batch_size: int, seed: int, options: dict, show: bool) -> None:
    """Make the images of the jobs. options: of the pipeline's call, such as num_inference_steps."""
    for start in tqdm(range(0, len(wanted), batch_size), desc="images", disable=not show):
        batch = wanted[start : start + batch_size]
        # noise from the CPU is the same on every device
        generators = [torch.Generator().manual_seed(sample_seed(seed, job.number)) for job in batch]
        pictures = pipeline(prompt=[job.prompt.prompt for job in batch], generator=generators, **options).images
        for job, picture in zip(batch, pictures, strict=True):
            part = job.image.with_suffix(".part")
            picture.save(part, format="PNG")
            os.replace(part, job.image)


def read(engine: OcrEngine, clip: ClipScorer | None, wanted: Sequence[Job], show: bool) -> None:
    """Write the readings of the jobs' images."""
    for job in tqdm(wanted, desc="readings", disable=not show):
        pixels = np.asarray(Image.open(job.image).convert("RGB"))
        lines = engine(pixels)
        row = {"read": " ".join(lines[i].text for i in reading_order(lines))}
        if clip is not None:
            row["clip_score"] = clip_score(clip, pixels, job.prompt.prompt)
        part = job.reading.with_suffix(".part")
        part.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
        os.replace(part, job.reading)


def clip_score(scorer: ClipScorer, pixels: np.ndarray, prompt: str) -> float:
    """CLIPScore, 2.5 * max(cosine, 0). Hessel et al., arXiv:2104.08718. scorer: with a divisor of 1."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    cosine = float(scorer(image, [prompt]).reward) / scorer.clip.logit_scale
    return 2.5 * max(cosine, 0.0)
