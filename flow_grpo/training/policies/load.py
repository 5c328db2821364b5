"""Loads the policy that a configuration names."""

import importlib
import inspect
import re
from pathlib import Path

from huggingface_hub import constants

from flow_grpo.training.policies.base import Policy, PolicySettings
from flow_grpo.training.policies.families import FAMILIES
from flow_grpo.training.precision import WEIGHT_DTYPES
from flow_grpo.training.quiet import silence_known_noise


def load_policy(family: str, model: str, mixed_precision: str, lora: str | None = None, **options) -> Policy:
    """Load the pipeline `model` (hub id or folder) as a policy of a family; options are those of `PolicySettings`.

    lora: a folder that `save_adapter` wrote. It is merged into the weights; the policy's own adapter starts on top of it.

    Raises ValueError for an unknown family, a model of another family, where there is no such folder, and where the model
    cannot be had.
    """
    if lora is not None and not Path(lora).is_dir():
        raise ValueError(f"lora={lora} is no folder; give a checkpoint's lora or lora_ema")
    if not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(f"model={model} is neither a folder here nor a hub id (OWNER/NAME)")
    silence_known_noise()  # before the family's libraries are imported: they speak as they load
    policy_class = find_policy(family)
    try:
        _check_family(family, model, policy_class.pipeline_class)
        pipeline = policy_class.pipeline_class.from_pretrained(model, dtype=WEIGHT_DTYPES[mixed_precision])
    except OSError as error:
        raise ValueError(f"model={model} {_why_missing(model)}: {error}") from error
    if lora is not None:
        pipeline.load_lora_weights(lora)
        pipeline.fuse_lora(components=["transformer"])
        pipeline.unload_lora_weights()
    return policy_class(pipeline, PolicySettings(**options))


def _why_missing(model: str) -> str:
    if Path(model).is_dir():
        return "holds no whole pipeline"
    asked = " (HF_HUB_OFFLINE is set, so only its cache was asked)" if constants.HF_HUB_OFFLINE else ""
    return f"is no folder here, and the hub did not give it{asked}"


def _check_family(family: str, model: str, pipeline_class: type) -> None:
    """Raise ValueError where the model's transformer is not the one that the family's pipeline takes."""
    _, found = pipeline_class.load_config(model).get("transformer", ("", "no transformer"))
    annotation = inspect.signature(pipeline_class).parameters["transformer"].annotation
    wanted = getattr(annotation, "__name__", found)  # a pipeline that names no class takes any
    if found != wanted:
        raise ValueError(
            f"model={model} has a {found}, and policy={family} draws with a {wanted}; set --config.policy to its family"
        )


def find_policy(family: str) -> type[Policy]:
    """A family's policy class. Raises ValueError for an unknown family."""
    if family not in FAMILIES:
        raise ValueError(f"unknown policy {family!r}; known: {', '.join(FAMILIES)}")
    module, _, name = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), name)
