"""Train the embedded tiny model with OCR reward maps and show what it learned.

    make demo
    python scripts/demo.py --seed 1 --config tiny_ocr --config.num_epochs=4      # any field, as in training

The script launches train_sd3.py by scripts/launch.py. It then writes summary.json, curve.png and samples.png beside the run's own
files (metrics.jsonl, images/, checkpoints with the LoRA), and prints held-out reward and accuracy before and after.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package is not installed: it belongs to the checkout

from config.command_line import parse  # noqa: E402
from flow_grpo.training.tracking import read_metrics  # noqa: E402


def launch(config: str, run_dir: Path, seed: int, fields: list[str]) -> float:
    """Train in a process of its own; returns its seconds. Exits where that fails, or is stopped before its end."""
    device = [] if torch.cuda.is_available() else ["--cpu"]
    command = [sys.executable, "-m", "scripts.launch", *device]
    command += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["train_sd3.py", "--config", f"config/grpo.py:{config}"]
    command += [f"--config.run_dir={run_dir}", f"--config.seed={seed}", *fields]
    print(" ".join(command[command.index("train_sd3.py") :]), flush=True)
    started = time.perf_counter()
    with subprocess.Popen(command) as run:
        # Ctrl-C reaches the run as well, which then saves and says how to go on: this process waits for that
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = run.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if status:
        sys.exit(status)
    num_epochs = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["num_epochs"]
    if not (run_dir / f"checkpoint-{num_epochs:06d}").is_dir():
        sys.exit("demo.py: the run was stopped before its end, so before and after are not compared")
    return time.perf_counter() - started


def summarise(run_dir: Path, config: str, seconds: float) -> dict:
    """What summary.json holds: the first and the last evaluation on held-out prompts."""
    rows = [row for row in read_metrics(run_dir) if "eval/reward" in row]
    exact = next(name for name in rows[0] if name.endswith("/exact"))
    before, after = ({"reward": row["eval/reward"], "exact": row[exact]} for row in (rows[0], rows[-1]))
    return {"config": config, "seconds": round(seconds, 1), "before": before, "after": after}


def draw_curve(run_dir: Path, path: Path) -> None:
    """Reward of the rollouts by epoch, and reward and exact-word accuracy of the evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(run_dir)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    rollouts = [row for row in rows if "rollout/reward_mean" in row]
    evaluations = [row for row in rows if "eval/reward" in row]
    exact = next(name for name in evaluations[0] if name.endswith("/exact"))
    axes.plot(
        [r["epoch"] + 0.5 for r in rollouts],
        [r["rollout/reward_mean"] for r in rollouts],
        color="0.7",
        label="reward, training prompts (SDE)",
    )
    axes.plot(
        [r["epoch"] for r in evaluations], [r["eval/reward"] for r in evaluations], "o-", label="reward, held-out words"
    )
    axes.plot([r["epoch"] for r in evaluations], [r[exact] for r in evaluations], "s--", label="exact words, held-out")
    axes.set(xlabel="epoch", ylabel="OCR reward, share of exact words", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_samples(run_dir: Path, path: Path) -> None:
    """The first and the last evaluation's samples, one above the other."""
    pictures = sorted((run_dir / "images").glob("eval-samples-*.png"))
    sheets = [Image.open(picture) for picture in (pictures[0], pictures[-1])]
    heading = 26
    canvas = Image.new("RGB", (sheets[0].width, sum(sheet.height + heading for sheet in sheets)), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for sheet, title in zip(sheets, ("before", "after")):
        text = f"{title}: the words asked for, what was read if that differs, the reward; maps: red good, blue bad"
        draw.text((4, top + 5), text, fill="black", font=ImageFont.load_default(size=14))
        canvas.paste(sheet, (0, top + heading))
        top += sheet.height + heading
    canvas.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", default="tiny_ocr_map", choices=("tiny_ocr_map", "tiny_ocr"), help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    parser.add_argument("--run-dir", type=Path, help="default: runs/demo-<date>-<time>-<seed>")
    args, fields = parser.parse_known_args()
    try:
        if not parse(["--config", f"config/grpo.py:{args.config}", *fields]).eval_every:
            raise ValueError("eval_every=0: the demo compares evaluations, so it must be above 0")
    except ValueError as error:
        parser.error(str(error))
    run_dir = args.run_dir or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}-{args.seed}"
    seconds = launch(args.config, run_dir, args.seed, fields)

    summary = summarise(run_dir, args.config, seconds)
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw_curve(run_dir, run_dir / "curve.png")
    draw_samples(run_dir, run_dir / "samples.png")
    lora = sorted(run_dir.glob("checkpoint-[0-9]*"))[-1] / "lora_ema"
    print(f"\n{'held-out prompts':<18}{'before':>8}{'after':>8}")
    for name, label in (("reward", "OCR reward"), ("exact", "exact word")):
        print(f"{label:<18}{summary['before'][name]:>8.3f}{summary['after'][name]:>8.3f}")
    print(f"\n{seconds / 60:.1f} minutes. Open {run_dir}/report.html in a browser; the LoRA is in {lora}")


if __name__ == "__main__":
    main()
