"""The judge of the signs world as a scorer: a gold reward for evaluations, which no OCR engine has a say in.

config.eval_rewards = {"scripts.pretrain.judge_scorer:JudgeScorer": {}}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flow_grpo.score import PromptErrors, Score, check_images, to_uint8
from scripts.pretrain.signs_judge import Verdict, check_caption, judge


class JudgeScorer:
    """The share of a caption's objects that an image shows as asked, for images (B, 3, 64, 64) of the signs world.

    A sign counts where its word stands on the board of its colour, every letter right; a shape, where it is there in its
    colour. details: "signs", "letters" and "shape", the share of each that is right. It gives no map.
    """

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Raises ValueError for images of another size, or a prompt that is no caption of the signs world."""
        check_images(images, prompts, metadata)
        verdicts = [judge(image, prompt) for image, prompt in zip(to_uint8(images), prompts, strict=True)]
        shares = [_shares(verdict) for verdict in verdicts]
        columns = {
            name: torch.tensor([share[name] for share in shares], device=images.device)
            for name in ("objects", "signs", "letters", "shape")
        }
        return Score(reward=columns.pop("objects"), details=columns)

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


def _shares(verdict: Verdict) -> dict[str, float]:
    signs = [float(sign.right) for sign in verdict.signs]
    letters = [float(right) for sign in verdict.signs for right in sign.letters_right]
    shape = float(verdict.shape_right)
    return {
        "objects": (sum(signs) + shape) / (len(signs) + 1),
        "signs": sum(signs) / len(signs),
        "letters": sum(letters) / len(letters),
        "shape": shape,
    }
