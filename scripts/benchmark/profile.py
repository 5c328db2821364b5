"""`benchmark.py profile`: where the seconds of a rollout's step, an update's step and the VAE's decoder go, by kind of work.

On the CPU it looks at tiny-sd3 (64 px, no guidance), on a GPU at SD3.5-medium's configuration with random weights (512 px,
guidance 4.5). Each row is the time within kernels of that kind alone, as a share of all.
"""

import argparse
from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from flow_grpo.training.policies.load import load_policy
from scripts.benchmark.train import STEPS, TRANSFORMERS, make_policy

RANK = 32  # no other dimension of these models' products is as large, where the batch is not
OTHER = "the rest"
# The first kind counts whose word stands in the operation's name.
KINDS = {
    "attention": ("attention",),
    "the VAE's convolutions": ("conv",),
    "products": ("mm", "linear"),
    "activations, norms, modulation": (
        "gelu",
        "silu",
        "norm",
        "mul",
        "add",
        "sub",
        "div",
        "pow",
        "sqrt",
        "mean",
        "sum",
    ),
    "copies": ("copy", "cat", "fill", "zero", "clone", "contiguous"),
}


def kind_of(name: str, shapes: list[list[int]]) -> str:
    for kind, words in KINDS.items():
        if any(word in name for word in words):
            if kind == "products":
                return "LoRA's products" if any(RANK in shape for shape in shapes) else "the transformer's products"
            return kind
    return OTHER


def shares(step: Callable[[], object], device: str) -> dict[str, float]:
    """Each kind's share of the step's time, the largest first."""
    step()  # warm up
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, record_shapes=True) as profiled:
        step()
    seconds = Counter()
    for event in profiled.key_averages(group_by_input_shape=True):
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        seconds[kind_of(event.key, event.input_shapes)] += own
    return {kind: each / seconds.total() for kind, each in seconds.most_common()}


def benchmark_profile(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    if args.model == "tiny-sd3":
        policy = load_policy("sd3", "models/tiny-sd3", "no", resolution=64, lora_rank=RANK, lora_alpha=64)
    else:
        policy = make_policy(args.model, args.device, torch.bfloat16)
    steps = {stage: make(policy, args.batch) for stage, make in STEPS.items()}
    latents = torch.randn(args.batch, *policy.latent_shape, device=policy.device)
    if args.model == "tiny-sd3":  # the other's decoder is a stub
        steps["decode"] = lambda: policy.decode(latents)
    figures = {stage: shares(step, args.device) for stage, step in steps.items()}
    print(f"{args.model}, batch {args.batch}, on {args.device}")
    print(f"{'':<34}" + "".join(f"{stage:>10}" for stage in figures))
    for kind in dict.fromkeys(kind for row in figures.values() for kind in row):
        print(f"{kind:<34}" + "".join(f"{row.get(kind, 0):>10.1%}" for row in figures.values()))
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--model",
        choices=["tiny-sd3", *TRANSFORMERS],
        default="sd3.5-medium" if device == "cuda" else "tiny-sd3",
    )
    parser.add_argument("--device", default=device)
    parser.add_argument("--batch", type=int, default=16, help="images")
    parser.set_defaults(run=benchmark_profile)
