"""DeepSpeed's ZeRO-2 as `KIND=deepspeed_zero2 scripts/one_node.sh` launches it, by two real processes on the CPU."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import by_two_processes, run

from flow_grpo.training.zero import LossScale

HERE = Path(__file__).parent


def train(environment, run_dir, *flags):
    flags = ["--config.num_gpus=2", "--config.batch_size=2", f"--config.run_dir={run_dir}", *flags]
    command = ["train_sd3.py", "--config", str(HERE / "tiny_run.py"), *flags]
    run([*by_two_processes("deepspeed_zero2"), *command], environment)


def state_after(run_dir, epoch):
    return torch.load(Path(run_dir) / f"checkpoint-{epoch:06d}" / "state.pt", weights_only=True)


def flat(state, name):
    """One of the optimizer's moments, the averaged weights ("ema") or the weights ("lora") as one tensor."""
    if name == "lora":
        return torch.cat([tensor.flatten() for tensor in state["lora"].values()])
    if name == "ema":
        return torch.cat([tensor.flatten() for tensor in state["ema"]["average"]])
    return torch.cat([entry[name].flatten() for entry in state["optimizer"]["state"].values()])


@pytest.fixture(scope="module")
def zero_run_dir(tmp_path_factory, process_environment):
    """A run of three epochs under ZeRO-2."""
    run_dir = tmp_path_factory.mktemp("zero") / "run"
    train(process_environment, run_dir, "--config.keep_checkpoints=2")
    return run_dir


def resumed(zero_run_dir, folder):
    """A copy of the run as it was after two epochs."""
    run_dir = folder / "run"
    shutil.copytree(zero_run_dir / "checkpoint-000002", run_dir / "checkpoint-000002")
    return run_dir


def assert_same_state(ours, expected):
    assert ours["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    assert ours["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()
    assert all(entry["step"] == 6 for entry in ours["optimizer"]["state"].values())
    assert ours["ema"]["num_steps"] == expected["ema"]["num_steps"]
    # fp32 sums in another order, which six optimizer steps carry on: 1e-6 was measured of weights, 2e-5 of moments
    for name, tolerance in {"lora": 1e-5, "ema": 1e-5, "exp_avg": 1e-3, "exp_avg_sq": 1e-3}.items():
        wanted = flat(expected, name)
        assert (flat(ours, name) - wanted).norm() < tolerance * wanted.norm(), name


def test_zero_ends_with_the_weights_and_the_optimizer_of_one_process(zero_run_dir, finished_run):
    assert_same_state(state_after(zero_run_dir, 3), state_after(finished_run.run_dir, 3))


def test_a_run_goes_on_under_zero_to_the_bit(zero_run_dir, tmp_path, process_environment):
    run_dir = resumed(zero_run_dir, tmp_path)
    train(process_environment, run_dir, "--config.resume_from=latest")
    ours, expected = state_after(run_dir, 3), state_after(zero_run_dir, 3)
    for name in ("lora", "ema", "exp_avg", "exp_avg_sq"):
        assert torch.equal(flat(ours, name), flat(expected, name)), name


def test_a_run_goes_on_in_one_process_without_zero(zero_run_dir, finished_run, tmp_path, make_trainer):
    run_dir = resumed(zero_run_dir, tmp_path)
    make_trainer(run_dir, resume_from="latest").train()
    assert_same_state(state_after(run_dir, 3), state_after(finished_run.run_dir, 3))


def test_the_loss_scale_follows_torchs_own_rule_and_state():
    zero = SimpleNamespace()
    ours, torchs = LossScale(zero), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for step in range(4100):
        overflow = step in (3, 4, 2500)
        parameter.grad = torch.full((1,), float("inf") if overflow else 0.0)
        torchs.scale(torch.zeros(1))
        torchs.step(optimizer)
        torchs.update()
        zero.loss_scaler.update_scale(overflow)
        assert ours.state_dict() == torchs.state_dict(), step
    assert torchs.get_scale() == 2.0**14  # three overflows; 2,000 steps without one only once


def test_the_loss_scale_is_handed_over_both_ways():
    ours, torchs = LossScale(SimpleNamespace()), torch.amp.GradScaler("cpu")
    ours.load_state_dict(torchs.state_dict() | {"scale": 8.0, "_growth_tracker": 5})
    torchs.load_state_dict(ours.state_dict())
    assert torchs.get_scale() == 8.0 and ours.state_dict() == torchs.state_dict()
