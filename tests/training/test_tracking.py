"""metrics.jsonl, sheets of samples and the real wandb, offline."""

import hashlib
import json
import os

import numpy as np
import psutil
import pytest
import wandb
from PIL import Image
from tiny_run import logged_tables

from flow_grpo.training import tracking
from flow_grpo.training.samples import Sample
from flow_grpo.training.tracking import NullTracker, RunTracker, read_metrics


def solid(color):
    return np.full((4, 4, 3), color, np.uint8)


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SAMPLES = [
    Sample("a stop sign", solid(RED), None, {"ocr_map": None}, {"ocr_map": None}, advantage=0.0),
    Sample("a go sign", solid(GREEN), 0.5, {"ocr_map": 0.5}, {"ocr_map": solid(BLUE)}, advantage=1.25),
]


@pytest.fixture(scope="module")
def tracked_run(tmp_path_factory):
    """Epochs 0 to 2 tracked, samples, then a row cut short by a kill, then the run resumed at epoch 2."""
    patch = pytest.MonkeyPatch()
    # nothing says which mode: without a key it must be offline
    patch.delenv("WANDB_MODE", raising=False)
    patch.delenv("WANDB_API_KEY", raising=False)
    patch.delenv("WANDB_DATA_DIR", raising=False)
    run_dir = tmp_path_factory.mktemp("tracked")
    tracker = RunTracker(run_dir, "flow_grpo_tests", {"seed": 1})
    for epoch in range(3):
        tracker.log({"rollout/reward_mean": epoch / 10}, epoch)
    tracker.log_samples("eval/samples", SAMPLES, 2)
    tracker.finish()
    first = read_metrics(run_dir)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "rollout/rew')
    tracker = RunTracker(run_dir, "flow_grpo_tests", {"seed": 1}, first_epoch=2)
    tracker.log({"rollout/reward_mean": 0.9}, 2)
    tracker.finish()
    patch.undo()
    return run_dir, first


def test_a_row_of_metrics_is_written_for_each_epoch(tracked_run):
    _, first = tracked_run
    assert first == [{"epoch": epoch, "rollout/reward_mean": epoch / 10} for epoch in range(3)]


def test_resuming_drops_the_repeated_epochs_and_a_row_cut_short(tracked_run):
    run_dir, _ = tracked_run
    means = [(row["epoch"], row["rollout/reward_mean"]) for row in read_metrics(run_dir)]
    assert means == [(0, 0.0), (1, 0.1), (2, 0.9)]
    assert all(json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())


def test_wandb_writes_its_offline_folder_under_the_run(tracked_run):
    run_dir, _ = tracked_run
    records = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert records and all(path.stat().st_size > 0 for path in records)


