"""A map that knows where the signs really stand: the best map there can be, for the study's comparison.

Its reward and details are those of `ocr_map`. So an arm with the oracle differs from the others only by the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_grpo.score import Score
from flow_grpo.scorers import make_scorer
from scripts.study.sign_boxes import sign_boxes


class OracleScorer:
    """`ocr_map` with a map that holds the image's reward where its signs stand, and is neutral elsewhere."""

    def __init__(self, device: str = "cpu", **options):
        self._ocr = make_scorer("ocr_map", device=device, **options)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        score = self._ocr(images, prompts, metadata)
        pixels = (images.detach().float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        triples = zip(pixels, prompts, score.reward.tolist(), strict=True)
        maps = [oracle_map(image, prompt, reward) for image, prompt, reward in triples]
        return replace(score, reward_map=torch.from_numpy(np.stack(maps)).to(score.reward.device))


def oracle_map(image: np.ndarray, caption: str, reward: float) -> np.ndarray:
    """(H, W) float32 of an image (H, W, 3) uint8: its reward, in [0, 1], where a sign stands, and 0.5 elsewhere."""
    reward_map = np.full(image.shape[:2], 0.5, dtype=np.float32)
    for box in sign_boxes(image, caption):
        reward_map[box] = reward
    return reward_map
