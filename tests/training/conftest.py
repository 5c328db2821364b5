"""Shared by the tests of training: the tiny policy, tiny configurations, and one finished run that many tests look at."""

import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from config.validation import resolve
from flow_grpo.training.build import build
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.trainer import Trainer

HERE = Path(__file__).parent
# The brightness reward is named as "module:factory", and the trainer imports it by that name.
sys.path.insert(0, str(HERE))

from tiny_run import get_config  # noqa: E402  its folder has just been put on the path

MODEL = "models/tiny-sd3"
PROMPTS = [
    'a red circle and a blue sign "HUT"',
    'a green star, a pink sign "RAM" and a black sign "SOB"',
]


@pytest.fixture(scope="session", autouse=True)
def _wandb_offline():
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")
    patch.setenv("WANDB_X_SERVICE_WAIT", "600")  # seconds; after 30 a run would go on without wandb
    yield
    patch.undo()


@pytest.fixture(scope="session")
def prompts():
    return list(PROMPTS)


@pytest.fixture(scope="session")
def make_policy():
    """make_policy(**options) -> a fresh SD3Policy of models/tiny-sd3, its LoRA not trained."""

    def make(**options):
        settings = dict(resolution=64, lora_rank=4, lora_alpha=8, guidance_scale=1.0, max_sequence_length=34)
        return load_policy("sd3", MODEL, "no", **(settings | options))

    return make


@pytest.fixture(scope="session")
def policy(make_policy):
    """One policy for all; a test that changes its weights or its resolution puts them back."""
    return make_policy()


@pytest.fixture(scope="session")
def make_config():
    """make_config(run_dir, **{"field.name": value}) -> the tiny run's configuration, not resolved yet."""

    def make(run_dir, **changes):
        config = get_config()
        config.run_dir = str(run_dir)
        for path, value in changes.items():
            *folders, name = path.split(".")
            target = config
            for folder in folders:
                target = target[folder]
            target[name] = value
        return config

    return make


@pytest.fixture(scope="session")
def make_trainer(make_config):
    """make_trainer(run_dir, **changes) -> a Trainer of one process."""

    def make(run_dir, **changes):
        config, geometry = resolve(make_config(run_dir, **changes), num_processes=1)
        return Trainer(build(config, geometry, Distributed(config.mixed_precision)))

    return make


@pytest.fixture(scope="session")
def finished_run(make_trainer, tmp_path_factory):
    """A run of three epochs that nothing disturbed; keeps its two newest checkpoints.

    python's and numpy's random states, which a run does not seed, are those of seed 7.
    """
    random.seed(7), np.random.seed(7)
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    trainer = make_trainer(run_dir, keep_checkpoints=2)
    trainer.train()
    return SimpleNamespace(trainer=trainer, run_dir=run_dir)


@pytest.fixture(scope="session")
def process_environment():
    """The environment of a run in a process of its own."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(HERE)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
