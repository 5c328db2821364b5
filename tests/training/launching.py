"""Runs of two real processes on this machine, as scripts/cpu.sh and its like start them."""

import subprocess
import sys

from tests.ports import free_port


def by_two_processes(kind):
    """The launcher's command line; with the environment's ACCELERATE_USE_CPU the GPUs of the file are not looked for."""
    launch = ["-m", "scripts.launch", "--config_file", f"scripts/accelerate/{kind}.yaml"]
    return [*launch, "--num_processes=2", f"--main_process_port={free_port()}"]


def run(command, environment):
    """What a Python with this command line printed; an error shows the end of it."""
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done
