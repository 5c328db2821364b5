"""The tiny run, hit by ten signals at random moments and gone on with each time; says on stdout how far each let it get.

Every other signal kills; the others ask for a stop, one of them twice, as a launcher passes on what its worker got, too.
`soak.py` does the same to real runs of one process and of two, for longer.

python tests/training/killed_run.py RUN_DIR            hit by the signals, and then three epochs more
python tests/training/killed_run.py RUN_DIR NUM_EPOCHS undisturbed
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from tiny_run import get_config

from config.validation import resolve
from flow_grpo.training import interrupt
from flow_grpo.training.build import build
from flow_grpo.training.checkpoint import damage_of, list_checkpoints
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.trainer import Trainer

STOPS = ([signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP], [signal.SIGTERM] * 2, [signal.SIGTERM])
SIGNALS = [signals for stop in STOPS for signals in ([signal.SIGKILL], stop)]
ENDLESS = 10_000  # epochs: a signal lets two be finished, or more where the machine is busy and it comes late


def train(run_dir: Path, num_epochs: int) -> None:
    config = get_config()
    config.run_dir, config.num_epochs, config.eval_every, config.keep_checkpoints = str(run_dir), num_epochs, 0, 2
    config.num_groups, config.group_size, config.batch_size, config.updates_per_epoch = 1, 2, 2, 1
    config.sample.num_steps = 3
    config.resume_from = "latest" if list_checkpoints(run_dir) else ""
    config, geometry = resolve(config, 1)
    Trainer(build(config, geometry, Distributed(config.mixed_precision))).train()


def newest_epoch(run_dir: Path) -> int:
    checkpoints = list_checkpoints(run_dir)
    return int(checkpoints[-1].name.removeprefix("checkpoint-")) if checkpoints else 0


def train_and_disturb(run_dir: Path, signals: list[signal.Signals], moment: float) -> None:
    """Train in a fork of this process, which has everything imported, and signal it in its third epoch, at 0 to 1 of it."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
        interrupt.ONE_SIGNAL_SECONDS = 600.0  # signals sent at once may come seconds apart where the machine is busy
        train(run_dir, ENDLESS)
        os._exit(0)
    begun, finished = newest_epoch(run_dir), []
    while len(finished) < 2:
        if newest_epoch(run_dir) > begun + len(finished):
            finished.append(time.perf_counter())
        ended, status = os.waitpid(child, os.WNOHANG)
        assert not ended, f"the run ended with status {status} before it was killed"
        time.sleep(0.001)
    time.sleep(moment * (finished[1] - finished[0]))
    for number in signals:
        os.kill(child, number)
        time.sleep(0.01)
    _, status = os.waitpid(child, 0)
    assert signals == [signal.SIGKILL] or status == 0, f"{signals} ended the run with status {status}"


def main(run_dir: Path) -> None:
    moments = random.Random(0)
    for signals in SIGNALS:
        train_and_disturb(run_dir, signals, moments.random())
        assert all(damage_of(path) is None for path in list_checkpoints(run_dir))
        print(f"{signals[0].name} after {list_checkpoints(run_dir)[-1].name}", flush=True)
    train(run_dir, newest_epoch(run_dir) + 3)


if __name__ == "__main__":
    if sys.argv[2:]:
        train(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
