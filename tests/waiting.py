"""Waits for what another thread or process will do."""

import os
import time
from pathlib import Path

import pytest

SECONDS = 1200  # only ends a test that would fail; below pytest's own limit, so that the test says what it waits for


def wait_until(condition):
    """Look every 50 ms, and fail the test where the condition never comes."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        time.sleep(0.05)


def counting_late_signals_as_one(environment, folder):
    """The environment of a run to which one signal may come twice, however far apart: a busy launcher passes it on late."""
    lines = ["from flow_grpo.training import interrupt", "interrupt.ONE_SIGNAL_SECONDS = 600.0", ""]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return environment | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(folder)])}
