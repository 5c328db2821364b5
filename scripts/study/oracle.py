"""A map that knows where the signs really stand: the best that a map can be, for the study's comparison.

Its reward and details are those of `ocr_map`, so that an arm with the oracle differs from the others in the map alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_grpo.score import Score
from flow_grpo.scorers import make_scorer
from scripts.pretrain.signs_judge import judge


class OracleScorer:
    """`ocr_map` with the judge's map: on each sign the share of its letters that are right, elsewhere neutral."""

    def __init__(self, device: str = "cpu", **options):
        self._ocr = make_scorer("ocr_map", device=device, **options)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        score = self._ocr(images, prompts, metadata)
        pixels = (images.detach().float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        maps = [oracle_map(image, prompt) for image, prompt in zip(pixels, prompts, strict=True)]
        return replace(score, reward_map=torch.from_numpy(np.stack(maps)).to(score.reward.device))


def oracle_map(image: np.ndarray, caption: str) -> np.ndarray:
    """(H, W) float32 in [0, 1] of an image (H, W, 3) uint8: 0.5 where no sign stands."""
    reward_map = np.full(image.shape[:2], 0.5, dtype=np.float32)
    for sign in judge(image, caption).signs:
        reward_map[sign.mask] = np.mean(sign.letters_right)
    return reward_map
