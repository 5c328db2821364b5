"""metrics.jsonl, sheets of samples and the real wandb, offline."""

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image
from tiny_run import logged_tables

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


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_null_tracker_takes_everything_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = NullTracker()
    tracker.log({"rollout/reward_mean": 1.0}, 0)
    tracker.log_samples("eval/samples", SAMPLES, 0)
    tracker.finish()
    assert list(tmp_path.iterdir()) == []
