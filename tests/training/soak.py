"""Signals at random moments into real runs, wandb on, by one process and by two; each run is gone on with every time.

python tests/training/soak.py FOLDER [NUM_SIGNALS] [SEED]

Half of the signals go to runs of one process, half to runs of two. Each comes at a random moment of an evaluation, a rollout
or an update. After each one the newest checkpoint must hold every epoch that was finished, but for those since the last save
where the signal was a kill. At the end the weights, the optimizer's state, and every number in metrics.jsonl but the times,
must be those of a run that nothing disturbed, bit for bit. 20 signals take about 20 minutes on two cores.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from tiny_run import rollout_rows, state_of, timeless_rows

from flow_grpo.training.checkpoint import list_checkpoints

HERE = Path(__file__).parent
SAVE_EVERY = 3
UNSEEDED = re.compile("/rng.pt/[0-9]+/(python|numpy)")
SECONDS = 5.0  # about an epoch
FIELDS = {"eval_every": 4, "num_eval_prompts": 2, "samples_every": 0, "save_every": SAVE_EVERY, "num_groups": 2}
FIELDS |= {"group_size": 2, "sample.num_steps": 3, "train.num_steps": 2, "sample.eval_num_steps": 2}


def start(run_dir: Path, num_processes: int, num_epochs: int) -> subprocess.Popen:
    launcher = []
    if num_processes > 1:
        launcher = ["-m", "scripts.launch", "--config_file", "scripts/accelerate/cpu.yaml"]
        launcher += [f"--num_processes={num_processes}", "--main_process_port=0"]
    fields = FIELDS | {"run_dir": run_dir, "num_epochs": num_epochs, "num_gpus": num_processes}
    fields |= {"batch_size": 2 // num_processes, "resume_from": "latest" if list_checkpoints(run_dir) else ""}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    environment = os.environ | {"PYTHONPATH": f"{Path.cwd()}{os.pathsep}{HERE}", "ACCELERATE_USE_CPU": "true"}
    environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, *launcher, "train_sd3.py", "--config", "tests/training/tiny_run.py", *flags],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def newest_epoch(run_dir: Path) -> int:
    checkpoints = list_checkpoints(run_dir)
    return int(checkpoints[-1].name.removeprefix("checkpoint-")) if checkpoints else 0


def num_done(run_dir: Path) -> int:
    return len(rollout_rows(run_dir))


# Who gets what; the launcher, or the only process, comes first.
KINDS = {
    "SIGTERM to the launcher": (signal.SIGTERM, lambda job: job[:1]),
    "SIGTERM to one worker": (signal.SIGTERM, lambda job: [p for p in job if "train_sd3.py" in p.cmdline()][-1:]),
    "SIGTERM to all": (signal.SIGTERM, lambda job: job[::-1]),
    "SIGINT to the launcher": (signal.SIGINT, lambda job: job[:1]),
    "SIGHUP to the launcher": (signal.SIGHUP, lambda job: job[:1]),
    "SIGKILL to all": (signal.SIGKILL, lambda job: job),
}


def disturb(run_dir: Path, num_processes: int, kind: str, chance: random.Random) -> str:
    """Start or go on, send one signal at a random moment of the next three epochs, and check what is left."""
    begun, (number, choose) = newest_epoch(run_dir), KINDS[kind]
    log = run_dir / "log.txt"
    before = log.stat().st_size if log.exists() else 0

    def said() -> str:
        return log.read_bytes()[before:].decode(errors="replace")

    process = start(run_dir, num_processes, num_epochs=10_000)
    target, deadline = chance.randrange(3), time.monotonic() + 600
    # "wandb:" is the last line before the first epoch; by then the rows of epochs that a kill lost are gone
    while not ("\nwandb:" in said() and num_done(run_dir) >= begun + target):
        assert process.poll() is None and time.monotonic() < deadline, said()[-3000:]
        time.sleep(0.05)
    time.sleep(chance.uniform(0, SECONDS))
    moment = (["start", *re.findall(r"(rollout|update|evaluation): ", said())])[-1]
    parent = psutil.Process(process.pid)
    for one in choose([parent, *parent.children(recursive=True)]):
        if one.is_running():
            one.send_signal(number)
    status = process.wait(300)
    lost, newest = num_done(run_dir) - newest_epoch(run_dir), newest_epoch(run_dir)
    assert lost <= (SAVE_EVERY if number == signal.SIGKILL else 0), f"{kind}: {lost} epochs lost"
    return f"| {num_processes} | {kind} | {moment} | {status} | {begun} to {newest} | {max(lost, 0)} |"


def soak(folder: Path, num_processes: int, num_signals: int, chance: random.Random) -> None:
    run_dir, kinds = folder / f"disturbed-{num_processes}", []
    print(
        "| processes | signal | during | exit status | epochs | lost |\n| --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    for _ in range(num_signals):
        kinds = kinds or chance.sample(list(KINDS), len(KINDS))
        print(disturb(run_dir, num_processes, kinds.pop(), chance), flush=True)
    num_epochs = newest_epoch(run_dir) + 2
    undisturbed = folder / f"undisturbed-{num_processes}"
    for each in (run_dir, undisturbed):
        status = start(each, num_processes, num_epochs).wait()
        assert status == 0, (each / "log.txt").read_text()[-3000:]
    check_equal(run_dir, undisturbed)
    print(f"\n{num_processes} process(es): {num_epochs} epochs, bit for bit those of an undisturbed run\n", flush=True)


def check_equal(one: Path, other: Path) -> None:
    """Whether two runs have the same newest checkpoint, and the same metrics but for the times.

    The generators of python and numpy are left out: nothing here seeds them or draws from them.
    """
    states = [state_of(list_checkpoints(each)[-1]) for each in (one, other)]
    states = [{name: value for name, value in each.items() if not UNSEEDED.match(name)} for each in states]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert torch.equal(states[0][name], value) if torch.is_tensor(value) else states[0][name] == value, name
    assert timeless_rows(one) == timeless_rows(other)


def main(folder: Path, num_signals: int = 20, seed: int = 0) -> None:
    chance = random.Random(seed)
    for num_processes in (1, 2):
        soak(folder, num_processes, num_signals // 2, chance)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
