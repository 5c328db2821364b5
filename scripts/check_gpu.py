"""Does this machine's GPU do what the CPU tests promise? Four checks, about ten minutes, one table to paste into an issue.

python scripts/check_gpu.py              the table is printed, and written to check_gpu.md
python scripts/check_gpu.py --cpu        the same code in tiny sizes on the CPU: it tries the script, not a GPU

    ratio   before any update the ratio is exactly 1: bf16 and fp16, with and without torch.compile
    steps   SD3.5-medium's steps, 512 px, guidance, random weights: seconds, memory, utilisation (scripts/benchmark/train.py)
    maps    CLIP maps of ViT-L/14 with random weights, 64 images: their cost over the plain score's, and that the scores agree
    epoch   the first epoch of the demo, in a process of its own

Nothing is downloaded. Each line runs in a fresh process; a check that fails is a line of the table, and the others go on.
The exit status is 1 where a check failed, and 2 without a GPU.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package is not installed: it belongs to the checkout

import scripts  # noqa: E402, F401  first: it silences what transformers says while diffusers is imported
from flow_grpo.training.rollout import SDE, replay, rollout  # noqa: E402
from flow_grpo.training.tracking import read_metrics  # noqa: E402
from scripts.benchmark import maps  # noqa: E402
from scripts.benchmark.step import TINY  # noqa: E402
from scripts.benchmark.train import STEPS, apart, make_policy, matrix_rate, measure  # noqa: E402

CLIP_ROWS = ("clipscore", "clip_gradcam", "clip_attention", "clip_decomposition", "these three in one pass")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class Sizes:
    """What is run: the model, its batch, the CLIP and its batch, how often, torch.compile's backend, fields of the epoch."""

    device: str = "cuda"
    model: str = "sd3.5-medium"
    batch: int = 8
    clip: str = "vit-l-14"
    clip_batch: int = 64
    clip_size: int = 512
    repeats: int = 10
    backend: str = "inductor"
    overrides: list[str] = field(default_factory=list)


TINY_SIZES = Sizes(
    **{"device": "cpu", "model": "tiny", "batch": 1, "clip": "tiny", "clip_batch": 2, "clip_size": 64, "repeats": 1},
    backend="eager",  # generated code wants minutes of a C++ compiler
    overrides=[
        *("--config.num_groups=2", "--config.group_size=2", "--config.batch_size=2", "--config.sample.num_steps=2"),
        "--config.train.num_steps=1",
    ],
)


@dataclass(frozen=True)
class Line:
    """A line of the table. passed: None where a figure has nothing to pass."""

    check: str
    figures: str
    passed: bool | None = None


def ratio_deviation(sizes: Sizes, dtype: str, compiled: bool) -> float:
    """The largest |ratio - 1| of a token, between a rollout and its replay, under autocast as in a run."""
    policy = make_policy(sizes.model, sizes.device, getattr(torch, dtype))
    with torch.no_grad():
        for parameter in policy.trainable_parameters():  # a fresh adapter adds nothing, and would hide a difference
            parameter.normal_(std=0.02)
    if compiled:
        policy.compile(sizes.backend)
    policy.network.forward = torch.autocast(sizes.device, getattr(torch, dtype))(policy.network.forward)
    sde = SDE(num_steps=3, noise_level=0.7)
    drawn = rollout(policy, [""] * sizes.batch, list(range(sizes.batch)), sde, num_kept=2)
    again = torch.stack([replay(policy, drawn, step, sde).log_prob.detach() for step in range(2)], dim=1)
    return float((again - drawn.log_probs).expm1().abs().max())


def check_ratio(sizes: Sizes) -> Iterator[Callable[[], Line]]:
    def line(dtype: str, compiled: bool) -> Line:
        deviation = apart(ratio_deviation, sizes, dtype, compiled)
        name = f"ratio, {dtype}{', compiled' if compiled else ''}"
        return Line(name, f"{deviation:.1e} away from 1", deviation == 0)

    for dtype in ("bfloat16", "float16"):
        for compiled in (False, True):
            yield lambda dtype=dtype, compiled=compiled: line(dtype, compiled)


def check_steps(sizes: Sizes) -> Iterator[Callable[[], Line]]:
    settings = {"model": sizes.model, "device": sizes.device, "dtype": "bfloat16", "batch": sizes.batch}
    settings |= {"repeats": sizes.repeats, "checkpointing": False}
    rates = []

    def rate() -> Line:
        rates.append(apart(matrix_rate, settings))
        return Line("large matrix product, bfloat16", f"{rates[0] / 1e12:.3g} TFLOP/s")

    def line(stage: str, backend: str) -> Line:
        row = apart(measure, stage, settings | {"compile": backend})
        figures = f"{row['seconds']:.4f} s, {sizes.batch / row['seconds']:.2f} images/s"
        if rates:
            figures += f", {row['flops'] / row['seconds'] / rates[0]:.0%} of the matrix product's rate"
        if row["peak_gib"] is not None:
            figures += f", {row['peak_gib']:.1f} GiB"
        return Line(f"{stage} step of {sizes.batch}{', compiled' if backend else ''}", figures)

    yield rate
    for backend in ("", sizes.backend):
        for stage in STEPS:
            yield lambda stage=stage, backend=backend: line(stage, backend)


