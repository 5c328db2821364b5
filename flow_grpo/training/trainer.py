"""The GRPO loop: prompts -> trajectories -> scores -> token advantages -> update, tracked and checkpointed."""

import time
from pathlib import Path

import ml_collections
import torch
from tqdm.auto import tqdm

from flow_grpo.rewards import multi_score
from flow_grpo.training import checkpoint
from flow_grpo.training.advantages import (
    faded_alpha,
    group_advantages,
    token_advantages,
    token_weights,
    weight_metrics,
)
from flow_grpo.training.data import GroupSampler, load_prompts
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.ema import ExponentialMovingAverage
from flow_grpo.training.evaluation import evaluate
from flow_grpo.training.interrupt import StopRequest
from flow_grpo.training.objective import grpo_loss
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.rollout import SDE, Trajectories, kl_to_base, replay, rollout
from flow_grpo.training.scoring import Scored, concatenate, gather, submit_samples
from flow_grpo.training.tracking import NullTracker, RunTracker


class Trainer:
    """One run, from its resolved configuration (`config.validation.resolve`)."""

    def __init__(self, config: ml_collections.ConfigDict, geometry, distributed: Distributed):
        self.config, self.geometry, self.distributed = config, geometry, distributed
        self.run_dir = Path(config.run_dir)
        self.sde = SDE(config.sample.num_steps, config.sample.noise_level, config.sample.sde)
        self.sampler = GroupSampler(
            load_prompts(config.dataset, "train"),
            num_groups=geometry.num_groups,
            group_size=geometry.group_size,
            batch_size=geometry.batch_size,
            seed=config.seed,
            rank=distributed.rank,
            num_processes=geometry.num_processes,
            same_start=config.sample.same_start,
        )
        self.eval_prompts = load_prompts(config.dataset, "test")[: config.num_eval_prompts or None]
        self.resume_path = self._find_resume_path()
        # The scorers come before the weights: a missing engine should not cost a download.
        self.score_fn = multi_score(str(distributed.device), config.rewards.to_dict(), config.reward_options.to_dict())
        self._try_scorers()
        torch.manual_seed(config.seed)  # the LoRA's initial weights, the same in every process
        self.policy = load_policy(
            config.policy,
            config.model,
            config.mixed_precision,
            resolution=config.resolution,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            guidance_scale=config.sample.guidance_scale,
            max_sequence_length=config.max_sequence_length,
            device=distributed.device,
        )
        self.token_grid = None if config.advantage.mode == "scalar" else self.policy.token_grid
        self.parameters = [p for p in self.policy.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self.parameters, lr=config.train.learning_rate, weight_decay=config.train.weight_decay
        )
        self.ema = ExponentialMovingAverage(self.parameters, config.train.ema_decay, config.train.ema_every)
        self.policy.forward_module, self.optimizer = distributed.accelerator.prepare(self.policy.network, optimizer)

    def _try_scorers(self) -> None:
        """Score one grey image, so that what fails at every image, or gives no map to weigh by, fails now."""
        grey = torch.full((1, 3, self.config.resolution, self.config.resolution), 0.5, device=self.distributed.device)
        _, extras = self.score_fn(grey, self.sampler.prompts[:1], [{}])
        mode = self.config.advantage.mode
        if not extras["maps"] and mode != "scalar":
            raise ValueError(
                f"advantage.mode={mode} needs a reward map, and none of {', '.join(self.config.rewards)} has one; "
                "set --config.advantage.mode=scalar"
            )

    def _find_resume_path(self) -> Path | None:
        if self.config.resume_from:
            path = checkpoint.find_checkpoint(self.run_dir, self.config.resume_from)
            checkpoint.check_same_config(path, self.config.to_dict())
            newest = checkpoint.list_checkpoints(self.run_dir)[-1:]
            if newest and newest[0].resolve() != path.resolve():
                raise ValueError(
                    f"{self.run_dir} goes on to {newest[0].name}; give the branch from {path} a --config.run_dir "
                    "of its own"
                )
            return path
        if checkpoint.list_checkpoints(self.run_dir):
            raise ValueError(
                f"{self.run_dir} already holds a run; go on with it by --config.resume_from=latest, "
                "or choose another --config.run_dir"
            )
        return None

    def train(self) -> None:
        """Run to the last epoch, or to a request to stop, and leave a checkpoint."""
        config = self.config
        epoch = self._resume()
        self.tracker = NullTracker()
        if self.distributed.is_main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.tracker = RunTracker(self.run_dir, config.wandb_project, config.to_dict(), epoch)
        bar = tqdm(total=config.num_epochs, initial=epoch, desc="epochs", disable=not self.distributed.is_main)
        with StopRequest() as stop:
            while epoch < config.num_epochs:
                if config.eval_every and epoch % config.eval_every == 0:
                    self._evaluate(epoch)
                metrics = self._train_epoch(epoch, stop)
                if metrics is None:
                    break
                self.tracker.log(metrics, epoch)
                bar.set_postfix(reward=f"{metrics['rollout/reward_mean']:.3f}")
                bar.update()
                epoch += 1
                if epoch % config.save_every == 0 and epoch < config.num_epochs:
                    self._save(epoch)
                if self.distributed.any(stop.requested):
                    break
            self._save(epoch)
        bar.close()
        if epoch == config.num_epochs and config.eval_every:
            self._evaluate(epoch)
        self.tracker.finish()
        if epoch < config.num_epochs and self.distributed.is_main:
            print(f"saved {self.run_dir} at epoch {epoch}; go on with --config.resume_from=latest", flush=True)

    def _resume(self) -> int:
        if self.resume_path is None:
            return 0
        epoch = checkpoint.load_checkpoint(self.resume_path, self.policy, self.optimizer, self.ema, self.distributed)
        if epoch >= self.config.num_epochs:
            raise ValueError(
                f"{self.resume_path} has all {self.config.num_epochs} epochs; raise --config.num_epochs to go on"
            )
        return epoch

    def _save(self, epoch: int) -> None:
        checkpoint.save_checkpoint(
            self.run_dir,
            self.policy,
            self.optimizer,
            self.ema,
            epoch,
            self.config.to_dict(),
            self.distributed,
            self.config.keep_checkpoints,
        )

    def _train_epoch(self, epoch: int, stop: StopRequest) -> dict[str, float] | None:
        """Roll out, score, update. None where a stop was asked for before the first update: nothing has changed then."""
        started = time.perf_counter()
        trajectories, pending, seconds = [], [], {"sample": 0.0, "score": 0.0}
        batches = self.sampler.epoch(epoch)
        for batch in tqdm(batches, desc=f"epoch {epoch}: rollout", leave=False, disable=not self.distributed.is_main):
            if self.distributed.any(stop.requested):
                return None
            begin = time.perf_counter()
            drawn = rollout(
                self.policy, batch.prompts, batch.seeds, self.sde, self.config.train.num_steps, batch.start_seeds
            )
            sampled = time.perf_counter()
            # scorers with workers of their own go on while the next batch is sampled
            pending.append(submit_samples(self.score_fn, drawn.images, batch.prompts, batch.group_ids, self.token_grid))
            trajectories.append(drawn)
            seconds["sample"] += sampled - begin
            seconds["score"] += time.perf_counter() - sampled
        begin = time.perf_counter()
        scored = concatenate([scores() for scores in pending])
        seconds["score"] += time.perf_counter() - begin
        begin = time.perf_counter()
        advantages, metrics = self._advantages(scored, trajectories[0].sigmas)
        seconds["advantage"] = time.perf_counter() - begin
        begin = time.perf_counter()
        metrics |= self._update(trajectories, advantages, epoch)
        seconds |= {"update": time.perf_counter() - begin, "epoch": time.perf_counter() - started}
        return metrics | {f"time/{name}_seconds": value for name, value in seconds.items()}

    def _advantages(self, scored: Scored, sigmas: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """Token advantages (S, B, N) of this process's samples, (S, B, 1) where no map counts, and what they measure.

        Computed over the samples of all processes, so that their number changes nothing, then sliced to our own.
        """
        settings = self.config.advantage
        everyone = gather(scored, self.distributed)
        valid = everyone.valid
        if not valid.any():
            raise RuntimeError(f"none of the epoch's {len(valid)} images could be scored; the log has each cause")
        advantages = group_advantages(
            everyone.rewards, everyone.group_ids, settings.std, valid
        )  # (B,) of all processes
        by_step = [
            self._spread(advantages, everyone, faded_alpha(settings.alpha, float(sigmas[step]), settings.fade))
            for step in range(self.config.train.num_steps if settings.fade else 1)
        ]
        own = slice(self.distributed.rank * len(scored.rewards), (self.distributed.rank + 1) * len(scored.rewards))
        per_step = torch.stack([spread[own] for spread in by_step])  # (S or 1, B, N)
        metrics = {
            "rollout/reward_mean": everyone.rewards[valid].mean(),
            "rollout/reward_std": everyone.rewards[valid].std(correction=0),
            "rollout/invalid_share": (~valid).float().mean(),
            "rollout/advantage_abs_mean": advantages.abs().mean(),
            **{f"rollout/{name}": values[valid].mean() for name, values in everyone.details.items()},
        }
        for name, token_map in everyone.maps.items() if settings.mode == "weight" else ():
            weights, fallback = token_weights(
                advantages, token_map.values, token_map.kind, settings.alpha, settings.w_max, token_map.valid
            )
            metrics |= {f"map/{name}/{key}": value for key, value in weight_metrics(weights, fallback).items()}
        per_step = per_step.expand(self.config.train.num_steps, -1, -1)
        return per_step, {name: float(value) for name, value in metrics.items()}

    def _spread(self, advantages: torch.Tensor, everyone: Scored, alpha: float) -> torch.Tensor:
        """Token advantages (B, N): each reward spreads the image's advantage by its map, averaged by reward weight."""
        settings, rewards = self.config.advantage, self.config.rewards
        spread = 0.0
        for name, weight in rewards.items():
            token_map = everyone.maps.get(name)
            share = weight / sum(rewards.values())
            spread = spread + share * token_advantages(
                advantages,
                token_map.values if token_map else None,
                settings.mode,
                token_map.kind if token_map else None,
                alpha=alpha,
                w_max=settings.w_max,
                adv_clip_max=settings.clip_max,
                map_valid=token_map.valid if token_map else None,
                group_ids=everyone.group_ids,
            )
        return spread

    def _update(self, trajectories: list[Trajectories], advantages: torch.Tensor, epoch: int) -> dict[str, float]:
        """updates_per_epoch optimizer steps over the epoch's trajectories; advantages (S, B, N)."""
        by_batch = advantages.split(self.geometry.batch_size, dim=1)
        steps = range(self.config.train.num_steps)
        work = [(batch, step) for batch in range(len(trajectories)) for step in steps]
        history = []
        for batch, step in tqdm(work, desc=f"epoch {epoch}: update", leave=False, disable=not self.distributed.is_main):
            history.append(self._backward(trajectories[batch], step, by_batch[batch][step]))
            if len(history) == 1:
                self._check_first_ratio(history[0]["ratio_deviation_max"])
        return self._reduce(history)

    def _backward(self, trajectories: Trajectories, step: int, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        """One backward pass; where the accumulation is full, also the optimizer's step."""
        train, accelerator = self.config.train, self.distributed.accelerator
        with accelerator.accumulate(self.policy.forward_module):
            density = replay(self.policy, trajectories, step, self.sde)
            loss, metrics = grpo_loss(
                density.log_prob, trajectories.log_probs[:, step], advantages, train.clip_range, train.ratio
            )
            if train.beta > 0:
                kl = kl_to_base(self.policy, trajectories, step, self.sde, density, train.exact_kl).mean()
                metrics["kl"] = kl.detach()
                loss = loss + train.beta * kl
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                metrics["grad_norm"] = accelerator.clip_grad_norm_(self.parameters, train.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                self.ema.step()
        return metrics

    def _check_first_ratio(self, deviation: torch.Tensor) -> None:
        """Before the first update the policy is the one that sampled; a ratio other than 1 would be a bug's noise."""
        if not deviation <= self.config.train.clip_range:
            raise RuntimeError(
                f"before any update the ratio is {float(deviation):.1e} away from 1, more than "
                f"clip_range={self.config.train.clip_range}: rollout and update do not compute the same policy; "
                "use mixed_precision=no, or report it"
            )

    def _reduce(self, history: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """The epoch's update metrics over its passes and all processes: means, and the maximum of what says max."""
        metrics = {}
        for name in dict.fromkeys(name for row in history for name in row):
            values = torch.stack([row[name].detach() for row in history if name in row])
            every = self.distributed.gather(values)
            metrics[f"update/{name}"] = float(every.max() if name.endswith("_max") else every.mean())
        metrics["update/initial_ratio_deviation"] = float(history[0]["ratio_deviation_max"])
        return metrics

    def _evaluate(self, epoch: int) -> None:
        with self.ema.applied():
            evaluation = evaluate(
                self.policy,
                self.eval_prompts,
                self.score_fn,
                SDE(self.config.sample.eval_num_steps, noise_level=0.0),
                self.geometry.batch_size,
                self.config.seed,
                self.distributed,
            )
        self.tracker.log(evaluation.metrics, epoch)
        if evaluation.examples:  # a process beyond the number of prompts has none to show
            self.tracker.log_image("eval/samples", evaluation.sheet(), "held-out prompts", epoch)
