"""Measure the text in a model's images on a published benchmark, from the benchmark's own files.

python -m scripts.text_benchmarks longtext-bench --prompts X-Omni/textbench --model stabilityai/stable-diffusion-3.5-medium \\
    --mixed-precision fp16 --out results/longtext
accelerate launch -m scripts.text_benchmarks cvtg-2k --prompts CVTG-2K --model MODEL --lora runs/ocr/checkpoint-000500/lora_ema \\
    --out results/cvtg

If the command was stopped, run it again: it goes on where it was. It writes results.json and index.html into --out. Without
--model it measures the images that are in --out/images.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flow_grpo.clip_scorer import ClipScorer
from flow_grpo.text_maps.engine import make_engine
from flow_grpo.training.distributed import Distributed
from scripts.text_benchmarks import images
from scripts.text_benchmarks.metrics import LANGUAGES, METRICS
from scripts.text_benchmarks.prompts import read_prompts
from scripts.text_benchmarks.results import results, write_page

# What must stay the same in one folder: else its figures would be of two models, or of two readers.
SETTINGS = (
    "benchmark",
    "language",
    "model",
    "lora",
    "mixed_precision",
    "steps",
    "guidance_scale",
    "resolution",
    "seed",
)
SETTINGS += ("engine", "clip")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.text_benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=METRICS)
    parser.add_argument("--prompts", type=Path, required=True, help="the benchmark's folder; see docs/benchmarks.md")
    parser.add_argument("--language", choices=LANGUAGES, default="en")
    parser.add_argument("--model", help="hub id or folder of a diffusers pipeline")
    parser.add_argument("--lora", help="a LoRA's folder, such as a checkpoint's lora_ema")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-prompts", type=_positive, help="the first of the prompts; default: all")
    parser.add_argument("--images-per-prompt", type=_positive, default=1, help="LongText-Bench and OneIG ask for 4")
    parser.add_argument("--batch-size", type=_positive, default=1)
    parser.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), default="no", help="of the weights")
    parser.add_argument("--steps", type=_positive, help="default: the pipeline's own")
    parser.add_argument("--guidance-scale", type=float, help="default: the pipeline's own")
    parser.add_argument("--resolution", type=_positive, help="pixels, square; default: the pipeline's own")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--engine", default="rapidocr", help="the reader; one that the model was not trained on")
    parser.add_argument("--clip", help="a CLIP model for CLIPScore; default: none")
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    args, distributed = arguments().parse_args(argv), Distributed()
    prompts = read_prompts(args.benchmark, args.prompts, args.language)
    if args.num_prompts and args.num_prompts > len(prompts):
        raise ValueError(f"--num-prompts {args.num_prompts}, but {args.prompts} has {len(prompts)} prompts")
    prompts = prompts[: args.num_prompts]
    everything = images.jobs(prompts, args.images_per_prompt, args.out)
    if distributed.is_main:
        _keep_settings(args)
    distributed.wait_for_everyone()
    own = everything[distributed.rank :: distributed.num_processes]
    if unmade := [job for job in own if not job.image.is_file()]:
        _sample(args, unmade, distributed)
    if unread := [job for job in own if not job.reading.is_file()]:
        clip = args.clip and ClipScorer(args.clip, device=str(distributed.device), logit_divisor=1.0)
        images.read(make_engine(args.engine), clip or None, unread, distributed.is_main)
    distributed.wait_for_everyone()
    if not distributed.is_main:
        return None
    found = results(args.benchmark, args.language, everything)
    (args.out / "results.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(args.out / "index.html", args.benchmark, found, everything)
    print(json.dumps(found["all"], indent=2))
    return found


def _sample(args: argparse.Namespace, unmade: list[images.Job], distributed: Distributed) -> None:
    if args.model is None:
        raise ValueError(
            f"{len(unmade)} images are missing, such as {unmade[0].image}; give --model, or put them there"
        )
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    options |= {"height": args.resolution, "width": args.resolution}
    given = {name: value for name, value in options.items() if value is not None}
    pipeline = images.load_pipeline(args.model, args.lora, args.mixed_precision, distributed.device)
    images.sample(pipeline, unmade, args.batch_size, args.seed, given, distributed.is_main)


def _keep_settings(args: argparse.Namespace) -> None:
    """Write the settings beside the images. Raises ValueError where others stand there."""
    path, now = args.out / "settings.json", {name: getattr(args, name) for name in SETTINGS}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if changed := [
            f"{name}: {before.get(name)} there, {now[name]} now" for name in now if before.get(name) != now[name]
        ]:
            raise ValueError(f"{args.out} holds another evaluation ({'; '.join(changed)}); take another --out")
    path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text}")
    return int(text)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"text_benchmarks: {error}")
