"""The study's arms as runs of the trainer: one size for all, and each arm's own flags.

python train_sd3.py --config scripts/study/runs.py:rolled --config.seed=1
"""

import ml_collections

from config.grpo import tiny_ocr_map

ORACLE = "scripts.study.oracle:OracleScorer"

# arm -> fields of the configuration
ARMS = {
    "scalar": {"advantage.mode": "scalar"},
    "own": {},
    "group": {"advantage.evidence": "group"},
    "residual": {"advantage.mode": "residual"},
    "rolled": {"advantage.control": "rolled"},
    "residual_rolled": {"advantage.mode": "residual", "advantage.control": "rolled"},
    "shuffled": {"advantage.control": "shuffled"},
    "inverted": {"advantage.control": "inverted"},
    "constant": {"advantage.control": "constant"},
    "oracle": {},
    "residual_oracle": {"advantage.mode": "residual"},
}
ORACLE_ARMS = ("oracle", "residual_oracle")


def get_config(arm: str = "own") -> ml_collections.ConfigDict:
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; choose one of {', '.join(ARMS)}")
    config = tiny_ocr_map()
    config.name = f"study-{arm}"
    config.num_epochs = 6
    config.eval_every = 2
    config.num_eval_prompts = 96
    config.samples_every = 0
    config.save_every = 6
    config.num_groups = 8
    config.group_size = 12
    config.batch_size = 48
    config.train.beta = config.train.spatial_kl = 0.0  # credit alone
    config.advantage.mode = "weight"
    config.advantage.evidence = "own"
    for field, value in ARMS[arm].items():
        section, name = field.split(".")
        config[section][name] = value
    if arm in ORACLE_ARMS:
        del config.rewards.ocr_map
        config.rewards[ORACLE] = 1.0
    return config
