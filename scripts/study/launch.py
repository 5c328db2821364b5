"""Runs the arms that the results file does not have yet. Each finished run becomes one line of it.

Each run trains in its own process, with its share of the processor's threads. Then drift.py measures it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Lock

import torch

from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.json_lines import append_row, read_rows
from flow_grpo.training.tracking import read_metrics
from scripts.study.runs import ARMS

RESULTS = Path("docs/evidence/results.jsonl")


@dataclass(frozen=True)
class Job:
    arm: str
    seed: int
    learning_rate: float

    @property
    def run_name(self) -> str:
        return f"{self.arm}-{self.seed}-{self.learning_rate:g}"


def jobs_left(jobs: Iterable[Job], rows: Iterable[dict]) -> list[Job]:
    """The jobs, in their order, that no row is of."""
    done = {Job(row["arm"], row["seed"], row["learning_rate"]) for row in rows}
    return [job for job in jobs if job not in done]


def curve_of(metrics: Iterable[dict], images_per_epoch: int) -> list[list[float]]:
    """(samples so far, exact words, reward) of each evaluation, from a run's metrics."""
    rows = [row for row in metrics if "eval/reward" in row]
    exact = next(name for name in rows[0] if name.endswith("/exact"))
    return [[row["epoch"] * images_per_epoch, row[exact], row["eval/reward"]] for row in rows]


def run_job(job: Job, runs_dir: Path, num_threads: int) -> dict:
    """Train and measure; returns the row. Raises CalledProcessError where either fails: its output is in run.log."""
    run_dir = runs_dir / job.run_name
    run_dir.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "WANDB_MODE": "disabled"}
    train = ["train_sd3.py", "--config", f"scripts/study/runs.py:{job.arm}", f"--config.run_dir={run_dir}"]
    train += [f"--config.seed={job.seed}", f"--config.train.learning_rate={job.learning_rate:g}"]
    train += ["--config.resume_from=latest"] if list_checkpoints(run_dir) else []
    started = time.perf_counter()
    with (run_dir / "run.log").open("a") as log:
        for command in (train, ["-m", "scripts.study.drift", str(run_dir)]):
            subprocess.run([sys.executable, *command], env=environment, stdout=log, stderr=log, check=True)
    config = json.loads((run_dir / "config.json").read_text())
    return {
        "arm": job.arm,
        "seed": job.seed,
        "learning_rate": job.learning_rate,
        "num_epochs": config["num_epochs"],
        "images_per_epoch": config["num_groups"] * config["group_size"],
        "curve": curve_of(read_metrics(run_dir), config["num_groups"] * config["group_size"]),
        "drift": json.loads((run_dir / "drift.json").read_text()),
        "seconds": round(time.perf_counter() - started),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[2e-3])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/study"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    # Seed by seed, so that whatever is done when it is stopped compares all arms.
    wanted = [Job(arm, seed, rate) for seed, rate, arm in product(args.seeds, args.learning_rates, args.arms)]
    left = jobs_left(wanted, read_rows(args.results))
    print(f"{len(wanted) - len(left)} of {len(wanted)} runs are in {args.results}", flush=True)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    num_threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    lock = Lock()

    def finish(job: Job) -> None:
        row = run_job(job, args.runs_dir, num_threads)
        with lock:
            append_row(args.results, row)
            print(f"{job.run_name}: exact {row['curve'][0][1]:.3f} -> {row['curve'][-1][1]:.3f}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        for future in [pool.submit(finish, job) for job in left]:
            future.result()
