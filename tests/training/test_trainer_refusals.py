"""What a run refuses, before the weights are loaded where it can, and what stops it."""

import re

import pytest
import torch
from tiny_run import REWARD

from flow_grpo.training.run_folder import claim


def test_a_folder_that_holds_a_run_is_refused_without_resume(finished_run, make_trainer):
    with pytest.raises(ValueError, match="already holds a run; go on with it by --config.resume_from=latest"):
        make_trainer(finished_run.run_dir)


def test_a_branch_from_an_older_checkpoint_is_refused_in_the_folder_that_holds_newer_ones(finished_run, make_trainer):
    older = str(finished_run.run_dir / "checkpoint-000002")
    with pytest.raises(ValueError, match="goes on to checkpoint-000003; give the branch .* a --config.run_dir"):
        make_trainer(finished_run.run_dir, resume_from=older, keep_checkpoints=2)


def test_a_checkpoint_of_another_configuration_is_refused_naming_its_fields(finished_run, make_trainer):
    with pytest.raises(ValueError, match=re.escape("train.beta: 0.04 in the checkpoint, 0.01 now")) as caught:
        make_trainer(finished_run.run_dir, resume_from="latest", **{"train.beta": 0.01, "lora_rank": 8})
    assert "lora_rank: 32 in the checkpoint, 8 now" in str(caught.value)


def test_nothing_to_resume_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="resume_from=latest, but .* holds no checkpoint"):
        make_trainer(tmp_path, resume_from="latest")


def test_a_finished_run_says_what_to_raise(finished_run, make_trainer):
    """Before the weights are loaded."""
    with pytest.raises(ValueError, match="has all 3 epochs; raise --config.num_epochs"):
        make_trainer(finished_run.run_dir, resume_from="latest", keep_checkpoints=2, model="nowhere")


def test_a_folder_that_cannot_be_written_is_refused_before_the_weights_are_loaded(make_trainer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="run_dir=.*file/run cannot be written"):
        make_trainer(tmp_path / "file" / "run", model="no/such/folder")


def test_a_folder_that_a_run_is_using_is_refused_before_the_weights_are_loaded(make_trainer, tmp_path):
    with claim(tmp_path), pytest.raises(ValueError, match="is in use by process"):
        make_trainer(tmp_path, model="no/such/folder")


def test_a_mistyped_folder_to_go_on_with_is_not_made(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        make_trainer(tmp_path / "runn", resume_from="latest")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_reward_is_refused_before_the_weights_are_loaded(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="unknown scorer 'ocr_mapp'.*ocr_map"):
        make_trainer(tmp_path, rewards={"ocr_mapp": 1.0}, model="no/such/folder")


def test_an_option_that_no_reward_takes_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="does not take sharpness"):
        make_trainer(tmp_path, reward_options={REWARD: {"sharpness": 1}}, model="no/such/folder")


def test_a_mode_that_needs_a_map_refuses_a_reward_without_one_before_the_weights(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="advantage.mode=weight needs a reward map.*advantage.mode=scalar"):
        make_trainer(tmp_path, reward_options={REWARD: {"pixel_map": None}}, model="nowhere")
    with pytest.raises(ValueError, match="none of jpeg_compressibility has one"):  # the only map has weight 0
        make_trainer(tmp_path, rewards={REWARD: 0.0, "jpeg_compressibility": 1.0}, model="nowhere")


def test_residuals_of_an_importance_map_are_refused_before_the_weights(make_trainer, tmp_path):
    options = {"reward_options": {REWARD: {"kind": "importance"}}, "advantage.mode": "residual"}
    with pytest.raises(ValueError, match=f"advantage.mode=residual.*{REWARD}.*advantage.mode=weight"):
        make_trainer(tmp_path, model="nowhere", **options)


def test_a_prompt_without_quotes_stops_an_ocr_run_with_the_prompt(make_trainer, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("a blue sign without any word\n")
    with pytest.raises(ValueError, match="a blue sign without any word"):
        make_trainer(tmp_path / "run", rewards={"ocr_map": 1.0}, dataset=str(tmp_path), eval_every=0).train()


@pytest.mark.parametrize("shift", [1.0, 1e-4, float("nan")])
def test_a_ratio_other_than_one_before_any_update_stops_the_run(make_trainer, tmp_path, shift):
    """The policy that is asked is not the one that sampled: a weight moves, or breaks, between rollout and update."""
    trainer = make_trainer(tmp_path, eval_every=0)
    credit = trainer.parts.credit

    def move_then_compute(*arguments):
        with torch.no_grad():
            for parameter in trainer.parts.policy.trainable_parameters():
                parameter.add_(shift)
        return credit(*arguments)

    trainer.parts.credit = move_then_compute
    with pytest.raises(RuntimeError, match="before any update the ratio is .* away from 1"):
        trainer.train()
