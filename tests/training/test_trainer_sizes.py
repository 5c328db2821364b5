"""Images of any shape: a run of 64 x 96 pixels with OCR and CLIP maps, evaluated at another size."""

import pytest
import torch
from PIL import Image

from flow_grpo.training.tracking import read_metrics
from tests.training.policies.tiny_pipelines import save_sd3


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """The committed tiny model has no places for 12 tokens in a row; this one is random, and has."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_sd3(folder, pos_embed_max_size=16)
    return folder


def test_a_run_of_64_x_96_pixels_goes_from_prompts_to_a_checkpoint(make_trainer, wide_model, tmp_path):
    trainer = make_trainer(
        tmp_path,
        model=str(wide_model),
        resolution=(64, 96),
        eval_resolution=64,
        num_epochs=1,
        rewards={"ocr_map": 0.5, "clip_gradcam": 0.5},
        reward_options={"clip_gradcam": {"model": "models/tiny-clip"}},
    )
    assert trainer.parts.token_grid == (8, 12)
    drawn, sizes = trainer.parts.policy.decode, []
    trainer.parts.policy.decode = lambda latents: sizes.append(drawn(latents).shape[2:]) or drawn(latents)
    trainer.train()
    # an evaluation at the start and at the end, a rollout of two batches between them
    assert set(sizes) == {(64, 64), (64, 96)} and sizes[0] == sizes[-1] == (64, 64)
    (metrics,) = [row for row in read_metrics(tmp_path) if "rollout/reward_mean" in row]
    assert metrics["update/initial_ratio_deviation"] == 0
    samples = tmp_path / "samples"
    assert Image.open(samples / "rollout-samples" / "000000" / "00.png").size == (96, 64)
    assert Image.open(samples / "eval-samples" / "000001" / "00.png").size == (64, 64)
