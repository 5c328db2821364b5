"""What the boxes of an image's lines and its background are worth. It runs where the image is read, and needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .character_strips import Strips, character_strips
from .engine import TextLine
from .line_match import LineMatch, match_lines
from .targets import Normalisation


class Judgement(NamedTuple):
    """Of an image with L lines. It is small, so that it travels quickly from a worker process.

    texts, quads: of the lines, as the engine gave them.
    rewards: what each line's box is worth; None for a box that is worth what the background is.
    background: what every pixel outside the boxes is worth.
    measured: numbers for the image, by name; "reward" is the image's reward.
    """

    texts: tuple[str, ...]
    quads: tuple[np.ndarray, ...]
    rewards: tuple[float | Strips | None, ...]
    background: float
    measured: dict[str, float]


@dataclass(frozen=True)
class BoxJudge:
    """The options of `OcrMapScorer` that decide what a box is worth."""

    reward_bg: float
    missing_penalty: float
    repeat_penalty: float
    extra_penalty: float
    per_character: bool
    normalisation: Normalisation

    def __call__(self, lines: Sequence[TextLine], targets: Sequence[str]) -> Judgement:
        """Judge an image's lines. Raises ValueError if characters are asked for and the engine gave none."""
        match = match_lines(lines, targets, self.normalisation, self.repeat_penalty)
        background = self._background(match)
        return Judgement(
            texts=tuple(line.text for line in lines),
            quads=tuple(line.quad for line in lines),
            rewards=tuple(
                self._extra(repeats, background) if span is None else self._shown(line, span, reward)
                for line, span, reward, repeats in zip(
                    lines, match.spans, match.box_rewards.tolist(), match.repeats.tolist(), strict=True
                )
            ),
            background=background,
            measured={
                "reward": match.reward,
                "similarity": match.similarity,
                "confidence": match.confidence,
                "exact": match.exact,
                "missing": match.missing,
                "num_lines": len(lines),
            },
        )

    def _background(self, match: LineMatch) -> float:
        shown = [reward for reward, span in zip(match.box_rewards.tolist(), match.spans) if span is not None]
        if any(reward < self.reward_bg for reward in shown):
            return self.reward_bg  # a failed attempt takes all of the blame, the pixels around it take none
        return self.reward_bg * (1 - self.missing_penalty * match.missing)

    def _extra(self, repeats: float, background: float) -> float | None:
        penalty = max(self.extra_penalty, self.repeat_penalty * repeats)
        return background * (1 - penalty) if penalty else None

    def _shown(self, line: TextLine, span: str, box_reward: float) -> float | Strips:
        if not self.per_character:
            return box_reward
        if line.characters is None:
            raise ValueError(
                "per_character needs an engine that gives the characters of a line, but "
                f'{line.text!r} came without; take engine="rapidocr", or build yours with characters=True'
            )
        return character_strips(line.characters, span, box_reward, self.normalisation)
