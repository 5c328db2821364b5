"""`ocr`: how much of the asked text an image shows, by Flow-GRPO's formula; no map."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flow_grpo.ocr_engine import OcrEngine, TextLine, make_engine, read_images
from flow_grpo.score import Score, check_images
from flow_grpo.text_match import batch_targets, edit_distance, normalise


def text_accuracy(text: str, target: str) -> float:
    """1 - min(distance, n) / n for a target of n characters, and 1 where the target stands anywhere in the text.

    Both normalised, the target not empty. Source: Flow-GRPO's OcrScorer (flow_grpo/ocr.py).
    """
    distance = 0 if target in text else edit_distance(text, target)
    return 1.0 - min(distance, len(target)) / len(target)


class OcrScorer:
    """Flow-GRPO's OCR reward.

    All lines of an image with a confidence above 0 are joined, in the engine's order, and compared with the target.
    details: "exact", the share of targets that are the image's whole text.
    Where we differ: several targets give the mean of their accuracies (Flow-GRPO, whose prompts have one each, reads the
    first), and an engine that fails raises (there it becomes a reward of 0).
    """

    def __init__(self, engine: str | OcrEngine = "rapidocr"):
        self._engine = make_engine(engine)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1]. Raises ValueError for bad input or a prompt without a target."""
        check_images(images, prompts, metadata)
        # before any OCR: a bad prompt must not cost a batch of reading
        targets = [[normalise(target) for target in wanted] for wanted in batch_targets(prompts, metadata)]
        texts = [_joined(lines) for lines in read_images(self._engine, images)]
        accuracy, exact = [], []
        for text, wanted in zip(texts, targets, strict=True):
            accuracy.append(sum(text_accuracy(text, target) for target in wanted) / len(wanted))
            exact.append(sum(text == target for target in wanted) / len(wanted))
        return Score(
            reward=torch.tensor(accuracy, dtype=torch.float32, device=images.device),
            details={"exact": torch.tensor(exact, dtype=torch.float32, device=images.device)},
        )


def _joined(lines: Sequence[TextLine]) -> str:
    return normalise("".join(line.text for line in lines if line.confidence > 0))
