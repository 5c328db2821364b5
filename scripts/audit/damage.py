"""Does a map see damage? We paint over a letter, a sign or a shape. The map should fall there, and nowhere else.

Looking at a map does not show whether it is right. Here it can be checked: we made the damage, so each of its pixels is known.
The scenes are billboards, which tiny-clip knows and every OCR engine reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flow_grpo.score import Score
from scripts.pretrain.billboards import make_billboard
from scripts.pretrain.signs_world import HELD_OUT, Scene

SEEN = 0.05  # a fall that counts: a tenth of what a reward map can lose from its neutral
METRICS = ("auroc", "seen", "inside", "score_fall")


@dataclass(frozen=True)
class Damaged:
    """Scenes before and after: whole, damaged (N, 3, H, W) in [0, 1], their prompts, and regions (N, H, W) bool."""

    whole: Tensor
    damaged: Tensor
    prompts: list[str]
    regions: Tensor


def paint_letter(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One letter of one sign becomes board."""
    sign = scene.signs[rng.integers(len(scene.signs))]
    left, top, right, bottom = sign.text_box
    index = rng.integers(len(sign.word))
    edges = np.linspace(left, right, len(sign.word) + 1).round().astype(int)
    region = np.zeros_like(sign.mask)
    region[top:bottom, edges[index] : edges[index + 1]] = True
    return region, commonest_colour(scene.image[sign.mask])


def paint_sign(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One sign becomes background."""
    return scene.signs[rng.integers(len(scene.signs))].mask, background_colour(scene)


def paint_object(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The shape becomes background."""
    return scene.objects[0].mask, background_colour(scene)


# name -> (scene, generator) -> region (H, W) bool, colour (3,) uint8
DAMAGES: dict[str, Callable[[Scene, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "letter": paint_letter,
    "sign": paint_sign,
    "object": paint_object,
}


def damaged_scenes(kind: str, num_scenes: int) -> Damaged:
    """Held-out scenes with one damage each, the same for every scorer."""
    scenes = [make_billboard(seed, "test") for seed in range(HELD_OUT, HELD_OUT + num_scenes)]
    images, regions = [], []
    for index, scene in enumerate(scenes):
        region, colour = DAMAGES[kind](scene, np.random.default_rng([index, 2]))
        image = scene.image.copy()
        image[region] = colour
        images.append(image)
        regions.append(region)
    whole, damaged = (
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        for pixels in ([scene.image for scene in scenes], images)
    )
    return Damaged(whole, damaged, [scene.caption for scene in scenes], torch.from_numpy(np.stack(regions)))


def commonest_colour(pixels: np.ndarray) -> np.ndarray:
    """Of pixels (P, 3) uint8."""
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return colours[counts.argmax()]


def background_colour(scene: Scene) -> np.ndarray:
    return commonest_colour(scene.image[~np.any([thing.mask for thing in scene.objects], axis=0)])


def audit(
    scorer: Callable[[Tensor, Sequence[str]], Score],
    scenes: Damaged,
    auroc: Callable[[Tensor, Tensor], Tensor],
    high_is_good: bool = True,
) -> dict[str, float]:
    """What a scorer's maps made of the damage; over the scenes whose two maps are valid.

    auroc: a damaged pixel's map falls by more than another's. seen: the share of damages whose region falls by more than
    0.05, on average, and by that much more than the rest. inside: the share of all the fall that lies in the region.
    score_fall: how much the reward itself falls. high_is_good: False of a map that is low where it counts.
    Raises ValueError where the scorer has no map.
    """
    before, after = scorer(scenes.whole, scenes.prompts), scorer(scenes.damaged, scenes.prompts)
    if before.reward_map is None or after.reward_map is None:
        raise ValueError("the scorer gives no map, so there is none to audit; give one that does")
    valid = before.map_valid & after.map_valid
    fall = (before.reward_map - after.reward_map).float()[valid] * (1 if high_is_good else -1)  # (V, H, W)
    region = scenes.regions[valid]
    inner = (fall * region).sum(dim=(1, 2)) / region.sum(dim=(1, 2))
    outer = (fall * ~region).sum(dim=(1, 2)) / (~region).sum(dim=(1, 2))
    lost = fall.relu()
    return {
        "auroc": auroc(fall, region).mean().item(),
        "seen": ((inner > SEEN) & (inner - outer > SEEN)).float().mean().item(),
        "inside": ((lost * region).sum() / lost.sum().clamp_min(1e-9)).item(),
        "score_fall": (before.reward - after.reward)[valid].mean().item(),
    }
