"""Our scorers in a fork of Flow-GRPO: its own flow_grpo/ and ours as one package, without the trainer's libraries."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flow_grpo.reward_map import pool_to_tokens
from flow_grpo.scorers import make_scorer
from flow_grpo.training.advantages import token_advantages
from flow_grpo.training.objective import grpo_loss
from flow_grpo.training.policies.lora_pipeline import patchify
from flow_grpo.training.sde import log_prob_per_token
from tests.clip_models import make_clip

ROOT = Path(__file__).parents[1]
FORK = Path(__file__).parent / "fork"
# What a fork with a flow_grpo/__init__.py has to say in it: a regular package would otherwise hide all other folders.
EXTENDED = "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"


def run_fork(path, *command, **environment):
    """The command in a fresh Python that finds packages in the folders of `path`, in their order."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))} | environment
    finished = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fork")


@pytest.fixture(scope="module")
def model(folder):
    for part in make_clip(image_size=64):
        part.save_pretrained(folder / "clip")
    return str(folder / "clip")


@pytest.fixture(scope="module")
def batch(draw_text):
    words = ("HUT", "SOB", "TAN")
    return {
        "weights": {"clip_gradcam": 0.5, "ocr_map": 2.0, "brightness": 0.1},
        "images": torch.stack([draw_text(word) for word in words]),
        "prompts": [f'a sign that says "{word}"' for word in ("HUT", "SOB", "HEN")],
        "metadata": [{}] * len(words),
    }


@pytest.fixture(scope="module")
def scored(folder, model, batch):
    """What the fork's trainer got: its flow_grpo/ has no __init__.py, as Flow-GRPO's has none, and comes first."""
    torch.save(batch, folder / "batch.pt")
    run_fork([FORK, ROOT], FORK / "train.py", folder / "batch.pt", folder / "scored.pt", CLIP_MODEL=model)
    return torch.load(folder / "scored.pt")


def test_fork_keeps_its_own_files_and_finds_ours_beside_them(scored):
    loaded = scored["loaded"]
    assert Path(loaded["flow_grpo.rewards"]) == FORK / "flow_grpo" / "rewards.py"
    assert Path(loaded["flow_grpo.scorers"]) == ROOT / "flow_grpo" / "scorers.py"
    assert Path(loaded["flow_grpo.clip_gradcam_scorer"]) == ROOT / "flow_grpo" / "clip_gradcam_scorer.py"


def test_fork_loads_nothing_of_our_trainer(scored):
    assert not [name for name in scored["loaded"] if name.startswith("flow_grpo.training")]


def test_forks_rewards_are_our_scores_in_its_weighted_sum(scored, batch, model):
    details = scored["details"]
    expected = {
        "clip_gradcam": make_scorer("clip_gradcam", model=model)(batch["images"], batch["prompts"]).reward,
        "ocr_map": make_scorer("ocr_map")(batch["images"], batch["prompts"]).reward,
        "brightness": batch["images"].mean(dim=(1, 2, 3)),
    }
    for name, rewards in expected.items():
        torch.testing.assert_close(details[name], rewards)
    total = sum(weight * expected[name] for name, weight in batch["weights"].items())
    torch.testing.assert_close(torch.stack(list(details["avg"])), total)
    assert details["ocr_map"][0] > 0.9 > details["ocr_map"][2]  # the third sign says something else


def test_maps_reach_the_fork_as_extras(scored, batch, model):
    for name, kind, options in (("clip_gradcam", "importance", {"model": model}), ("ocr_map", "reward", {})):
        expected, extras = make_scorer(name, **options)(batch["images"], batch["prompts"]), scored["extras"][name]
        torch.testing.assert_close(extras["reward_map"], expected.reward_map)
        assert extras["map_kind"] == kind and extras["map_valid"].tolist() == expected.map_valid.tolist()
        assert extras["valid"].all()


def test_readmes_loss_by_token_is_the_forks_own_until_a_map_says_otherwise():
    generator = torch.Generator().manual_seed(0)
    following, mean, old_mean = torch.randn(3, 4, 16, 64, 64, generator=generator)
    mean, advantages, std = old_mean + 1e-3 * mean, torch.tensor([1.0, -1.0, 0.5, -2.0]), torch.tensor(0.3)

    def log_prob(mean):
        return log_prob_per_token(patchify(following, 2), patchify(mean, 2), std)  # (B, 1024)

    def loss(reward_map):
        spread = token_advantages(
            advantages,
            pool_to_tokens(reward_map, (32, 32)),
            "weight",
            "reward",
            map_valid=torch.ones(4, dtype=torch.bool),
        )
        return grpo_loss(log_prob(mean), log_prob(old_mean), spread, clip_range=1e-4, ratio="gspo_token")[0]

    forks = torch.distributions.Normal(mean, std).log_prob(following).mean(dim=(1, 2, 3))
    forks_old = torch.distributions.Normal(old_mean, std).log_prob(following).mean(dim=(1, 2, 3))
    ratio = (forks - forks_old).exp()
    expected = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean()
    # fp32 sums of 65,536 values in two orders
    torch.testing.assert_close(loss(torch.full((4, 512, 512), 0.8)), expected, atol=1e-5, rtol=0)
    mean.requires_grad_(True)
    half = torch.full((4, 512, 512), 0.5)
    half[:, :256] = 1.0
    (gradient,) = torch.autograd.grad(loss(half), mean)
    top, bottom = gradient[0].abs().sum(dim=(0, 2)).view(2, 32).sum(dim=1)  # of the image that is praised
    assert top > 2 * bottom


@pytest.mark.parametrize("order", ["fork first", "ours first"])
def test_fork_with_an_init_needs_one_line_in_it_and_then_no_order(tmp_path, order):
    shutil.copytree(FORK, tmp_path, dirs_exist_ok=True)
    (tmp_path / "flow_grpo" / "__init__.py").write_text(EXTENDED)
    path = [tmp_path, ROOT] if order == "fork first" else [ROOT, tmp_path]
    found = run_fork(
        path,
        "-c",
        "from importlib.util import find_spec\n"
        "for name in ('rewards', 'clip_scorer', 'scorers', 'ocr_map_scorer'): print(find_spec(f'flow_grpo.{name}').origin)",
    )
    expected = [tmp_path] * 2 + [ROOT] * 2
    assert [Path(line).parents[1] for line in found.splitlines()] == expected
