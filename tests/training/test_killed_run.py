"""A run that is hit by ten signals at random moments ends where an undisturbed one does, bit for bit."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from tiny_run import timeless_rows

from flow_grpo.training.checkpoint import list_checkpoints

SCRIPT = Path(__file__).with_name("killed_run.py")


def run(run_dir, environment, *arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(run_dir), *arguments],
        env=environment | {"WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def final_state(run_dir):
    return torch.load(list_checkpoints(run_dir)[-1] / "state.pt", weights_only=True)


def test_a_run_killed_and_stopped_at_ten_random_moments_ends_where_an_undisturbed_one_does(
    tmp_path, process_environment
):
    output = run(tmp_path / "killed", process_environment)
    assert re.findall("^(SIG[A-Z]+) after checkpoint", output, re.MULTILINE)[::2] == ["SIGKILL"] * 5
    killed = final_state(tmp_path / "killed")
    assert killed["epoch"] >= 10 * 2 + 3
    run(tmp_path / "undisturbed", process_environment, str(killed["epoch"]))
    undisturbed = final_state(tmp_path / "undisturbed")
    assert killed["epoch"] == undisturbed["epoch"]
    assert all(torch.equal(killed["lora"][name], undisturbed["lora"][name]) for name in undisturbed["lora"])
    assert timeless_rows(tmp_path / "killed") == timeless_rows(tmp_path / "undisturbed")
    left = [path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")]
    assert left == []
