"""The demo's command, where it is stopped or misused; test_check_gpu.py runs its epochs."""

import os
import signal
import subprocess
import sys

import pytest
from demo import main

from tests.waiting import counting_late_signals_as_one, wait_until

SMALL = ["--config.num_groups=1", "--config.group_size=4", "--config.batch_size=2", "--config.num_eval_prompts=2"]


def test_ctrl_c_ends_the_demo_with_a_checkpoint_and_without_a_traceback(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "scripts/demo.py", *SMALL, "--config.num_epochs=500", "--run-dir", str(tmp_path / "run")],
        env=counting_late_signals_as_one(os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(
        lambda: (tmp_path / "run" / "metrics.jsonl").exists() or running.poll() is not None
    )  # the first evaluation is over
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    said, _ = running.communicate()
    assert running.returncode == 1 and "Traceback" not in said, said[-3000:]
    assert "to go on, launch train_sd3.py" in said and "the run was stopped before its end" in said


def test_a_demo_without_evaluations_is_refused_before_it_starts(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--config.eval_every=0"])
    with pytest.raises(SystemExit):
        main()
    assert "error: eval_every=0: the demo compares evaluations" in capsys.readouterr().err
