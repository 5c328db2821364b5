"""Samples to look at: a few of the images that were scored, with their maps laid over them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from flow_grpo import map_overlay
from flow_grpo.rewards import weighted_sum
from flow_grpo.score import Score
from flow_grpo.text_maps.targets import normalise, quoted_targets


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what its scorers said.

    image: (H, W, 3) uint8.
    reward: the weighted sum of the rewards. rewards: {scorer: reward}. None where the image could not be scored.
    overlays: {scorer: its map laid over the image, (H, W, 3) uint8}, for scorers with maps; None where a map is not valid.
    advantage: the advantage of a rollout's image among its siblings; None in an evaluation.
    read: {scorer: what it read in the image}, for scorers that read.
    control: the change that was made to the maps before they spread the advantage. The overlays show the unchanged maps.
    """

    prompt: str
    image: np.ndarray
    reward: float | None
    rewards: dict[str, float | None]
    overlays: dict[str, np.ndarray | None]
    advantage: float | None = None
    read: Mapping[str, str] = field(default_factory=dict)
    control: str = "none"

    def row(self) -> dict[str, Any]:
        """One row of a table, {column: text, number or picture}. All samples of one kind have the same columns."""
        maps = {f"map/{name}": picture for name, picture in self.overlays.items()}
        read = {f"read/{name}": text for name, text in self.read.items()}
        row = {"prompt": self.prompt, "image": self.image, **read, **maps, "reward": self.reward}
        if len(self.rewards) > 1:  # a single scorer's reward is "reward", apart from its weight
            row |= self.rewards
        if self.advantage is not None:
            row["advantage"] = self.advantage
        return row if self.control == "none" else row | {"control": self.control}

    def label(self) -> str:
        """What a sheet writes below the image, a line each: the texts asked for, what was read if that differs, the reward."""
        targets, read = quoted_targets(self.prompt), list(self.read.values())[:1]
        lines = [" / ".join(targets)] if targets else []
        if targets and read and not _shows(read[0], targets):
            lines.append(f"read {read[0]}" if read[0] else "nothing read")
        earned = "unscored" if self.reward is None else f"{self.reward:.2f}"
        if self.reward is not None and self.advantage is not None:
            earned += f" {self.advantage:+.1f}"
        return "\n".join([*lines, earned])


def _shows(read: str, targets: Sequence[str]) -> bool:
    """Whether the lines that were read are the targets, in any order, or one target in several lines."""
    lines = [normalise(line) for line in read.split(" / ")]
    wanted = [normalise(target) for target in targets]
    return sorted(lines) == sorted(wanted) or ["".join(lines)] == wanted


def make_samples(
    images: np.ndarray, prompts: Sequence[str], scores: Mapping[str, Score], weights: Mapping[str, float]
) -> list[Sample]:
    """The first K images of a batch as samples. images: (K, H, W, 3) uint8. scores: {scorer: score of >= K images}."""
    total, valid = weighted_sum(scores, weights)
    return [
        Sample(
            prompt=prompts[i],
            image=image,
            reward=total[i].item() if valid[i] else None,
            rewards={name: score.reward[i].item() if valid[i] else None for name, score in scores.items()},
            read={name: score.read[i] for name, score in scores.items() if score.read is not None},
            overlays={name: _overlay(i, image, score) for name, score in scores.items() if score.map_kind is not None},
        )
        for i, image in enumerate(images)
    ]


def _overlay(index: int, image: np.ndarray, score: Score) -> np.ndarray | None:
    """One map of a batch, laid over its image. None where the map is not valid: its values mean nothing then."""
    if not score.map_valid[index]:
        return None
    reward_map = score.reward_map[index].detach().float().cpu().numpy()  # (H, W), of the image's size
    return map_overlay.overlay(image, reward_map, map_kind=score.map_kind)


def sheet(samples: Sequence[Sample], columns: int = 8) -> Image.Image:
    """Samples in rows: the images with their labels, then a row of overlays for each map.

    If there are several maps, each row has the name of its scorer below it. An invalid map leaves its place white.
    """
    names = list(samples[0].overlays)
    blank = np.full_like(samples[0].image, 255)
    tiles, labels = [], []
    for start in range(0, len(samples), columns):
        row = samples[start : start + columns]
        padding = columns - len(row)
        tiles += [sample.image for sample in row] + [blank] * padding
        labels += [sample.label() for sample in row] + [""] * padding
        for name in names:
            overlays = [sample.overlays[name] for sample in row]
            tiles += [blank if overlay is None else overlay for overlay in overlays] + [blank] * padding
            labels += [name if len(names) > 1 else ""] + [""] * (columns - 1)
    return map_overlay.sheet(tiles, labels, columns)