def test_a_resumed_run_keeps_its_wandb_id(tracked_run):
    run_dir, _ = tracked_run
    wandb_id = (run_dir / "wandb_id.txt").read_text().strip()
    records = list(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert {path.name for path in records} == {f"run-{wandb_id}.wandb"}


def test_a_sheet_of_the_samples_is_saved_under_their_name_and_epoch(tracked_run):
    run_dir, _ = tracked_run
    with Image.open(run_dir / "images" / "eval-samples-000002.png") as image:
        assert image.getpixel((64, 64)) == RED and image.getpixel((132 + 64, 64)) == GREEN
        assert image.getpixel((132 + 64, 148 + 64)) == BLUE


def test_wandb_holds_the_samples_as_a_table(tracked_run):
    run_dir, _ = tracked_run
    (table,) = logged_tables(run_dir, "eval/samples")
    assert table["columns"] == ["prompt", "image", "map/ocr_map", "reward", "advantage"]
    assert table["data"] == [["a stop sign", "Image", None, None, 0.0], ["a go sign", "Image", "Image", 0.5, 1.25]]


def test_wandb_holds_the_sheet_beside_the_table(tracked_run):
    run_dir, _ = tracked_run
    (path,) = run_dir.glob("wandb/offline-run-*/files/media/images/eval/samples_sheet_*.png")
    with Image.open(path) as logged, Image.open(run_dir / "images" / "eval-samples-000002.png") as saved:
        assert np.array_equal(np.asarray(logged), np.asarray(saved))


def test_the_pictures_of_a_table_wait_in_the_runs_folder_for_their_upload(tracked_run):
    """What `wandb sync` uploads: a table whose picture cells name files by their hash, and those files."""
    run_dir, _ = tracked_run
    staged = {path: path.read_bytes() for path in (run_dir / "wandb" / "artifacts" / "staging").iterdir()}
    tables = [json.loads(content) for content in staged.values() if content.startswith(b"{")]
    table = next(entry for entry in tables if entry.get("_type") == "table")
    pictures = {hashlib.sha256(content).hexdigest(): path for path, content in staged.items()}
    colors = [
        Image.open(pictures[cell["sha256"]]).getpixel((0, 0)) for row in table["data"] for cell in row[1:3] if cell
    ]
    assert colors == [RED, GREEN, BLUE]
    assert "WANDB_DATA_DIR" not in os.environ


def warnings(caplog):
    """What this project says; wandb's own log is another matter."""
    return [record.message for record in caplog.records if record.name.startswith("flow_grpo")]


def wandb_process():
    """The process of its own that does wandb's work."""
    (process,) = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
    return process


def test_a_run_goes_on_without_wandb_where_its_process_is_killed(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = RunTracker(tmp_path, "flow_grpo_tests", {})
    tracker.log({"rollout/reward_mean": 0.5}, 0)
    process = wandb_process()
    process.kill()
    process.wait()  # until then it may still take a row
    for epoch in (1, 2, 3):
        tracker.log({"rollout/reward_mean": 0.5}, epoch)
    tracker.log_samples("eval/samples", SAMPLES, 3)
    tracker.finish()
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
    assert (tmp_path / "images" / "eval-samples-000003.png").is_file()
    (warning,) = warnings(caplog)
    assert "wandb failed during the run" in warning and "is given up" in warning
    later = RunTracker(tmp_path / "..", "flow_grpo_tests", {})  # in the same process, with a wandb process of its own
    later.finish()
    assert len(warnings(caplog)) == 1


def test_a_key_of_wandb_login_is_tried_and_without_an_answer_the_run_is_offline(tmp_path, caplog, capsys, monkeypatch):
    """Nobody listens at the address, as on a node without a network."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(tracking, "INIT_SECONDS", 1)
    tracking._tear_down(wandb)  # its settings are read once a process
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {'0' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    tracker = RunTracker(tmp_path, "flow_grpo_tests", {})
    tracker.log({"rollout/reward_mean": 0.5}, 0)
    tracker.finish()
    tracking._tear_down(wandb)
    (warning,) = warnings(caplog)
    assert "wandb is offline, since it did not answer" in warning and "WANDB_MODE=offline" in warning
    assert f"wandb sync {tmp_path}" in capsys.readouterr().out
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_a_disk_that_takes_no_more_metrics_is_warned_of_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = RunTracker(tmp_path, "flow_grpo_tests", {})
    (tmp_path / "metrics.jsonl").mkdir()  # cannot be opened as a file, by root neither
    for epoch in range(2):
        tracker.log({"rollout/reward_mean": 0.5}, epoch)
    (warning,) = warnings(caplog)
    assert "metrics and images cannot be written" in warning


def test_lines_of_metrics_that_were_cut_short_are_passed_over(tmp_path, monkeypatch):
    """A full disk cuts a line, and what is written later is joined to it."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    rows = ['{"epoch": 0}\n', '{"epoch": 1, "rol{"epoch": 2}\n', '{"epoch": 3}\n', '{"epoch": 4']
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 3]
    RunTracker(tmp_path, "flow_grpo_tests", {}, first_epoch=3).log({}, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 0}\n{"epoch": 3}\n'


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_null_tracker_takes_everything_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = NullTracker()
    tracker.log({"rollout/reward_mean": 1.0}, 0)
    tracker.log_samples("eval/samples", SAMPLES, 0)
    tracker.finish()
    assert list(tmp_path.iterdir()) == []
