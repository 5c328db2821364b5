"""The judge of the signs world as two scorers: gold rewards for evaluations, which no OCR engine has a say in.

config.eval_rewards = {"scripts.pretrain.judge_scorer:SignsJudge": {}, "scripts.pretrain.judge_scorer:ShapeJudge": {}}

They are two, because a run that is rewarded by OCR makes the signs better and may lose the shapes. The mean of both would hide it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flow_grpo.score import PromptErrors, Score, check_images, to_uint8
from scripts.pretrain.signs_judge import Verdict, check_caption, judge
from scripts.pretrain.signs_world import SIZE


class _Judge(ABC):
    """Scores images (B, 3, 64, 64) of the signs world by what they really show. It gives no map."""

    @staticmethod
    @abstractmethod
    def _measure(verdict: Verdict) -> tuple[float, dict[str, float]]:
        """The reward of one image, and its details."""

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Raises ValueError for images of another size, or a prompt that is no caption of the signs world."""
        check_images(images, prompts, metadata)
        if images.shape[2:] != (SIZE, SIZE):
            raise ValueError(
                f"the judge knows images of {SIZE} x {SIZE} pixels, and these are {images.shape[2]} x {images.shape[3]}; for "
                "other sizes give --config.eval_rewards={}"
            )
        pairs = zip(to_uint8(images), prompts, strict=True)
        rewards, details = zip(*(self._measure(judge(image, prompt)) for image, prompt in pairs), strict=True)
        columns = {name: torch.tensor([each[name] for each in details], device=images.device) for name in details[0]}
        return Score(reward=torch.tensor(rewards, device=images.device), details=columns)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Raises PromptErrors that names every prompt which is no caption of the signs world."""
        faults = {}
        for index, prompt in enumerate(prompts):
            try:
                check_caption(prompt)
            except ValueError as error:
                faults[index] = f"{error}; for other prompts give --config.eval_rewards={{}}"
        if faults:
            raise PromptErrors(faults, len(prompts))


class SignsJudge(_Judge):
    """The share of a caption's words that stand on the board of their colour, every letter right.

    details: "letters", the share of the letters that are right.
    """

    @staticmethod
    def _measure(verdict: Verdict) -> tuple[float, dict[str, float]]:
        words = [float(sign.right) for sign in verdict.signs]
        letters = [float(right) for sign in verdict.signs for right in sign.letters_right]
        return sum(words) / len(words), {"letters": sum(letters) / len(letters)}


class ShapeJudge(_Judge):
    """1 where the caption's shape is there in its colour, else 0."""

    @staticmethod
    def _measure(verdict: Verdict) -> tuple[float, dict[str, float]]:
        return float(verdict.shape_right), {}
