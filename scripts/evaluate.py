"""Score a model, with or without a trained LoRA, on the held-out prompts of a configuration, as its evaluations do.

python scripts/evaluate.py tiny_ocr_map                                    # the base model, by the ODE
python scripts/evaluate.py tiny_ocr_map --lora runs/demo/checkpoint-000010/lora_ema
python scripts/evaluate.py tiny_ocr_map --rollout --sheet samples.png      # by the rollout's SDE
python scripts/evaluate.py ocr_map_sd3 --config.model=FOLDER --config.resolution=1024     # any field, as in training
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # config/ is not installed: it belongs to the checkout

from config.command_line import parse  # noqa: E402

if TYPE_CHECKING:
    import torch

    from flow_grpo.training.evaluation import Evaluation
    from flow_grpo.training.policies.base import Policy


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args, fields = parser.parse_known_args(argv)
    try:
        config = parse(["--config", f"{Path(__file__).parents[1] / 'config' / 'grpo.py'}:{args.config}", *fields])
        check(args, config)
    except ValueError as error:
        parser.error(str(error))
    from flow_grpo.training.samples import sheet

    evaluation = score(args, config)
    print(json.dumps({name: round(value, 4) for name, value in evaluation.metrics.items()}, indent=2))
    if args.sheet:
        sheet(evaluation.samples).save(args.sheet)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a run of config/grpo.py: its model, prompts and rewards")
    parser.add_argument("--lora", help="a checkpoint's lora or lora_ema folder; default: the base model")
    parser.add_argument("--rollout", action="store_true", help="sample as in training, by the SDE, instead of the ODE")
    parser.add_argument(
        "--num-prompts", type=_count, help="the first of the test prompts; 0: all; default: the configuration's"
    )
    parser.add_argument("--dataset", help="folder with the test prompts; default: the configuration's")
    parser.add_argument("--batch-size", type=int, default=32, help="images per forward pass; default: %(default)s")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="draw the first 32 samples with their maps here: .png or .jpg"
    )
    return parser


def check(args: argparse.Namespace, config: ml_collections.ConfigDict) -> None:
    """Raise ValueError for what cannot be done, before any weights are loaded."""
    lora = Path(args.lora or "")
    if not lora.is_dir():
        raise ValueError(f"--lora {lora} is no folder; give a checkpoint's lora or lora_ema")
    parts = [lora / name for name in ("lora_ema", "lora") if (lora / name).is_dir()]
    if args.lora and parts and not (lora / "adapter_config.json").exists():
        raise ValueError(f"--lora {lora} is a checkpoint; give its lora or lora_ema: {parts[0]}")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, got {args.batch_size}")
    if args.rollout and config.sample.sde_window_size:
        raise ValueError(
            f"{args.config} has another window of stochastic steps in each epoch; evaluate it without --rollout"
        )
    if args.sheet and args.sheet.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--sheet {args.sheet} must end in the name of an image format, such as .png or .jpg")
    if args.sheet and not args.sheet.parent.is_dir():
        raise ValueError(f"--sheet {args.sheet}: there is no folder {args.sheet.parent}; make it first")


def score(args: argparse.Namespace, config: ml_collections.ConfigDict) -> "Evaluation":
    """Sample the held-out prompts and score them."""
    # here, not above: they bring diffusers, which takes seconds, and neither the help nor an error waits for it
    from flow_grpo.rewards import make_scorers
    from flow_grpo.training.build import gold_scorers
    from flow_grpo.training.data import load_metadata, load_prompts, load_sizes
    from flow_grpo.training.distributed import Distributed
    from flow_grpo.training.evaluation import evaluate
    from flow_grpo.training.rollout import SDE

    distributed = Distributed()
    if args.num_prompts is not None:
        config.num_eval_prompts = args.num_prompts
    config.dataset = args.dataset or config.dataset
    num_prompts, sample = config.num_eval_prompts, config.sample
    prompts, metadata = load_prompts(config.dataset, "test"), load_metadata(config.dataset, "test")
    if num_prompts > len(prompts) and distributed.is_main:
        print(
            f"{config.dataset} has {len(prompts)} test prompts, fewer than the {num_prompts} asked for", file=sys.stderr
        )
    gold = gold_scorers(config, distributed.device)
    policy = evaluated_policy(config, args.lora, distributed.device)
    by_ode = SDE(sample.eval_num_steps, noise_level=0.0)
    return evaluate(
        policy,
        prompts[: num_prompts or None],
        metadata[: num_prompts or None],
        make_scorers(str(distributed.device), config.rewards.to_dict(), config.reward_options.to_dict()),
        SDE(sample.num_steps, sample.noise_level, sample.sde) if args.rollout else by_ode,
        args.batch_size,
        args.seed,
        distributed,
        num_samples=32,
        gold=gold,
        sizes=load_sizes(config.dataset, "test", config.eval_resolution or config.resolution)[: num_prompts or None],
    )


def evaluated_policy(config: ml_collections.ConfigDict, lora: str | None, device: "torch.device") -> "Policy":
    """The configuration's model, with the LoRA merged into its weights."""
    from flow_grpo.training.policies.load import load_policy

    return load_policy(
        config.policy,
        config.model,
        config.mixed_precision,
        lora=lora,
        resolution=config.eval_resolution or config.resolution,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        guidance_scale=config.sample.guidance_scale,
        max_sequence_length=config.max_sequence_length,
        device=device,
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text}")
    return int(text)


if __name__ == "__main__":
    main()
