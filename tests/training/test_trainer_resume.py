"""How whole runs on the tiny pipeline stop, by a signal or a scorer that fails, and go on."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import rollout_rows, state_of, timeless_rows

from flow_grpo.training.checkpoint import list_checkpoints, read_origin
from flow_grpo.training.json_lines import read_rows
from flow_grpo.training.tracking import read_metrics
from tests.waiting import wait_until


def differences(one, other):
    """The names under which two checkpoints differ in any bit."""
    one, other = state_of(one), state_of(other)
    assert one.keys() == other.keys() and len(one) > 100
    return [
        name
        for name in one
        if not (torch.equal(one[name], other[name]) if torch.is_tensor(one[name]) else one[name] == other[name])
    ]


def stop_at_score(trainer, number):
    """A SIGTERM to this very process after the number-th batch is scored."""
    submit, count = trainer.parts.scorers.submit, 0

    def stopping(*arguments):
        nonlocal count
        count += 1
        if count == number:
            signal.raise_signal(signal.SIGTERM)
        return submit(*arguments)

    trainer.parts.scorers.submit = stopping


# Scored in the tiny run: one evaluation batch, then two batches in epoch 0, two in epoch 1, an evaluation, ...
@pytest.mark.parametrize(
    "number, saved_at", [(4, 1), (5, 2), (6, 2)], ids=["mid-rollout", "last batch of an epoch", "evaluation"]
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    finished_run, make_trainer, tmp_path, number, saved_at
):
    random.seed(7), np.random.seed(7)  # as finished_run
    interrupted = make_trainer(tmp_path, keep_checkpoints=2)
    stop_at_score(interrupted, number)
    interrupted.train()
    assert list_checkpoints(tmp_path)[-1].name == f"checkpoint-{saved_at:06d}"
    random.seed(99), np.random.seed(99), torch.manual_seed(99)  # a new process has not the old one's random states
    make_trainer(tmp_path, keep_checkpoints=2, resume_from="latest").train()
    assert timeless_rows(tmp_path) == timeless_rows(finished_run.run_dir)
    final = "checkpoint-000003"
    assert differences(tmp_path / final, finished_run.run_dir / final) == []


def test_a_run_goes_on_from_a_named_checkpoint_into_a_folder_of_its_own(finished_run, make_trainer, tmp_path):
    resume_from = str(finished_run.run_dir / "checkpoint-000002")
    make_trainer(tmp_path, resume_from=resume_from, eval_every=0).train()
    assert [row["epoch"] for row in rollout_rows(tmp_path)] == [2]
    assert differences(tmp_path / "checkpoint-000003", finished_run.run_dir / "checkpoint-000003") == []


def test_a_run_goes_on_in_batches_of_another_size_with_the_same_samples(finished_run, make_trainer, tmp_path):
    """As on another number of processes: the epoch's samples, and so its rewards, stay what they were."""
    resume_from = str(finished_run.run_dir / "checkpoint-000002")
    make_trainer(tmp_path, resume_from=resume_from, batch_size=2, eval_every=0).train()
    (row,) = rollout_rows(tmp_path)
    expected = rollout_rows(finished_run.run_dir)[2]
    # batches of two and of four round differently in the last bits
    assert row["rollout/reward_mean"] == pytest.approx(expected["rollout/reward_mean"], abs=1e-5)
    assert row["rollout/reward_std"] == pytest.approx(expected["rollout/reward_std"], abs=1e-5)


def evaluated_epochs(run_dir):
    return [row["epoch"] for row in read_rows(run_dir / "evaluations.jsonl")]


