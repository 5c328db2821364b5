"""The best weights so far, by one metric of the evaluations: `checkpoint-best`, beside the newest checkpoints.

RUN/checkpoint-best/
    lora_ema/     the averaged LoRA, as a checkpoint has it
    best.json     {"epoch", "metric", "value"}
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flow_grpo.training.distributed import Distributed
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.shards import whole_copy

FOLDER = "checkpoint-best"


def save_best(
    run_dir: Path, policy: Policy, metrics: Mapping[str, float], metric: str, epoch: int, distributed: Distributed
) -> bool:
    """Write the policy's present LoRA where the metric is the highest so far; every process must call it.

    The averaged weights must be in the policy. Raises ValueError where the evaluations do not measure the metric.
    """
    if metric not in metrics:
        known = ", ".join(sorted(name for name in metrics if name.startswith("eval/")))
        raise ValueError(f"best_metric={metric!r} is not measured; choose one of {known}, or leave it empty")
    best = read_best(run_dir)
    # A best of this epoch or a later one is of a run that ended in this folder, or of epochs that are repeated.
    is_old = best is None or best["metric"] != metric or best["epoch"] >= epoch
    is_better = is_old or metrics[metric] > best["value"]
    is_better = is_better and not math.isnan(metrics[metric])  # no image could be scored; nothing would ever beat it
    if not distributed.any(distributed.is_main and is_better):
        return False
    weights = whole_copy(policy.adapter_state(), keep=distributed.is_main)
    if distributed.is_main:
        _write(run_dir, policy, weights, {"epoch": epoch, "metric": metric, "value": metrics[metric]})
    return True


def _write(run_dir: Path, policy: Policy, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Written beside its place and renamed into it, so that a kill leaves the old one, the new one or none."""
    temporary, old = run_dir / f".{FOLDER}.tmp", run_dir / f".{FOLDER}.old"
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    policy.save_adapter(temporary / f"{policy.adapter.name}_ema", weights)
    (temporary / "best.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if (run_dir / FOLDER).exists():
        os.replace(run_dir / FOLDER, old)
    os.replace(temporary, run_dir / FOLDER)
    shutil.rmtree(old, ignore_errors=True)


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """What best.json says; None where there is none."""
    path = run_dir / FOLDER / "best.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
