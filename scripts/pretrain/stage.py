"""One stage of a pretraining: it fits parameters to a loss by a schedule, with checkpoints and a progress bar."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm


@dataclass
class Stage:
    """One thing to train: `loss(step generator) -> scalar` over the parameters of `modules`, for num_steps steps.

    decay: the share of the steps, the last ones, over which the learning rate goes to zero.
    """

    name: str
    modules: nn.ModuleDict
    loss: Callable[[torch.Generator], torch.Tensor]
    num_steps: int
    learning_rate: float
    decay: float = 0.2


def fit(stage: Stage, work_dir: Path, seed: int, save_every: int = 250) -> None:
    """AdamW, with the rate warmed up over 100 steps and brought to zero over the stage's decay.

    A step draws all its randomness from (seed, step), so a run that was interrupted goes on as if it had not been.
    """
    optimizer = torch.optim.AdamW(stage.modules.parameters(), stage.learning_rate, betas=(0.9, 0.98), fused=True)
    path, first = work_dir / f"{stage.name}.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        stage.modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    stage.modules.train().requires_grad_(True)
    mean_loss = None
    bar = tqdm(range(first, stage.num_steps), initial=first, total=stage.num_steps, desc=stage.name)
    for step in bar:
        rate = min(1.0, (step + 1) / 100)
        if stage.decay:
            rate = min(rate, (stage.num_steps - step) / (stage.decay * stage.num_steps))
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * rate
        loss = stage.loss(torch.Generator().manual_seed(seed * 1_000_003 + step))
        loss.backward()
        nn.utils.clip_grad_norm_(stage.modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean_loss = loss.item() if mean_loss is None else 0.98 * mean_loss + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean_loss:.4f}")
        if (step + 1) % save_every == 0 or step + 1 == stage.num_steps:
            state = {"modules": stage.modules.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    stage.modules.eval().requires_grad_(False)
