"""Write the signs world's prompts: dataset/signs/train.txt and test.txt, one caption per line.

    python -m scripts.dataset signs

The words of test.txt are never in train.txt, nor in what tiny-sd3 was pretrained on.
"""

import argparse
from pathlib import Path

from scripts.pretrain.signs_world import make_scene


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("dataset/signs"))
    parser.add_argument("--num-train", type=int, default=2000)
    parser.add_argument("--num-test", type=int, default=384)
    parser.set_defaults(run=write_prompts)


def write_prompts(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for split, num_prompts in (("train", args.num_train), ("test", args.num_test)):
        captions = [make_scene(seed, split).caption for seed in range(num_prompts)]
        (args.out / f"{split}.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
        print(f"wrote {num_prompts} prompts to {args.out / split}.txt")
