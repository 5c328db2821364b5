"""Whole runs on the tiny pipeline: what they write, how they stop and go on, and what they refuse."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from tiny_run import logged_tables, timeless_rows

from flow_grpo.training.advantages import group_advantages
from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.evaluation import evaluate
from flow_grpo.training.rollout import SDE
from flow_grpo.training.tracking import read_metrics

REWARD = "brightness_reward:Brightness"


def state_of(checkpoint):
    """Every tensor of a checkpoint by name: LoRA, optimizer, EMA, random states."""

    def flatten(value, prefix):
        if isinstance(value, dict):
            for name, child in value.items():
                yield from flatten(child, f"{prefix}/{name}")
        elif isinstance(value, (list, tuple)):
            for index, child in enumerate(value):
                yield from flatten(child, f"{prefix}/{index}")
        else:
            yield prefix, value

    files = {name: torch.load(checkpoint / name, weights_only=True) for name in ("state.pt", "rng.pt")}
    return dict(flatten(files, ""))


def differences(one, other):
    """The names under which two checkpoints differ in any bit."""
    one, other = state_of(one), state_of(other)
    assert one.keys() == other.keys() and len(one) > 100
    return [
        name
        for name in one
        if not (torch.equal(one[name], other[name]) if torch.is_tensor(one[name]) else one[name] == other[name])
    ]


def rollout_rows(run_dir):
    return [row for row in read_metrics(run_dir) if "rollout/reward_mean" in row]


# What a run leaves


def test_a_run_tracks_each_epoch_and_each_evaluation(finished_run):
    rows = read_metrics(finished_run.run_dir)
    assert [row["epoch"] for row in rows if "rollout/reward_mean" in row] == [0, 1, 2]
    assert [row["epoch"] for row in rows if "eval/reward" in row] == [0, 2, 3]  # every second, and the end
    names = set(rollout_rows(finished_run.run_dir)[0])
    assert names >= {
        *("rollout/reward_std", "rollout/advantage_abs_mean", f"rollout/{REWARD}", f"rollout/{REWARD}/contrast"),
        *(f"map/{REWARD}/fallback_share", f"map/{REWARD}/effective_token_share"),
        *("update/loss", "update/kl", "update/grad_norm", "update/approx_kl", "update/clip_fraction_above"),
        *("time/sample_seconds", "time/score_seconds", "time/update_seconds", "time/epoch_seconds"),
    }


def test_the_ratio_is_one_before_the_first_update_of_every_epoch(finished_run):
    assert [row["update/initial_ratio_deviation"] for row in rollout_rows(finished_run.run_dir)] == [0, 0, 0]
    # the second update of an epoch is off the policy that sampled
    assert all(row["update/ratio_deviation_max"] > 0 for row in rollout_rows(finished_run.run_dir))


def test_training_moves_the_adapter_and_the_kl(finished_run):
    kl = [row["update/kl"] for row in rollout_rows(finished_run.run_dir)]
    assert 0 < kl[0] < kl[-1]
    assert all(row["update/grad_norm"] > 0 for row in rollout_rows(finished_run.run_dir))


def test_a_run_keeps_its_newest_checkpoints_and_the_end(finished_run):
    names = [path.name for path in list_checkpoints(finished_run.run_dir)]
    assert names == ["checkpoint-000002", "checkpoint-000003"]
    assert not list(finished_run.run_dir.glob(".checkpoint*"))


def test_a_checkpoint_keeps_the_resolved_configuration(finished_run):
    config = json.loads((finished_run.run_dir / "checkpoint-000003" / "config.json").read_text())
    assert config == json.loads(json.dumps(finished_run.trainer.config.to_dict()))  # JSON's tuples are lists
    assert config["group_size"] == 4 and config["run_dir"] == str(finished_run.run_dir)


def test_a_run_writes_its_sheets_and_wandb_offline(finished_run):
    sheets = sorted(path.name for path in (finished_run.run_dir / "images").iterdir())
    evaluations = [f"eval-samples-{epoch:06d}.png" for epoch in (0, 2, 3)]
    assert sheets == evaluations + [f"rollout-samples-{epoch:06d}.png" for epoch in (0, 2)]  # every second
    for name in (sheets[0], sheets[-1]):  # three prompts; two groups of four
        with Image.open(finished_run.run_dir / "images" / name) as sheet:
            assert sheet.size == (8 * 132, 2 * 148)
    records = list(finished_run.run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert records and records[0].stat().st_size > 0


def test_the_tables_of_a_run_hold_the_samples_behind_its_metrics(finished_run):
    """Tables of all prompts and of all samples: their means are the metrics."""
    evaluations = [row for row in read_metrics(finished_run.run_dir) if "eval/reward" in row]
    for row, table in zip(evaluations, logged_tables(finished_run.run_dir, "eval/samples"), strict=True):
        assert table["columns"] == ["prompt", "image", f"map/{REWARD}", "reward"]
        prompts, images, maps, rewards = zip(*table["data"], strict=True)
        assert list(prompts) == finished_run.trainer.eval_prompts and set(images + maps) == {"Image"}
        assert sum(rewards) / 3 == pytest.approx(row["eval/reward"])
    rollouts = rollout_rows(finished_run.run_dir)[::2]
    for row, table in zip(rollouts, logged_tables(finished_run.run_dir, "rollout/samples"), strict=True):
        assert table["columns"] == ["prompt", "image", f"map/{REWARD}", "reward", "advantage"]
        batches = finished_run.trainer.sampler.epoch(row["epoch"])
        assert [cells[0] for cells in table["data"]] == [prompt for batch in batches for prompt in batch.prompts]
        rewards, advantages = (torch.tensor([cells[i] for cells in table["data"]]) for i in (3, 4))
        assert rewards.mean().item() == pytest.approx(row["rollout/reward_mean"])
        expected = group_advantages(rewards, torch.arange(2).repeat_interleave(4), "global")
        # the mean over 64 tokens, in fp32, of the advantage spread by the map
        torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-6)
        assert advantages.abs().mean().item() == pytest.approx(row["rollout/advantage_abs_mean"], rel=1e-5)


def test_samples_are_shown_up_to_a_number_and_never_where_none_are_wanted(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("flow_grpo.training.trainer.NUM_SHOWN", 5)
    make_trainer(tmp_path / "some", num_epochs=1, eval_every=0).train()
    (table,) = logged_tables(tmp_path / "some", "rollout/samples")
    assert len(table["data"]) == 5  # of two batches of four
    make_trainer(tmp_path / "none", num_epochs=1, eval_every=0, samples_every=0).train()
    assert not (tmp_path / "none" / "images").exists()
    weights = [state_of(tmp_path / name / "checkpoint-000001") for name in ("some", "none")]
    assert all(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if name.startswith("/state.pt/lora")
    )


def test_an_evaluation_is_of_the_averaged_weights(finished_run, make_policy):
    """Repeated by hand from the checkpoint's average: the same number, which the weights themselves do not give."""
    trainer = finished_run.trainer
    state = torch.load(finished_run.run_dir / "checkpoint-000003" / "state.pt", weights_only=True)
    names = ("lora_rank", "lora_alpha", "max_sequence_length")
    policy = make_policy(**{name: trainer.config[name] for name in names})
    policy.load_lora_state(state["lora"])

    def reward():
        return evaluate(
            policy,
            trainer.eval_prompts,
            trainer.eval_metadata,
            trainer.score_fn,
            SDE(trainer.config.sample.eval_num_steps, noise_level=0.0),
            trainer.geometry.batch_size,
            trainer.config.seed,
            Distributed(),
        ).metrics["eval/reward"]

    of_weights = reward()
    trained = policy.trainable_parameters()
    with torch.no_grad():
        for parameter, average in zip(trained, state["ema"]["average"], strict=True):
            parameter.copy_(average)
    assert reward() == read_metrics(finished_run.run_dir)[-1]["eval/reward"] != of_weights


