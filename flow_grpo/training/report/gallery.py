"""Stores the samples of a run on disk: their pictures, and one line of JSON per set of samples.

RUN/samples.jsonl                       {"name": "eval/samples", "epoch": 10, "samples": [...]} per line
RUN/samples/eval-samples/000010/00.png   the first sample's image
RUN/samples/eval-samples/000010/00-0.png its first map over the image
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flow_grpo.training.json_lines import append_row, read_rows
from flow_grpo.training.samples import Sample

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class StoredSample:
    """One sample as it lies on disk: its numbers and texts, and the paths of its pictures.

    image: path of the picture. overlays: {scorer: path of its map over the image, or None where the map was not valid}.
    read: {scorer: what it read in the image}.
    """

    prompt: str
    image: Path
    reward: float | None = None
    rewards: dict[str, float | None] = field(default_factory=dict)
    advantage: float | None = None
    overlays: dict[str, Path | None] = field(default_factory=dict)
    read: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleSet:
    """The samples that were logged under one name in one epoch."""

    name: str
    epoch: int
    samples: list[StoredSample]


def save_samples(run_dir: Path, name: str, samples: Sequence[Sample], epoch: int) -> None:
    """Write the samples' pictures, then their line in samples.jsonl."""
    folder = run_dir / "samples" / name.replace("/", "-") / f"{epoch:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_save_sample(run_dir, folder, index, sample) for index, sample in enumerate(samples)]
    append_row(run_dir / SAMPLES, {"name": name, "epoch": epoch, "samples": rows})


def _save_sample(run_dir: Path, folder: Path, index: int, sample: Sample) -> dict[str, Any]:
    def save(picture: np.ndarray | None, name: str) -> str | None:
        if picture is None:
            return None
        path = folder / f"{index:02d}{name}.png"
        Image.fromarray(picture).save(path)
        return path.relative_to(run_dir).as_posix()

    return {
        "prompt": sample.prompt,
        "image": save(sample.image, ""),
        "reward": sample.reward,
        "rewards": sample.rewards,
        "advantage": sample.advantage,
        "read": dict(sample.read),
        "overlays": {scorer: save(map_, f"-{i}") for i, (scorer, map_) in enumerate(sample.overlays.items())},
    }


def read_samples(run_dir: Path) -> list[SampleSet]:
    """The sets of a run, in the order of their epochs. If two have the same name and epoch, the later line counts."""
    sets = {}
    for row in read_rows(run_dir / SAMPLES):
        samples = [_stored(run_dir, sample) for sample in row["samples"]]
        sets[row["name"], row["epoch"]] = SampleSet(row["name"], row["epoch"], samples)
    return sorted(sets.values(), key=lambda each: each.epoch)


def _stored(run_dir: Path, row: dict[str, Any]) -> StoredSample:
    overlays = {scorer: run_dir / path if path else None for scorer, path in row["overlays"].items()}
    return StoredSample(**{**row, "image": run_dir / row["image"], "overlays": overlays})
