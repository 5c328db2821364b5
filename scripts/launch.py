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
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

sys.path.insert(0, str(Path(__file__).parents[1]))  # the trainer is not installed: it belongs to the checkout

from flow_grpo.training.failures import FailedElsewhere  # noqa: E402
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
    told = {rank: (reason_of(failure), failure) for rank, failure in error.failures.items()}
    # The others may fail within the same second, and torch's times are in seconds.
    own = {rank: pair for rank, pair in told.items() if not pair[0].startswith(FailedElsewhere.__name__)} or told
    rank, (reason, failure) = min(own.items(), key=lambda item: item[1][1].timestamp)
    return f"launch: process {rank} failed first, with exit status {failure.exitcode}: {reason}"


def reason_of(failure: ProcessFailure) -> str:
    return failure.message["message"] if isinstance(failure.message, dict) else failure.message


if __name__ == "__main__":
    for each in heard_signals():
        signal.signal(each, pass_on)
    try:
        main()
    except ChildFailedError as error:
        sys.exit(last_words(error))
    except subprocess.CalledProcessError as error:  # of a single process, which has had its last words
        sys.exit(error.returncode)
