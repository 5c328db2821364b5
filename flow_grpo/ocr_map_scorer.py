"""`ocr_map`: text lines as a reward map, each box as good as what it says, everything else neutral."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_grpo.ocr_engine import OcrEngine, TextLine, make_engine, read_images
from flow_grpo.reward_map import blur_radius, gaussian_blur
from flow_grpo.score import Score, check_images
from flow_grpo.text_match import batch_targets, normalise, similarity


@dataclass(frozen=True, eq=False)
class LineMatch:
    """What an image's L lines are worth against its T targets.

    box_rewards: (L,) confidence * similarity of each line with the target it matches best.
    reward, similarity, confidence, exact: of the line that matches a target best, the mean over targets; 0 without lines.
        exact is 1 where the two texts, normalised, are equal.
    """

    box_rewards: Tensor
    reward: float
    similarity: float
    confidence: float
    exact: float


def match_lines(lines: Sequence[TextLine], targets: Sequence[str]) -> LineMatch:
    """Match each target with the line of the highest confidence * similarity, and each line with its best target.

    targets: at least one, not empty once normalised. Order of the lines does not matter, but for which of two equal ones
    gives similarity and confidence.
    """
    if not lines:
        return LineMatch(torch.zeros(0), reward=0.0, similarity=0.0, confidence=0.0, exact=0.0)
    texts, wanted = [normalise(line.text) for line in lines], [normalise(target) for target in targets]
    similarities = torch.tensor([[similarity(text, target) for text in texts] for target in wanted])  # (T, L)
    confidences = torch.tensor([line.confidence for line in lines])  # (L,)
    rewards = confidences * similarities  # (T, L)
    best_rewards, best = rewards.max(dim=1)  # (T,)
    return LineMatch(
        box_rewards=rewards.amax(dim=0),
        reward=best_rewards.mean().item(),
        similarity=similarities.gather(1, best[:, None]).mean().item(),
        confidence=confidences[best].mean().item(),
        exact=sum(texts[line] == target for line, target in zip(best.tolist(), wanted, strict=True)) / len(wanted),
    )


def fill_quad(quad: np.ndarray, rows: slice, cols: slice) -> Tensor:
    """1 where a pixel's centre lies in the quad (even-odd rule, any orientation), 0 elsewhere.

    quad: (4, 2) corners (x, y) in pixels. rows, cols: the window of the image to fill. Returns (num_rows, num_cols) fp32.
    """
    y = torch.arange(rows.start, rows.stop)[:, None] + 0.5  # (num_rows, 1)
    x = torch.arange(cols.start, cols.stop)[None, :] + 0.5  # (1, num_cols)
    inside = torch.zeros(len(y), x.shape[1], dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(quad.tolist(), np.roll(quad, -1, axis=0).tolist(), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside.float()


def blend_boxes(
    quads: Sequence[np.ndarray], rewards: Tensor, size: tuple[int, int], reward_bg: float, mask_sigma: float
) -> Tensor:
    """Lay L boxes with rewards (L,) on a neutral background: reward_bg + mask * (reward_box - reward_bg).

    A box's mask is its filled quad under a Gaussian of sigma = mask_sigma * height of the box. Where several overlap,
    reward_box is the mean of their rewards weighted by their masks, and mask the largest of them: the same box twice changes
    nothing, and no value leaves the range of the rewards and the background. Returns (H, W) fp32 for size = (H, W).
    map = reward_bg + mask * (reward_box - reward_bg).
    """
    mask = torch.zeros(size)
    weight = torch.zeros(size)
    weighted_reward = torch.zeros(size)
    for quad, reward in zip(quads, rewards.tolist(), strict=True):
        sigma = mask_sigma * _line_height(quad)
        rows, cols = _window(quad, size, margin=blur_radius(sigma))
        if rows.start >= rows.stop or cols.start >= cols.stop:
            continue  # outside the image
        box_mask = gaussian_blur(fill_quad(quad, rows, cols)[None], sigma)[0]
        mask[rows, cols] = torch.maximum(mask[rows, cols], box_mask)
        weight[rows, cols] += box_mask
        weighted_reward[rows, cols] += box_mask * reward
    reward_box = weighted_reward / weight.clamp_min(torch.finfo(torch.float32).tiny)
    values = torch.cat([rewards, torch.tensor([reward_bg])])
    # clamp: fp32 rounding of the blend may pass its bounds by an ulp
    return (reward_bg + mask * (reward_box - reward_bg)).clamp(values.min(), values.max())


def text_area(quads: Sequence[np.ndarray], size: tuple[int, int]) -> float:
    """The share of an image's pixels that lie in any of the quads, in [0, 1]."""
    covered = torch.zeros(size)
    for quad in quads:
        rows, cols = _window(quad, size, margin=0)
        covered[rows, cols] = torch.maximum(covered[rows, cols], fill_quad(quad, rows, cols))
    return covered.mean().item()


