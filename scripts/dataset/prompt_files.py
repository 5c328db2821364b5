"""What the commands that write prompts share: their arguments, and the files of the splits."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser, folder: Path, run: Callable[[argparse.Namespace], None]) -> None:
    parser.add_argument("--out", type=Path, default=folder)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0)
    parser.set_defaults(run=run)


def write(prompts: Mapping[str, Sequence[str]], out: Path, encoding: str = "ascii") -> None:
    """One file per split, one prompt per line."""
    out.mkdir(parents=True, exist_ok=True)
    for split, lines in prompts.items():
        (out / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding=encoding)
