"""What sampling and training cost.

There are three measurements. Each line of the last runs in a fresh process.

1. Epochs of tiny-sd3 with OCR maps, as a run does them: images per second of the rollout and of the update.
2. What OCR adds to a rollout: read in this process, or in a worker while the next batch is sampled. It needs two idle cores.
3. If there is a GPU, or --model asks for it: steps of SD3.5-medium's transformer with random weights and a LoRA, at 512 px
   and guidance 4.5. It prints seconds, peak memory and the model FLOPs utilisation (MFU). That is the rate of the FLOPs that
   the step needs, each counted once, over the rate of a matrix product of the same type on the same device.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from flow_grpo.training.objective import grpo_loss
from flow_grpo.training.policies.base import PolicySettings, PromptEmbeds
from flow_grpo.training.policies.sd3 import SD3Policy
from flow_grpo.training.rollout import SDE, Trajectories, replay
from flow_grpo.training.sde import log_prob_per_token, sde_step
from scripts.benchmark.scoring_runs import SCORINGS
from scripts.benchmark.step import STAGES, TINY, run_epochs

# stabilityai/stable-diffusion-3.5-medium, and the same in small to try the benchmark itself on
TRANSFORMERS = {
    "sd3.5-medium": {
        **{"num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "joint_attention_dim": 4096},
        **{"caption_projection_dim": 1536, "pooled_projection_dim": 2048, "dual_attention_layers": tuple(range(13))},
    },
    "tiny": {
        **{"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 64},
        **{"caption_projection_dim": 32, "pooled_projection_dim": 32, "dual_attention_layers": (0,)},
    },
}
SHARED = {
    **{"in_channels": 16, "out_channels": 16, "patch_size": 2, "sample_size": 128, "pos_embed_max_size": 384},
    "qk_norm": "rms_norm",
}
PROMPT_TOKENS = 77 + 128  # CLIP's and T5's


class RandomPrompts(SD3Policy):
    """A policy without text encoders: they have no part in a step."""

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        config, dtype = self.network.config, self.network.dtype
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(len(prompts), PROMPT_TOKENS, config.joint_attention_dim, generator=generator)
        pooled = torch.randn(len(prompts), config.pooled_projection_dim, generator=generator)
        return PromptEmbeds(tokens=tokens, pooled=pooled).map(lambda tensor: tensor.to(self.device, dtype))


def make_policy(model: str, device: str, dtype: torch.dtype) -> SD3Policy:
    torch.manual_seed(0)
    with torch.device(device):
        transformer = SD3Transformer2DModel(**SHARED, **TRANSFORMERS[model])
    transformer.to(dtype)
    # three halvings to an eighth, and no weight: nothing is decoded here
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
    )
    parts = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, **parts
    )
    settings = PolicySettings(resolution=512, lora_rank=32, lora_alpha=64, guidance_scale=4.5, device=device)
    return RandomPrompts(pipeline, settings)


def rollout_step(policy: SD3Policy, batch: int) -> Callable[[], object]:
    """One step of a rollout: velocity with guidance, the SDE, its log-probs."""
    embeds, sigmas = policy.encode_prompts([""] * batch), policy.sigmas(10)
    sample = torch.randn(batch, *policy.latent_shape, device=policy.device)

    @torch.no_grad()
    def step():
        velocity = policy.velocity(sample, sigmas[3], embeds)
        mean, std = sde_step(sample, velocity, sigmas[3], sigmas[4], 0.7, "flow")
        following = mean + std * torch.randn_like(mean)
        return log_prob_per_token(policy.to_tokens(following), policy.to_tokens(mean), std)

    return step


def update_step(policy: SD3Policy, batch: int) -> Callable[[], object]:
    """Forward and backward of one trained step, with token advantages; no optimizer."""
    latents = torch.randn(batch, 1, *policy.latent_shape, device=policy.device)
    num_tokens = policy.token_grid[0] * policy.token_grid[1]
    trajectories = Trajectories(
        embeds=policy.encode_prompts([""] * batch),
        latents=latents,
        next_latents=latents + 0.1 * torch.randn_like(latents),
        log_probs=torch.zeros(batch, 1, num_tokens, device=policy.device),
        means=None,
        sigmas=policy.sigmas(10)[3:5],
        images=None,
    )
    advantages = torch.randn(batch, num_tokens, device=policy.device)

    def step():
        density = replay(policy, trajectories, 0, SDE(10, 0.7))
        old = density.log_prob.detach() + 1e-5
        loss, _ = grpo_loss(density.log_prob, old, advantages, 1e-4, "gspo_token")
        loss.backward()
        policy.network.zero_grad()

    return step


STEPS = {"rollout": rollout_step, "update": update_step}


def measure(stage: str, settings: dict) -> dict[str, float]:
    """Seconds of a step, its FLOPs and the peak memory in GiB, in this process."""
    device, dtype = settings["device"], getattr(torch, settings["dtype"])
    policy = make_policy(settings["model"], device, dtype)
    step = STEPS[stage](policy, settings["batch"])
    with FlopCounterMode(display=False) as counter:  # without what checkpointing computes again
        step()
    if settings["checkpointing"] and stage == "update":
        policy.enable_gradient_checkpointing()
    if settings["compile"]:
        policy.compile(settings["compile"])  # the backend's name
    for _ in range(3):
        step()
    seconds = []
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # All steps in a row on a GPU: as in a run, the next is prepared while it works on the last. Else their median.
    in_a_row = settings["repeats"] if device == "cuda" else 1
    for _ in range(settings["repeats"] // in_a_row):
        started = time.perf_counter()
        for _ in range(in_a_row):
            step()
        synchronise()
        seconds.append((time.perf_counter() - started) / in_a_row)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {"seconds": statistics.median(seconds), "flops": counter.get_total_flops(), "peak_gib": peak}


def matrix_rate(settings: dict) -> float:
    """FLOPs a second of a large matrix product, the best of settings['repeats'] tries."""
    side = 8192 if settings["device"] == "cuda" else 1024
    a = torch.randn(side, side, device=settings["device"], dtype=getattr(torch, settings["dtype"]))
    best = 0.0
    for _ in range(settings["repeats"]):
        if a.is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(4):
            a @ a
        if a.is_cuda:
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * side**3 / (time.perf_counter() - started))
    return best


def apart(function: Callable, *arguments) -> object:
    """Call it in a process of its own: no memory, no compiled code of an earlier line."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def benchmark_train(args: argparse.Namespace) -> dict:
    figures = {}
    if args.epochs:
        figures["tiny-sd3"] = benchmark_epochs(args.epochs, args.overrides)
        figures["scoring"] = benchmark_scoring(args.epochs, args.overrides)
    if args.model or torch.cuda.is_available():
        figures |= benchmark_steps(args)
    return figures


