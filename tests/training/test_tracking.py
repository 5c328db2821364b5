"""metrics.jsonl, pictures and the real wandb, offline."""

import json

import pytest
from PIL import Image

from flow_grpo.training.tracking import NullTracker, RunTracker, read_metrics


@pytest.fixture(scope="module")
def tracked_run(tmp_path_factory):
    """Epochs 0 to 2 tracked, a picture, then a row cut short by a kill, then the run resumed at epoch 2."""
    patch = pytest.MonkeyPatch()
    # nothing says which mode: without a key it must be offline
    patch.delenv("WANDB_MODE", raising=False)
    patch.delenv("WANDB_API_KEY", raising=False)
    run_dir = tmp_path_factory.mktemp("tracked")
    tracker = RunTracker(run_dir, "flow_grpo_tests", {"seed": 1})
    for epoch in range(3):
        tracker.log({"rollout/reward_mean": epoch / 10}, epoch)
    tracker.log_image("eval/samples", Image.new("RGB", (4, 4), "red"), "held-out prompts", 2)
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


def test_a_picture_is_saved_under_its_name_and_epoch(tracked_run):
    run_dir, _ = tracked_run
    with Image.open(run_dir / "images" / "eval-samples-000002.png") as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_null_tracker_takes_everything_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = NullTracker()
    tracker.log({"rollout/reward_mean": 1.0}, 0)
    tracker.log_image("eval/samples", Image.new("RGB", (4, 4)), "caption", 0)
    tracker.finish()
    assert list(tmp_path.iterdir()) == []
