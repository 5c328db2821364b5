"""`ocr`: how much of the asked text an image shows, by Flow-GRPO's formula; no map."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from .futures import then
from .option_types import checked_options
from .score import Score, check_images, mean_where_invalid
from .text_maps.engine import OcrEngine, TextLine
from .text_maps.readable import PromptReader
from .text_maps.reader import make_reader
from .text_maps.targets import Normalisation, edit_distance, joined, normalise


def text_accuracy(text: str, target: str) -> float:
    """How much of a target of n characters the text shows, in [0, 1].

        accuracy = 1                          where the target stands anywhere in the text
        accuracy = 1 - min(distance, n) / n   elsewhere, with the edit distance between text and target

    Both must be normalised, and the target must not be empty. Source: Flow-GRPO's OcrScorer (flow_grpo/ocr.py).
    """
    distance = 0 if target in text else edit_distance(text, target)
    return 1.0 - min(distance, len(target)) / len(target)


class OcrScorer:
    """Flow-GRPO's OCR reward.

    All lines of an image with a confidence above 0 are joined, in the engine's order, and compared with the target.
    engine: "rapidocr", "paddleocr", or an OcrEngine.
    engine_options: options of an engine that is given by its name.
    num_workers: number of processes that read, each with its own engine; 0 reads in this process.
    min_contrast: in [0, 255], grey levels. A line that stands out less from its ground has confidence 0, because nobody can
        see it (text_maps.contrast). At 0 every line counts that the engine reads; 16 loses no text that people read easily.
    normalisation: what a comparison leaves out, "flow_grpo" or "unicode" (see text_maps.targets.normalise).
    details: "exact", the share of targets that are the image's whole text. read: the lines of each image.

    We differ from Flow-GRPO in two points. Several targets give the mean of their accuracies; Flow-GRPO reads the first
    one, and its prompts have only one. An image that could not be read is not valid, and its reward is the mean of the
    valid images'; Flow-GRPO gives it 0.
    """

    OPTIONS_WITHOUT_EFFECT = ("num_workers",)  # no effect on any score: a resumed run may change them

    @checked_options
    def __init__(
        self,
        engine: str | OcrEngine = "rapidocr",
        normalisation: Normalisation = "flow_grpo",
        num_workers: int = 0,
        engine_options: Mapping[str, Any] | None = None,
        min_contrast: float = 0.0,
    ):
        self._prompts = PromptReader(engine, engine_options or {}, normalisation)
        self._reader = make_reader(engine, num_workers, engine_options, min_contrast)
        self._normalisation = normalisation

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1]. Raises ValueError for bad input or a prompt without a target."""
        return self.submit(images, prompts, metadata).result()

    def submit(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Future[Score]:
        """Begin to score. Bad input raises here, before any reading."""
        check_images(images, prompts, metadata)
        targets = [
            [normalise(target, self._normalisation) for target in wanted]
            for wanted in self._prompts.targets(prompts, metadata)
        ]
        device = images.device
        return then(self._reader.submit(images), lambda read: self._score(read, targets, device))

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Raises PromptErrors with every prompt whose target cannot be found, or whose target the engine cannot read."""
        self._prompts.check_prompts(prompts, metadata)

    def _score(
        self, read: Sequence[Sequence[TextLine] | None], targets: Sequence[Sequence[str]], device: torch.device
    ) -> Score:
        valid = torch.tensor([lines is not None for lines in read])
        accuracy, exact = [], []
        for lines, wanted in zip(read, targets, strict=True):
            text = normalise("".join(line.text for line in lines or [] if line.confidence > 0), self._normalisation)
            accuracy.append(sum(text_accuracy(text, target) for target in wanted) / len(wanted))
            exact.append(sum(text == target for target in wanted) / len(wanted))
        reward, exact = (
            mean_where_invalid(values, valid).to(device)
            for values in torch.tensor([accuracy, exact], dtype=torch.float32)
        )
        texts = tuple(joined(line.text for line in lines or []) for lines in read)
        return Score(reward=reward, valid=valid.to(device), details={"exact": exact}, read=texts)
