"""Starts a run on several processes. Takes the arguments of `accelerate launch`; scripts/*.sh call it.

python -m scripts.launch --config_file scripts/accelerate/cpu.yaml --num_processes 2 train_sd3.py --config ...

A signal is passed on to the processes, and the launcher waits as long as they save. accelerate's and torch's own launchers end
them after 30 seconds, and then end with a traceback and status 1. If a process fails, no traceback follows its own.
"""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil
from accelerate.commands.launch import main
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

sys.path.insert(0, str(Path(__file__).parents[1]))  # the trainer is not installed: it belongs to the checkout

from flow_grpo.training.interrupt import heard_signals  # noqa: E402

# What torch's launcher does with signals itself: it must leave ours to us.
os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
# It tells of each process that it ends, and of each that failed; the last line here names the first.
logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)


def pass_on(number: int, frame: FrameType | None) -> None:
    """Send a signal to every process of the run. Before there is one, the signal ends the launcher, as it always does."""
    processes = psutil.Process().children()
    if not processes:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def last_words(error: ChildFailedError) -> str:
    """Which process failed first, and why, in one line: the others end because of it."""
    rank, failure = error.get_first_failure()
    reason = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    return f"launch: process {rank} failed first, with exit status {failure.exitcode}: {reason}"


if __name__ == "__main__":
    for each in heard_signals():
        signal.signal(each, pass_on)
    try:
        main()
    except ChildFailedError as error:
        sys.exit(last_words(error))
    except subprocess.CalledProcessError as error:  # of a single process, which has had its last words
        sys.exit(error.returncode)
