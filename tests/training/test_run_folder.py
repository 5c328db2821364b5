"""A run's folder is one run's, and can be written, or the run says so at once."""

import os
import subprocess
import sys

import pytest

from flow_grpo.training.run_folder import claim


def test_a_second_run_in_the_same_folder_is_refused_naming_the_first(tmp_path):
    held = claim(tmp_path / "run")
    with pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on .*--config.run_dir of its own"):
        claim(tmp_path / "run")
    claim(tmp_path / "another").close()
    held.close()
    claim(tmp_path / "run").close()


def test_a_run_that_was_killed_holds_its_folder_no_longer(tmp_path):
    lines = ["import os, pathlib, signal, sys", "from flow_grpo.training.run_folder import claim"]
    lines += ["file = claim(pathlib.Path(sys.argv[1]))", "os.kill(os.getpid(), signal.SIGKILL)"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.run([sys.executable, "-c", "\n".join(lines), str(tmp_path)], env=environment, check=False)
    assert process.returncode == -9 and "process" in (tmp_path / "run.lock").read_text()
    claim(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="run_dir=.*file/run cannot be written .*give another --config.run_dir"):
        claim(tmp_path / "file" / "run")
