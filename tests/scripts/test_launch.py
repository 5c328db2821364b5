"""The launch scripts, run for real on this machine: CPU processes take the place of GPUs, and of machines."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from flow_grpo.training.failures import FailedElsewhere
from flow_grpo.training.tracking import read_metrics
from tests.ports import free_port
from tests.waiting import counting_late_signals_as_one, wait_until

SMALL = {
    **{"num_groups": 2, "group_size": 4, "batch_size": 2, "num_epochs": 1, "eval_every": 0},
    **{"sample.num_steps": 2, "train.num_steps": 1},
}


@pytest.fixture
def environment():
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_", "NUM_", "KIND"))
    }
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(Path.cwd()),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
        "RUN": "tiny_ocr_map",
    }


def start(script, run_dir, environment, **fields):
    flags = [f"--config.{name}={value}" for name, value in (SMALL | fields).items()]
    command = [f"scripts/{script}", *flags, f"--config.run_dir={run_dir}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]


def test_cpu_runs_on_two_processes(tmp_path, environment):
    finish(start("cpu.sh", tmp_path, environment))
    assert read_metrics(tmp_path)[0]["epoch"] == 0 and (tmp_path / "checkpoint-000001").is_dir()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_one_node_runs_on_two_processes(tmp_path, environment, kind):
    finish(start("one_node.sh", tmp_path, environment | {"NUM_GPUS": "2", "KIND": kind}))
    assert read_metrics(tmp_path)[0]["epoch"] == 0 and (tmp_path / "checkpoint-000001").is_dir()


@pytest.mark.parametrize("kind", ["multi_node", "fsdp2"])
def test_multi_node_joins_two_machines_under_slurm(tmp_path, environment, kind):
    environment |= {"KIND": kind}
    environment |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    nodes = [start("multi_node.sh", tmp_path, environment | {"SLURM_NODEID": rank}) for rank in "01"]
    for node in nodes:
        finish(node)
    assert read_metrics(tmp_path)[0]["epoch"] == 0 and (tmp_path / "checkpoint-000001").is_dir()


def test_multi_node_says_what_it_is_not_told(environment):
    done = subprocess.run(
        ["scripts/multi_node.sh"], env=environment | {"NUM_NODES": "2"}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "NODE_RANK is missing" in done.stderr


def test_a_single_process_that_fails_has_the_last_words(tmp_path, environment):
    (tmp_path / "run.py").write_text("import sys; print('the last words'); sys.exit(3)")
    command = [
        "-m",
        "scripts.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    done = subprocess.run(
        [sys.executable, *command, tmp_path / "run.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 3 and done.stdout == "the last words\n" and done.stderr == ""


@pytest.mark.parametrize("script", ["cpu.sh", "one_node.sh", "multi_node.sh"])
def test_an_unknown_kind_is_refused_by_name(environment, script):
    done = subprocess.run([f"scripts/{script}"], env=environment | {"KIND": "zero9"}, capture_output=True, text=True)
    assert done.returncode == 2 and f"{script}: KIND=zero9 is none of ddp, fsdp2" in done.stderr


@pytest.mark.parametrize("script", ["one_gpu.sh", "one_node.sh", "multi_node.sh"])
def test_a_machine_without_a_gpu_is_refused_before_anything_is_loaded(environment, tmp_path, script):
    # an nvidia-smi that finds nothing stands first on the path, so that this holds on a GPU machine, too
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment |= {"ACCELERATE_USE_CPU": "", "PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}"}
    done = subprocess.run([f"scripts/{script}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and f"{script}: nvidia-smi finds no GPU" in done.stderr and "cpu.sh" in done.stderr


def test_signals_to_a_launch_script_end_the_run_as_one_process_ends_it(environment, tmp_path):
    environment = counting_late_signals_as_one(environment, tmp_path)
    process = start("cpu.sh", tmp_path / "run", environment, num_epochs=1000)
    try:
        wait_until(lambda: read_metrics(tmp_path / "run") or process.poll() is not None)
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        output, _ = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, output[-3000:]
    assert output.splitlines()[-2].startswith(f"saved {tmp_path}/run/checkpoint-") and "Traceback" not in output


def test_a_launch_script_says_what_a_run_refuses_without_a_traceback(environment, tmp_path):
    process = start("cpu.sh", tmp_path, environment, batch_size=3)
    output, _ = process.communicate()
    assert process.returncode == 1 and "Traceback" not in output
    *said, last = filter(None, output.splitlines())
    assert last.startswith("launch: process ") and "try batch" in last
    # process 0 says it, too, unless the launcher ends it first, because process 1 has failed
    assert len(said) <= 1 and all(line.startswith("train_sd3.py: num_groups") for line in said)


def test_the_last_words_name_the_process_that_failed_and_not_those_that_heard_of_it(tmp_path, monkeypatch):
    """All of them fail within a second, and torch counts seconds."""
    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "SIGQUIT")  # which the launcher sets for its whole process
    from scripts.launch import last_words

    failures = {}
    heard = [FailedElsewhere("a scorer failed in another process of this run"), FailedElsewhere("process 2 failed")]
    for rank, raised in enumerate([*heard, RuntimeError("the reward has failed")]):
        file = tmp_path / f"{rank}.json"
        message = {"message": f"{type(raised).__name__}: {raised}", "extraInfo": {"timestamp": "1700000000"}}
        file.write_text(json.dumps({"message": message}))  # as torch's `record` writes it
        failures[rank] = ProcessFailure(local_rank=rank, pid=7, exitcode=1, error_file=str(file))
    expected = "launch: process 2 failed first, with exit status 1: RuntimeError: the reward has failed"
    assert last_words(ChildFailedError("train", failures)) == expected
    assert "process 0 failed first" in last_words(ChildFailedError("train", {0: failures[0]}))
