"""The GRPO loop: prompts -> trajectories -> scores -> token advantages -> update, tracked and checkpointed."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from config import base
from flow_grpo.training import checkpoint
from flow_grpo.training.banner import banner
from flow_grpo.training.best import save_best
from flow_grpo.training.build import Parts
from flow_grpo.training.evaluation import evaluate
from flow_grpo.training.interrupt import StopRequest, end_by_itself
from flow_grpo.training.records import Credit, Scored
from flow_grpo.training.resume import set_damaged_aside
from flow_grpo.training.rollout import SDE, draw_window, rollout
from flow_grpo.training.samples import Sample
from flow_grpo.training.scoring import PendingScores, gather
from flow_grpo.training.seeds import Domain, sample_seed
from flow_grpo.training.tracking import NullTracker, RunTracker

NUM_SHOWN = 16  # samples that the table of a rollout shows: two rows of a sheet


class Trainer:
    """One run. `build` makes its parts from the configuration."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self.config, self.distributed = parts.config, parts.distributed
        self.run_dir = Path(parts.config.run_dir)
        # The state at the start of the present epoch. Only the main process has one.
        self._snapshot: checkpoint.Snapshot | None = None
        self._copied: int | None = None  # the epoch that the newest snapshot is of, in every process
        self._writing = threading.Lock()

    def train(self) -> None:
        """Train until the last epoch, or until a stop is requested. Both leave a checkpoint."""
        self.tracker = NullTracker()
        try:
            first_epoch = self._resume()
            if self.distributed.is_main:
                print(banner(self.parts, first_epoch), flush=True)
                told = self.config.wandb_project, self.config.to_dict()
                self.tracker = RunTracker(self.run_dir, *told, first_epoch, self._evaluates(first_epoch))
            is_over = self._run(first_epoch)
            self.tracker.report(base.get_config().to_dict())
            self.tracker.finish()
        except Exception:
            if self.distributed.num_processes > 1:
                end_by_itself()
            self.tracker.finish(failed=True)
            raise
        finally:
            if self.parts.lock is not None:
                self.parts.lock.close()
        if self.distributed.is_main:
            go_on = "" if is_over else f"; to go on, launch train_sd3.py with --config.resume_from={self.run_dir}"
            print(
                f"saved {checkpoint.list_checkpoints(self.run_dir)[-1]}{go_on}\nthe run as a page: {self.run_dir}/report.html",
                flush=True,
            )

    def _run(self, first_epoch: int) -> bool:
        """Run the epochs. Returns whether all is done, with the evaluation at the end; a later run would do the rest.

        If an epoch fails, for any reason, the state at its start is saved as a checkpoint. A signal saves it at once,
        because an update may take longer than a scheduler waits.
        """
        config, epoch, is_over = self.config, first_epoch, False
        bar = tqdm(total=config.num_epochs, initial=epoch, desc="epochs", disable=not self.distributed.is_main)
        with StopRequest(at_once=self._write) as stop:
            while True:
                is_last, stopping = epoch == config.num_epochs, self.distributed.any(stop.requested)
                due = is_last or stopping or (epoch > first_epoch and self._is_due(epoch))
                self._snapshot = None  # before the next one is taken: of all weights, two copies may not fit
                # Where all weights are trained, one copy of them per epoch would cost too much.
                if due or config.train.adapter != "full":
                    self._copy_state(epoch)
                if due:
                    self._save()
                if stopping:
                    is_over = is_last and not self._evaluates(epoch)
                    break
                try:
                    if self._evaluates(epoch):
                        self._evaluate(epoch)
                    if is_last:
                        is_over = True
                        break
                    metrics = self._train_epoch(epoch, stop)
                except Exception:
                    if epoch > first_epoch:
                        self._write()
                    raise
                if metrics is None:
                    self._copy_state(epoch)
                    self._save()
                    break
                self.tracker.log(metrics, epoch)
                bar.set_postfix(reward=f"{metrics['rollout/reward_mean']:.3f}")
                bar.update()
                epoch += 1
            self._save_pipeline()
        bar.close()
        return is_over

    def _evaluates(self, epoch: int) -> bool:
        """Whether there is an evaluation before the epoch, or at the run's end."""
        every = self.config.eval_every
        return bool(every) and (epoch % every == 0 or epoch == self.config.num_epochs)

    def _is_due(self, epoch: int) -> bool:
        """Whether to write a checkpoint before the epoch. An evaluation needs one: it takes long, and a scorer may fail."""
        return epoch % self.config.save_every == 0 or self._evaluates(epoch)

    def _resume(self) -> int:
        parts = self.parts
        if parts.resume_path is None:
            return 0
        epoch = checkpoint.load_checkpoint(
            parts.resume_path, parts.policy, parts.optimizer, parts.ema, self.distributed
        )
        if self.distributed.is_main:
            set_damaged_aside(self.run_dir, epoch)
        self.distributed.wait_for_everyone()
        return epoch

    def _copy_state(self, epoch: int) -> None:
        """Take the snapshot of the epoch's start, unless there is one. Every process must call it, before any update."""
        if self._copied == epoch:
            return
        parts = self.parts
        self._snapshot = checkpoint.take_snapshot(parts.policy, parts.optimizer, parts.ema, epoch, self.distributed)
        self._copied = epoch

    def _save(self) -> None:
        """Write the newest snapshot; every process must call it."""
        failure = None
        try:
            self._write()
        except Exception as error:  # for instance a full disk; the other processes must not wait for it
            failure = error
        self.distributed.settle(failure)

    def _write(self) -> None:
        """Write the newest snapshot without the other processes. A thread may call it while the loop runs."""
        if (snapshot := self._snapshot) is not None:
            with self._writing:
                checkpoint.write_checkpoint(
                    self.run_dir,
                    snapshot,
                    self.parts.policy,
                    self.config.to_dict(),
                    self.config.keep_checkpoints,
                    self.parts.origin,
                )

    def _save_pipeline(self) -> None:
        """Save the averaged model as a pipeline that diffusers opens, if all weights are trained. It follows `_save`."""
        if self.config.train.adapter != "full":
            return
        if self._snapshot is not None:
            self.parts.policy.adapter.save_pipeline(self.run_dir / "pipeline", self._snapshot.averaged)
        self.distributed.wait_for_everyone()

    def _train_epoch(self, epoch: int, stop: StopRequest) -> dict[str, float] | None:
        """Roll out, score, update. Returns None, and changes nothing, if a stop comes before the first update."""
        started = time.perf_counter()
        parts, sde, train = self.parts, self._sde(epoch), self.config.train
        size = parts.sampler.size(epoch)
        parts.policy.set_resolution(size)
        scores = PendingScores(parts.scorers, parts.token_grid, self._num_shown(epoch))
        trajectories, seconds = [], {"sample": 0.0, "score": 0.0}
        batches = parts.sampler.epoch(epoch)
        for batch in tqdm(batches, desc=f"epoch {epoch}: rollout", leave=False, disable=not self.distributed.is_main):
            if self.distributed.any(stop.requested or scores.failure is not None):
                break
            begin = time.perf_counter()
            drawn = rollout(
                parts.policy, batch.prompts, batch.seeds, sde, train.num_steps, batch.start_seeds, train.ratio_norm
            )
            sampled = time.perf_counter()
            # Scorers with their own workers score this batch while the next one is sampled.
            scores.submit(drawn.images, batch.prompts, batch.metadata, batch.group_ids)
            trajectories.append(replace(drawn, images=None))
            seconds["sample"] += sampled - begin
            seconds["score"] += time.perf_counter() - sampled
        begin = time.perf_counter()
        complete = len(trajectories) == len(batches)
        scored = scores.collect() if complete else None
        if error := scores.error(self.distributed):
            self._copy_state(epoch)
            raise error
        if not complete:
            return None
        seconds["score"] += time.perf_counter() - begin
        begin = time.perf_counter()
        credit, metrics = self._credit(scored, trajectories[0].sigmas, epoch)
        seconds["advantage"] = time.perf_counter() - begin
        self._log_rollout(scores.samples, credit, epoch)
        begin = time.perf_counter()
        if len(set(parts.sampler.sizes)) > 1:
            metrics |= {"rollout/height": float(size[0]), "rollout/width": float(size[1])}
        metrics |= parts.updater.run(
            trajectories, credit, sde, parts.geometry.updates_per_epoch, title=f"epoch {epoch}: update"
        )
        seconds |= {"update": time.perf_counter() - begin, "epoch": time.perf_counter() - started}
        if (peak := self.distributed.peak_memory_gib()) is not None:
            metrics["system/peak_memory_gib"] = peak
        return metrics | {f"time/{name}_seconds": value for name, value in seconds.items()}

    def _sde(self, epoch: int) -> SDE:
        """How the epoch's rollouts step. If only a window of steps is stochastic, all images share one window."""
        sample = self.config.sample
        size, within = sample.sde_window_size, sample.sde_window_range
        window = draw_window(size, within, self.config.seed, epoch) if size else None
        return SDE(sample.num_steps, sample.noise_level, sample.sde, window)

    def _credit(self, scored: Scored, sigmas: torch.Tensor, epoch: int) -> tuple[Credit, dict[str, float]]:
        """The credit of this process's samples. It is computed over the samples of all processes."""
        credit, metrics = self.parts.credit(
            gather(scored, self.distributed), sigmas[:-1].tolist(), sample_seed(Domain.CONTROL, self.config.seed, epoch)
        )
        own = slice(self.distributed.rank * len(scored.rewards), (self.distributed.rank + 1) * len(scored.rewards))
        return credit[own], metrics

    def _num_shown(self, epoch: int) -> int:
        """How many samples of an epoch this process keeps to look at."""
        every = self.config.samples_every
        return NUM_SHOWN if every and epoch % every == 0 and self.distributed.is_main else 0

    def _log_rollout(self, samples: list[Sample], credit: Credit, epoch: int) -> None:
        """Log the first samples of the rollout, each with its advantage: the mean over its tokens, in every mode."""
        if samples:
            advantages = credit.advantages[0, : len(samples)].mean(dim=-1).tolist()
            control = self.config.advantage.control
            shown = [
                replace(sample, advantage=a, control=control) for sample, a in zip(samples, advantages, strict=True)
            ]
            self.tracker.log_samples("rollout/samples", shown, epoch)

    def _evaluate(self, epoch: int) -> None:
        parts, config = self.parts, self.config
        with parts.ema.applied():
            evaluation = evaluate(
                parts.policy,
                parts.eval_prompts,
                parts.eval_metadata,
                parts.scorers,
                SDE(config.sample.eval_num_steps, noise_level=0.0),
                parts.geometry.batch_size,
                config.seed,
                self.distributed,
                gold=parts.gold,
                sizes=parts.eval_sizes,
            )
            if self.config.best_metric:
                best = (evaluation.metrics, self.config.best_metric, epoch, self.distributed)
                save_best(self.run_dir, parts.policy, *best)
        self.tracker.log(evaluation.metrics | self.tracker.log_evaluation(evaluation.values, epoch), epoch)
        self.tracker.log_samples("eval/samples", evaluation.samples, epoch)
        if self.distributed.is_main:
            told = dict.fromkeys(["eval/reward", config.best_metric or "eval/reward"])
            tqdm.write(f"epoch {epoch}: " + ", ".join(f"{name} {evaluation.metrics[name]:.3f}" for name in told))
        self.tracker.report(base.get_config().to_dict())
