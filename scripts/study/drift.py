"""What a run changed outside the signs: its images against the base model's, from the same noise.

    python -m scripts.study.drift RUN_DIR      # writes RUN_DIR/drift.json

off_text     the mean difference of the pixels that lie outside the signs of both images, in levels of 255
shape_right  the share of images whose shape is there, in its colour
gold         the share of signs that show their word on their own board, by the judge that no run is rewarded by
base_...     the same two of the base model
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from config.grpo import tiny_ocr_map
from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.data import load_prompts
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.rollout import SDE, rollout
from flow_grpo.training.seeds import Domain, sample_seed
from scripts.pretrain.signs_judge import judge

NUM_PROMPTS, BATCH_SIZE, SEED = 64, 32, 1234


def drift_of(images: np.ndarray, base_images: np.ndarray, prompts: list[str]) -> dict[str, float]:
    """images, base_images: (N, H, W, 3) uint8 of the same prompts and noise."""
    verdicts, base_verdicts = ([judge(*pair) for pair in zip(drawn, prompts)] for drawn in (images, base_images))
    differences = []
    for image, base_image, verdict, base_verdict in zip(images, base_images, verdicts, base_verdicts):
        outside = ~(verdict.sign_mask | base_verdict.sign_mask)
        differences.append(np.abs(image.astype(int) - base_image)[outside].mean())
    measured = {"off_text": float(np.mean(differences))}
    for prefix, judged in (("", verdicts), ("base_", base_verdicts)):
        measured[f"{prefix}shape_right"] = float(np.mean([verdict.shape_right for verdict in judged]))
        measured[f"{prefix}gold"] = float(np.mean([sign.right for verdict in judged for sign in verdict.signs]))
    return measured


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
        seeds = [sample_seed(Domain.EVALUATION, SEED, start + i) for i in range(len(batch))]
        sde = SDE(config.sample.eval_num_steps, noise_level=0.0)
        batches.append(rollout(policy, batch, seeds, sde, num_kept=0).images)
    return (torch.cat(batches).float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def last_lora(run_dir: Path) -> Path:
    """The averaged LoRA of the newest checkpoint; checkpoint-best may be of an earlier epoch."""
    return list_checkpoints(run_dir)[-1] / "lora_ema"


def main(run_dir: Path) -> None:
    prompts = load_prompts(tiny_ocr_map().dataset, "test")[-NUM_PROMPTS:]  # the first ones are the curve's
    measured = drift_of(draw(last_lora(run_dir), prompts), draw(None, prompts), prompts)
    (run_dir / "drift.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
