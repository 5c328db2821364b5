"""Which images an update is over, what each weighs in it, worked by hand, and steps that must not be taken."""

import pytest
import torch
from tiny_run import rollout_rows

from flow_grpo.training import update
from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.records import Credit
from flow_grpo.training.update import earning_batches, has_advantage, kl_loss

# eight images in batches of two; 1, 4 and 5 have an advantage
HAS_ANY = [False, True, False, False, True, True, False, False]


def weights(batches, num_counted):
    """What each image weighs in an update: the mean of a batch, the mean over batches, times the update's share."""
    share = len(batches) * len(batches[0]) / num_counted
    return {row: share / len(batches) / len(batch) for batch in batches for row in batch}


@pytest.mark.parametrize(("drop", "weight"), [(False, 1 / 8), (True, 1 / 3)])
def test_an_image_weighs_its_share_of_those_that_the_mean_is_over(drop, weight):
    batches, num_counted = earning_batches(HAS_ANY, [3], batch_size=2, drop=drop)
    assert batches == [[1, 4], [5, 0]]
    assert weights(batches, num_counted) == pytest.approx(dict.fromkeys((1, 4, 5, 0), weight))


def test_an_image_weighs_the_same_whichever_process_has_it():
    """Three in one process and one in the other; their gradients are averaged, so each of the four weighs 1/4."""
    for has_any in (HAS_ANY, [False] * 7 + [True]):
        batches, num_counted = earning_batches(has_any, [3, 1], batch_size=2, drop=True)
        assert len(batches) == 2  # as many in both: each backward pass waits for the other process
        assert set(weights(batches, num_counted).values()) == {1 / 2}  # half of it in the mean over two processes


def test_an_update_without_any_advantage_is_one_batch_of_no_weight():
    batches, num_counted = earning_batches([False] * 4, [0, 0], batch_size=2, drop=True)
    credit = Credit(torch.zeros(1, 2, 3), None, None)
    assert batches == [[0, 1]] and num_counted == 1
    assert kl_loss(torch.ones(2, 3), credit, drop=True).item() == 0


def test_a_dropped_image_has_no_kl_and_a_kept_one_its_own():
    advantages = torch.zeros(2, 3, 2)  # (S, B, N)
    advantages[1, 2, 0] = -1.0  # the last of three images, at one step and token
    kl = torch.tensor([[4.0, 4.0], [2.0, 2.0], [6.0, 12.0]])
    credit = Credit(advantages, None, None)
    assert has_advantage(credit).tolist() == [False, False, True]
    assert kl_loss(kl, credit, drop=False).item() == 5.0  # 30 / 6
    assert kl_loss(kl, credit, drop=True).item() == 3.0  # 18 / 6
    weighted = Credit(advantages, None, torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 0.0]]))
    assert kl_loss(kl, weighted, drop=True).item() == 2.0  # 12 / 6


FAST = {"num_groups": 1, "group_size": 2, "batch_size": 2, "eval_every": 0, "samples_every": 0, "train.beta": 0.0}
FAST |= {"sample.num_steps": 2, "train.num_steps": 1, "updates_per_epoch": 1}


def saved(run_dir):
    """The LoRA of each checkpoint, by its epoch."""
    states = [torch.load(path / "state.pt", weights_only=True) for path in list_checkpoints(run_dir)]
    return {state["epoch"]: state["lora"] for state in states}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_gradient_that_is_not_finite_costs_its_step_alone(make_trainer, tmp_path, monkeypatch, caplog):
    loss_of, calls = update.grpo_loss, 0

    def broken_once(*arguments):
        nonlocal calls
        calls += 1
        loss, metrics = loss_of(*arguments)
        return (loss * torch.nan if calls == 2 else loss), metrics

    monkeypatch.setattr(update, "grpo_loss", broken_once)
    trainer = make_trainer(tmp_path, num_epochs=3, keep_checkpoints=9, **FAST)
    trainer.train()
    weights = saved(tmp_path)
    assert list(weights) == [1, 2, 3]
    assert same(weights[1], weights[2]) and not same(weights[2], weights[3])
    assert all(tensor.isfinite().all() for lora in weights.values() for tensor in lora.values())
    assert [row["update/skipped_steps"] for row in rollout_rows(tmp_path)] == [0, 1, 0]
    warnings = [record.message for record in caplog.records if "not finite" in record.message]
    assert warnings == ["epoch 1: update: a gradient is not finite; its step is left out"]


def test_an_update_that_breaks_the_weights_is_named_and_never_saved(make_trainer, tmp_path):
    """The second epoch's step is far too long; the first one's weights stay the newest."""
    trainer = make_trainer(tmp_path, num_epochs=4, save_every=100, **FAST)
    run, epochs = trainer.parts.updater.run, []

    def with_a_long_step(*arguments, **options):
        epochs.append(len(epochs))
        if len(epochs) == 2:
            for group in trainer.parts.optimizer.param_groups:
                group["lr"] = 1e30
        return run(*arguments, **options)

    trainer.parts.updater.run = with_a_long_step
    with pytest.raises(RuntimeError, match="epoch 1: update has left weights that give no finite numbers"):
        trainer.train()
    weights = saved(tmp_path)
    assert list(weights) == [1] and all(tensor.abs().max() < 10 for tensor in weights[1].values())
