"""Whole runs on the tiny pipeline: what they leave, and how an epoch's samples reach their scorers and the update."""

import json
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_run import REWARD, logged_tables, rollout_rows, state_of

from flow_grpo.futures import then
from flow_grpo.training.advantages import group_advantages
from flow_grpo.training.best import read_best
from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.evaluation import evaluate
from flow_grpo.training.rollout import SDE
from flow_grpo.training.tracking import read_metrics

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
    assert all(row["update/weighted_ratio_deviation_max"] > 0 for row in rollout_rows(finished_run.run_dir))


def test_training_moves_the_adapter_and_the_kl(finished_run):
    kl = [row["update/kl"] for row in rollout_rows(finished_run.run_dir)]
    assert 0 < kl[0] < kl[-1]
    assert all(row["update/grad_norm"] > 0 for row in rollout_rows(finished_run.run_dir))
    num_elements = sum(each.numel() for each in finished_run.trainer.parts.policy.trainable_parameters())
    for row in rollout_rows(finished_run.run_dir):
        assert row["update/grad_rms"] == pytest.approx(row["update/grad_norm"] / num_elements**0.5, rel=1e-5)
        assert 0 <= row["update/grad_under_epsilon_share"] < 1


def test_a_run_keeps_its_newest_checkpoints_and_the_end(finished_run):
    names = [path.name for path in list_checkpoints(finished_run.run_dir)]
    assert names == ["checkpoint-000002", "checkpoint-000003"]
    assert not list(finished_run.run_dir.glob(".checkpoint*"))


def test_a_checkpoint_keeps_the_resolved_configuration(finished_run):
    config = json.loads((finished_run.run_dir / "checkpoint-000003" / "config.json").read_text())
    assert config == json.loads(json.dumps(finished_run.trainer.config.to_dict()))  # JSON's tuples are lists
    assert config["group_size"] == 4 and config["run_dir"] == str(finished_run.run_dir)


def test_a_run_watches_its_gold_reward_and_keeps_its_best_weights(finished_run):
    rows = [row for row in read_metrics(finished_run.run_dir) if "eval/reward" in row]
    assert all("eval/gold/jpeg_compressibility" in row for row in rows)
    assert "alarm/gold/jpeg_compressibility" in rows[-1] and "alarm/signal/edge_density" in rows[-1]
    best = read_best(finished_run.run_dir)
    assert best["value"] == max(row["eval/reward"] for row in rows)


def test_a_run_writes_its_report_with_what_differs_from_the_defaults(finished_run):
    page = (finished_run.run_dir / "report.html").read_text(encoding="utf-8")
    assert "eval/samples" in page and "num_epochs" in page


