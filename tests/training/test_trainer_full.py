"""A run that trains all weights: with the KL, resumed to the bit, and left as a pipeline for diffusers."""

import torch
from diffusers import StableDiffusion3Pipeline

FULL = {"train.adapter": "full", "train.learning_rate": 1e-5, "num_epochs": 2, "eval_every": 0}


def test_a_full_run_resumes_to_the_bit_and_leaves_a_pipeline(make_trainer, tmp_path):
    whole = make_trainer(tmp_path / "whole", **FULL)
    before = {name: tensor.clone() for name, tensor in whole.parts.policy.adapter_state().items()}
    whole.train()
    make_trainer(tmp_path / "parted", **FULL | {"num_epochs": 1}).train()
    parted = make_trainer(tmp_path / "parted", **FULL, resume_from="latest")
    parted.train()

    after, resumed = whole.parts.policy.adapter_state(), parted.parts.policy.adapter_state()
    assert all(torch.equal(after[name], resumed[name]) for name in after)
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(changed) > 0.8 * len(after)
    with whole.parts.policy.disable_adapter():
        base = whole.parts.policy.adapter_state()
        assert all(torch.equal(base[name], before[name]) for name in before)

    checkpoint = tmp_path / "whole" / "checkpoint-000002"
    assert {"transformer", "transformer_ema"} <= {path.name for path in checkpoint.iterdir()}
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "whole" / "pipeline")
    with whole.parts.ema.applied():
        averaged = whole.parts.policy.adapter_state()
        assert all(torch.equal(tensor, averaged[name]) for name, tensor in pipeline.transformer.state_dict().items())