# Stopping and going on


def stop_at_score(trainer, number):
    """A SIGTERM to this very process after the number-th batch is scored."""
    submit, count = trainer.score_fn.submit, 0

    def stopping(*arguments):
        nonlocal count
        count += 1
        if count == number:
            signal.raise_signal(signal.SIGTERM)
        return submit(*arguments)

    trainer.score_fn.submit = stopping


# Scored in the tiny run: one evaluation batch, then two batches in epoch 0, two in epoch 1, an evaluation, ...
@pytest.mark.parametrize(
    "number, saved_at", [(4, 1), (5, 2), (6, 2)], ids=["mid-rollout", "last batch of an epoch", "evaluation"]
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    finished_run, make_trainer, tmp_path, number, saved_at
):
    interrupted = make_trainer(tmp_path, keep_checkpoints=2)
    stop_at_score(interrupted, number)
    interrupted.train()
    assert list_checkpoints(tmp_path)[-1].name == f"checkpoint-{saved_at:06d}"
    torch.manual_seed(12345)  # a new process would not have the old one's random state either
    make_trainer(tmp_path, keep_checkpoints=2, resume_from="latest").train()
    assert timeless_rows(tmp_path) == timeless_rows(finished_run.run_dir)
    final = "checkpoint-000003"
    assert differences(tmp_path / final, finished_run.run_dir / final) == []


