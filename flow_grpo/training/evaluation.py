"""Score the policy on held-out prompts: one fixed noise a prompt, each prompt counted once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from flow_grpo.map_overlay import overlay, sheet
from flow_grpo.rewards import MultiScore
from flow_grpo.score import to_uint8
from flow_grpo.text_match import quoted_targets
from flow_grpo.training.data import sample_seed
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.image_signals import image_signals
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.rollout import SDE, rollout


@dataclass(frozen=True)
class Evaluation:
    """metrics: means over the prompts. examples: (prompt, image (3, H, W), reward, map (H, W) or None) of the first.

    map_kind: of the examples' maps, "reward" or "importance"; None without any.
    """

    metrics: dict[str, float]
    examples: list[tuple[str, torch.Tensor, float, torch.Tensor | None]]
    map_kind: str | None

    def sheet(self, columns: int = 8) -> Image.Image:
        """The examples in rows, each image over its map, with its reward and the first quoted target below."""
        tiles, labels = [], []
        for start in range(0, len(self.examples), columns):
            row = self.examples[start : start + columns]
            images = [to_uint8(image[None])[0] for _, image, _, _ in row]
            blank = np.full_like(images[0], 255)
            padding = columns - len(row)
            tiles += images + [blank] * padding
            labels += [_label(prompt, reward) for prompt, _, reward, _ in row] + [""] * padding
            if row[0][3] is not None:
                maps = [
                    overlay(image, entry[3].cpu().numpy(), map_kind=self.map_kind) for image, entry in zip(images, row)
                ]
                tiles += maps + [blank] * padding
                labels += [""] * columns
        return sheet(tiles, labels, columns)


def evaluate(
    policy: Policy,
    prompts: list[str],
    metadata: list[dict[str, Any]],
    score_fn: MultiScore,
    sde: SDE,
    batch_size: int,
    seed: int,
    distributed: Distributed,
    num_examples: int = 16,
) -> Evaluation:
    """Every process takes every num_processes-th prompt; all must call it, all get the same metrics.

    Means are over the images that could be scored; invalid_share is the share of the others.
    """
    own = list(range(distributed.rank, len(prompts), distributed.num_processes))
    most = -(-len(prompts) // distributed.num_processes)  # that any process has
    pending, starts = [], range(0, most, batch_size)
    for start in tqdm(starts, desc="evaluation", leave=False, disable=not distributed.is_main):
        indices = own[start : start + batch_size]
        chosen = [prompts[i] for i in indices]
        seeds = [sample_seed(seed, i) for i in indices]
        # A process that has none left samples along: where the weights lie in parts, the others wait for its part.
        images = rollout(policy, chosen or prompts[:1], seeds or [seed], sde, num_kept=0).images
        if not chosen:
            continue
        scores = score_fn.submit(images, chosen, [metadata[i] for i in indices])
        signals = {f"signal/{name}": values for name, values in image_signals(images).items()}
        pending.append((chosen, images if start < num_examples else None, scores, signals))
    rows, examples, map_kind = [], [], None
    for chosen, images, scores, signals in pending:
        details, extras = scores()
        measured = {"reward": details["avg"], "valid": extras["valid"], **extras["details"], **signals}
        if len(details) > 2:  # each of several rewards by itself; one alone is "reward"
            measured |= {name: values for name, values in details.items() if name != "avg"}
        columns = {name: values.tolist() for name, values in measured.items()}
        rows += [{name: values[i] for name, values in columns.items()} for i in range(len(chosen))]
        if images is not None:
            first = next(iter(extras["maps"].values()), {"reward_map": [None] * len(chosen), "map_kind": None})
            map_kind = first["map_kind"]
            examples += list(zip(chosen, images, columns["reward"], first["reward_map"]))
    # Gathered row by row: no prompt is padded in and counted twice, however unevenly they fall.
    every = [row for process_rows in distributed.gather_objects(rows) for row in process_rows]
    valid = [row for row in every if row["valid"]]
    if not valid:
        raise RuntimeError(f"none of the {len(every)} images of an evaluation could be scored; the log has each cause")
    metrics = {f"eval/{name}": sum(row[name] for row in valid) / len(valid) for name in every[0] if name != "valid"}
    metrics["eval/invalid_share"] = 1 - len(valid) / len(every)
    return Evaluation(metrics, examples[:num_examples], map_kind)


def _label(prompt: str, reward: float) -> str:
    return " ".join([*quoted_targets(prompt)[:1], f"{reward:.2f}"])
