"""A map that knows where the signs really stand: the best map there can be, for the study's comparison.

Its reward and details are those of `ocr_map`. So an arm with the oracle differs from the others only by the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_grpo.score import Score, to_uint8
from flow_grpo.scorers import make_scorer
from scripts.pretrain.signs_judge import judge


class OracleScorer:
    """`ocr_map` with the judge's map: 1 at the right letters of each sign, 0 at the wrong ones, neutral elsewhere."""

    def __init__(self, device: str = "cpu", **options):
        self._ocr = make_scorer("ocr_map", device=device, **options)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        score = self._ocr(images, prompts, metadata)
        maps = [oracle_map(image, prompt) for image, prompt in zip(to_uint8(images), prompts, strict=True)]
        return replace(score, reward_map=torch.from_numpy(np.stack(maps)).to(score.reward.device))


def oracle_map(image: np.ndarray, caption: str) -> np.ndarray:
    """(H, W) float32 in [0, 1] of an image (H, W, 3) uint8; 0.5 where no sign stands."""
    reward_map = np.full(image.shape[:2], 0.5, dtype=np.float32)
    for sign in judge(image, caption).signs:
        columns = np.flatnonzero(sign.mask.any(axis=0))  # of the board, shared out among the letters
        for letter_columns, right in zip(np.array_split(columns, len(sign.letters_right)), sign.letters_right):
            of_letter = np.isin(np.arange(image.shape[1]), letter_columns)  # (W,)
            reward_map[sign.mask & of_letter] = right
    return reward_map
