"""From a configuration's names to a policy."""

import torch

from flow_grpo.training.policies.base import Policy

WEIGHT_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_policy(family: str, model: str, mixed_precision: str, **options) -> Policy:
    """Load the pipeline `model` (hub id or folder) as a policy of a family; options go to the policy.

    Raises ValueError for an unknown family.
    """
    if family != "sd3":
        raise ValueError(f"unknown policy {family!r}; known: sd3")
    from diffusers import StableDiffusion3Pipeline

    from flow_grpo.training.policies.sd3 import SD3Policy

    pipeline = StableDiffusion3Pipeline.from_pretrained(model, torch_dtype=WEIGHT_DTYPES[mixed_precision])
    return SD3Policy(pipeline, **options)
