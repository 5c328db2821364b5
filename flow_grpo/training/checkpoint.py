"""Checkpoints: one folder each, complete or absent, with all that a run needs to go on as if it had not stopped.

runs/NAME/checkpoint-000020/
    lora/           pytorch_lora_weights.safetensors, for any diffusers pipeline's `load_lora_weights`
    lora_ema/       the same of the averaged weights: the ones to use
    transformer/    with adapter=full in place of lora/, and transformer_ema/: for the transformer's `from_pretrained`
    state.pt        trained weights in fp32, optimizer, EMA, fp16 loss scale, epoch
    rng.pt          every process's random states: python, numpy, torch, CUDA
    config.json     the resolved configuration
"""

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flow_grpo.training.distributed import Distributed
from flow_grpo.training.ema import ExponentialMovingAverage
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.shards import load_optimizer_state, whole_optimizer_state

# What a run may change when it goes on: how long it runs, what it writes and how often, in how much memory, and on how
# many processes.
MAY_CHANGE = (
    "num_gpus",
    "batch_size",
    "resume_from",
    "num_epochs",
    "save_every",
    "keep_checkpoints",
    "eval_every",
    "samples_every",
    "eval_rewards",
    "best_metric",
    "wandb_project",
    "run_dir",
    "prompt_cache",
    "prompt_cache_gib",
    "gradient_checkpointing",
    "compile",
    "offload",
    "eval_resolution",
)


def save_checkpoint(
    run_dir: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage,
    epoch: int,
    config: dict[str, Any],
    distributed: Distributed,
    keep: int,
) -> Path:
    """Write the checkpoint at the start of `epoch` and drop all but the newest `keep`; every process must call it.

    It is written beside its place and renamed into it, and an old one renamed before it is deleted, so that a kill at any
    moment leaves no half checkpoint. What a kill left of either is cleared away.
    """
    path = run_dir / f"checkpoint-{epoch:06d}"
    rng = distributed.gather_objects(_rng_state())
    # Weights may lie in parts on all processes: they are put together here, and the main one writes.
    weights = _on_cpu(policy.adapter_state())
    with ema.applied():
        averaged = _on_cpu(policy.adapter_state())
    state = {
        policy.adapter.name: weights,
        "optimizer": whole_optimizer_state(optimizer),
        "ema": ema.state_dict(),
        "scaler": distributed.scaler_state(),
        "epoch": epoch,
    }
    if distributed.is_main and not path.exists():
        for left in run_dir.glob(".checkpoint-*"):
            shutil.rmtree(left)
        temporary = run_dir / f".{path.name}.tmp"
        temporary.mkdir(parents=True)
        policy.save_adapter(temporary / policy.adapter.name, weights)
        policy.save_adapter(temporary / f"{policy.adapter.name}_ema", averaged)
        torch.save(state, temporary / "state.pt")
        torch.save(rng, temporary / "rng.pt")
        (temporary / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        _sync(temporary)
        os.replace(temporary, path)
        for old in list_checkpoints(run_dir)[:-keep]:
            hidden = run_dir / f".{old.name}.old"
            os.replace(old, hidden)
            shutil.rmtree(hidden)
    distributed.wait_for_everyone()
    return path


def load_checkpoint(
    path: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage,
    distributed: Distributed,
) -> int:
    """Put everything back and return the epoch to go on with.

    With another number of processes than the checkpoint's the random states stay as they are; the samples do not depend
    on them.
    """
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    policy.load_adapter_state(state[policy.adapter.name])
    load_optimizer_state(optimizer, state["optimizer"])
    ema.load_state_dict(state["ema"])
    distributed.load_scaler_state(state["scaler"])
    rng = torch.load(path / "rng.pt", weights_only=True)
    if len(rng) == distributed.num_processes:
        _set_rng_state(rng[distributed.rank])
    return state["epoch"]


def find_checkpoint(run_dir: Path, resume_from: str) -> Path:
    """The checkpoint that `resume_from` names: "latest" of the run's folder, or a path.

    Raises ValueError where there is none.
    """
    if resume_from == "latest":
        checkpoints = list_checkpoints(run_dir)
        if not checkpoints:
            raise ValueError(f"resume_from=latest, but {run_dir} holds no checkpoint; leave resume_from empty to start")
        return checkpoints[-1]
    path = Path(resume_from)
    if not (path / "state.pt").is_file():
        raise ValueError(f"resume_from={resume_from} is no checkpoint; give its folder, or latest")
    return path


def changed_fields(path: Path, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that a run goes on with otherwise than the checkpoint: (in the checkpoint, now) by name.

    Raises ValueError where that is more than MAY_CHANGE, naming those fields.
    """
    saved = _flatten(json.loads((path / "config.json").read_text(encoding="utf-8")))
    current = _flatten(json.loads(json.dumps(config)))
    names = sorted(saved.keys() | current.keys())
    changed = {name: (saved.get(name), current.get(name)) for name in names if saved.get(name) != current.get(name)}
    lines = [
        f"  {n}: {was!r} in the checkpoint, {now!r} now" for n, (was, now) in changed.items() if n not in MAY_CHANGE
    ]
    if lines:
        raise ValueError(
            f"{path} was written by another configuration; set these back, or start a new run_dir:\n" + "\n".join(lines)
        )
    return changed


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    return sorted(p for p in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{6,}", p.name))


def _rng_state() -> dict[str, Any]:
    version, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (version, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    version, keys, *rest = state["numpy"]
    np.random.set_state((version, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _on_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies, on the CPU too: the weights are about to change."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}


def _sync(folder: Path) -> None:
    """Flush a folder's files to the disk before it is renamed, so that the name never outlives the content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
