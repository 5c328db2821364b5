"""Two real processes on the CPU against one with twice the batch: the same samples, advantages and weights.

By DDP and by FSDP2, each as the launcher's own configuration sets it up.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import by_two_processes, run

from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.distributed import PATIENCE, Distributed, fsdp2_plugin
from flow_grpo.training.tracking import read_metrics

HERE = Path(__file__).parent
NUM_EPOCHS = 3
KINDS = {
    "ddp": ("DistributedDataParallel", "Parameter"),
    "fsdp2": ("FSDPSD3Transformer2DModel", "DTensor"),
}


def watch(launcher, folder, num_processes, batch_size, environment):
    run([*launcher, str(HERE / "worker.py"), str(folder), str(batch_size)], environment)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(num_processes)]


@pytest.fixture(scope="module")
def one(tmp_path_factory, process_environment):
    """What one process saw, with batches of four."""
    return watch([], tmp_path_factory.mktemp("one"), 1, 4, process_environment)[0]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def two(kind, tmp_path_factory, process_environment):
    """What each of two processes saw, with batches of two."""
    return watch(by_two_processes(kind), tmp_path_factory.mktemp(kind), 2, 2, process_environment)


def test_the_launched_processes_are_really_two_and_share_the_weights_as_asked(kind, one, two):
    assert [seen["num_processes"] for seen in two] == [2, 2] and one["num_processes"] == 1
    assert all((seen["module"], seen["parameter"]) == KINDS[kind] for seen in two)
    assert not any(seen["sends_buffers"] for seen in two)
    assert [seen["patience"] for seen in two] == [PATIENCE.total_seconds()] * 2
    assert one["module"] == "SD3Transformer2DModel"


def test_two_processes_draw_the_samples_of_one(one, two):
    assert len(one["prompts"]) == 2 * NUM_EPOCHS
    for batch, (prompts, images, rewards) in enumerate(zip(one["prompts"], one["images"], one["rewards"], strict=True)):
        assert [prompt for seen in two for prompt in seen["prompts"][batch]] == prompts
        # batches of two and of four take other matrix kernels, whose fp32 rounding four steps carry on
        torch.testing.assert_close(torch.cat([seen["images"][batch] for seen in two]), images, atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.cat([seen["rewards"][batch] for seen in two]), rewards, atol=1e-4, rtol=0)


def test_two_processes_give_the_advantages_of_one(one, two):
    for epoch in range(NUM_EPOCHS):
        for batch in range(2):
            ours = torch.cat([seen["advantages"][epoch][:, 2 * batch : 2 * batch + 2] for seen in two], dim=1)
            expected = one["advantages"][epoch][:, 4 * batch : 4 * batch + 4]
            assert expected.shape == (2, 4, 64) and expected.std() > 0.05
            # rewards that differ by 1e-6 of rounding, over a spread of rewards of 1e-2, times a weight of up to 8
            torch.testing.assert_close(ours, expected, atol=1e-2, rtol=1e-2)


def test_every_process_reports_the_metrics_of_all(one, two):
    for epoch in range(NUM_EPOCHS):
        metrics = [seen["metrics"][epoch] for seen in two]
        timeless = [{k: v for k, v in own.items() if not k.startswith("time/")} for own in metrics]
        assert timeless[0] == timeless[1] and len(timeless[0]) > 10
        for name, value in one["metrics"][epoch].items():
            # ratio_std is the mean spread within a process by its own definition, and falls with the batch
            if name != "update/ratio_std" and not name.startswith("time/"):
                assert metrics[0][name] == pytest.approx(value, rel=1e-2, abs=1e-4), name


def test_all_processes_hold_the_same_weights_to_the_bit_after_every_epoch(two):
    """By FSDP2 they are put together from the same parts, so there it cannot be otherwise."""
    for ours, theirs in zip(two[0]["weights"], two[1]["weights"], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_process_starts_from_the_weights_of_one(one, two):
    for seen in two:
        assert all(torch.equal(seen["weights"][0][name], start) for name, start in one["weights"][0].items())


def test_two_processes_hold_the_weights_of_one_after_every_epoch(one, two):
    for epoch in range(1, 1 + NUM_EPOCHS):
        assert_same_change(one["weights"][0], one["weights"][epoch], two[0]["weights"][epoch])


def assert_same_change(start, expected, ours):
    """That both weights came from the start by the same steps, up to float rounding."""
    start, expected, ours = (torch.cat([state[name].flatten() for name in start]) for state in (start, expected, ours))
    assert (expected - start).abs().max() > 1e-4
    # Adam divides by the gradient's own size, so where that is near 0 its rounding moves the weight: 1e-4 was measured
    assert (ours - expected).norm() < 0.01 * (expected - start).norm()


def test_a_run_goes_on_with_other_processes_and_another_way_to_share_the_weights(one, tmp_path, process_environment):
    """FSDP2 on two, then one process, then DDP on two: an epoch each, and the weights of one process throughout."""
    legs = [(by_two_processes("fsdp2"), 2), ([], 1), (by_two_processes("ddp"), 2)]
    for epoch, (launcher, num_processes) in enumerate(legs, start=1):
        fields = {"num_gpus": num_processes, "batch_size": 4 // num_processes, "num_epochs": epoch, "eval_every": 0}
        fields |= {"run_dir": tmp_path / "run", "resume_from": "latest" if epoch > 1 else ""}
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        done = run([*launcher, "train_sd3.py", "--config", "tests/training/tiny_run.py", *flags], process_environment)
        assert "FutureWarning" not in done.stderr
        if epoch > 1:
            earlier = 3 - num_processes
            assert f"num_gpus {num_processes} (was {earlier})" in done.stdout
        state = torch.load(tmp_path / "run" / f"checkpoint-00000{epoch}" / "state.pt", weights_only=True)
        assert_same_change(one["weights"][0], one["weights"][epoch], state["lora"])


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


def test_weights_that_stay_whole_after_a_forward_pass_are_refused(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    with pytest.raises(ValueError, match="launch with fsdp_reshard_after_forward: true"):
        fsdp2_plugin()


def test_fsdp2_is_ddp_to_the_bit_in_half_precision_with_checkpointing(tmp_path, process_environment):
    weights = []
    for kind in ("ddp", "fsdp2"):
        fields = {"num_gpus": 2, "batch_size": 2, "num_epochs": 1, "eval_every": 0, "run_dir": tmp_path / kind}
        fields |= {"mixed_precision": "bf16", "gradient_checkpointing": True}
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        run(
            [*by_two_processes(kind), "train_sd3.py", "--config", str(HERE / "tiny_run.py"), *flags],
            process_environment,
        )
        (checkpoint,) = list_checkpoints(tmp_path / kind)
        weights.append(torch.load(checkpoint / "state.pt", weights_only=True)["lora"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_fsdp2_trains_all_weights_as_one_process_does(make_trainer, tmp_path, process_environment):
    """The base model of the KL and the average of an evaluation are put in the place of weights that lie in parts."""
    fields = {"train.adapter": "full", "train.learning_rate": 1e-4, "train.beta": 1.0, "eval_every": 1, "num_epochs": 2}
    make_trainer(tmp_path / "one", **fields).train()
    own = {"num_gpus": 2, "batch_size": 2, "run_dir": tmp_path / "two"}
    flags = [f"--config.{name}={value}" for name, value in (fields | own).items()]
    run(
        [*by_two_processes("fsdp2"), "train_sd3.py", "--config", str(HERE / "tiny_run.py"), *flags],
        process_environment,
    )
    paths = [*list_checkpoints(tmp_path / "one")[-2:], list_checkpoints(tmp_path / "two")[-1]]
    assert_same_change(*(torch.load(path / "state.pt", weights_only=True)["transformer"] for path in paths))


# The main process is the last: it has a run to finish, and the launcher has already turned to it.
SLOW_END = """
import os, time, psutil
from flow_grpo.training.tracking import RunTracker
finish = RunTracker.finish
def finish_last(self, failed=False):
    psutil.wait_procs([each for each in psutil.Process(os.getppid()).children() if each.pid != os.getpid()])
    time.sleep(1)
    finish(self, failed)