def test_a_run_goes_on_from_a_named_checkpoint_into_a_folder_of_its_own(finished_run, make_trainer, tmp_path):
    resume_from = str(finished_run.run_dir / "checkpoint-000002")
    make_trainer(tmp_path, resume_from=resume_from, eval_every=0).train()
    assert [row["epoch"] for row in rollout_rows(tmp_path)] == [2]
    assert differences(tmp_path / "checkpoint-000003", finished_run.run_dir / "checkpoint-000003") == []


def test_every_epoch_draws_its_own_prompts(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trainer = make_trainer(tmp_path, num_epochs=2, eval_every=0)
    submit, drawn = trainer.score_fn.submit, []

    def listening(images, prompts, metadata):
        drawn.append(list(prompts))
        return submit(images, prompts, metadata)

    trainer.score_fn.submit = listening
    trainer.train()
    assert drawn == [batch.prompts for epoch in (0, 1) for batch in trainer.sampler.epoch(epoch)]
    assert len({prompt for batch in drawn for prompt in batch}) == 4


def test_images_that_could_not_be_scored_get_no_advantage_and_are_counted(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, num_epochs=1, eval_every=0)
    submit, credit, spread = trainer.score_fn.submit, trainer._credit, []

    def losing_the_first(*arguments):
        details, extras = submit(*arguments)()
        extras["valid"][0] = False
        details["avg"][0] = 1e6  # would drown all others, if it counted
        return lambda: (details, extras)

    def listening(*arguments):
        spread.append(credit(*arguments))
        return spread[-1]

    trainer.score_fn.submit, trainer._credit = losing_the_first, listening
    trainer.train()
    ((earned, _),) = spread
    per_step = earned.advantages  # (S, B, N), two batches
    lost = torch.zeros(per_step.shape[1], dtype=torch.bool)
    lost[[0, trainer.geometry.batch_size]] = True
    assert (per_step[:, lost] == 0).all() and (per_step[:, ~lost] != 0).any()
    row = read_metrics(tmp_path)[0]
    assert row["rollout/invalid_share"] == lost.float().mean() and row["rollout/reward_mean"] < 1


def test_sampling_goes_on_while_scorers_work(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, num_epochs=1, eval_every=0)
    submit, events = trainer.score_fn.submit, []

    def listening(*arguments):
        pending = submit(*arguments)
        events.append("submitted")
        return lambda: events.append("waited") or pending()

    trainer.score_fn.submit = listening
    trainer.train()
    assert events == ["submitted"] * 2 + ["waited"] * 2


def test_another_seed_is_another_run(finished_run, make_trainer, tmp_path):
    make_trainer(tmp_path, seed=43, num_epochs=1, eval_every=0).train()
    assert (
        rollout_rows(tmp_path)[0]["rollout/reward_mean"] != rollout_rows(finished_run.run_dir)[0]["rollout/reward_mean"]
    )


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
        deadline = time.monotonic() + 180
        while not rollout_rows(tmp_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output[-3000:]
    assert "SIGTERM: saving and stopping" in output
    num_done = len(rollout_rows(tmp_path))
    assert 1 <= num_done < 500
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{num_done:06d}"]

    goes_on = ["--config.resume_from=latest", f"--config.num_epochs={num_done + 1}"]
    process = start(tmp_path, process_environment, *goes_on)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output[-3000:]
    assert [row["epoch"] for row in rollout_rows(tmp_path)] == list(range(num_done + 1))
    assert list_checkpoints(tmp_path)[-1].name == f"checkpoint-{num_done + 1:06d}"


# What a run refuses


def test_a_folder_that_holds_a_run_is_refused_without_resume(finished_run, make_trainer):
    with pytest.raises(ValueError, match="already holds a run; go on with it by --config.resume_from=latest"):
        make_trainer(finished_run.run_dir)


def test_a_branch_from_an_older_checkpoint_is_refused_in_the_folder_that_holds_newer_ones(finished_run, make_trainer):
    older = str(finished_run.run_dir / "checkpoint-000002")
    with pytest.raises(ValueError, match="goes on to checkpoint-000003; give the branch .* a --config.run_dir"):
        make_trainer(finished_run.run_dir, resume_from=older, keep_checkpoints=2)


def test_a_run_goes_on_in_batches_of_another_size_with_the_same_samples(finished_run, make_trainer, tmp_path):
    """As on another number of processes: the epoch's samples, and so its rewards, stay what they were."""
    resume_from = str(finished_run.run_dir / "checkpoint-000002")
    make_trainer(tmp_path, resume_from=resume_from, batch_size=2, eval_every=0).train()
    (row,) = rollout_rows(tmp_path)
    expected = rollout_rows(finished_run.run_dir)[2]
    # batches of two and of four round differently in the last bits
    assert row["rollout/reward_mean"] == pytest.approx(expected["rollout/reward_mean"], abs=1e-5)
    assert row["rollout/reward_std"] == pytest.approx(expected["rollout/reward_std"], abs=1e-5)


def test_a_checkpoint_of_another_configuration_is_refused_naming_its_fields(finished_run, make_trainer):
    with pytest.raises(ValueError, match=re.escape("train.beta: 0.04 in the checkpoint, 0.01 now")) as caught:
        make_trainer(finished_run.run_dir, resume_from="latest", **{"train.beta": 0.01, "lora_rank": 8})
    assert "lora_rank: 32 in the checkpoint, 8 now" in str(caught.value)


def test_nothing_to_resume_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="resume_from=latest, but .* holds no checkpoint"):
        make_trainer(tmp_path, resume_from="latest")


def test_a_finished_run_says_what_to_raise(finished_run, make_trainer):
    trainer = make_trainer(finished_run.run_dir, resume_from="latest", keep_checkpoints=2)
    with pytest.raises(ValueError, match="has all 3 epochs; raise --config.num_epochs"):
        trainer.train()


def test_an_unknown_reward_is_refused_before_the_weights_are_loaded(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="unknown scorer 'ocr_mapp'.*ocr_map"):
        make_trainer(tmp_path, rewards={"ocr_mapp": 1.0}, model="no/such/folder")


def test_an_option_that_no_reward_takes_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="does not take sharpness"):
        make_trainer(tmp_path, reward_options={REWARD: {"sharpness": 1}}, model="no/such/folder")