def test_a_run_that_was_stopped_before_its_last_evaluation_goes_on_to_it(make_trainer, tmp_path, capsys):
    stopped = make_trainer(tmp_path, num_epochs=1)
    stop_at_score(stopped, 3)  # in the last batch of its only epoch
    stopped.train()
    assert "checkpoint-000001; to go on," in capsys.readouterr().out
    assert evaluated_epochs(tmp_path) == [0]
    make_trainer(tmp_path, num_epochs=1, resume_from="latest").train()
    assert evaluated_epochs(tmp_path) == [0, 1]
    measured = [row["eval/reward"] for row in read_metrics(tmp_path) if "eval/reward" in row]
    assert f"epoch 1: eval/reward {measured[-1]:.3f}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has all 1 epochs"):
        make_trainer(tmp_path, num_epochs=1, resume_from="latest")


def test_a_finished_run_that_is_made_longer_keeps_what_its_end_measured(make_trainer, tmp_path):
    make_trainer(tmp_path, num_epochs=1).train()
    make_trainer(tmp_path, num_epochs=2, resume_from="latest").train()
    evaluated = [row["epoch"] for row in timeless_rows(tmp_path) if "eval/reward" in row]
    assert evaluated == evaluated_epochs(tmp_path) == [0, 1, 2]
    sampled = [row["epoch"] for row in read_rows(tmp_path / "samples.jsonl") if row["name"] == "eval/samples"]
    assert sampled == [0, 1, 2]


