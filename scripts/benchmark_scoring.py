"""The tiny run in small batches, by three scorings: what OCR adds to a rollout, and what a worker hides of it.

train_sd3.py --config scripts/benchmark_scoring.py:worker
"""

import ml_collections

from config.grpo import tiny_ocr_map

SCORINGS = {
    "free": ({"jpeg_compressibility": 1.0}, {}),
    "worker": ({"ocr_map": 1.0}, {"ocr_map": {"num_workers": 1}}),
    "serial": ({"ocr_map": 1.0}, {}),
}


def get_config(scoring: str) -> ml_collections.ConfigDict:
    config = tiny_ocr_map()
    config.name = scoring
    rewards, options = SCORINGS[scoring]
    config.rewards = ml_collections.ConfigDict(rewards, allow_dotted_keys=True)
    config.reward_options = ml_collections.ConfigDict(options, allow_dotted_keys=True)
    # The rollout alone is looked at: a JPEG's size has no map, and the update may be short.
    config.advantage.mode = "scalar"
    config.batch_size = 8  # the last batch's OCR has no sampling to hide behind
    config.train.num_steps = 1
    return config
