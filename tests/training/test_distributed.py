"""Two real processes on the CPU against one with twice the batch: the same samples, advantages and weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.tracking import read_metrics

WORKER = Path(__file__).parent / "worker.py"


def run(launcher, folder, num_processes, batch_size, environment):
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(folder), str(batch_size)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(num_processes)]


@pytest.fixture(scope="module")
def one(tmp_path_factory, process_environment):
    """What one process saw, with batches of four."""
    return run([], tmp_path_factory.mktemp("one"), 1, 4, process_environment)[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory, process_environment):
    """What each of two processes saw, with batches of two."""
    # torchrun: on a CPU accelerate's own launcher starts one process, whatever --num_processes says
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return run(launcher, tmp_path_factory.mktemp("two"), 2, 2, process_environment)


def test_the_launched_processes_are_really_two(one, two):
    assert [seen["num_processes"] for seen in two] == [2, 2] and all(seen["wrapped"] for seen in two)
    assert one["num_processes"] == 1 and not one["wrapped"]


def test_two_processes_draw_the_samples_of_one(one, two):
    for batch, (prompts, images, rewards) in enumerate(zip(one["prompts"], one["images"], one["rewards"], strict=True)):
        assert [prompt for seen in two for prompt in seen["prompts"][batch]] == prompts
        # batches of two and of four take other matrix kernels, whose fp32 rounding four steps carry on
        torch.testing.assert_close(torch.cat([seen["images"][batch] for seen in two]), images, atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.cat([seen["rewards"][batch] for seen in two]), rewards, atol=1e-4, rtol=0)


def test_two_processes_give_the_advantages_of_one(one, two):
    for batch in range(2):
        ours = torch.cat([seen["advantages"][:, 2 * batch : 2 * batch + 2] for seen in two], dim=1)
        expected = one["advantages"][:, 4 * batch : 4 * batch + 4]
        assert expected.shape == (2, 4, 64) and expected.std() > 0.1
        # rewards that differ by 1e-6 of rounding, over a spread of rewards of 1e-2, times a weight of up to 8
        torch.testing.assert_close(ours, expected, atol=1e-2, rtol=1e-2)


def test_every_process_reports_the_metrics_of_all(one, two):
    timeless = [{k: v for k, v in seen["metrics"].items() if not k.startswith("time/")} for seen in two]
    assert timeless[0] == timeless[1] and len(timeless[0]) > 10
    for name, value in one["metrics"].items():
        # ratio_std is the mean spread within a process by its own definition, and falls with the batch
        if name != "update/ratio_std" and not name.startswith("time/"):
            assert two[0]["metrics"][name] == pytest.approx(value, rel=1e-2, abs=1e-4), name


def test_after_an_epoch_all_processes_hold_the_same_weights_to_the_bit(two):
    assert all(torch.equal(a, b) for a, b in zip(two[0]["weights"], two[1]["weights"], strict=True))


def test_every_process_starts_from_the_weights_of_one(one, two):
    for seen in two:
        assert all(torch.equal(a, b) for a, b in zip(seen["initial"], one["initial"], strict=True))


def test_after_an_epoch_two_processes_hold_the_weights_of_one(one, two):
    def flat(tensors):
        return torch.cat([tensor.flatten() for tensor in tensors])

    start = flat(one["initial"])
    expected, ours = flat(one["weights"]) - start, flat(two[0]["weights"]) - start
    assert expected.abs().max() > 1e-4
    # Adam divides by the gradient's own size, so where that is near 0 its rounding moves the weight: 1e-4 was measured
    assert (ours - expected).norm() < 0.01 * expected.norm()


def test_an_evaluation_counts_each_prompt_once_when_they_do_not_divide(one, two):
    assert len(one["evaluated"]) == len(set(one["evaluated"])) == 3
    assert sorted(len(seen["evaluated"]) for seen in two) == [1, 2]
    assert sorted(prompt for seen in two for prompt in seen["evaluated"]) == sorted(one["evaluated"])
    assert two[0]["evaluation"] == two[1]["evaluation"]
    for name, value in one["evaluation"].items():
        assert two[0]["evaluation"][name] == pytest.approx(value, abs=1e-4), name


def test_alone_a_process_is_main_and_gathers_itself():
    distributed = Distributed()
    assert (distributed.rank, distributed.num_processes, distributed.is_main) == (0, 1, True)
    assert Distributed.launched_processes() == 1
    values = torch.arange(3.0)
    assert torch.equal(distributed.gather(values), values)
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
    assert distributed.any(True) and not distributed.any(False)


def test_a_scorer_that_fails_in_one_process_ends_the_run_of_all_with_its_error(tmp_path, process_environment):
    (tmp_path / "failing_config.py").write_text(
        "from tiny_run import REWARD, get_config as tiny\n"
        "def get_config():\n"
        "    config = tiny()\n"
        "    config.num_gpus, config.batch_size, config.eval_every, config.save_every = 2, 2, 0, 100\n"
        "    config.reward_options = {REWARD: {'fails_after': 2, 'fails_in': '1'}}\n"
        "    return config\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["train_sd3.py", "--config", str(tmp_path / "failing_config.py"), f"--config.run_dir={tmp_path / 'run'}"]
    done = subprocess.run([*launcher, *command], env=process_environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "the reward has failed" in done.stderr and "in another process of this run" in done.stderr
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-000000"]


def test_skipping_changes_no_result_where_a_process_has_no_advantage_left(tmp_path, process_environment):
    """Each process has one group, and the brightness of one of the two is above the threshold in every image."""
    states = []
    for skip in (False, True):
        (tmp_path / "skipping_config.py").write_text(
            "from tiny_run import REWARD, get_config as tiny\n"
            "def get_config():\n"
            "    config = tiny()\n"
            "    config.num_gpus, config.batch_size, config.updates_per_epoch, config.num_epochs = 2, 2, 1, 1\n"
            "    config.num_groups, config.group_size, config.eval_every, config.train.beta = 2, 2, 0, 0.0\n"
            "    config.reward_options = {REWARD: {'threshold': 0.685}}\n"
            f"    config.train.skip_zero_advantages = {skip}\n"
            "    return config\n"
        )
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_sd3.py"]
        flags = ["--config", str(tmp_path / "skipping_config.py"), f"--config.run_dir={tmp_path / str(skip)}"]
        done = subprocess.run([*launcher, *flags], env=process_environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        assert read_metrics(tmp_path / str(skip))[0]["rollout/zero_advantage_share"] == 0.5
        (checkpoint,) = list_checkpoints(tmp_path / str(skip))
        states.append(torch.load(checkpoint / "state.pt", weights_only=True)["lora"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
