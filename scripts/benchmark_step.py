"""`benchmark.py step`: what reward maps add to an epoch of the tiny run, mode "weight" against mode "scalar"."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm.auto import tqdm

from flow_grpo.training.checkpoint import list_checkpoints
from flow_grpo.training.tracking import read_metrics

STAGES = ("sample", "score", "advantage", "update")
TINY = "config/grpo.py:tiny_ocr_map"


def run_epochs(config: str, num_epochs: int, overrides: list[str], **environment: str) -> dict[str, float]:
    """Median seconds by stage of num_epochs epochs in a fresh process (one more warms up), its peak memory in MiB, and the
    number of images of an epoch. environment: variables of that process."""
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
    return seconds | {"peak_mib": usage.ru_maxrss / 1024, "num_images": config["num_groups"] * config["group_size"]}


def benchmark_step(args: argparse.Namespace) -> dict:
    """Mode "weight" against "scalar", in turn, a fresh process each: the maps' share of everything but the OCR."""
    runs = {"scalar": [], "weight": []}
    for _ in tqdm(range(args.repeats), desc="pairs of runs"):
        for mode, results in runs.items():
            results.append(run_epochs(TINY, args.epochs, [f"--config.advantage.mode={mode}", *args.overrides]))
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
    # The maps' own work, timed by itself: far below what two runs of an update differ by.
    extra = medians["weight"]["advantage"] - medians["scalar"]["advantage"]
    share = extra / medians["scalar"]["update"]
    without_ocr = sum(medians["scalar"][stage] for stage in STAGES if stage != "score")
    print(f"\nmaps to token advantages: {1000 * extra:.1f} ms an epoch, {100 * share:.2f}% of the update")
    print(f"an epoch without OCR: {without_ocr:.2f} s; reward maps add {extra / without_ocr:.2%}")
    return {
        **{"medians": medians, "ratios": ratios},
        **{"map_share_of_update": share, "map_share_without_ocr": extra / without_ocr},
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--epochs", type=int, default=2, help="measured epochs a run")
    parser.add_argument("overrides", nargs="*", help="fields of the configuration, after a --")
    parser.set_defaults(run=benchmark_step)