class OcrMapScorer:
    """OCR as a reward map: inside a box the confidence times the similarity with the target, outside reward_bg.

    engine: "rapidocr" or an OcrEngine. reward_bg: in [0, 1], 0.5 is neutral. mask_sigma: the soft edge's sigma as a share of
    a box's height; at an eighth the edge fades over half a height, and the middle of the box keeps its full reward.
    An image without any text gives a reward of 0 and a constant, valid map of reward_bg.
    details: reward, similarity, confidence, exact (see LineMatch), text_area (share of the image), num_lines.
    """

    def __init__(self, engine: str | OcrEngine = "rapidocr", reward_bg: float = 0.5, mask_sigma: float = 0.125):
        if not 0 <= reward_bg <= 1:
            raise ValueError(f"reward_bg must lie in [0, 1], got {reward_bg}; 0.5 is neutral")
        if not 0 <= mask_sigma < math.inf:
            raise ValueError(f"mask_sigma must be 0 (hard edges) or more box heights, got {mask_sigma}")
        self._engine = make_engine(engine)
        self._reward_bg = reward_bg
        self._mask_sigma = mask_sigma

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1]. Raises ValueError for bad input or a prompt without a target."""
        check_images(images, prompts, metadata)
        # before any OCR: a bad prompt must not cost a batch of reading
        targets = batch_targets(prompts, metadata)
        lines = read_images(self._engine, images)
        matches = [match_lines(*pair) for pair in zip(lines, targets, strict=True)]
        size = tuple(images.shape[2:])
        quads = [[line.quad for line in image_lines] for image_lines in lines]
        maps = [
            blend_boxes(image_quads, match.box_rewards, size, self._reward_bg, self._mask_sigma)
            for image_quads, match in zip(quads, matches, strict=True)
        ]
        measured = {
            "reward": [match.reward for match in matches],
            "similarity": [match.similarity for match in matches],
            "confidence": [match.confidence for match in matches],
            "exact": [match.exact for match in matches],
            "text_area": [text_area(image_quads, size) for image_quads in quads],
            "num_lines": [len(image_quads) for image_quads in quads],
        }
        details = {name: torch.tensor(per_image, dtype=torch.float32) for name, per_image in measured.items()}
        details = {name: values.to(images.device) for name, values in details.items()}  # (B,) each
        reward_map = torch.stack(maps).to(images.device)  # (B, H, W)
        return Score(reward=details["reward"], reward_map=reward_map, map_kind="reward", details=details)


def _line_height(quad: np.ndarray) -> float:
    """The mean length of the two edges across the line."""
    return float(np.linalg.norm(quad[0] - quad[3]) + np.linalg.norm(quad[1] - quad[2])) / 2


def _window(quad: np.ndarray, size: tuple[int, int], margin: int) -> tuple[slice, slice]:
    """Rows and columns of the image that a quad and `margin` pixels around it can touch; empty where outside."""
    height, width = size
    left, top = np.clip(np.floor(quad.min(axis=0)) - margin, 0, (width, height)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(quad.max(axis=0)) + margin, 0, (width, height)).astype(int).tolist()
    return slice(top, bottom), slice(left, right)
