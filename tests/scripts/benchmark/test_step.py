import json
from pathlib import Path

import torch

from scripts.benchmark.step import TOKEN_SIZE, map_cost, pooling_seconds


def test_the_cost_of_maps_is_pooling_and_credit_but_not_the_noise_between_two_updates():
    scalar = {"sample": 3.0, "score": 7.0, "advantage": 0.25, "update": 4.0}
    weight = {"sample": 3.5, "score": 9.0, "advantage": 0.375, "update": 5.0}
    cost = map_cost(scalar, weight, pooling=0.125)
    # 0.125 + 0.375 - 0.25, of 4, and of 3 + 0.25 + 4
    assert cost == {"map_seconds": 0.25, "map_share_of_update": 0.0625, "map_share_without_ocr": 0.25 / 7.25}


def test_pooling_is_timed_for_the_tokens_of_the_tiny_model():
    vae, transformer = (
        json.loads(Path(f"models/tiny-sd3/{part}/config.json").read_text()) for part in ("vae", "transformer")
    )
    num_halvings = len(vae["block_out_channels"]) - 1
    assert 2**num_halvings * transformer["patch_size"] == TOKEN_SIZE


def test_every_map_of_an_epoch_is_pooled_batch_by_batch(monkeypatch):
    pooled = []
    monkeypatch.setattr(
        "scripts.benchmark.step.pool_to_tokens", lambda maps, grid: pooled.append((maps.shape, grid)) or maps
    )
    assert pooling_seconds(6, 4, 16, repeats=1) > 0
    assert pooled == [(torch.Size([4, 16, 16]), (2, 2)), (torch.Size([2, 16, 16]), (2, 2))]
