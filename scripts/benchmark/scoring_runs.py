"""The tiny run in small batches with three ways to score. They show what OCR adds to a rollout, and what a worker hides of it.

train_sd3.py --config scripts/benchmark/scoring_runs.py:worker
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

sys.path.insert(0, str(Path(__file__).parents[2]))  # config/ is not installed: it belongs to the checkout

from config.grpo import tiny_ocr_map  # noqa: E402


class Scoring(NamedTuple):
    """A line of the benchmark's table and the fields that make it."""

    title: str
    rewards: dict[str, float]
    reward_options: dict[str, dict[str, Any]]


SCORINGS = {
    "free": Scoring("JPEG size, no OCR", {"jpeg_compressibility": 1.0}, {}),
    "worker": Scoring("OCR in a worker", {"ocr_map": 1.0}, {"ocr_map": {"num_workers": 1}}),
    "serial": Scoring("OCR in the process", {"ocr_map": 1.0}, {}),
}


def get_config(name: str) -> ml_collections.ConfigDict:
    config, scoring = tiny_ocr_map(), SCORINGS[name]
    config.name = name
    config.rewards = ml_collections.ConfigDict(scoring.rewards, allow_dotted_keys=True)
    config.reward_options = ml_collections.ConfigDict(scoring.reward_options, allow_dotted_keys=True)
    # The rollout alone is looked at: a JPEG's size has no map, and the update may be short.
    config.advantage.mode = "scalar"
    config.train.beta = config.train.spatial_kl = 0.0
    config.batch_size = 8  # the last batch's OCR has no sampling to hide behind
    config.train.num_steps = 1
    return config
