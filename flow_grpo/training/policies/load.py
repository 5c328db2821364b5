"""From a configuration's names to a policy."""

from pathlib import Path

import torch

from flow_grpo.training.policies.base import Policy

WEIGHT_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_policy(family: str, model: str, mixed_precision: str, lora: str | None = None, **options) -> Policy:
    """Load the pipeline `model` (hub id or folder) as a policy of a family; options go to the policy.

    lora: a folder that `save_lora` wrote, merged into the weights; the policy's own adapter starts on top of it.

    Raises ValueError for an unknown family, and where there is no such folder.
    """
    if lora is not None and not Path(lora).is_dir():
        raise ValueError(f"lora={lora} is no folder; give a checkpoint's lora or lora_ema")
    pipeline_class, policy_class = _classes(family)
    pipeline = pipeline_class.from_pretrained(model, torch_dtype=WEIGHT_DTYPES[mixed_precision])
    if lora is not None:
        pipeline.load_lora_weights(lora)
        pipeline.fuse_lora(components=["transformer"])
        pipeline.unload_lora_weights()
    return policy_class(pipeline, **options)


def _classes(family: str) -> tuple[type, type]:
    """A family's pipeline and policy, imported where asked for: diffusers takes seconds."""
    if family == "sd3":
        from diffusers import StableDiffusion3Pipeline

        from flow_grpo.training.policies.sd3 import SD3Policy

        return StableDiffusion3Pipeline, SD3Policy
    if family == "flux":
        from diffusers import FluxPipeline

        from flow_grpo.training.policies.flux import FluxPolicy

        return FluxPipeline, FluxPolicy
    raise ValueError(f"unknown policy {family!r}; known: sd3, flux")
