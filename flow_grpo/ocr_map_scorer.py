"""`ocr_map`: a reward map of the text lines; each box is worth what its text is worth, everything else is neutral."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .futures import then
from .option_types import checked_options
from .score import Score, check_images, mean_where_invalid
from .text_maps.box_judge import BoxJudge, Judgement
from .text_maps.box_map import blend_boxes, text_area
from .text_maps.engine import OcrEngine
from .text_maps.readable import PromptReader
from .text_maps.reader import make_reader
from .text_maps.targets import Normalisation, joined


class OcrMapScorer:
    """OCR as a reward map.

        inside a line's box:  confidence * similarity with its target
        outside the boxes:    reward_bg

    reward: how well the lines show their targets, averaged over the targets (`LineMatch.reward`).
    engine: "rapidocr", "paddleocr", or an OcrEngine.
    engine_options: options of an engine that is given by its name.
    num_workers: number of processes that read, each with its own engine; 0 reads in this process.
    min_contrast: in [0, 255], grey levels. A line that stands out less from its ground has confidence 0, because nobody can
        see it (text_maps.contrast). At 0 every line counts that the engine reads; 16 loses no text that people read easily.
    normalisation: what a comparison leaves out, "flow_grpo" or "unicode" (see text_maps.targets.normalise).
    reward_bg: in [0, 1]; 0.5 is neutral.
    mask_sigma: sigma of the soft edge, as a share of the box's height. At 0.125 the edge fades over half a height, and the
        middle of the box keeps its full reward.
    missing_penalty: in [0, 1]. The background is reward_bg * (1 - missing_penalty * share of missing targets). A target is
        missing if no line is left for it. A garbled target has a line, and the line's box takes the blame: if any box is
        worse than reward_bg, the background keeps reward_bg. At 1, an image without any text has a map of 0, which is worse
        than the worst text, like its reward. That map is constant, so it moves no credit.
    repeat_penalty: in [0, 1], the share of a target's reward that further attempts at it cost (`match_lines`). It is also
        the largest share of the background that the box of such an attempt loses. At 0, five attempts are as good as the
        best of them. A single attempt costs nothing; text that resembles no target costs nothing.
    extra_penalty: in [0, 1], the share of the background that the box of any extra text loses, whether the text resembles a
        target or not. At 0 only repeated attempts lose anything.
    per_character: the reward varies along the line. Each character gets its own confidence, or 0 where it is wrong (see
        character_strips). This needs an engine that gives characters, such as "rapidocr". The image's reward is unchanged.

    details: reward, similarity, confidence, exact, missing (see LineMatch), text_area (share of the image), num_lines.
    read: the lines of each image.
    An image that could not be read is not valid; its reward and details are the mean of the valid images'.
    """

    OPTIONS_WITHOUT_EFFECT = ("num_workers",)  # no effect on any score: a resumed run may change them

    @checked_options
    def __init__(
        self,
        engine: str | OcrEngine = "rapidocr",
        reward_bg: float = 0.5,
        mask_sigma: float = 0.125,
        missing_penalty: float = 1.0,
        repeat_penalty: float = 0.75,
        extra_penalty: float = 0.0,
        per_character: bool = False,
        normalisation: Normalisation = "flow_grpo",
        num_workers: int = 0,
        engine_options: Mapping[str, Any] | None = None,
        min_contrast: float = 0.0,
    ):
        if not 0 <= reward_bg <= 1:
            raise ValueError(f"reward_bg must lie in [0, 1], got {reward_bg}; 0.5 is neutral")
        if not 0 <= mask_sigma < math.inf:
            raise ValueError(f"mask_sigma must be 0 (hard edges) or more box heights, got {mask_sigma}")
        penalties = {
            "missing_penalty": missing_penalty,
            "repeat_penalty": repeat_penalty,
            "extra_penalty": extra_penalty,
        }
        for name, penalty in penalties.items():
            if not 0 <= penalty <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {penalty}; 0 turns it off")
        options = dict(engine_options or {})
        if per_character and isinstance(engine, str):  # an OcrEngine was built with or without them
            options["characters"] = True
        self._prompts = PromptReader(engine, options, normalisation)
        self._reader = make_reader(engine, num_workers, options, min_contrast)
        self._judge = BoxJudge(reward_bg, missing_penalty, repeat_penalty, extra_penalty, per_character, normalisation)
        self._reward_bg = reward_bg
        self._mask_sigma = mask_sigma

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
        judges = [partial(self._judge, targets=targets) for targets in self._prompts.targets(prompts, metadata)]
        size, device = tuple(images.shape[2:]), images.device

        def score(judged: Sequence[Judgement | None]) -> Score:
            valid = torch.tensor([judgement is not None for judgement in judged])
            judged = [judgement or judge([]) for judgement, judge in zip(judged, judges, strict=True)]
            return self._score(judged, valid, size, device)

        return then(self._reader.submit(images, judges), score)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Raises PromptErrors with every prompt whose target cannot be found, or whose target the engine cannot read."""
        self._prompts.check_prompts(prompts, metadata)

    def _score(self, judged: Sequence[Judgement], valid: Tensor, size: tuple[int, int], device: torch.device) -> Score:
        measured = [each.measured | {"text_area": text_area(each.quads, size)} for each in judged]
        columns = {name: [float(row[name]) for row in measured] for name in measured[0]}
        details = {name: torch.tensor(values, dtype=torch.float32) for name, values in columns.items()}  # (B,) each
        details = {name: mean_where_invalid(values, valid).to(device) for name, values in details.items()}
        return Score(
            reward=details["reward"],
            reward_map=torch.stack([self._map(each, size) for each in judged]).to(device),  # (B, H, W)
            map_kind="reward",
            neutral=self._reward_bg,
            valid=valid.to(device),
            details=details,
            read=tuple(joined(each.texts) for each in judged),
        )

    def _map(self, judged: Judgement, size: tuple[int, int]) -> Tensor:
        boxes = [box for box in zip(judged.quads, judged.rewards, strict=True) if box[1] is not None]
        quads, rewards = zip(*boxes) if boxes else ((), ())
        return blend_boxes(quads, rewards, size, judged.background, self._mask_sigma)
