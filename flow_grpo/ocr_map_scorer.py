"""`ocr_map`: text lines as a reward map, each box as good as what it says, everything else neutral."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from .futures import then
from .score import Score, check_images, mean_where_invalid
from .text_maps.box_map import Strips, blend_boxes, text_area
from .text_maps.character_strips import character_strips
from .text_maps.engine import OcrEngine, TextLine
from .text_maps.line_match import LineMatch, match_lines
from .text_maps.readable import PromptReader
from .text_maps.reader import make_reader
from .text_maps.targets import Normalisation


class OcrMapScorer:
    """OCR as a reward map: inside a box the confidence times the similarity with the target, outside reward_bg.

    reward: the mean over targets of how well their lines show them (`LineMatch.reward`).
    engine: "rapidocr", "paddleocr", or an OcrEngine. engine_options: of an engine given by its name. num_workers: processes
        that read, each with an engine of its own; 0 reads in this one.
    normalisation: what a comparison leaves out, "flow_grpo" or "unicode" (see text_maps.targets.normalise).
    reward_bg: in [0, 1], 0.5 is neutral. mask_sigma: the soft edge's sigma as a share of a box's height; at an eighth the
        edge fades over half a height, and the middle of the box keeps its full reward.
    missing_penalty: the share of reward_bg, in [0, 1], that the background loses where every target is missing, and in
        proportion where some are. A target is missing where there is no line left for it; a garbled one has its line, and is
        blamed there: beside a box that is worse than the background, the background keeps reward_bg, so that it takes none of
        the blame. At 1, an image without any text has a map of 0: worse than the worst text, as its reward is. Being
        constant, that map moves no credit.
    repeat_penalty: the share of a target's reward, in [0, 1], that further attempts at it cost (`match_lines`), and the most
        that the box of such an attempt loses of the background. At 0, five attempts are as good as the best of them. One
        attempt, and text that is unlike every target, cost nothing.
    extra_penalty: the share of the background, in [0, 1], that any extra text loses in its box, whether it resembles a target
        or not. At 0 only repeated attempts are seen.
    per_character: a box's reward varies along the line, each character with its own confidence, or 0 where it is wrong (see
        character_strips); needs an engine that gives characters, such as "rapidocr". The image's reward stays.

    details: reward, similarity, confidence, exact, missing (see LineMatch), text_area (share of the image), num_lines.
    An image that could not be read is not valid; reward and details are then the mean of the others.
    """

    OPTIONS_WITHOUT_EFFECT = ("num_workers",)  # on any score: a resumed run may change them

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
        self._reader = make_reader(engine, num_workers, **options)
        self._reward_bg = reward_bg
        self._mask_sigma = mask_sigma
        self._missing_penalty = missing_penalty
        self._repeat_penalty = repeat_penalty
        self._extra_penalty = extra_penalty
        self._per_character = per_character
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
        targets = self._prompts.targets(prompts, metadata)
        size, device = tuple(images.shape[2:]), images.device
        return then(self._reader.submit(images), lambda read: self._score(read, targets, size, device))

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Raises PromptErrors with every prompt whose text cannot be told, or that the engine cannot read."""
        self._prompts.check_prompts(prompts, metadata)

    def _score(
        self,
        read: Sequence[Sequence[TextLine] | None],
        targets: Sequence[Sequence[str]],
        size: tuple[int, int],
        device: torch.device,
    ) -> Score:
        valid = torch.tensor([lines is not None for lines in read])
        measured, maps = [], []
        for lines, wanted in zip(read, targets, strict=True):
            lines = lines or []
            match = match_lines(lines, wanted, self._normalisation, self._repeat_penalty)
            measured.append(_measured(lines, match, size))
            maps.append(self._map(lines, match, size))
        details = {name: torch.tensor([float(row[name]) for row in measured]) for name in measured[0]}  # (B,) each
        details = {name: mean_where_invalid(values, valid).to(device) for name, values in details.items()}
        return Score(
            reward=details["reward"],
            reward_map=torch.stack(maps).to(device),  # (B, H, W)
            map_kind="reward",
            neutral=self._reward_bg,
            valid=valid.to(device),
            details=details,
        )

    def _map(self, lines: Sequence[TextLine], match: LineMatch, size: tuple[int, int]) -> Tensor:
        quads, rewards, reward_bg = [], [], self._background(match)
        for line, span, box_reward, repeats in zip(
            lines, match.spans, match.box_rewards.tolist(), match.repeats.tolist(), strict=True
        ):
            penalty = max(self._extra_penalty, self._repeat_penalty * repeats)
            if span is None and not penalty:
                continue
            quads.append(line.quad)
            if span is None:
                rewards.append(reward_bg * (1 - penalty))
            else:
                rewards.append(self._strips(line, span, box_reward) if self._per_character else box_reward)
        return blend_boxes(quads, rewards, size, reward_bg, self._mask_sigma)

    def _background(self, match: LineMatch) -> float:
        shown = [reward for reward, span in zip(match.box_rewards.tolist(), match.spans) if span is not None]
        if any(reward < self._reward_bg for reward in shown):
            return self._reward_bg  # a failed attempt takes the blame, and the pixels around it none
        return self._reward_bg * (1 - self._missing_penalty * match.missing)

    def _strips(self, line: TextLine, span: str, box_reward: float) -> Strips:
        if line.characters is None:
            raise ValueError(
                "per_character needs an engine that gives the characters of a line, but "
                f'{line.text!r} came without; take engine="rapidocr", or build yours with characters=True'
            )
        return character_strips(line.characters, span, box_reward, self._normalisation)


def _measured(lines: Sequence[TextLine], match: LineMatch, size: tuple[int, int]) -> dict[str, float]:
    return {
        "reward": match.reward,
        "similarity": match.similarity,
        "confidence": match.confidence,
        "exact": match.exact,
        "missing": match.missing,
        "text_area": text_area([line.quad for line in lines], size),
        "num_lines": len(lines),
    }
