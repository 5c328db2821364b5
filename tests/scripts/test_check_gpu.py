"""The GPU's checks in tiny sizes on the CPU: every line of the table, a check that fails, and a machine without a GPU."""

import re
import subprocess
import sys

import pytest
import torch

from scripts import check_gpu
from scripts.check_gpu import CHECKS, TINY_SIZES, Line, cells, run_checks


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A fresh process for each line would import everything seven times; the benchmark's own tests start one."""
    monkeypatch.setattr(check_gpu, "apart", lambda function, *arguments: function(*arguments))


def test_the_ratio_is_checked_in_both_half_precisions_with_and_without_compile():
    lines = list(run_checks(["ratio"], TINY_SIZES))
    names = ["ratio, bfloat16", "ratio, bfloat16, compiled", "ratio, float16", "ratio, float16, compiled"]
    assert [line.check for line in lines] == names
    assert all(line.passed and line.figures == "0.0e+00 away from 1" for line in lines)


def test_steps_and_maps_have_figures(monkeypatch):
    monkeypatch.setattr(check_gpu, "CLIP_ROWS", check_gpu.CLIP_ROWS[-1:])
    lines = list(run_checks(["steps", "maps"], TINY_SIZES))
    assert not any(line.passed is False for line in lines), lines
    assert re.fullmatch(r".+ TFLOP/s", lines[0].figures)
    steps = ["rollout step of 1", "update step of 1", "rollout step of 1, compiled", "update step of 1, compiled"]
    assert [line.check for line in lines[1:5]] == steps
    for line in lines[1:5]:
        assert re.fullmatch(r"[\d.]+ s, [\d.]+ images/s, \d+% of the matrix product's rate", line.figures)
    assert [line.check for line in lines[5:]] == ["these three in one pass, 2 images", "torchcam Grad-CAM, 2 images"]
    assert all(line.passed for line in lines[5:])


def test_the_demos_first_epoch_starts_at_ratio_one():
    (line,) = run_checks(["epoch"], TINY_SIZES)
    assert line.passed and line.figures.endswith("ratio 0.0e+00 away from 1"), line


def test_a_ratio_that_is_not_one_does_not_pass(monkeypatch):
    monkeypatch.setattr(check_gpu, "ratio_deviation", lambda *arguments: 1e-7)
    lines = list(run_checks(["ratio"], TINY_SIZES))
    assert [line.passed for line in lines] == [False] * 4
    assert cells(lines[0]) == "| ratio, bfloat16 | 1.0e-07 away from 1 | **no** |"


def test_a_check_that_raises_is_a_line_and_the_next_one_runs(monkeypatch):
    def lines(sizes):
        yield lambda: 1 / 0
        yield lambda: Line("the second", "1 s")

    monkeypatch.setitem(CHECKS, "ratio", lines)
    failed, second = run_checks(["ratio"], TINY_SIZES)
    assert cells(failed) == "| ratio, line 1 | ZeroDivisionError: division by zero | **no** |"
    assert cells(second) == "| the second | 1 s |  |"


def test_the_table_is_a_file_and_a_failure_the_exit_status(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(CHECKS, "ratio", lambda sizes: iter([lambda: Line("one", "2 s", True), lambda: 1 / 0]))
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--cpu", "--only", "ratio", "--out", str(tmp_path / "table.md")])
    assert check_gpu.main() == 1
    head, _, *table = (tmp_path / "table.md").read_text().splitlines()
    assert "CPU in tiny sizes" in head and f"torch {torch.__version__}" in head
    assert table[:3] == ["| check | figures | passed |", "|---|---|---|", "| one | 2 s | yes |"]
    assert "1 failed" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_in_one_line():
    command = [sys.executable, "scripts/check_gpu.py"]
    run = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    )
    assert run.returncode == 2 and not run.stdout
    assert run.stderr.splitlines()[-1].startswith("torch sees no CUDA device here; --cpu runs the same checks")