def test_a_mode_that_needs_a_map_refuses_a_reward_without_one_before_the_weights(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="advantage.mode=weight needs a reward map.*advantage.mode=scalar"):
        make_trainer(tmp_path, reward_options={REWARD: {"pixel_map": None}}, model="nowhere")


def test_residuals_of_an_importance_map_are_refused_before_the_weights(make_trainer, tmp_path):
    options = {"reward_options": {REWARD: {"kind": "importance"}}, "advantage.mode": "residual"}
    with pytest.raises(ValueError, match=f"advantage.mode=residual.*{REWARD}.*advantage.mode=weight"):
        make_trainer(tmp_path, model="nowhere", **options)


def test_a_scorer_that_fails_in_an_evaluation_loses_nothing(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, eval_every=2, save_every=100)
    submit, count = trainer.score_fn.submit, 0

    def failing(*arguments):
        nonlocal count
        count += 1
        if count == 6:  # an evaluation, two batches in each of two epochs, an evaluation
            raise ConnectionError("the reward server has gone")
        return submit(*arguments)

    trainer.score_fn.submit = failing
    with pytest.raises(ConnectionError):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000002"]


def test_a_prompt_without_quotes_stops_an_ocr_run_with_the_prompt(make_trainer, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("a blue sign without any word\n")
    with pytest.raises(ValueError, match="a blue sign without any word"):
        make_trainer(tmp_path / "run", rewards={"ocr_map": 1.0}, dataset=str(tmp_path), eval_every=0).train()


def test_metadata_of_a_prompt_reaches_its_images_scorer(make_trainer, tmp_path):
    for split in ("train", "test"):
        lines = [json.dumps({"prompt": f"a red circle {i}", "metadata": {"number": i}}) for i in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    trainer = make_trainer(tmp_path / "run", num_epochs=1, dataset=str(tmp_path), num_eval_prompts=2)
    submit, told = trainer.score_fn.submit, []

    def listening(images, prompts, metadata):
        told.extend(zip(prompts, metadata, strict=True))
        return submit(images, prompts, metadata)

    trainer.score_fn.submit = listening
    trainer.train()
    assert len(told) == 2 + 8 + 2  # an evaluation, two batches of four, an evaluation
    assert all(prompt == f"a red circle {metadata['number']}" for prompt, metadata in told)


def test_a_scorer_that_fails_ends_the_run_with_its_error_and_a_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, eval_every=0, save_every=100)
    submit, count = trainer.score_fn.submit, 0

    def failing(*arguments):
        nonlocal count
        count += 1
        if count == 4:  # the second batch of the second epoch
            raise ConnectionError("the reward server has gone")
        return submit(*arguments)

    trainer.score_fn.submit = failing
    with pytest.raises(ConnectionError, match="the reward server has gone"):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000001"]


@pytest.mark.parametrize("shift", [1.0, float("nan")])
def test_a_ratio_other_than_one_before_any_update_stops_the_run(make_trainer, tmp_path, shift):
    """The policy that is asked is not the one that sampled: a weight moves, or breaks, between rollout and update."""
    trainer = make_trainer(tmp_path, eval_every=0)
    credit = trainer._credit

    def move_then_compute(*arguments):
        with torch.no_grad():
            for parameter in trainer.policy.trainable_parameters():
                parameter.add_(shift)
        return credit(*arguments)

    trainer._credit = move_then_compute
    with pytest.raises(RuntimeError, match="before any update the ratio is .* away from 1"):
        trainer.train()


# Maps, end to end


def trained_weights(make_trainer, run_dir, monkeypatch, **changes):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trainer = make_trainer(run_dir, num_epochs=1, eval_every=0, **changes)
    trainer.train()
    return [parameter.detach() for parameter in trainer.policy.trainable_parameters()]


def test_a_run_with_a_constant_map_is_the_scalar_run_bit_for_bit(make_trainer, tmp_path, monkeypatch):
    constant = {"reward_options": {REWARD: {"pixel_map": 0.8}}}
    scalar = trained_weights(make_trainer, tmp_path / "scalar", monkeypatch, **{"advantage.mode": "scalar"})
    weight = trained_weights(make_trainer, tmp_path / "weight", monkeypatch, **constant)
    no_map = {"advantage.mode": "scalar", "reward_options": {REWARD: {"pixel_map": None}}}
    without = trained_weights(make_trainer, tmp_path / "none", monkeypatch, **no_map)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(scalar, weight, without, strict=True))
    mapped = trained_weights(make_trainer, tmp_path / "mapped", monkeypatch)
    assert not all(torch.equal(a, b) for a, b in zip(scalar, mapped, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage.mode": "residual", "train.ratio": "token", "train.clip_range": 1e-3},
        {"advantage.std": "group", "train.beta": 0.0, "sample.sde": "cps"},
        {"advantage.fade": 1.0, "sample.guidance_scale": 3.0, "train.exact_kl": True},
        {"reward_options": {REWARD: {"kind": "importance"}}, "updates_per_epoch": 1, "advantage.alpha": 1.0},
        {"sample.sde_window_size": 2, "sample.sde_window_range": (0, 4)},
        {"train.ratio_norm": True, "train.clip_range": 1e-3, "train.beta": 0.0, "advantage.std": "group"},
        {"train.spatial_kl": 1.0},
    ],
    ids=["residual-token", "group-cps", "fade-guidance", "importance", "window", "ratio-norm", "spatial-kl"],
)
def test_other_settings_train_too(make_trainer, tmp_path, monkeypatch, changes):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trainer = make_trainer(tmp_path / "run", num_epochs=1, eval_every=0, **changes)
    before = [parameter.detach().clone() for parameter in trainer.policy.trainable_parameters()]
    trainer.train()
    row = rollout_rows(tmp_path / "run")[0]
    assert row["update/initial_ratio_deviation"] == 0 and row["update/grad_norm"] > 0
    assert ("update/kl" in row) == (changes.get("train.beta") != 0)
    assert all(parameter.isfinite().all() for parameter in trainer.policy.trainable_parameters())
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.policy.trainable_parameters(), strict=True))


