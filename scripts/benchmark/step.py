"""What reward maps add to an epoch of the tiny run: mode `weight` against mode `scalar`."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from flow_grpo.reward_map import pool_to_tokens
from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.tracking import read_metrics

STAGES = ("sample", "score", "advantage", "update")
TINY = "config/grpo.py:tiny_ocr_map"
TOKEN_SIZE = 8  # pixels of tiny-sd3's images: its VAE's 4 to a latent, 2 latents to a token


def run_epochs(config: str, num_epochs: int, overrides: list[str], **environment: str) -> dict[str, float]:
    """Median seconds by stage of num_epochs epochs in a fresh process (one more warms up), its peak memory in MiB; the
    images of an epoch, those of a batch, and their side in pixels. environment: variables of that process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train_sd3.py", "--config", config]
        command += [f"--config.run_dir={folder}/run", f"--config.num_epochs={num_epochs + 1}", "--config.eval_every=0"]
        command += [f"--config.save_every={num_epochs + 1}", "--config.samples_every=0", *overrides]
        environment = os.environ | {"WANDB_MODE": "disabled"} | environment
        with open(Path(folder) / "log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                log.seek(0)
                sys.exit(f"the run failed:\n{log.read()[-4000:]}")
        rows = read_metrics(Path(folder) / "run")[1:]
        (checkpoint,) = list_checkpoints(Path(folder) / "run")
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    seconds = {stage: statistics.median(row[f"time/{stage}_seconds"] for row in rows) for stage in STAGES}
    images = {"num_images": config["num_groups"] * config["group_size"]}
    images |= {name: config[name] for name in ("batch_size", "resolution")}
    return seconds | {"peak_mib": usage.ru_maxrss / 1024} | images


def pooling_seconds(num_images: int, batch_size: int, resolution: int, repeats: int = 50) -> float:
    """Median seconds to pool an epoch's maps, one an image, to tokens: batch by batch, as scoring does in mode "weight"."""
    side = resolution // TOKEN_SIZE
    seconds = []
    for _ in range(repeats):
        batches = torch.rand(num_images, resolution, resolution).split(batch_size)
        started = time.perf_counter()
        torch.cat([pool_to_tokens(batch, (side, side)) for batch in batches])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def map_cost(scalar: dict[str, float], weight: dict[str, float], pooling: float) -> dict[str, float]:
    """What maps add to an epoch, in seconds and as shares: their own work alone, from the scorer's maps to the advantages.

    scalar, weight: seconds by stage of either mode; pooling: seconds. It is timed by itself, since two runs of an update
    or of the OCR differ by far more.
    """
    seconds = pooling + weight["advantage"] - scalar["advantage"]
    without_ocr = sum(scalar[stage] for stage in STAGES if stage != "score")
    return {
        "map_seconds": seconds,
        "map_share_of_update": seconds / scalar["update"],
        "map_share_without_ocr": seconds / without_ocr,
    }


def benchmark_step(args: argparse.Namespace) -> dict:
    """Mode "weight" against "scalar", in turn, a fresh process each: the maps' share of everything but the OCR."""
    runs = {"scalar": [], "weight": []}
    for _ in tqdm(range(args.repeats), desc="pairs of runs"):
        for mode, results in runs.items():
            # a spatial KL takes maps in either mode
            overrides = [f"--config.advantage.mode={mode}", "--config.train.spatial_kl=0", *args.overrides]
            results.append(run_epochs(TINY, args.epochs, overrides))
    medians = {mode: {key: statistics.median(r[key] for r in rs) for key in rs[0]} for mode, rs in runs.items()}
    pairs = list(zip(runs["weight"], runs["scalar"]))
    print(f"{'':<24}{'scalar':>10}{'weight':>10}{'ratio':>8}   (ratio: median over {args.repeats} pairs)")
    ratios = {}
    for key in (*STAGES, "peak_mib"):
        ratios[key] = statistics.median(weight[key] / scalar[key] for weight, scalar in pairs)
        unit = "MiB" if key == "peak_mib" else "s"
        print(
            f"{key + ', ' + unit:<24}{medians['scalar'][key]:>10.3f}{medians['weight'][key]:>10.3f}{ratios[key]:>8.3f}"
        )
    scalar, weight = medians["scalar"], medians["weight"]
    pooling = pooling_seconds(*(int(weight[key]) for key in ("num_images", "batch_size", "resolution")))
    cost = map_cost(scalar, weight, pooling)
    milliseconds = [1000 * seconds for seconds in (pooling, cost["map_seconds"] - pooling)]
    print("\nmaps to tokens {:.2f} ms an epoch, to advantages {:.2f} ms: ".format(*milliseconds), end="")
    print("{map_share_of_update:.2%} of the update, {map_share_without_ocr:.2%} of an epoch without OCR".format(**cost))
    return {"medians": medians, "ratios": ratios, "pooling_seconds": pooling, **cost}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--epochs", type=int, default=2, help="measured epochs a run")
    parser.add_argument("overrides", nargs="*", help="fields of the configuration, after a --")
    parser.set_defaults(run=benchmark_step)