def benchmark_epochs(num_epochs: int, overrides: list[str]) -> dict[str, float]:
    """Images a second of a rollout and of an update, and the share of an epoch that the scorers hold up."""
    seconds = run_epochs(TINY, num_epochs, overrides)
    num_images = seconds["num_images"]
    total = sum(seconds[stage] for stage in STAGES)
    figures = {
        "rollout_images_per_second": num_images / seconds["sample"],
        "update_images_per_second": num_images / seconds["update"],
        "score_share": seconds["score"] / total,
        "advantage_share": seconds["advantage"] / total,
    }
    print(f"tiny_ocr_map, {num_images} images an epoch")
    print("rollout {:.1f} images/s, update {:.1f} images/s".format(*list(figures.values())[:2]))
    print("scorers {:.1%} of the epoch, maps to advantages {:.2%}\n".format(*list(figures.values())[2:]))
    return figures


def benchmark_scoring(num_epochs: int, overrides: list[str]) -> dict[str, dict[str, float]]:
    """Seconds of a rollout, sampling and the wait for its scores, against one whose scorer costs next to nothing.

    A worker's wait is for the last batch, which no sampling follows.
    """
    figures = {}
    for name, scoring in tqdm(SCORINGS.items(), desc="scorings", leave=False):
        seconds = run_epochs(f"scripts/benchmark/scoring_runs.py:{name}", num_epochs, overrides, OMP_NUM_THREADS="1")
        figures[name] = row = {"sample": seconds["sample"], "score": seconds["score"]}
        row["rollout"] = row["sample"] + row["score"]
        row["ratio"] = row["rollout"] / figures["free"]["rollout"]
        if name == "free":
            tqdm.write(f"rollouts of {seconds['num_images']} images, one thread")
            tqdm.write(f"{'':<20}{'sampling, s':>13}{'waiting, s':>12}{'both, s':>9}{'ratio':>8}")
        tqdm.write(
            f"{scoring.title:<20}{row['sample']:>13.2f}{row['score']:>12.2f}{row['rollout']:>9.2f}{row['ratio']:>8.3f}"
        )
    print()
    return figures


def benchmark_steps(args: argparse.Namespace) -> dict:
    model = args.model or "sd3.5-medium"
    settings = {
        **{"model": model, "device": args.device, "dtype": args.dtype, "batch": args.batch},
        **{"repeats": args.repeats, "checkpointing": args.checkpointing},
    }
    rate = apart(matrix_rate, settings)
    print(f"{model}, 512 px, batch {args.batch}, guidance 4.5, {args.dtype} on {args.device}")
    print(f"matrix product: {rate / 1e12:.1f} TFLOP/s\n")
    print(f"{'':<20}{'s / step':>10}{'images / s':>12}{'TFLOP':>8}{'MFU':>7}{'peak GiB':>10}")
    lines = [(stage, compiled) for compiled in ((False, True) if args.compile else (False,)) for stage in STEPS]
    figures = {"matrix_flops": rate}
    for stage, compiled in tqdm(lines, desc="steps", leave=False):
        name = stage + (", compiled" if compiled else "")
        figures[name] = row = apart(measure, stage, settings | {"compile": "inductor" if compiled else ""})
        row["mfu"] = row["flops"] / row["seconds"] / rate
        tqdm.write(
            f"{name:<20}{row['seconds']:>10.4f}{args.batch / row['seconds']:>12.2f}{row['flops'] / 1e12:>8.2f}"
            f"{row['mfu']:>7.2f}{row['peak_gib'] or float('nan'):>10.1f}"
        )
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run of tiny-sd3; 0: none")
    parser.add_argument("--model", choices=list(TRANSFORMERS), help="of the steps; sd3.5-medium where there is a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--repeats", type=int, default=10, help="steps measured, after three to warm up")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in the update")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("overrides", nargs="*", help="fields of the tiny runs' configuration, after a --")
    parser.set_defaults(run=benchmark_train)
