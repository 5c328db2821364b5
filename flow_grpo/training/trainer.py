"""The GRPO loop: prompts -> trajectories -> scores -> token advantages -> update, tracked and checkpointed."""

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import ml_collections
import torch
from tqdm.auto import tqdm

from flow_grpo.rewards import multi_score
from flow_grpo.training import checkpoint
from flow_grpo.training.credit import Credit, CreditRule, assign_credit
from flow_grpo.training.data import GroupSampler, load_metadata, load_prompts
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.ema import ExponentialMovingAverage
from flow_grpo.training.evaluation import evaluate
from flow_grpo.training.interrupt import StopRequest
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.prompt_cache import PromptCache
from flow_grpo.training.rollout import SDE, draw_window, rollout
from flow_grpo.training.samples import RecordingScore, Sample
from flow_grpo.training.scoring import PendingScores, Scored, gather
from flow_grpo.training.tracking import NullTracker, RunTracker
from flow_grpo.training.update import Updater, UpdateRule

NUM_SHOWN = 16  # samples of a rollout in its table: two rows of a sheet


class Trainer:
    """One run, from its resolved configuration (`config.validation.resolve`)."""

    def __init__(self, config: ml_collections.ConfigDict, geometry, distributed: Distributed):
        self.config, self.geometry, self.distributed = config, geometry, distributed
        self.run_dir = Path(config.run_dir)
        self.sampler = GroupSampler(
            load_prompts(config.dataset, "train"),
            num_groups=geometry.num_groups,
            group_size=geometry.group_size,
            batch_size=geometry.batch_size,
            seed=config.seed,
            rank=distributed.rank,
            num_processes=geometry.num_processes,
            same_start=config.sample.same_start,
            metadata=load_metadata(config.dataset, "train"),
        )
        self.eval_prompts = load_prompts(config.dataset, "test")[: config.num_eval_prompts or None]
        self.eval_metadata = load_metadata(config.dataset, "test")[: len(self.eval_prompts)]
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
        self.policy.encode_prompts = PromptCache(
            self.policy.encode_prompts,
            distributed.device,
            identity=f"{config.policy} {config.model} {config.max_sequence_length} {config.mixed_precision}",
            max_bytes=int(config.prompt_cache_gib * 2**30),
            folder=Path(config.prompt_cache) if config.prompt_cache else None,
        )
        if config.gradient_checkpointing:
            self.policy.enable_gradient_checkpointing()
        if config.compile:
            self.policy.compile()
        uses_maps = config.advantage.mode != "scalar" or config.train.spatial_kl > 0
        self.token_grid = self.policy.token_grid if uses_maps else None
        optimizer = torch.optim.AdamW(
            self.policy.trainable_parameters(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay
        )
        self.policy.forward_module, self.optimizer = distributed.prepare(
            self.policy.network, optimizer, config.train.max_grad_norm
        )
        self.ema = ExponentialMovingAverage(
            self.policy.trainable_parameters(), config.train.ema_decay, config.train.ema_every
        )
        rule = UpdateRule(**{field.name: config.train[field.name] for field in fields(UpdateRule)})
        self.updater = Updater(self.policy, self.optimizer, self.ema, distributed, rule)

    def _try_scorers(self) -> None:
        """Score one grey image, so that what fails at every image, or gives no map to weigh by, fails now."""
        grey = torch.full((1, 3, self.config.resolution, self.config.resolution), 0.5, device=self.distributed.device)
        _, extras = self.score_fn(grey, self.sampler.prompts[:1], self.sampler.metadata[:1])
        needs = {
            "advantage.mode": (self.config.advantage.mode, "scalar"),
            "train.spatial_kl": (self.config.train.spatial_kl, 0.0),
        }
        importance = [name for name, entry in extras["maps"].items() if entry["map_kind"] == "importance"]
        if importance and self.config.advantage.mode == "residual":
            raise ValueError(
                f"advantage.mode=residual compares how good a place is, which the maps of {', '.join(importance)} do not "
                "say; set --config.advantage.mode=weight"
            )
        for field, (value, without) in needs.items():
            if not extras["maps"] and value != without:
                raise ValueError(
                    f"{field}={value} needs a reward map, and none of {', '.join(self.config.rewards)} has one; "
                    f"set --config.{field}={without}"
                )

    def _find_resume_path(self) -> Path | None:
        if self.config.resume_from:
            path = checkpoint.find_checkpoint(self.run_dir, self.config.resume_from)
            changed = checkpoint.changed_fields(path, self.config.to_dict())
            newest = checkpoint.list_checkpoints(self.run_dir)[-1:]
            if newest and newest[0].resolve() != path.resolve():
                raise ValueError(
                    f"{self.run_dir} goes on to {newest[0].name}; give the branch from {path} a --config.run_dir "
                    "of its own"
                )
            if self.distributed.is_main:
                print(_going_on(path, changed), flush=True)
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
        first_epoch = epoch = self._resume()
        self.tracker = NullTracker()
        if self.distributed.is_main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.tracker = RunTracker(self.run_dir, config.wandb_project, config.to_dict(), epoch)
        bar = tqdm(total=config.num_epochs, initial=epoch, desc="epochs", disable=not self.distributed.is_main)
        with StopRequest() as stop:
            while epoch < config.num_epochs:
                if config.eval_every and epoch % config.eval_every == 0:
                    if epoch > first_epoch:
                        self._save(epoch)  # a scorer may fail in the evaluation, too
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
        if self.distributed.is_main:
            go_on = "" if epoch == config.num_epochs else "; go on with --config.resume_from=latest"
            print(f"saved {checkpoint.list_checkpoints(self.run_dir)[-1]}{go_on}", flush=True)

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
        sde, train = self._sde(epoch), self.config.train
        recording = RecordingScore(self.score_fn, self._num_shown(epoch))
        scores, trajectories, seconds = PendingScores(recording, self.token_grid), [], {"sample": 0.0, "score": 0.0}
        batches = self.sampler.epoch(epoch)
        for batch in tqdm(batches, desc=f"epoch {epoch}: rollout", leave=False, disable=not self.distributed.is_main):
            if self.distributed.any(stop.requested or scores.failure is not None):
                break
            begin = time.perf_counter()
            drawn = rollout(
                self.policy, batch.prompts, batch.seeds, sde, train.num_steps, batch.start_seeds, train.ratio_norm
            )
            sampled = time.perf_counter()
            # scorers with workers of their own go on while the next batch is sampled
            scores.submit(drawn.images, batch.prompts, batch.metadata, batch.group_ids)
            trajectories.append(replace(drawn, images=None))
            seconds["sample"] += sampled - begin
            seconds["score"] += time.perf_counter() - sampled
        begin = time.perf_counter()
        complete = len(trajectories) == len(batches)
        scored = scores.collect() if complete else None
        if self.distributed.any(scores.failure is not None):
            self._save(epoch)
            raise scores.failure or RuntimeError(
                "a scorer failed in another process of this run; the error stands there"
            )
        if not complete:
            return None
        seconds["score"] += time.perf_counter() - begin
        begin = time.perf_counter()
        credit, metrics = self._credit(scored, trajectories[0].sigmas)
        seconds["advantage"] = time.perf_counter() - begin
        self._log_rollout(recording.samples, credit, epoch)
        begin = time.perf_counter()
        metrics |= self.updater.run(
            trajectories, credit, sde, self.geometry.updates_per_epoch, title=f"epoch {epoch}: update"
        )
        seconds |= {"update": time.perf_counter() - begin, "epoch": time.perf_counter() - started}
        if (peak := self.distributed.peak_memory_gib()) is not None:
            metrics["system/peak_memory_gib"] = peak
        return metrics | {f"time/{name}_seconds": value for name, value in seconds.items()}

    def _sde(self, epoch: int) -> SDE:
        """How the epoch's rollouts step; where only a window is stochastic, one for all images, so for all siblings."""
        sample = self.config.sample
        size, within = sample.sde_window_size, sample.sde_window_range
        window = draw_window(size, within, self.config.seed, epoch) if size else None
        return SDE(sample.num_steps, sample.noise_level, sample.sde, window)

    def _credit(self, scored: Scored, sigmas: torch.Tensor) -> tuple[Credit, dict[str, float]]:
        """The credit of this process's samples, found among those of all."""
        everyone = gather(scored, self.distributed)
        credit, metrics = assign_credit(
            everyone,
            self.config.rewards.to_dict(),
            CreditRule(**self.config.advantage),
            sigmas[:-1].tolist(),
            self.config.train.spatial_kl,
        )
        own = slice(self.distributed.rank * len(scored.rewards), (self.distributed.rank + 1) * len(scored.rewards))
        return credit[own], metrics

    def _num_shown(self, epoch: int) -> int:
        """How many of its samples this process keeps to look at in an epoch."""
        every = self.config.samples_every
        return NUM_SHOWN if every and epoch % every == 0 and self.distributed.is_main else 0

    def _log_rollout(self, samples: list[Sample], credit: Credit, epoch: int) -> None:
        """The first samples of the rollout with the advantage that each has, the mean over its tokens in every mode."""
        if samples:
            advantages = credit.advantages[0, : len(samples)].mean(dim=-1).tolist()
            shown = [replace(sample, advantage=a) for sample, a in zip(samples, advantages, strict=True)]
            self.tracker.log_samples("rollout/samples", shown, epoch)

    def _evaluate(self, epoch: int) -> None:
        with self.ema.applied():
            evaluation = evaluate(
                self.policy,
                self.eval_prompts,
                self.eval_metadata,
                self.score_fn,
                SDE(self.config.sample.eval_num_steps, noise_level=0.0),
                self.geometry.batch_size,
                self.config.seed,
                self.distributed,
            )
        self.tracker.log(evaluation.metrics, epoch)
        self.tracker.log_samples("eval/samples", evaluation.samples, epoch)


def _going_on(path: Path, changed: dict[str, tuple[Any, Any]]) -> str:
    """What a resumed run says of itself."""
    says = f"going on from {path}"
    if changed := {name: values for name, values in changed.items() if name != "resume_from"}:
        says += " with " + ", ".join(f"{name} {now} (was {was})" for name, (was, now) in changed.items())
    if changed.keys() & {"num_gpus", "batch_size"}:
        says += "; samples, groups and optimizer steps stay the same, up to rounding"
    return says