def test_a_run_writes_its_sheets_and_wandb_offline(finished_run):
    sheets = sorted(path.name for path in (finished_run.run_dir / "images").iterdir())
    evaluations = [f"eval-samples-{epoch:06d}.png" for epoch in (0, 2, 3)]
    assert sheets == evaluations + [f"rollout-samples-{epoch:06d}.png" for epoch in (0, 2)]  # every second
    for name in (sheets[0], sheets[-1]):  # three prompts; two groups of four
        with Image.open(finished_run.run_dir / "images" / name) as sheet:
            assert sheet.size == (8 * 132, 163 + 148)  # two lines below the images, one below the maps
    records = list(finished_run.run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert records and records[0].stat().st_size > 0


def test_the_tables_of_a_run_hold_the_samples_behind_its_metrics(finished_run):
    """Tables of all prompts and of all samples: their means are the metrics."""
    evaluations = [row for row in read_metrics(finished_run.run_dir) if "eval/reward" in row]
    for row, table in zip(evaluations, logged_tables(finished_run.run_dir, "eval/samples"), strict=True):
        assert table["columns"] == ["prompt", "image", f"map/{REWARD}", "reward"]
        prompts, images, maps, rewards = zip(*table["data"], strict=True)
        assert list(prompts) == finished_run.trainer.parts.eval_prompts and set(images + maps) == {"Image"}
        assert sum(rewards) / 3 == pytest.approx(row["eval/reward"])
    rollouts = rollout_rows(finished_run.run_dir)[::2]
    for row, table in zip(rollouts, logged_tables(finished_run.run_dir, "rollout/samples"), strict=True):
        assert table["columns"] == ["prompt", "image", f"map/{REWARD}", "reward", "advantage"]
        batches = finished_run.trainer.parts.sampler.epoch(row["epoch"])
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
    policy.load_adapter_state(state["lora"])

    def reward():
        return evaluate(
            policy,
            trainer.parts.eval_prompts,
            trainer.parts.eval_metadata,
            trainer.parts.scorers,
            SDE(trainer.config.sample.eval_num_steps, noise_level=0.0),
            trainer.parts.geometry.batch_size,
            trainer.config.seed,
            Distributed(),
        ).metrics["eval/reward"]

    of_weights = reward()
    trained = policy.trainable_parameters()
    with torch.no_grad():
        for parameter, average in zip(trained, state["ema"]["average"].values(), strict=True):
            parameter.copy_(average)
    # the run's cache embeds each prompt once, here the filled-up batch is embedded whole: 2e-8 was measured
    assert reward() == pytest.approx(read_metrics(finished_run.run_dir)[-1]["eval/reward"], abs=1e-6)
    assert reward() != pytest.approx(of_weights, abs=1e-5)


# An epoch's samples and their scores


def test_every_epoch_draws_its_own_prompts(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trainer = make_trainer(tmp_path, num_epochs=2, eval_every=0)
    submit, drawn = trainer.parts.scorers.submit, []

    def listening(images, prompts, metadata):
        drawn.append(list(prompts))
        return submit(images, prompts, metadata)

    trainer.parts.scorers.submit = listening
    trainer.train()
    assert drawn == [batch.prompts for epoch in (0, 1) for batch in trainer.parts.sampler.epoch(epoch)]
    assert len({prompt for batch in drawn for prompt in batch}) == 4


def test_metadata_of_a_prompt_reaches_its_images_scorer(make_trainer, tmp_path):
    for split in ("train", "test"):
        lines = [json.dumps({"prompt": f"a red circle {i}", "metadata": {"number": i}}) for i in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    trainer = make_trainer(tmp_path / "run", num_epochs=1, dataset=str(tmp_path), num_eval_prompts=2)
    submit, told = trainer.parts.scorers.submit, []

    def listening(images, prompts, metadata):
        told.extend(zip(prompts, metadata, strict=True))
        return submit(images, prompts, metadata)

    trainer.parts.scorers.submit = listening
    trainer.train()
    assert len(told) == 2 + 8 + 2  # an evaluation, two batches of four, an evaluation
    assert all(prompt == f"a red circle {metadata['number']}" for prompt, metadata in told)


def test_images_that_could_not_be_scored_get_no_advantage_and_are_counted(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, num_epochs=1, eval_every=0)
    submit, credit, spread = trainer.parts.scorers.submit, trainer.parts.credit, []

    def lost(score):
        rest = torch.arange(len(score.reward)) > 0
        reward = torch.where(rest, score.reward, 1e6)  # would drown all others, if it counted
        return replace(score, reward=reward, valid=rest, map_valid=rest)

    def losing_the_first(*arguments):
        return {name: then(future, lost) for name, future in submit(*arguments).items()}

    def listening(*arguments):
        spread.append(credit(*arguments))
        return spread[-1]

    trainer.parts.scorers.submit, trainer.parts.credit = losing_the_first, listening
    trainer.train()
    ((earned, _),) = spread
    per_step = earned.advantages  # (S, B, N), two batches
    first = torch.zeros(per_step.shape[1], dtype=torch.bool)
    first[[0, trainer.parts.geometry.batch_size]] = True
    assert (per_step[:, first] == 0).all() and (per_step[:, ~first] != 0).any()
    row = read_metrics(tmp_path)[0]
    assert row["rollout/invalid_share"] == first.float().mean() and row["rollout/reward_mean"] < 1


def test_sampling_goes_on_while_scorers_work(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, num_epochs=1, eval_every=0)
    submit, events = trainer.parts.scorers.submit, []

    class Listening(Future):
        def result(self, timeout=None):
            events.append("waited")
            return super().result(timeout)

    def listening(*arguments):
        events.append("submitted")
        futures = {}
        for name, future in submit(*arguments).items():
            futures[name] = Listening()
            futures[name].set_result(future.result())
        return futures

    trainer.parts.scorers.submit = listening
    trainer.train()
    assert events == ["submitted"] * 2 + ["waited"] * 2


def test_another_seed_is_another_run(finished_run, make_trainer, tmp_path):
    make_trainer(tmp_path, seed=43, num_epochs=1, eval_every=0).train()
    assert (
        rollout_rows(tmp_path)[0]["rollout/reward_mean"] != rollout_rows(finished_run.run_dir)[0]["rollout/reward_mean"]
    )