RunTracker.finish = finish_last
"""


def run_that_fails(folder, options, environment, before=""):
    """A run of two processes whose reward fails by the options; what the launcher printed. before: code of each process."""
    (folder / "failing_config.py").write_text(
        f"{before}from tiny_run import REWARD, get_config as tiny\n"
        "def get_config():\n"
        "    config = tiny()\n"
        "    config.num_gpus, config.batch_size, config.eval_every, config.save_every = 2, 2, 0, 100\n"
        f"    config.reward_options = {{REWARD: {options}}}\n"
        "    return config\n"
    )
    command = ["train_sd3.py", "--config", str(folder / "failing_config.py"), f"--config.run_dir={folder / 'run'}"]
    command = [sys.executable, *by_two_processes("ddp"), *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


def test_a_scorer_that_fails_in_one_process_ends_the_run_of_all_with_its_error(tmp_path, process_environment):
    said = run_that_fails(tmp_path, {"fails_after": 2, "fails_in": "1"}, process_environment, SLOW_END)
    assert "the reward has failed" in said and "in another process of this run" in said
    assert "launch: process 1 failed first, with exit status 1: RuntimeError: the reward has" in said.splitlines()[-1]
    assert list_checkpoints(tmp_path / "run") == []  # nothing was trained yet, and the mended run may take the folder


def test_a_process_that_is_killed_ends_the_run_of_all_and_is_named(tmp_path, process_environment):
    said = run_that_fails(tmp_path, {"fails_after": 2, "fails_in": "1", "dies": True}, process_environment)
    # what is left of a progress bar may stand before it in the line
    assert "launch: process 1 failed first, with exit status -9: Signal 9 (SIGKILL)" in said.splitlines()[-1]


def test_a_step_that_overflows_in_one_process_is_skipped_in_all_and_halves_the_loss_scale(
    kind, tmp_path, process_environment
):
    run([*by_two_processes(kind), str(HERE / "overflow_worker.py"), str(tmp_path)], process_environment)
    for rank in range(2):
        overflow, step = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert overflow["skipped"] and overflow["scale"] == 2**15 and not overflow["norm"].isfinite()
        assert torch.equal(overflow["weight"], torch.ones(1, 2)) and overflow["gradient"] is None
        assert not step["skipped"] and step["scale"] == 2**15
        gradient = torch.tensor([[0.5, 0.125]])  # the mean of the two processes'
        assert step["norm"].item() == pytest.approx(gradient.norm().item(), rel=1e-6)
        torch.testing.assert_close(step["gradient"], 0.1 * gradient / gradient.norm(), rtol=1e-5, atol=0)  # clipped
        # Adam's first step is the rate in every direction, after a decay of 0.01 * 0.1
        assert step["weight"].flatten().tolist() == pytest.approx([0.899, 0.899], abs=1e-6)


def test_skipping_changes_no_result_where_a_process_has_no_advantage_left(tmp_path, process_environment):
    """Each process has one group, and all images of one of the two earn 0."""
    states = []
    for skip in (False, True):
        (tmp_path / "skipping_config.py").write_text(
            "from tiny_run import REWARD, get_config as tiny\n"
            "def get_config():\n"
            "    config = tiny()\n"
            "    config.num_gpus, config.batch_size, config.updates_per_epoch, config.num_epochs = 2, 2, 1, 1\n"
            "    config.num_groups, config.group_size, config.eval_every, config.train.beta = 2, 2, 0, 0.0\n"
            "    config.reward_options = {REWARD: {'blind_to': 'cross'}}\n"
            f"    config.train.skip_zero_advantages = {skip}\n"
            "    return config\n"
        )
        flags = ["--config", str(tmp_path / "skipping_config.py"), f"--config.run_dir={tmp_path / str(skip)}"]
        run([*by_two_processes("ddp"), "train_sd3.py", *flags], process_environment)
        assert read_metrics(tmp_path / str(skip))[0]["rollout/zero_advantage_share"] == 0.5
        (checkpoint,) = list_checkpoints(tmp_path / str(skip))
        states.append(torch.load(checkpoint / "state.pt", weights_only=True)["lora"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
