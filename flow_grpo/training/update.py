"""An epoch's optimizer steps: every kept step of every trajectory, replayed, weighed by its credit, in full batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from flow_grpo.training.distributed import Distributed
from flow_grpo.training.ema import ExponentialMovingAverage
from flow_grpo.training.objective import grpo_loss, ratio_norm
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.records import Credit
from flow_grpo.training.rollout import SDE, Trajectories, kl_to_base, pack, replay
from flow_grpo.training.shards import own_parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateRule:
    """The loss and how far a step may go; the fields of `config.train`, where they are explained."""

    ratio: str
    clip_range: float
    ratio_norm: bool
    beta: float
    exact_kl: bool
    skip_zero_advantages: bool
    drop_zero_advantages: bool


class Updater:
    """Takes optimizer steps on a policy; `run` is one epoch's worth."""

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage,
        distributed: Distributed,
        rule: UpdateRule,
    ):
        self.policy, self.optimizer, self.ema = policy, optimizer, ema
        self.distributed, self.rule = distributed, rule
        self.parameters = policy.trainable_parameters()

    def run(
        self, trajectories: Sequence[Trajectories], credit: Credit, sde: SDE, num_updates: int, title: str
    ) -> dict[str, float]:
        """num_updates optimizer steps over the trajectories, in order; returns what they measured, over all processes.

        credit: of the trajectories' samples, one after the other.
        """
        per_update = len(trajectories) // num_updates
        num_samples = per_update * len(trajectories[0].latents)
        history = []
        self.num_skipped, self._title = 0, title
        bar = tqdm(desc=title, leave=False, disable=not self.distributed.is_main, total=len(trajectories))
        for update in range(num_updates):
            drawn = trajectories[update * per_update : (update + 1) * per_update]
            own = credit[update * num_samples : (update + 1) * num_samples]
            batches, num_counted = self._batches(own, num_samples, len(drawn[0].latents))
            num_steps = credit.advantages.shape[0]
            self.distributed.begin_accumulation(len(batches) * num_steps)
            share = len(batches) * len(batches[0]) / num_counted
            for rows in batches:
                batch = pack(drawn, rows)
                earned = own[torch.tensor(rows, device=own.advantages.device)]
                for step in range(num_steps):
                    history.append(self._backward(batch, earned, step, sde, share))
                    if len(history) == 1:
                        self._check_first_ratio(history[0]["ratio_deviation_max"])
                bar.update(len(drawn) / len(batches))
        bar.close()
        self._check_weights(batch, sde)
        return self._reduce(history) | {"update/skipped_steps": float(self.num_skipped)}

    def _batches(self, credit: Credit, num_samples: int, batch_size: int) -> tuple[list[list[int]], float]:
        """The rows of an update, cut into full batches, and the number of samples that its means count."""
        if not (self.rule.skip_zero_advantages or self.rule.drop_zero_advantages):
            rows = list(range(num_samples))
            return [rows[start : start + batch_size] for start in range(0, num_samples, batch_size)], num_samples
        has_any = has_advantage(credit).tolist()
        counts = self.distributed.gather_objects(sum(has_any))
        return earning_batches(has_any, counts, batch_size, self.rule.drop_zero_advantages)

    def _backward(
        self, trajectories: Trajectories, credit: Credit, step: int, sde: SDE, share: float
    ) -> dict[str, torch.Tensor]:
        """One backward pass; where the accumulation is full, also the optimizer's step.

        share: (samples in the update's batches) / (samples that its means count). The accumulation divides by the first
            number; the product divides by the second.
        """
        rule, accelerator = self.rule, self.distributed.accelerator
        with accelerator.accumulate(self.policy.forward_module):
            density = replay(self.policy, trajectories, step, sde)
            log_prob, old_log_prob = density.log_prob, trajectories.log_probs[:, step]
            if rule.ratio_norm:
                log_prob = ratio_norm(log_prob, old_log_prob, density.mean, trajectories.means[:, step], density.std)
            loss, metrics = grpo_loss(log_prob, old_log_prob, credit.advantages[step], rule.clip_range, rule.ratio)
            if rule.ratio_norm:
                loss = loss / (trajectories.sigmas[step] - trajectories.sigmas[step + 1])
            if rule.beta > 0:
                kl = kl_to_base(self.policy, trajectories, step, sde, density, rule.exact_kl)  # (B, N)
                metrics |= _kl_metrics(kl.detach(), credit.region)
                loss = loss + rule.beta * kl_loss(kl, credit, rule.drop_zero_advantages)
            accelerator.backward(loss * share)
            if accelerator.sync_gradients:
                grad_norm = self.distributed.clip_gradients(self.parameters)
                is_finite = bool(grad_norm.isfinite())
                metrics |= self._gradient_health(grad_norm) if is_finite else {"grad_norm": grad_norm}
                self._step(is_finite)
            self.optimizer.zero_grad()
        return metrics

    def _step(self, is_finite: bool) -> None:
        """The optimizer's step and the average's, unless a gradient is not finite: it would make every weight NaN."""
        scaler = self.distributed.scaler
        if is_finite or scaler:  # fp16's scaler passes over its overflows itself, and goes on with a smaller scale
            self.optimizer.step()
        if is_finite and not self.distributed.accelerator.optimizer_step_was_skipped:
            self.ema.step()
            return
        self.num_skipped += 1
        if self.distributed.is_main and not scaler:
            logger.warning("%s: a gradient is not finite; its step is left out", self._title)

    def _check_weights(self, trajectories: Trajectories, sde: SDE) -> None:
        """After an epoch's last step the policy must still give numbers: the newest checkpoint may be written of it."""
        with torch.no_grad():
            mean = replay(self.policy, trajectories, 0, sde).mean
        finite = bool(mean.isfinite().all()) and all(bool(p.isfinite().all()) for p in own_parts(self.parameters))
        if self.distributed.any(not finite):
            raise RuntimeError(
                f"{self._title} has left weights that give no finite numbers, and is not saved; go on from the "
                "checkpoint before it with a smaller --config.train.learning_rate (and --config.allow_changes=train), or "
                "with mixed_precision=no"
            )

    def _gradient_health(self, grad_norm: torch.Tensor) -> dict[str, torch.Tensor]:
        """What says whether AdamW's epsilon or fp16's loss scale hold a step back; grad_norm: before clipping.

        grad_under_epsilon_share is of the gradient after clipping, which AdamW sees: where it lies under epsilon, a step is
        shorter than the learning rate.
        """
        num_elements = sum(parameter.numel() for parameter in self.parameters)
        health = {"grad_norm": grad_norm, "grad_rms": grad_norm / num_elements**0.5}
        gradients = own_parts([each.grad for each in self.parameters if each.grad is not None])
        if gradients:
            epsilon = self.optimizer.param_groups[0]["eps"]
            num_under = sum((gradient.abs() < epsilon).sum() for gradient in gradients)
            health["grad_under_epsilon_share"] = num_under / max(1, sum(gradient.numel() for gradient in gradients))
        if scaler := self.distributed.scaler:
            health["loss_scale"] = torch.tensor(scaler.get_scale(), device=grad_norm.device)
        return health

    def _check_first_ratio(self, deviation: torch.Tensor) -> None:
        """Before the first step the policy is the one that sampled; any ratio but 1 is a difference of the two passes.

        The two run the same kernels on the same numbers, with bf16 and torch.compile, too, so that no rounding is excused:
        at the scale of clip_range such noise is as large as what is learned.
        """
        if self.distributed.any(bool(deviation != 0)):  # as NaN is
            raise RuntimeError(
                f"before any update the ratio is {float(deviation):.1e} away from 1 in this process; it must be exactly 1. "
                "Rollout and update do not compute the same policy: a layer may draw at random (dropout), or a kernel may "
                "not repeat its result. Try --config.compile=False, then --config.mixed_precision=no, and an attention "
                "kernel that is deterministic; report which of them helped"
            )

    def _reduce(self, history: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """The update's metrics over its passes and all processes: the maximum of names that end in _max, the mean of others."""
        metrics = {}
        for name in dict.fromkeys(name for row in history for name in row):
            values = torch.stack([row[name].detach() for row in history if name in row])
            every = self.distributed.gather(values)
            finite = every[every.isfinite()]  # a step that was left out would hide the others
            every = finite if len(finite) else every
            metrics[f"update/{name}"] = float(every.max() if name.endswith("_max") else every.mean())
        first = self.distributed.gather(history[0]["ratio_deviation_max"].reshape(1))
        metrics["update/initial_ratio_deviation"] = float(first.max())
        return metrics


def has_advantage(credit: Credit) -> torch.Tensor:
    """(B,) bool: the images with an advantage other than 0, at any step and token."""
    return (credit.advantages != 0).any(dim=2).any(dim=0)


def earning_batches(
    has_any: Sequence[bool], counts: Sequence[int], batch_size: int, drop: bool
) -> tuple[list[list[int]], float]:
    """The fewest full batches that hold all images with an advantage, and the number of images that the means count.

    has_any: for each image of this process, whether it has an advantage.
    counts: for each process, the number of its images with an advantage. All processes get the same number of batches.
    drop: the means count the images with an advantage alone; otherwise they count all images.
    Batches are filled up with images without advantage. A smaller batch would take other kernels, and the ratio would not
    start at exactly 1.
    Example with drop: two processes have 3 and 1 images with an advantage. The means count 2 in each process, so every
    image weighs a quarter, in whichever process it is.
    """
    rows = sorted(range(len(has_any)), key=lambda row: not has_any[row])
    num_batches = max(1, -(-max(counts) // batch_size))
    rows = rows[: num_batches * batch_size]
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return batches, (sum(counts) / len(counts) or 1) if drop else len(has_any)


def kl_loss(kl: torch.Tensor, credit: Credit, drop: bool) -> torch.Tensor:
    """The mean of the KL (B, N), weighted by the credit's kl_weights. drop: images without advantage count as 0."""
    if credit.kl_weights is not None:
        kl = credit.kl_weights * kl
    if drop:
        kl = has_advantage(credit)[:, None] * kl
    return kl.mean()


def _kl_metrics(kl: torch.Tensor, region: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The mean KL. If maps say which region of the image was rewarded, also its means inside and outside the region."""
    metrics = {"kl": kl.mean()}
    if region is not None:
        metrics["kl_inside"] = (kl * region).sum() / region.sum().clamp_min(1e-6)
        metrics["kl_outside"] = (kl * (1 - region)).sum() / (1 - region).sum().clamp_min(1e-6)
    return metrics