def clip_figures(sizes: Sizes, name: str) -> tuple[float, float]:
    """A row's seconds over the plain score's, and how far clipscore's logits are from the plain ones, relative to those."""
    args = argparse.Namespace(model=sizes.clip, batch=sizes.clip_batch, size=sizes.clip_size, device=sizes.device)
    args.dtype, args.repeats = "float32", max(1, sizes.repeats // 3)
    taken = maps.seconds([maps.PLAIN, name], args)
    bench = maps.Bench(args)
    plain, ours = bench.row(maps.PLAIN)(), bench.row("clipscore")() * 30  # clipscore divides the logits by 30
    return maps.ratio(taken, name, maps.PLAIN), float((ours - plain).abs().max() / plain.abs().max())


def check_maps(sizes: Sizes) -> Iterator[Callable[[], Line]]:
    def line(name: str) -> Line:
        ratio, error = apart(clip_figures, sizes, name)
        figures = f"{ratio:.2f} times the plain score's seconds; scores differ by {error:.0e}"
        # fp32 in two orders of summing; TF32, where it is on, keeps three digits
        return Line(f"{name}, {sizes.clip_batch} images", figures, error < 2e-3)

    for name in (*CLIP_ROWS, *((maps.TORCHCAM,) if find_spec("torchcam") else ())):
        yield lambda name=name: line(name)


def first_epoch(sizes: Sizes) -> dict[str, float]:
    """The metrics of the demo's first epoch. Raises RuntimeError with the end of the log where the run fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train_sd3.py", "--config", TINY, f"--config.run_dir={folder}/run"]
        command += ["--config.num_epochs=1", "--config.eval_every=0", "--config.samples_every=0", *sizes.overrides]
        environment = os.environ | {"WANDB_MODE": "disabled"}
        environment |= {"ACCELERATE_USE_CPU": "true"} if sizes.device == "cpu" else {}
        run = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1], check=False
        )
        if run.returncode:
            raise RuntimeError((run.stdout + run.stderr).strip()[-300:])
        return read_metrics(Path(folder) / "run")[0]


def check_epoch(sizes: Sizes) -> Iterator[Callable[[], Line]]:
    def line() -> Line:
        row = first_epoch(sizes)
        deviation = row["update/initial_ratio_deviation"]
        stages = ", ".join(f"{stage} {row[f'time/{stage}_seconds']:.1f} s" for stage in ("sample", "score", "update"))
        figures = f"{stages}; reward {row['rollout/reward_mean']:.3f}; ratio {deviation:.1e} away from 1"
        return Line("the demo's first epoch", figures, deviation == 0)

    yield line


CHECKS = {"ratio": check_ratio, "steps": check_steps, "maps": check_maps, "epoch": check_epoch}


def run_checks(names: list[str], sizes: Sizes) -> Iterator[Line]:
    for name in names:
        for number, line in enumerate(CHECKS[name](sizes)):
            try:
                yield line()
            except Exception as error:  # whatever it is, it is what the table is for; the other checks go on
                text = f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")
                yield Line(f"{name}, line {number + 1}", text[:300], passed=False)


def machine(device: str) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    if device == "cpu":
        return f"{platform.machine()} CPU in tiny sizes; Python {platform.python_version()}, {packages}"
    properties = torch.cuda.get_device_properties(0)
    card = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{card}; Python {platform.python_version()}, {packages}"


def cells(line: Line) -> str:
    verdict = {True: "yes", False: "**no**", None: ""}[line.passed]
    return f"| {line.check} | {line.figures} | {verdict} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU, to try the script itself")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="some of the checks")
    parser.add_argument("--out", type=Path, default=Path("check_gpu.md"), help="the table; default: %(default)s")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        print("torch sees no CUDA device here; --cpu runs the same checks in tiny sizes on the CPU", file=sys.stderr)
        return 2
    sizes = TINY_SIZES if args.cpu else Sizes()
    table, failed = [machine(sizes.device), "", "| check | figures | passed |", "|---|---|---|"], 0
    print("\n".join(table), flush=True)
    for line in run_checks(args.only, sizes):
        failed += line.passed is False
        table.append(cells(line))
        print(table[-1], flush=True)
        args.out.write_text("\n".join(table) + "\n", encoding="utf-8")  # after each line, in case the machine goes away
    print(f"\n{'all passed' if not failed else f'{failed} failed'}; the table is in {args.out}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
