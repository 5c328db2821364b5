"""Reward servers for tests: one in a thread of this process, and one in a process of its own."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from flow_grpo.remote.server import Limits, RewardServer

ROOT = Path(__file__).parents[1]


@contextmanager
def served(scorer, token=None, **limits):
    """A RewardServer of the scorer, with its `url` and `port`."""
    server = RewardServer(("127.0.0.1", 0), scorer, Limits(**limits), token)
    server.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def start_server(*arguments, port=0, token=None):
    """Begin to run scripts/serve_rewards.py. Its log goes where this process's errors go: a pipe that nobody reads fills up."""
    command = [sys.executable, ROOT / "scripts/serve_rewards.py", "--port", str(port), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment |= {"FLOW_GRPO_REWARD_TOKEN": token} if token else {}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def url_of(process):
    """Waits until it serves."""
    return process.stdout.readline().split(" at ")[1].strip()
