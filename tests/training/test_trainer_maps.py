"""Maps, end to end: what they change in a run's weights, and what they must not."""

import pytest
import torch
from tiny_run import REWARD, rollout_rows

from flow_grpo.training.tracking import read_metrics


def trained_weights(make_trainer, run_dir, monkeypatch, **changes):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trainer = make_trainer(run_dir, num_epochs=1, eval_every=0, **changes)
    trainer.train()
    return [parameter.detach() for parameter in trainer.parts.policy.trainable_parameters()]


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
        {
            **{"train.spatial_kl": 1.0, "train.beta": 0.0},  # no KL to spread, and so no need of a map
            **{"rewards": {"jpeg_compressibility": 1.0}, "advantage.mode": "scalar", "train.ratio": "image"},
        },
        {
            **{"rewards": {REWARD: 0.8, "jpeg_compressibility": 0.2}, "advantage.combine": "each"},
            **{"advantage.evidence": "group", "advantage.control": "rolled"},
        },
    ],
    ids=[
        "residual-token",
        "group-cps",
        "fade-guidance",
        "importance",
        "window",
        "ratio-norm",
        "spatial-kl",
        "no-kl",
        "mixed",
    ],
)
def test_other_settings_train_too(make_trainer, tmp_path, monkeypatch, changes):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trainer = make_trainer(tmp_path / "run", num_epochs=1, eval_every=0, **changes)
    before = [parameter.detach().clone() for parameter in trainer.parts.policy.trainable_parameters()]
    trainer.train()
    row = rollout_rows(tmp_path / "run")[0]
    assert row["update/initial_ratio_deviation"] == 0 and row["update/grad_norm"] > 0
    assert ("update/kl" in row) == (changes.get("train.beta") != 0)
    assert all(parameter.isfinite().all() for parameter in trainer.parts.policy.trainable_parameters())
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.parts.policy.trainable_parameters(), strict=True))


def test_skipping_images_without_advantage_changes_no_result(make_trainer, tmp_path, monkeypatch):
    """One of the two groups is blind: all of its images earn 0, and have no advantage."""
    settings = {"reward_options": {REWARD: {"blind_to": "cross"}}, "train.beta": 0.0, "updates_per_epoch": 1}
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


def test_dropped_images_take_their_kl_with_them(make_trainer, tmp_path, monkeypatch):
    """At the base the KL's gradient is 0: the first update differs by a factor alone, which Adam undoes, the second does not."""
    settings = {"reward_options": {REWARD: {"blind_to": "cross"}}, "train.beta": 1.0}
    kept, dropped = (
        trained_weights(
            make_trainer, tmp_path / str(drop), monkeypatch, **settings, **{"train.drop_zero_advantages": drop}
        )
        for drop in (False, True)
    )
    assert 0 < rollout_rows(tmp_path / "True")[0]["rollout/zero_advantage_share"] < 1
    assert rollout_rows(tmp_path / "True")[0]["update/initial_ratio_deviation"] == 0
    assert not all(torch.allclose(a, b, atol=2e-5, rtol=1e-3) for a, b in zip(kept, dropped, strict=True))


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