def test_skipping_images_without_advantage_changes_no_result(make_trainer, tmp_path, monkeypatch):
    """Brightness saturated by a threshold: whole groups come out alike, and their images have no advantage."""
    settings = {"reward_options": {REWARD: {"threshold": 0.685}}, "train.beta": 0.0, "updates_per_epoch": 1}
    weights = [
        trained_weights(
            make_trainer, tmp_path / str(skip), monkeypatch, **settings, **{"train.skip_zero_advantages": skip}
        )
        for skip in (False, True)
    ]
    row = rollout_rows(tmp_path / "True")[0]
    assert 0 < row["rollout/zero_advantage_share"] < 1
    for kept, skipped in zip(*weights, strict=True):
        # the same sum over other batches: matrix kernels round differently, and Adam magnifies it where a gradient is small
        torch.testing.assert_close(skipped, kept, atol=2e-5, rtol=1e-3)


def test_the_spatial_kl_moves_other_weights_than_the_plain_one(make_trainer, tmp_path, monkeypatch):
    """At the base the KL and its gradient are 0: the first update is the same, the second is not."""
    plain = trained_weights(make_trainer, tmp_path / "plain", monkeypatch, **{"train.beta": 1.0})
    spatial = trained_weights(
        make_trainer, tmp_path / "spatial", monkeypatch, **{"train.beta": 1.0, "train.spatial_kl": 1.0}
    )
    assert not all(torch.equal(a, b) for a, b in zip(plain, spatial, strict=True))
    first, second = (rollout_rows(tmp_path / name)[0] for name in ("plain", "spatial"))
    assert first["update/kl_inside"] > 0 and first["update/kl_outside"] > 0
    assert first["update/initial_ratio_deviation"] == second["update/initial_ratio_deviation"] == 0


def test_a_run_with_real_ocr_maps_goes_through(make_trainer, tmp_path):
    make_trainer(tmp_path, rewards={"ocr_map": 1.0}, num_epochs=1, eval_every=1).train()
    rows = read_metrics(tmp_path)
    (trained,) = rollout_rows(tmp_path)
    names = ("reward", "similarity", "confidence", "exact", "text_area")
    assert all(0 <= trained[f"rollout/ocr_map/{name}"] <= 1 for name in names)
    assert trained["rollout/reward_mean"] == pytest.approx(trained["rollout/ocr_map/reward"])
    assert 0 <= trained["map/ocr_map/fallback_share"] <= 1
    assert [row["epoch"] for row in rows if "eval/ocr_map/exact" in row] == [0, 1]
    assert (tmp_path / "checkpoint-000001" / "lora_ema" / "pytorch_lora_weights.safetensors").is_file()
