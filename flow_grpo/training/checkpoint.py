"""Writes and reads checkpoints. Each is a folder with all that a run needs to go on as if it had never stopped.

runs/NAME/checkpoint-000020/
    lora/           pytorch_lora_weights.safetensors, for any diffusers pipeline's `load_lora_weights`
    lora_ema/       the same of the averaged weights: the ones to use
    transformer/    with adapter=full in place of lora/, and transformer_ema/: for the transformer's `from_pretrained`
    state.pt        trained weights in fp32, optimizer, EMA, fp16 loss scale, epoch
    rng.pt          every process's random states: python, numpy, torch, CUDA
    config.json     the resolved configuration
    manifest.json   epoch, what the run trains on, what was changed on the way, the SHA-256 of every other file
"""

import hashlib
import json
import os
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flow_grpo.training.distributed import Distributed
from flow_grpo.training.ema import ExponentialMovingAverage
from flow_grpo.training.named_state import (
    average_by_name,
    average_by_position,
    optimizer_by_name,
    optimizer_by_position,
)
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.shards import load_optimizer_state, whole_copy

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Origin:
    """Where a run's weights come from: what its configuration does not tell.

    identities: {"model" or "dataset": a hash of its content}.
    changes: the changes that resumed runs were allowed to make, in order.
    """

    identities: dict[str, str] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """A copy of a run at the start of an epoch, as whole tensors on the CPU. Checkpoints are written from it.

    weights: the adapter's weights. averaged: their averages. state: what `load_checkpoint` reads; it shares the tensors of
        both.
    rng: the random states of every process.
    """

    epoch: int
    weights: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor]
    state: dict[str, Any]
    rng: list[dict[str, Any]]


def take_snapshot(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage,
    epoch: int,
    distributed: Distributed,
) -> Snapshot | None:
    """Copy everything that training changes. Every process must call it; only the main process keeps the copy.

    Another process may hold a part of each tensor, so it takes part where they are joined. It gets None: a copy for each
    process of a machine may need more memory than the machine has.
    """
    rng, names = distributed.gather_objects(_rng_state()), policy.trained_names()
    trained = {
        policy.adapter.name: policy.adapter_state(),
        "optimizer": optimizer_by_name(optimizer.state_dict(), names),
        "ema": average_by_name(ema.state_dict(), names),
    }
    copies = whole_copy(trained, keep=distributed.is_main)
    if copies is None:
        return None
    weights = copies[policy.adapter.name]
    averaged = weights | copies["ema"]["average"]  # a frozen weight is its own average
    state = copies | {"scaler": distributed.scaler_state(), "epoch": epoch}
    return Snapshot(epoch, weights, averaged, state, rng)


def save_checkpoint(
    run_dir: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage,
    epoch: int,
    config: dict[str, Any],
    distributed: Distributed,
    keep: int,
    origin: Origin = Origin(),
) -> Path:
    """Write the checkpoint at the start of `epoch`, and delete all but the newest `keep`. Every process must call it."""
    snapshot = take_snapshot(policy, optimizer, ema, epoch, distributed)
    if snapshot is not None:
        write_checkpoint(run_dir, snapshot, policy, config, keep, origin)
    distributed.wait_for_everyone()
    return run_dir / checkpoint_name(epoch)


def write_checkpoint(
    run_dir: Path, snapshot: Snapshot, policy: Policy, config: dict[str, Any], keep: int, origin: Origin
) -> None:
    """Write a snapshot, unless it has been written, and delete all but the newest `keep`. Only the main process calls it.

    A checkpoint is written under a temporary name and then renamed; an old one is renamed before it is deleted. So a kill
    at any moment leaves no half checkpoint. The next call clears away what a kill left.
    Raises RuntimeError where a weight is not finite: the newest checkpoint must be one that a run can go on from.
    """
    path = run_dir / checkpoint_name(snapshot.epoch)
    if path.exists():
        return
    _check_finite(snapshot)
    for left in run_dir.glob(".checkpoint-[0-9]*"):
        shutil.rmtree(left)
    temporary = run_dir / f".{path.name}.tmp"
    temporary.mkdir(parents=True)
    policy.save_adapter(temporary / policy.adapter.name, snapshot.weights)
    policy.save_adapter(temporary / f"{policy.adapter.name}_ema", snapshot.averaged)
    torch.save(snapshot.state, temporary / "state.pt")
    torch.save(snapshot.rng, temporary / "rng.pt")
    (temporary / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    manifest = {"epoch": snapshot.epoch, "identities": origin.identities, "changes": origin.changes}
    manifest["files"] = {name: _sha256(temporary / name) for name in _file_names(temporary)}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)
    _sync_entry(run_dir)
    for old in list_checkpoints(run_dir)[:-keep]:
        hidden = run_dir / f".{old.name}.old"
        os.replace(old, hidden)
        shutil.rmtree(hidden)


def load_checkpoint(
    path: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage,
    distributed: Distributed,
) -> int:
    """Put everything back, and return the epoch to go on with.

    If the number of processes has changed, the random states are not restored; the samples do not depend on them.
    Raises ValueError where the checkpoint is damaged (the error names the file), or belongs to other weights (it names
    them).
    """
    if damage := damage_of(path):
        raise ValueError(
            f"{path} is damaged: {damage}; go on from an older checkpoint by --config.resume_from=ITS_FOLDER"
        )
    # Mapped into memory, not read: the processes of a machine then share one copy of the file, which may be large.
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    names = policy.trained_names()
    if policy.adapter.name not in state:
        found = next(name for name in ("lora", "transformer") if name in state)
        raise ValueError(f"{path} holds {found}, and this run trains {policy.adapter.name}; set train.adapter back")
    policy.load_adapter_state(state[policy.adapter.name])
    load_optimizer_state(optimizer, optimizer_by_position(state["optimizer"], names))
    ema.load_state_dict(average_by_position(state["ema"], names))
    distributed.load_scaler_state(state["scaler"])
    rng = torch.load(path / "rng.pt", weights_only=True)
    if len(rng) == distributed.num_processes:
        _set_rng_state(rng[distributed.rank])
    return state["epoch"]


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words. None where every file is as it was written.

    A checkpoint of an earlier version has no manifest; then this only checks that its files exist.
    """
    if not (path / MANIFEST).is_file():
        missing = [name for name in ("state.pt", "rng.pt", "config.json") if not (path / name).is_file()]
        return f"{missing[0]} is missing" if missing else None
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    for name, digest in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} is not what was written (its SHA-256 is another)"
    return None


def read_origin(path: Path) -> Origin:
    """The origin that a checkpoint's manifest records; an empty one where there is no manifest."""
    if not (path / MANIFEST).is_file():
        return Origin()
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return Origin(manifest["identities"], manifest["changes"])


def checkpoint_name(epoch: int) -> str:
    return f"checkpoint-{epoch:06d}"


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


def _check_finite(snapshot: Snapshot) -> None:
    for kind, weights in (("weights", snapshot.weights), ("averaged weights", snapshot.averaged)):
        broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if broken:
            raise RuntimeError(
                f"{len(broken)} of {len(weights)} tensors of the {kind} are not finite before epoch {snapshot.epoch}, "
                f"{broken[0]} for instance; no checkpoint of them is written: go on from the one before with a smaller "
                "--config.train.learning_rate"
            )


def _file_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """Flush a folder to the disk before it is renamed, so that its final name never stands for missing content."""
    for path in folder.rglob("*"):
        _sync_entry(path)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