def start(run_dir, environment, *flags):
    command = [sys.executable, "train_sd3.py", "--config", "tests/training/tiny_run.py", f"--config.run_dir={run_dir}"]
    return subprocess.Popen(
        [*command, "--config.eval_every=0", "--config.save_every=1000", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_sigterm_to_a_real_run_saves_and_exits_cleanly_and_latest_goes_on(tmp_path, process_environment):
    process = start(tmp_path, process_environment, "--config.num_epochs=500")
    try:
        wait_until(lambda: rollout_rows(tmp_path) or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, output[-3000:]
    assert "SIGTERM: saving and stopping" in output
    num_done = len(rollout_rows(tmp_path))
    assert 1 <= num_done < 500
    # at once the epoch's start, and then its end where the update was under way
    assert list_checkpoints(tmp_path)[-1].name == f"checkpoint-{num_done:06d}"

    goes_on = ["--config.resume_from=latest", f"--config.num_epochs={num_done + 1}"]
    process = start(tmp_path, process_environment, *goes_on)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    assert [row["epoch"] for row in rollout_rows(tmp_path)] == list(range(num_done + 1))
    assert list_checkpoints(tmp_path)[-1].name == f"checkpoint-{num_done + 1:06d}"


def test_a_scorer_that_fails_in_an_evaluation_loses_nothing(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, eval_every=2, save_every=100)
    submit, count = trainer.parts.scorers.submit, 0

    def failing(*arguments):
        nonlocal count
        count += 1
        if count == 6:  # an evaluation, two batches in each of two epochs, an evaluation
            raise ConnectionError("the reward server has gone")
        return submit(*arguments)

    trainer.parts.scorers.submit = failing
    with pytest.raises(ConnectionError):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000002"]


@pytest.mark.parametrize("adapter", ["lora", "full"])  # a full run copies no epoch before it needs the copy
def test_a_scorer_that_fails_ends_the_run_with_its_error_and_a_checkpoint(make_trainer, tmp_path, adapter):
    fields = {"train.adapter": adapter, "train.learning_rate": 1e-5, "train.beta": 0.0}
    trainer = make_trainer(tmp_path, eval_every=0, save_every=100, **fields)
    submit, count = trainer.parts.scorers.submit, 0

    def failing(*arguments):
        nonlocal count
        count += 1
        if count == 4:  # the second batch of the second epoch
            raise ConnectionError("the reward server has gone")
        return submit(*arguments)

    trainer.parts.scorers.submit = failing
    with pytest.raises(ConnectionError, match="the reward server has gone"):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000001"]


FAST = {"num_groups": 1, "group_size": 2, "batch_size": 2, "eval_every": 0, "samples_every": 0, "train.beta": 0.0}
FAST |= {"sample.num_steps": 2, "train.num_steps": 1, "updates_per_epoch": 1, "num_eval_prompts": 1}


def test_an_epoch_that_fails_for_any_reason_leaves_its_start_behind(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, save_every=100, **FAST)
    credit, calls = trainer.parts.credit, 0

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError("anything at all")
        return credit(*arguments)

    trainer.parts.credit = failing
    with pytest.raises(KeyError, match="anything at all"):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000001"]


def test_a_signal_in_an_update_saves_the_epochs_start_at_once(make_trainer, tmp_path):
    """A scheduler may not wait for the update's end."""
    trainer = make_trainer(tmp_path, save_every=100, **FAST)
    run, found = trainer.parts.updater.run, []

    def slow(*arguments, **options):
        if options["title"] == "epoch 1: update":
            signal.raise_signal(signal.SIGTERM)
            wait_until(lambda: list_checkpoints(tmp_path))
            found.extend(path.name for path in list_checkpoints(tmp_path))
        return run(*arguments, **options)

    trainer.parts.updater.run = slow
    trainer.train()
    assert found == ["checkpoint-000001"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000001", "checkpoint-000002"]


@pytest.fixture(scope="module")
def begun(make_trainer, tmp_path_factory):
    """A run of one epoch, with its prompts in a folder of their own."""
    folder = tmp_path_factory.mktemp("begun")
    for split in ("train", "test"):
        (folder / f"{split}.txt").write_text(
            "".join(f'a red ring and a blue sign "{word}"\n' for word in ("HUT", "SOB", "WAX"))
        )
    make_trainer(folder / "run", num_epochs=1, dataset=str(folder), **FAST).train()
    return folder


def go_on(make_trainer, begun, run_dir, dataset, **changes):
    """A trainer that goes on from the begun run for one more epoch."""
    resume_from = str(begun / "run")
    return make_trainer(run_dir, num_epochs=2, dataset=str(dataset), resume_from=resume_from, **(FAST | changes))


def test_model_and_prompts_may_lie_elsewhere(make_trainer, begun, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for split in ("train", "test"):
        shutil.copy(begun / f"{split}.txt", tmp_path / "elsewhere")
    (tmp_path / "linked-model").symlink_to(Path("models/tiny-sd3").resolve())
    model = str(tmp_path / "linked-model")
    go_on(make_trainer, begun, tmp_path / "run", tmp_path / "elsewhere", model=model).train()
    assert list_checkpoints(tmp_path / "run")[-1].name == "checkpoint-000002"


def test_a_line_added_to_the_prompts_is_refused_or_allowed_and_recorded(make_trainer, begun, tmp_path):
    for split in ("train", "test"):
        lines = (begun / f"{split}.txt").read_text()
        (tmp_path / f"{split}.txt").write_text(lines + 'one more that says "ZIP"\n')
    with pytest.raises(ValueError, match="dataset: .* with other content' in the checkpoint.*"):
        go_on(make_trainer, begun, tmp_path / "run", tmp_path)
    allowed = {"allow_changes": "dataset,train.learning_rate", "train.learning_rate": 1e-4}
    trainer = go_on(make_trainer, begun, tmp_path / "run", tmp_path, **allowed)
    trainer.train()
    assert trainer.parts.optimizer.param_groups[0]["lr"] == 1e-4  # not what the checkpoint's optimizer had
    changes = read_origin(tmp_path / "run" / "checkpoint-000002").changes
    assert [(change["epoch"], change["field"]) for change in changes] == [(1, "dataset"), (1, "train.learning_rate")]
    assert (changes[1]["was"], changes[1]["now"]) == (1e-3, 1e-4)


def test_another_model_in_the_same_folder_is_refused_once_its_weights_are_loaded(
    make_trainer, begun, tmp_path, monkeypatch
):
    monkeypatch.setattr("flow_grpo.training.build.weights_identity", lambda weights: "another")
    with pytest.raises(ValueError, match="model: 'weights .*' in the checkpoint, 'weights another of"):
        go_on(make_trainer, begun, tmp_path / "run", begun)
