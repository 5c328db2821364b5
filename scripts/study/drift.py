"""What a run changed outside the signs: its images against the base model's, from the same noise.

    python -m scripts.study.drift RUN_DIR      # writes RUN_DIR/drift.json

off_text: mean difference of the pixels that lie outside the signs of both images, in levels of 255.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from config.grpo import tiny_ocr_map
from flow_grpo.training.data import load_prompts
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.rollout import SDE, rollout
from flow_grpo.training.seeds import sample_seed
from scripts.study.sign_boxes import sign_boxes

NUM_PROMPTS, BATCH_SIZE, SEED = 64, 32, 1234


def drift_of(images: np.ndarray, base_images: np.ndarray, prompts: list[str]) -> dict[str, float]:
    """images, base_images: (N, H, W, 3) uint8 of the same prompts and noise."""
    differences = []
    for image, base_image, prompt in zip(images, base_images, prompts, strict=True):
        signs = np.any([*sign_boxes(image, prompt), *sign_boxes(base_image, prompt)], axis=0)
        differences.append(np.abs(image.astype(int) - base_image)[~signs].mean())
    return {"off_text": float(np.mean(differences))}


@torch.no_grad()
def draw(lora: Path | None, prompts: list[str]) -> np.ndarray:
    """(N, H, W, 3) uint8 by the ODE, each prompt from its own noise, the same whatever the lora."""
    config = tiny_ocr_map()
    policy = load_policy(
        config.policy,
        config.model,
        config.mixed_precision,
        lora=lora and str(lora),
        resolution=config.resolution,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        guidance_scale=config.sample.guidance_scale,
        max_sequence_length=config.max_sequence_length,
        device=torch.device("cpu"),
    )
    batches = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        seeds = [sample_seed(SEED, start + i) for i in range(len(batch))]
        sde = SDE(config.sample.eval_num_steps, noise_level=0.0)
        batches.append(rollout(policy, batch, seeds, sde, num_kept=0).images)
    return (torch.cat(batches).float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def main(run_dir: Path) -> None:
    prompts = load_prompts(tiny_ocr_map().dataset, "test")[-NUM_PROMPTS:]  # the first ones are the curve's
    lora = sorted(run_dir.glob("checkpoint-*"))[-1] / "lora_ema"
    measured = drift_of(draw(lora, prompts), draw(None, prompts), prompts)
    (run_dir / "drift.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
