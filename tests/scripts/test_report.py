"""The report's command: mistakes are named in one line; tests/training/report has the page itself."""

import sys

import pytest
from report import main


@pytest.mark.parametrize("more", [[], ["--out", "page.html"]])
def test_a_run_that_is_not_there_is_named(monkeypatch, capsys, tmp_path, more):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "runs/tiny", *more])
    with pytest.raises(SystemExit):
        main()
    assert "error: runs/tiny is no folder; give the folder of a run" in capsys.readouterr().err
