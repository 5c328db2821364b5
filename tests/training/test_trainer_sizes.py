"""Images of any shape: a run of 64 x 96 pixels with OCR and CLIP maps, evaluated at another size."""

import json
import re

import pytest
import torch
from PIL import Image
from tiny_run import REWARD, rollout_rows, state_of
from transformers import AutoTokenizer

from flow_grpo.training.tracking import read_metrics


def test_a_run_of_64_x_96_pixels_goes_from_prompts_to_a_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(
        tmp_path,
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


def test_prompts_of_two_sizes_train_each_epoch_at_one_and_resume_to_the_bit(make_trainer, tmp_path):
    """Two maps on tokens, rolled in their own grid; an evaluation of both sizes; a new process in the middle."""
    dataset = tmp_path / "prompts"
    dataset.mkdir()
    for split in ("train", "test"):
        lines = [
            {"prompt": f'a red circle and a blue sign "{word}"', "metadata": {"resolution": size} if size else {}}
            for word in ("HUT", "SOB")
            for size in (None, [16, 48])
        ]
        (dataset / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fields = dict(dataset=str(dataset), resolution=32, rewards={REWARD: 0.5, "ocr_map": 0.5}, seed=0)
    fields |= {"eval_every": 3, "samples_every": 1, "advantage.control": "rolled", "num_eval_prompts": 0}
    whole = make_trainer(tmp_path / "whole", **fields)
    drawn = [whole.parts.sampler.size(epoch) for epoch in range(3)]
    assert drawn == [(16, 48), (32, 32), (16, 48)]
    whole.train()
    rows = rollout_rows(tmp_path / "whole")
    assert [(row["rollout/height"], row["rollout/width"]) for row in rows] == drawn
    assert all(row["update/initial_ratio_deviation"] == 0 < row["update/kl"] for row in rows)
    samples = tmp_path / "whole" / "samples"
    for epoch, (height, width) in enumerate(drawn):
        assert Image.open(samples / "rollout-samples" / f"{epoch:06d}" / "00.png").size == (width, height)
    evaluated = [Image.open(samples / "eval-samples" / "000003" / f"{i:02d}.png").size for i in range(4)]
    assert evaluated == [(32, 32)] * 2 + [(48, 16)] * 2

    make_trainer(tmp_path / "parted", **fields | {"num_epochs": 1}).train()
    make_trainer(tmp_path / "parted", **fields, resume_from="latest").train()
    ours, theirs = (state_of(tmp_path / name / "checkpoint-000003") for name in ("whole", "parted"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if torch.is_tensor(ours[name]))
    assert rollout_rows(tmp_path / "parted")[-1]["rollout/reward_mean"] == rows[-1]["rollout/reward_mean"]


def test_a_size_that_the_model_has_no_places_for_is_refused_by_file_and_line(make_trainer, tmp_path):
    for split in ("train", "test"):
        lines = [{"prompt": 'a sign "HUT"', "metadata": {"resolution": [64, 136]}}]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"train.jsonl:1: resolution=\(64, 136\) has 17 tokens along a side"):
        make_trainer(tmp_path / "run", dataset=str(tmp_path))


def test_prompts_larger_than_a_preset_is_computed_for_are_refused_by_file_and_line(make_trainer, tmp_path):
    for split, size in (("train", 512), ("test", [512, 544])):
        lines = [{"prompt": 'a sign "HUT"', "metadata": {"resolution": size}}]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = dict(dataset=str(tmp_path), model="stabilityai/stable-diffusion-3.5-medium", preset="24gb")
    with pytest.raises(ValueError, match=r"test.jsonl:1: preset=24gb is .* and resolution=\(512, 544\) has more"):
        make_trainer(tmp_path / "run", **asked)


def test_prompts_longer_than_the_model_reads_are_counted_at_the_start(make_trainer, tmp_path, caplog):
    (tmp_path / "train.txt").write_text('a sign "HUT"\n' + 'a blue sign "HUT"\n' * 2)
    (tmp_path / "test.txt").write_text('a large blue sign "HUT"\n')
    tokens = len(AutoTokenizer.from_pretrained("models/tiny-sd3/tokenizer_3")('a large blue sign "HUT"').input_ids)
    make_trainer(tmp_path / "short", dataset=str(tmp_path), max_sequence_length=tokens)
    assert "max_sequence_length" not in caplog.text
    make_trainer(tmp_path / "long", dataset=str(tmp_path), max_sequence_length=tokens - 1)
    said = rf"more than max_sequence_length={tokens - 1} tokens: 1; .* the longest has {tokens} \(.*test.txt:1\)"
    assert re.search(said, caplog.text)
