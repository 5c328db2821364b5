"""A configuration of seconds: tiny-sd3, two groups of four, the brightness reward. For `train_sd3.py --config`, too."""

import json

import torch

from config.grpo import tiny_ocr_map
from flow_grpo.training.tracking import read_metrics

REWARD = "brightness_reward:Brightness"


def get_config():
    config = tiny_ocr_map()
    config.name = "tiny_run"
    config.rewards = {REWARD: 1.0}
    config.advantage.mode = "weight"
    config.eval_rewards = {"jpeg_compressibility": {}}
    config.num_epochs = 3
    config.save_every = 1
    config.eval_every = 2
    config.samples_every = 2
    config.num_eval_prompts = 3
    config.num_groups = 2
    config.group_size = 4
    config.batch_size = 4
    config.updates_per_epoch = 2
    config.sample.num_steps = 4
    config.sample.eval_num_steps = 3
    config.train.num_steps = 2
    config.train.beta = 0.04
    config.train.spatial_kl = 0.0
    config.train.learning_rate = 1e-3
    config.train.ema_every = 1
    return config


def timeless_rows(run_dir):
    """A run's metrics without its seconds: what two runs that are the same have in common."""
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")} for row in read_metrics(run_dir)
    ]


def logged_tables(run_dir, name):
    """The tables that a run's offline wandb folders hold under a name, in the order in which they were logged."""
    paths = run_dir.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")
    return [json.loads(path.read_text()) for path in sorted(paths, key=lambda path: int(path.name.split("_")[1]))]


def rollout_rows(run_dir):
    """A run's metrics of its training epochs, without those of its evaluations alone."""
    return [row for row in read_metrics(run_dir) if "rollout/reward_mean" in row]


def state_of(checkpoint):
    """Every tensor of a checkpoint by name: LoRA, optimizer, EMA, random states."""

    def flatten(value, prefix):
        if isinstance(value, dict):
            for name, child in value.items():
                yield from flatten(child, f"{prefix}/{name}")
        elif isinstance(value, (list, tuple)):
            for index, child in enumerate(value):
                yield from flatten(child, f"{prefix}/{index}")
        else:
            yield prefix, value

    files = {name: torch.load(checkpoint / name, weights_only=True) for name in ("state.pt", "rng.pt")}
    return dict(flatten(files, ""))
